//! Arguments of Python's calls as values of the core. Each error names the argument, its value and what would be right.

use super::errors;
use crate::base::error::Error;
use crate::core::history::Page;
use crate::settings::config::{SETTINGS, Value};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyMapping, PyString};
use std::sync::Arc;
use std::time::Duration;

/// Returns the text of an argument that takes a str.
///
/// Errors: `TypeError` for another type; `DataError` for text that UTF-8 cannot hold.
pub fn text<'a>(name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let Ok(text) = value.cast::<PyString>() else {
        return Err(PyTypeError::new_err(format!(
            "{name} is {}, of type {}; it takes a str",
            shown(value),
            type_name(value)
        )));
    };
    text.to_str()
        .map_err(|_| errors::data_error(not_utf8(name, text)))
}

/// As `text`, for an argument that may be None.
pub fn optional_text<'a>(
    name: &str,
    value: Option<&'a Bound<'_, PyAny>>,
) -> PyResult<Option<&'a str>> {
    value.map(|value| text(name, value)).transpose()
}

/// Returns the key of a lookup; `None` for a value that cannot be a name, and so is not found.
pub fn key<'a>(value: &'a Bound<'_, PyAny>) -> Option<&'a str> {
    value.cast::<PyString>().ok()?.to_str().ok()
}

/// Returns the name of a value's type, with the module if it is not `builtins`.
pub fn type_name(value: &Bound<'_, PyAny>) -> String {
    value
        .get_type()
        .fully_qualified_name()
        .map_or_else(|_| "?".to_owned(), |name| name.to_string())
}

/// The values of a mapping of settings, by name.
///
/// Errors: a value that no setting takes, or a setting that does not exist.
pub fn setting_values(settings: &Bound<'_, PyMapping>) -> PyResult<Vec<(String, Value)>> {
    let items = settings.items()?;
    let values = items.iter().map(|item| {
        let (name, value): (String, Bound<'_, PyAny>) = item.extract()?;
        let value = setting_value(&name, &value)?;
        Ok((name, value))
    });
    values.collect()
}

fn setting_value(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(text) = value.cast::<PyString>() {
        let text = text
            .to_str()
            .map_err(|_| Error::Setting(not_utf8(name, text)))?;
        return Ok(Value::Text(text.to_owned()));
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

/// Describes text that UTF-8 cannot hold.
fn not_utf8(name: &str, text: &Bound<'_, PyString>) -> String {
    let shown = shown(text.as_any());
    format!("{name} is {shown}; it takes text without half surrogate pairs")
}

/// Returns the beginning of a value's `ascii()`.
fn shown(value: &Bound<'_, PyAny>) -> String {
    const MOST: usize = 80;
    let shown = value.py().import("builtins").and_then(|builtins| {
        builtins
            .getattr("ascii")?
            .call1((value,))?
            .extract::<String>()
    });
    match shown {
        Ok(shown) if shown.len() <= MOST => shown,
        // `ascii` gives only characters of one byte
        Ok(shown) => format!("{}…", shown.get(..MOST).unwrap_or_default()),
        Err(_) => "a value without a repr".to_owned(),
    }
}

/// The arguments of `history` as a page.
///
/// Errors: `ValueError` for a limit below 1, and for an offset below 0 or beyond the largest.
pub fn page(limit: i128, after: Option<i128>, before: Option<i128>) -> PyResult<Page> {
    if limit < 1 {
        let problem = format!("limit is {limit}; it takes a whole number from 1 on");
        return Err(PyValueError::new_err(problem));
    }
    let offset = |name: &str, given: Option<i128>| {
        let Some(given) = given else { return Ok(None) };
        i64::try_from(given)
            .ok()
            .filter(|offset| *offset >= 0)
            .map(|offset| Some(offset.unsigned_abs()))
            .ok_or_else(|| {
                PyValueError::new_err(format!(
                    "{name} is {given}; an offset is a whole number from 0 to {}",
                    i64::MAX
                ))
            })
    };
    Ok(Page {
        limit: usize::try_from(limit).unwrap_or(usize::MAX),
        after: offset("after", after)?,
        before: offset("before", before)?,
    })
}

/// Returns a timeout as a duration: none for a negative number or NaN, the longest for a number that is too large.
pub fn seconds(timeout: f64) -> Duration {
    Duration::try_from_secs_f64(timeout).unwrap_or(if timeout > 0.0 {
        Duration::MAX
    } else {
        Duration::ZERO
    })
}

pub fn texts(ids: &[Arc<str>]) -> Vec<String> {
    ids.iter().map(|id| (**id).to_owned()).collect()
}
