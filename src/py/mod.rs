//! The Python boundary: convert arguments, release the interpreter lock, call, convert the reply. The only user of pyo3.

mod arguments;
mod asking;
mod bridge;
mod configured;
mod done;
mod errors;
mod event_dicts;
mod json;
mod messenger;
mod operation;
mod publishing;
mod reports;
mod stats;
mod wake_socket;

use crate::base::error::Error;
use crate::settings::config::{Config, SETTINGS, Value};
use pyo3::prelude::*;
use std::path::PathBuf;
use std::time::Duration;

#[pymodule(gil_used = false)]
mod _tantor {
    #[pymodule_export]
    use super::bridge::LoopTasks;
    #[pymodule_export]
    use super::done::Done;
    #[pymodule_export]
    use super::messenger::Messenger;
    #[pymodule_export]
    use super::operation::Operation;
    #[pymodule_export]
    use super::{
        after_fork_in_child, after_fork_in_parent, back_up, before_fork, nearest_setting, restore,
        setting_table, wait_for_threads,
    };

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

/// A row of the settings' table: name, kind, default, help.
type SettingRow = (&'static str, &'static str, Option<Py<PyAny>>, &'static str);

/// Every setting as `(name, kind, default, help)`; kind is "integer", "number", "boolean", "text", "json" (text
/// that holds JSON) or "list" (names separated by commas).
///
/// A default of None means that the default is derived from other settings; `help` says how.
#[pyfunction]
fn setting_table(py: Python<'_>) -> PyResult<Vec<SettingRow>> {
    let defaults = Config::default();
    SETTINGS
        .iter()
        .map(|setting| {
            let default = if setting.derived {
                None
            } else {
                Some(to_python(py, setting.value(&defaults))?)
            };
            Ok((setting.name, setting.kind(), default, setting.help))
        })
        .collect()
}

/// The setting that a misspelled name most likely stands for; None if no name is similar.
#[pyfunction]
fn nearest_setting(name: &str) -> Option<&'static str> {
    let names: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
    crate::base::misspelling::nearest(name, &names)
}

/// Block until no thread of Tantor can call into Python any more; False if `timeout` seconds passed before.
#[pyfunction]
fn wait_for_threads(py: Python<'_>, timeout: f64) -> bool {
    let timeout = Duration::try_from_secs_f64(timeout).unwrap_or_default();
    publishing::warn_no_more();
    py.detach(|| crate::base::fork::wait_for_threads(timeout))
}

/// Copy a database to a new file, also while a server uses the database.
#[pyfunction]
fn back_up(py: Python<'_>, database: PathBuf, target: PathBuf) -> PyResult<()> {
    py.detach(move || crate::adapters::sqlite::back_up(&database, &target))
        .map_err(|error| Error::Storage(error.0).into())
}

/// Replace a database that no server uses by a copy. Every channel then has a new epoch.
#[pyfunction]
fn restore(py: Python<'_>, backup: PathBuf, database: PathBuf) -> PyResult<()> {
    py.detach(move || crate::adapters::sqlite::restore(&backup, &database))
        .map_err(|error| Error::Storage(error.0).into())
}

/// Wait, without the interpreter lock, until no thread does fork-sensitive work: a start, a commit. No such
/// work begins until this thread calls `after_fork_in_parent` or `after_fork_in_child`.
#[pyfunction]
fn before_fork(py: Python<'_>) {
    // checked with the interpreter lock held, so that no work begins between the check and the fork
    crate::base::fork::before(crate::base::fork::MAX_WAIT, |left| {
        py.detach(|| crate::base::fork::wait(left))
    });
}

/// Allow fork-sensitive work again, in the parent.
#[pyfunction]
fn after_fork_in_parent() {
    crate::base::fork::in_parent();
}

/// Mark this process as a new fork: the servers and databases that the parent opened belong to the parent.
#[pyfunction]
fn after_fork_in_child() {
    crate::base::fork::in_child();
}

fn to_python(py: Python<'_>, value: Value) -> PyResult<Py<PyAny>> {
    use pyo3::IntoPyObjectExt;
    match value {
        Value::Integer(value) => value.into_py_any(py),
        Value::Number(value) => value.into_py_any(py),
        Value::Boolean(value) => value.into_py_any(py),
        Value::Text(value) => value.into_py_any(py),
    }
}
