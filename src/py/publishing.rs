//! What `send`, `broadcast` and `emergency` have in common: their options and what they return.

use super::arguments::optional_text;
use super::done::Done;
use super::operation::{Operation, Outcome};
use crate::base::priority::Priority;
use crate::ports::calls::PublishOptions;
use crate::wire::messages::OwnFields;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::sync::Arc;

pub fn own_fields(dict: &Bound<'_, PyDict>) -> PyResult<OwnFields> {
    Ok(OwnFields {
        id: dict.contains("id")?,
        channel: dict.contains("channel")?,
        timestamp: dict.contains("timestamp")?,
        sender: dict.contains("sender")?,
        ack: dict.contains("ack")?,
    })
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

/// What a call returns: something done, or something that is done when it is saved. An emergency's has its id.
pub fn outcome(
    py: Python<'_>,
    value: Py<PyAny>,
    message_id: Option<String>,
    waited_for: Option<Arc<Outcome>>,
) -> PyResult<Py<PyAny>> {
    let Some(settled) = waited_for else {
        return match message_id {
            None => Done::new(value),
            Some(id) => Done::of_message(value, id),
        }
        .into_py_any(py);
    };
    let pending = py.import("tantor.pending")?.getattr("Pending")?;
    Ok(pending
        .call1((value, Operation::new(settled), message_id))?
        .unbind())
}
