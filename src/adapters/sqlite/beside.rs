//! The names of the files that belong to a database.

use std::path::{Path, PathBuf};

/// Returns the path of a file beside the database: the name of the database with a suffix.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
