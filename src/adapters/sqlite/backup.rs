//! Copies of a database: made while the database is in use, and put back in its place.

use super::beside::beside;
use super::commits::CommitsFile;
use super::lock::{FileLock, cannot_open};
use super::schema::{APPLICATION_ID, MIGRATIONS};
use crate::base::fork::ForkGuard;
use crate::ports::durability::StoreError;
use rusqlite::{Connection, OpenFlags};
use std::fs::{self, File};
use std::path::Path;

/// Copies a database to a new file, also while a server uses the database. The copy shows the database at one moment.
///
/// Errors: the problem of the database or of the new file.
pub fn back_up(database: &Path, target: &Path) -> Result<(), StoreError> {
    let _whole = ForkGuard::new();
    if target.exists() {
        return Err(StoreError(format!(
            "{} exists already; name a file that does not",
            target.display()
        )));
    }
    copy(&open(database)?, target)
}

/// Puts a copy in the place of a database. Every channel gets another epoch, so that clients notice the change.
///
/// Errors: the problem of the copy or of the database; a server uses the database.
pub fn restore(backup: &Path, database: &Path) -> Result<(), StoreError> {
    let _whole = ForkGuard::new();
    let source = open(backup)?;
    let verdict: String = source
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| StoreError(cannot_open(backup, &error.to_string())))?;
    if verdict != "ok" {
        return Err(StoreError(cannot_open(backup, &verdict)));
    }
    let _lock = FileLock::take(database)?;
    if is_same(backup, database) {
        return Err(StoreError(format!(
            "{} is the database itself; name its backup",
            backup.display()
        )));
    }
    let failed = |error: std::io::Error| {
        StoreError(format!("cannot restore {}: {error}", database.display()))
    };
    let copied = beside(database, "-restored");
    remove(&copied).map_err(failed)?;
    copy(&source, &copied)?;
    // first: if the restore is interrupted, the next open renews all epochs
    CommitsFile::open(database)?.disown().map_err(failed)?;
    // the log of the old file would be applied to the new one
    for suffix in ["-wal", "-shm"] {
        remove(&beside(database, suffix)).map_err(failed)?;
    }
    fs::rename(&copied, database)
        .and_then(|()| sync_folder(database))
        .map_err(failed)
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error: rusqlite::Error| StoreError(cannot_open(path, &error.to_string()));
    super::own_locks::install();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    if number("application_id").map_err(failed)? != APPLICATION_ID {
        return Err(StoreError(cannot_open(
            path,
            "it is not a database of Tantor",
        )));
    }
    let version = number("user_version").map_err(failed)?;
    if usize::try_from(version).is_ok_and(|version| version > MIGRATIONS.len()) {
        return Err(StoreError(cannot_open(path, "a newer Tantor has made it")));
    }
    Ok(connection)
}

/// Writes one snapshot of a database to another file, and waits until the file is on the disk.
fn copy(source: &Connection, target: &Path) -> Result<(), StoreError> {
    let failed = |problem: &dyn std::fmt::Display| {
        // only the file that this call has made
        let _ = remove(target);
        StoreError(format!("cannot write {}: {problem}", target.display()))
    };
    let Some(name) = target.to_str() else {
        return Err(failed(&"its name is not UTF-8"));
    };
    source
        .execute("VACUUM INTO ?1", [name])
        .map_err(|error| failed(&error))?;
    File::options()
        .write(true)
        .open(target)
        .and_then(|file| file.sync_all())
        .and_then(|()| sync_folder(target))
        .map_err(|error| failed(&error))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Other systems cannot open a folder as a file.
#[cfg(not(unix))]
#[expect(
    clippy::unnecessary_wraps,
    reason = "there is something to do only on Unix"
)]
fn sync_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}
