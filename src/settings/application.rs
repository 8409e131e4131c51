//! The settings by which the processes of one application find each other.

use std::path::PathBuf;

/// Reads the setting `app_id`.
///
/// Errors: the problem, as text.
pub fn read_app_id(name: &str) -> Result<String, String> {
    if name.len() > MAX_APP_ID {
        return Err(format!("it has {} bytes", name.len()));
    }
    Ok(name.to_owned())
}

/// The longest `app_id`, in bytes. Only its hash is in file names.
const MAX_APP_ID: usize = 255;

/// Reads the setting `runtime_dir`.
///
/// Errors: the problem, as text.
pub fn read_runtime_dir(path: &str) -> Result<Option<PathBuf>, String> {
    match path {
        "" => Ok(None),
        path if path.starts_with('/') => Ok(Some(path.into())),
        _ => Err(
            "it must begin with a slash, because processes have different working directories"
                .to_owned(),
        ),
    }
}

/// Writes the setting `runtime_dir`.
pub fn write_runtime_dir(path: &Option<PathBuf>) -> String {
    path.as_ref()
        .map_or_else(String::new, |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_folders_absolute() {
        assert!(read_app_id("").is_ok() && read_app_id(&"x".repeat(MAX_APP_ID)).is_ok());
        assert!(read_app_id(&"x".repeat(MAX_APP_ID + 1)).is_err());
        assert_eq!(read_runtime_dir(""), Ok(None));
        let path = read_runtime_dir("/var/run").unwrap();
        assert_eq!(write_runtime_dir(&path), "/var/run");
        assert!(read_runtime_dir("run").is_err());
    }
}
