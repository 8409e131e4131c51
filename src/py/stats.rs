//! `Tantor.stats()`: gauges and counters as a dict.

use crate::ports::stats::Stats;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// With more connections than this, the mood is "anxious", as with the original.
const CALM_CONNECTIONS: usize = 10;

/// Returns the dict of `Tantor.stats()`.
pub fn dict<'py>(py: Python<'py>, stats: &Stats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("total_connections", stats.connections)?;
    let channels = PyDict::new(py);
    for (name, count) in &stats.census {
        channels.set_item(&**name, count)?;
    }
    dict.set_item("channels", channels)?;
    let (queued_messages, queued_bytes) = stats.queued;
    dict.set_item("queued_messages", queued_messages)?;
    dict.set_item("queued_bytes", queued_bytes)?;
    dict.set_item("handshakes", stats.handshakes)?;
    dict.set_item("unfinished_bytes", stats.unfinished_bytes)?;
    dict.set_item("socket_buffer_bytes", stats.socket_buffer_bytes)?;
    dict.set_item("connection_limit", stats.connection_limit)?;
    dict.set_item("uptime", stats.uptime.as_secs_f64())?;
    let word = if stats.is_listening {
        "listening"
    } else {
        "sleeping"
    };
    dict.set_item("status", word)?;
    let is_anxious = stats.connections > CALM_CONNECTIONS;
    dict.set_item("mood", if is_anxious { "anxious" } else { "calm" })?;
    for (name, count) in &stats.counters {
        dict.set_item(name, count)?;
    }
    dict.set_item("inbox_bytes", stats.inbox_bytes)?;
    dict.set_item("events_queued", stats.events.queued)?;
    dict.set_item("event_bytes", stats.events.bytes)?;
    dict.set_item("events_dropped", stats.events.dropped)?;
    dict.set_item("event_pauses", stats.events.pauses)?;
    dict.set_item("disconnects", &stats.disconnects)?;
    dict.set_item("shards", stats.shards)?;
    add_what_is_kept(py, stats, &dict)?;
    Ok(dict)
}

fn add_what_is_kept(py: Python<'_>, stats: &Stats, dict: &Bound<'_, PyDict>) -> PyResult<()> {
    dict.set_item("history_messages", stats.history.messages)?;
    dict.set_item("history_bytes", stats.history.bytes.evictable)?;
    dict.set_item("durable_bytes", stats.history.bytes.durable)?;
    let (messages, bytes) = stats.mail;
    dict.set_item("mailbox_messages", messages)?;
    dict.set_item("mailbox_bytes", bytes)?;
    dict.set_item("away", stats.away)?;
    dict.set_item("away_bytes", stats.away_bytes)?;
    let (known, displaced) = stats.idempotency_keys;
    dict.set_item("idempotency_keys", known)?;
    dict.set_item("idempotency_keys_displaced", displaced)?;
    let dropped = PyDict::new(py);
    for (reason, channel, count) in &stats.dropped {
        let by_channel = if let Some(known) = dropped.get_item(reason)? {
            known.cast_into::<PyDict>()?
        } else {
            let by_channel = PyDict::new(py);
            dropped.set_item(reason, &by_channel)?;
            by_channel
        };
        by_channel.set_item(&**channel, count)?;
    }
    dict.set_item("dropped", dropped)?;
    let worst = stats.worst_connections.iter();
    let worst = worst.map(|(id, bytes)| (&**id, *bytes));
    dict.set_item("worst_connections", PyList::new(py, worst)?)?;
    let health = &stats.storage;
    let storage = PyDict::new(py);
    storage.set_item("kind", &*health.kind)?;
    storage.set_item("path", &health.path)?;
    storage.set_item("degraded", health.is_degraded)?;
    storage.set_item("error", &health.error)?;
    storage.set_item("queued_changes", health.queued_changes)?;
    storage.set_item("queued_bytes", health.queued_bytes)?;
    storage.set_item("commits", health.commits)?;
    storage.set_item("changes_saved", health.changes_saved)?;
    storage.set_item("changes_lost", health.changes_lost)?;
    storage.set_item("file_bytes", health.file_bytes)?;
    dict.set_item("storage", storage)
}
