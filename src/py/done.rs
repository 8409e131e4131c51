//! An awaitable that already holds its result, as `broadcast` and other calls return it.

use pyo3::exceptions::PyStopIteration;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};

/// An awaitable that already holds its result; also a `collections.abc.Coroutine`.
///
/// `await done`, `asyncio.run(done)`, `asyncio.create_task(done)` and `asyncio.gather(done)` return the result;
/// `done.result()` returns it without an event loop.
#[pyclass(frozen, module = "tantor._tantor")]
pub struct Done {
    value: Py<PyAny>,
    message_id: Option<String>,
}

impl Done {
    pub fn new(value: Py<PyAny>) -> Self {
        Self {
            value,
            message_id: None,
        }
    }

    /// For a message whose id is not the value.
    pub fn of_message(value: Py<PyAny>, message_id: String) -> Self {
        Self {
            value,
            message_id: Some(message_id),
        }
    }

    fn stop(&self, py: Python<'_>) -> PyErr {
        PyStopIteration::new_err((self.value.clone_ref(py),))
    }
}

#[pymethods]
impl Done {
    /// The result.
    #[getter]
    fn value(&self, py: Python<'_>) -> Py<PyAny> {
        self.value.clone_ref(py)
    }

    /// The id of an emergency, for `delivery()`; None for other messages.
    #[getter]
    fn message_id(&self) -> Option<&str> {
        self.message_id.as_deref()
    }

    /// The result, at once.
    fn result(&self, py: Python<'_>) -> Py<PyAny> {
        self.value.clone_ref(py)
    }

    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Err(self.stop(py))
    }

    /// As a coroutine, for `asyncio.create_task`.
    #[pyo3(signature = (value, /))]
    fn send(&self, value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        Err(self.stop(value.py()))
    }

    /// As a coroutine.
    #[pyo3(signature = (typ, val = None, tb = None, /))]
    #[expect(clippy::unused_self, reason = "a method of the coroutine protocol")]
    fn throw(
        &self,
        typ: &Bound<'_, PyAny>,
        val: Option<&Bound<'_, PyAny>>,
        tb: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let error = match (typ.cast::<PyType>(), val) {
            (Ok(class), None) => class.call0()?,
            (Ok(class), Some(value)) if value.is_instance(class)? => value.clone(),
            (Ok(class), Some(value)) if value.is_instance_of::<PyTuple>() => {
                class.call1(value.cast::<PyTuple>()?)?
            }
            (Ok(class), Some(value)) => class.call1((value,))?,
            (Err(_), _) => typ.clone(),
        };
        if let Some(traceback) = tb {
            error.call_method1("with_traceback", (traceback,))?;
        }
        Err(PyErr::from_value(error))
    }

    /// As a coroutine.
    #[expect(clippy::unused_self, reason = "a method of the coroutine protocol")]
    fn close(&self) {}

    /// `Done[int]` in annotations.
    #[classmethod]
    fn __class_getitem__(
        class: &Bound<'_, PyType>,
        item: &Bound<'_, PyAny>,
    ) -> PyResult<Py<PyAny>> {
        let alias = class.py().import("types")?.getattr("GenericAlias")?;
        Ok(alias.call1((class, item))?.unbind())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("Done({})", self.value.bind(py).repr()?))
    }
}
