//! The options of `send`, `broadcast` and `emergency`, the awaitables that they return, and their warning.

use super::arguments::{optional_text, type_name};
use super::done::Done;
use super::operation::{Operation, Outcome};
use crate::base::fork::CountedThread;
use crate::base::priority::Priority;
use crate::ports::calls::PublishOptions;
use crate::wire::messages::OwnFields;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The fields of a message that the sender gave, in place of those that the server fills in; `None` for a text message.
pub fn own_fields(message: &Bound<'_, PyAny>) -> PyResult<Option<OwnFields>> {
    let Ok(dict) = message.cast::<PyDict>() else {
        if message.is_instance_of::<PyString>() {
            return Ok(None);
        }
        let name = type_name(message);
        return Err(PyTypeError::new_err(format!(
            "message must be a str or a dict, not {name}"
        )));
    };
    Ok(Some(OwnFields {
        id: dict.contains("id")?,
        channel: dict.contains("channel")?,
        timestamp: dict.contains("timestamp")?,
        sender: dict.contains("sender")?,
        ack: dict.contains("ack")?,
    }))
}

pub fn publish_options<'a>(
    priority: Option<&Bound<'_, PyAny>>,
    durable: bool,
    idempotency_key: Option<&'a Bound<'_, PyAny>>,
) -> PyResult<PublishOptions<'a>> {
    let priority = match optional_text("priority", priority)? {
        None => Priority::Normal,
        Some(name) => Priority::from_name(name).ok_or_else(|| {
            PyValueError::new_err(format!(
                "priority is {name:?}; it takes {}",
                Priority::TAKES
            ))
        })?,
    };
    Ok(PublishOptions {
        priority,
        durable,
        idempotency_key: optional_text("idempotency_key", idempotency_key)?,
    })
}

/// Returns the awaitable of a call: a `Done`, or a `Pending` while the message is being saved.
///
/// `message_id` is for an emergency, whose value is not its id.
pub fn awaitable(
    py: Python<'_>,
    value: Py<PyAny>,
    message_id: Option<String>,
    outcome: Option<Arc<Outcome>>,
) -> PyResult<Py<PyAny>> {
    let Some(outcome) = outcome else {
        return match message_id {
            None => Done::new(value),
            Some(id) => Done::of_message(value, id),
        }
        .into_py_any(py);
    };
    let pending = py.import("tantor.pending")?.getattr("Pending")?;
    Ok(pending
        .call1((value, Operation::new(outcome), message_id))?
        .unbind())
}

/// True once this process has warned that its messages reach no client, or may not warn any more.
static HAS_WARNED: AtomicBool = AtomicBool::new(false);

/// Warns, once a process, that the messages of a server that is not started reach no client.
pub fn warn_once(messenger: &Bound<'_, PyAny>) -> PyResult<()> {
    if HAS_WARNED.load(Ordering::Relaxed) {
        return Ok(());
    }
    HAS_WARNED.store(true, Ordering::Relaxed);
    // the end of the interpreter waits for counted threads; it would end this thread while Python code runs
    let _counted = CountedThread::new();
    messenger.call_method0("_warn_unless_running").map(drop)
}

/// Ends the warnings, because the interpreter is about to end. To be called with the interpreter lock held, as a warning
/// begins with the lock held.
pub fn warn_no_more() {
    HAS_WARNED.store(true, Ordering::Relaxed);
}
