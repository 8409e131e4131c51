//! Converts the errors of the core to Python exceptions. No other file does.

use crate::base::error::Error;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTimeoutError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Setting(_) => of_tantor("SettingError", message),
            Error::UnknownSetting(_) => PyTypeError::new_err(message),
            Error::Argument(_) | Error::Refused(_) => PyValueError::new_err(message),
            Error::Bind { source, .. } => match source.raw_os_error() {
                Some(number) => PyOSError::new_err((number, message)),
                None => PyOSError::new_err(message),
            },
            Error::Start(_) => PyRuntimeError::new_err(message),
            Error::Storage(_) => storage_error(message),
            Error::Link(_) => of_tantor("LinkError", message),
            Error::TimedOut(_) => PyTimeoutError::new_err(message),
        }
    }
}

/// An error for data that JSON cannot hold.
pub fn data_error(message: String) -> PyErr {
    of_tantor("DataError", message)
}

/// An error for storage that cannot be opened, or that could not save a change.
pub fn storage_error(message: String) -> PyErr {
    of_tantor("StorageError", message)
}

/// An error for a server that the parent of this process started.
pub fn forked_error() -> PyErr {
    let message = "this Tantor was started by the process that this one was forked from; make a new one here, \
        or start it after the fork";
    of_tantor("ForkedError", message.to_owned())
}

/// An error for an event loop on which the parent of this process awaited operations.
pub fn forked_loop_error() -> PyErr {
    let message = "this event loop was used by the process that this one was forked from; use a new event loop here";
    of_tantor("ForkedError", message.to_owned())
}

/// An exception of `tantor.errors`.
fn of_tantor(name: &str, message: String) -> PyErr {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    Python::attach(|py| {
        let class = MODULE
            .get_or_try_init(py, || py.import("tantor.errors").map(Bound::unbind))
            .and_then(|module| module.bind(py).getattr(name))
            .and_then(|class| class.cast_into::<PyType>().map_err(PyErr::from));
        match class {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error,
        }
    })
}
