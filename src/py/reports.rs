//! Replies about channels, clients and messages, as Python values.

use super::arguments::texts;
use super::done::Done;
use crate::ports::calls::{ChannelInfo, ConnectionInfo, DeliveryReport, HistoryPage};
use crate::wire::messages;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::sync::Arc;

/// Name, type, subscribers, created at.
pub type ChannelRow = (String, String, Vec<String>, f64);

/// Client id, joined at, last ping, channels.
pub type ConnectionRow = (String, f64, f64, Vec<String>);

pub fn channel_row(info: &ChannelInfo) -> ChannelRow {
    (
        info.name.to_string(),
        info.kind.name().to_owned(),
        texts(&info.subscribers),
        info.created_at.seconds(),
    )
}

pub fn connection_row(info: &ConnectionInfo) -> ConnectionRow {
    (
        info.client_id.to_string(),
        info.joined_at.seconds(),
        info.last_ping.seconds(),
        texts(&info.channels),
    )
}

/// The `History` of a page.
pub fn history(py: Python<'_>, page: &HistoryPage) -> PyResult<Done> {
    let publications = page
        .publications
        .iter()
        .map(|frame| PyBytes::new(py, frame.payload()));
    let publications = PyList::new(py, publications)?;
    let epoch = messages::epoch_text(page.epoch);
    let history = py
        .import("tantor.views")?
        .getattr("History")?
        .call_method1("from_wire", (epoch, page.offset, publications))?;
    Ok(Done::new(history.unbind()))
}

pub fn delivery(
    py: Python<'_>,
    report: Option<DeliveryReport>,
) -> PyResult<Option<Bound<'_, PyDict>>> {
    let Some(report) = report else {
        return Ok(None);
    };
    let dict = PyDict::new(py);
    dict.set_item("handed_over", report.handed_over)?;
    dict.set_item("written", report.written)?;
    dict.set_item("acknowledged", report.acknowledged)?;
    dict.set_item("waiting", report.waiting)?;
    Ok(Some(dict))
}

pub fn presence<'py>(
    py: Python<'py>,
    channel: &str,
    users: &[Arc<str>],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("channel", channel)?;
    dict.set_item("online", users.len())?;
    dict.set_item("users", PyList::new(py, users.iter().map(|id| &**id))?)?;
    Ok(dict)
}

/// The number of subscribers by the name of the channel.
pub fn census<'py>(
    py: Python<'py>,
    channels: &[(Arc<str>, usize)],
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in channels {
        dict.set_item(&**name, count)?;
    }
    Ok(dict)
}
