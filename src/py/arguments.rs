//! Arguments of Python's calls as values of the core.

use crate::config::{SETTINGS, Value};
use crate::error::Error;
use crate::node::PublishOptions;
use crate::priority::Priority;
use crate::protocol::OwnFields;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyString};

/// Which of the server's own fields a message's keys replace.
pub fn own_fields(dict: &Bound<'_, PyDict>) -> PyResult<OwnFields> {
    Ok(OwnFields {
        id: dict.contains("id")?,
        channel: dict.contains("channel")?,
        timestamp: dict.contains("timestamp")?,
        sender: dict.contains("sender")?,
        ack: dict.contains("ack")?,
    })
}

/// Errors: a `priority` that is none.
pub fn publish_options<'a>(
    priority: Option<&str>,
    durable: bool,
    idempotency_key: Option<&'a str>,
) -> PyResult<PublishOptions<'a>> {
    let priority = match priority {
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
        idempotency_key,
    })
}

/// Errors: a value that no setting takes, or a setting that does not exist.
pub fn setting_value(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::Text(text.to_str()?.to_owned()));
    }
    if let Ok(value) = value.cast::<PyBool>() {
        return Ok(Value::Boolean(value.is_true()));
    }
    if value.is_instance_of::<PyFloat>() {
        return Ok(Value::Number(value.extract()?));
    }
    if value.is_instance_of::<PyInt>()
        && let Ok(integer) = value.extract::<i64>()
    {
        return Ok(Value::Integer(integer));
    }
    let setting = SETTINGS.iter().find(|setting| setting.name == name);
    let setting = setting.ok_or_else(|| Error::UnknownSetting(name.to_owned()))?;
    Err(Error::Setting(format!(
        "{name} is {}; it takes {}",
        value.repr()?,
        setting.takes()
    ))
    .into())
}
