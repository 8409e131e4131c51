//! `Tantor.stats()`: gauges and counters as a dict.

use crate::host::server::Server;
use crate::node::Node;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use std::sync::Arc;
use std::time::Instant;

/// Above so many connections the original is anxious.
const CALM_CONNECTIONS: usize = 10;

/// Connections that `worst_connections` names.
const WORST: usize = 10;

pub fn stats<'py>(
    py: Python<'py>,
    server: &Arc<Server>,
    created: Instant,
) -> PyResult<Bound<'py, PyDict>> {
    let node = server.node();
    let dict = PyDict::new(py);
    let connections = node.connection_count();
    let (queued_messages, queued_bytes) = node.queued();
    dict.set_item("total_connections", connections)?;
    let channels = PyDict::new(py);
    for (name, count) in py.detach(|| node.census()) {
        channels.set_item(&*name, count)?;
    }
    dict.set_item("channels", channels)?;
    dict.set_item("queued_messages", queued_messages)?;
    dict.set_item("queued_bytes", queued_bytes)?;
    let incoming = node.incoming();
    dict.set_item("handshakes", incoming.handshakes)?;
    dict.set_item("unfinished_bytes", incoming.unfinished_bytes)?;
    dict.set_item("socket_buffer_bytes", node.socket_buffer_bytes())?;
    dict.set_item("connection_limit", node.socket_limits().connections)?;
    dict.set_item("uptime", created.elapsed().as_secs_f64())?;
    let is_running = server.is_running();
    dict.set_item("status", if is_running { "listening" } else { "sleeping" })?;
    let is_anxious = connections > CALM_CONNECTIONS;
    dict.set_item("mood", if is_anxious { "anxious" } else { "calm" })?;
    let counters = &node.counters;
    for (name, counter) in [
        ("messages_sent", &counters.messages_sent),
        ("messages_received", &counters.messages_received),
        ("connections_total", &counters.connections_total),
        ("frames_received", &counters.frames_received),
        ("publications", &counters.publications),
        ("encoded", &counters.encoded),
        ("undelivered", &counters.undelivered),
        ("errors_sent", &counters.errors_sent),
        ("refused_connections", &counters.refused_full),
        ("handshakes_shed", &counters.handshakes_shed),
        ("dropped_slow_consumer", &counters.dropped_slow_consumer),
        ("inbox_pauses", &counters.inbox_pauses),
        ("publisher_pauses", &counters.publisher_pauses),
        ("resumes", &counters.resumes),
        ("resumes_refused", &counters.resumes_refused),
        ("away_forgotten", &counters.away_forgotten),
        ("not_saved", &counters.not_saved),
    ] {
        dict.set_item(name, counter.get())?;
    }
    dict.set_item("inbox_bytes", node.inbox_bytes())?;
    dict.set_item("events_queued", node.events.len())?;
    dict.set_item("event_bytes", node.events.bytes())?;
    dict.set_item("events_dropped", node.events.dropped())?;
    dict.set_item("event_pauses", node.events.pauses())?;
    dict.set_item("disconnects", counters.disconnects())?;
    dict.set_item("shards", node.config.shards)?;
    add_what_is_kept(py, node, &dict)?;
    Ok(dict)
}

fn add_what_is_kept(py: Python<'_>, node: &Arc<Node>, dict: &Bound<'_, PyDict>) -> PyResult<()> {
    let kept = py.detach(|| node.history_size());
    dict.set_item("history_messages", kept.messages)?;
    dict.set_item("history_bytes", kept.bytes.evictable)?;
    dict.set_item("durable_bytes", kept.bytes.durable)?;
    let (messages, bytes) = node.mail_size();
    dict.set_item("mailbox_messages", messages)?;
    dict.set_item("mailbox_bytes", bytes)?;
    dict.set_item("away", node.away_count())?;
    dict.set_item("away_bytes", node.away_bytes())?;
    let (known, displaced) = node.idempotency_size();
    dict.set_item("idempotency_keys", known)?;
    dict.set_item("idempotency_keys_displaced", displaced)?;
    let dropped = PyDict::new(py);
    for (reason, channel, count) in node.dropped() {
        let by_channel = if let Some(known) = dropped.get_item(reason)? {
            known.cast_into::<PyDict>()?
        } else {
            let by_channel = PyDict::new(py);
            dropped.set_item(reason, &by_channel)?;
            by_channel
        };
        by_channel.set_item(&*channel, count)?;
    }
    dict.set_item("dropped", dropped)?;
    let worst = py.detach(|| node.worst_connections(WORST));
    let worst = worst.iter().map(|(id, bytes)| (&**id, *bytes));
    dict.set_item("worst_connections", PyList::new(py, worst)?)?;
    let health = py.detach(|| node.storage_health());
    let storage = PyDict::new(py);
    storage.set_item("kind", health.kind)?;
    storage.set_item("path", health.path)?;
    storage.set_item("degraded", health.is_degraded)?;
    storage.set_item("error", health.error)?;
    storage.set_item("queued_changes", health.queued_changes)?;
    storage.set_item("queued_bytes", health.queued_bytes)?;
    storage.set_item("commits", health.commits)?;
    storage.set_item("changes_saved", health.changes_saved)?;
    storage.set_item("changes_lost", health.changes_lost)?;
    storage.set_item("file_bytes", health.file_bytes)?;
    dict.set_item("storage", storage)
}
