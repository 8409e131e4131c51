//! Events as the dicts that handlers get.

use crate::core::events::{Detail, Event, LogLevel, LogRecord, Told};
use crate::host::server::Server;
use jiter::PythonParse;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// An event's name, its fields, and the bytes that it took of the queue. A log record has no name.
pub type EventDict<'py> = (Bound<'py, PyString>, Bound<'py, PyDict>, usize);

/// How long `next_events` waits before it returns an empty batch.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for events without the interpreter lock, and returns up to `most` events. The events of the call before count as
/// handled.
/// Returns `None` once the server has ended and all events were returned. Sets `has_ended` when the batch is the last.
pub fn next_events<'py>(
    py: Python<'py>,
    server: &Server,
    has_ended: &AtomicBool,
    most: usize,
) -> Option<Vec<EventDict<'py>>> {
    let queue = server.events();
    queue.settle();
    if queue.take_resumed() {
        server.wake_shards();
    }
    if has_ended.swap(false, Ordering::Relaxed) {
        return None;
    }
    let batch = py.detach(|| {
        let mut batch = Vec::new();
        queue.take(most, PATIENCE, &mut batch);
        batch
    });
    if matches!(batch[..], [Told::End]) {
        return None;
    }
    let mut events = Vec::with_capacity(batch.len());
    for told in batch {
        match event(py, told) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => has_ended.store(true, Ordering::Relaxed),
            Err(error) => {
                queue.count_dropped();
                queue.log(LogLevel::Error, "events", || {
                    format!("an event was lost: {error}")
                });
            }
        }
    }
    Some(events)
}

fn event(py: Python<'_>, told: Told) -> PyResult<Option<EventDict<'_>>> {
    let bytes = told.weight();
    let (name, fields) = match told {
        Told::Event(event) => (PyString::new(py, &event.name), event_dict(py, &event)?),
        Told::Log(record) => (PyString::new(py, ""), log_dict(py, &record)?),
        Told::End => return Ok(None),
    };
    Ok(Some((name, fields, bytes)))
}

fn event_dict<'py>(py: Python<'py>, event: &Event) -> PyResult<Bound<'py, PyDict>> {
    let dict = match &event.detail {
        // the fields of the frame, which the fields of the event override
        Detail::Frame(json) => parse(py, json)?.cast_into::<PyDict>()?,
        _ => PyDict::new(py),
    };
    dict.set_item(intern!(py, "event"), &*event.name)?;
    dict.set_item(intern!(py, "timestamp"), event.at.seconds())?;
    if let Some(client_id) = &event.client_id {
        dict.set_item(intern!(py, "client_id"), &**client_id)?;
    }
    if let Some(channel) = &event.channel {
        dict.set_item(intern!(py, "channel"), &**channel)?;
    }
    match &event.detail {
        Detail::None | Detail::Frame(_) => {}
        Detail::Message(message) => dict.set_item(intern!(py, "message"), message)?,
        Detail::TotalUsers(total) => dict.set_item(intern!(py, "total_users"), total)?,
        Detail::Emergency {
            id,
            message,
            recipients,
        } => {
            dict.set_item(intern!(py, "id"), id)?;
            dict.set_item(intern!(py, "message"), message)?;
            dict.set_item(intern!(py, "severity"), intern!(py, "critical"))?;
            dict.set_item(
                intern!(py, "source"),
                intern!(py, "tantor_emergency_system"),
            )?;
            dict.set_item(intern!(py, "recipients"), recipients)?;
        }
        Detail::Disconnect { reason, code } => {
            dict.set_item(intern!(py, "reason"), reason)?;
            dict.set_item(intern!(py, "code"), code)?;
        }
        Detail::Data(json) => dict.set_item(intern!(py, "data"), parse(py, json)?)?,
    }
    Ok(dict)
}

fn log_dict<'py>(py: Python<'py>, record: &LogRecord) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item(intern!(py, "logger"), record.logger)?;
    dict.set_item(intern!(py, "level"), record.level as u8)?;
    dict.set_item(intern!(py, "message"), &record.message)?;
    Ok(dict)
}

/// Parses JSON that was checked already. The standard library parses the few texts that the fast parser refuses, such as
/// half a surrogate pair.
fn parse<'py>(py: Python<'py>, json: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    match PythonParse::default().python_parse(py, json) {
        Ok(value) => Ok(value),
        Err(_) => py.import("json")?.call_method1("loads", (json,)),
    }
}
