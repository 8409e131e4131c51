//! The lock of a database: one Tantor at a time uses it.

use crate::base::fork::ClosedInChild;
use crate::ports::durability::StoreError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Keeps other processes, and other Tantors of this one, from using a database at the same time.
pub(super) struct FileLock {
    // released before the file is closed
    _parents_own: ClosedInChild,
    file: File,
}

impl FileLock {
    /// Errors: another process has the lock; the folder cannot be written to.
    pub fn take(database: &Path) -> Result<Self, StoreError> {
        let path = super::beside::beside(database, "-lock");
        let failed = |error: std::io::Error| {
            StoreError(cannot_open(
                database,
                &format!("{}: {error}", path.display()),
            ))
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // only the error text names the holder
                let _ = file.read_to_string(&mut holder);
                let holder = holder.trim();
                let holder = if holder.is_empty() {
                    "another process"
                } else {
                    holder
                };
                return Err(StoreError(cannot_open(
                    database,
                    &format!(
                        "{holder} uses it; one Tantor at a time can, so give each a file of its own"
                    ),
                )));
            }
        }
        let holder = format!("process {}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(failed)?;
        Ok(Self {
            _parents_own: ClosedInChild::register(&file),
            file,
        })
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // explicitly, because a forked child may have the file open for a moment longer
        let _ = self.file.unlock();
    }
}

/// The error of a database that cannot be opened.
pub(super) fn cannot_open(path: &Path, problem: &str) -> String {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => format!(
            "cannot open the database {}: there is no folder {}",
            path.display(),
            folder.display()
        ),
        _ => format!("cannot open the database {}: {problem}", path.display()),
    }
}
