//! `Messenger`: a node and its server, as Python sees them. `tantor.Tantor` is made of it.

use super::done::Done;
use super::event_dicts::NamedDict;
use super::{bridge, errors, event_dicts, json, to_python};
use crate::config::{Config, SETTINGS, Value};
use crate::error::Error;
use crate::events::{LogLevel, Told};
use crate::node::Node;
use crate::protocol::{Body, OwnFields};
use crate::server::Server;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

#[pyclass(frozen, subclass, module = "tantor._tantor")]
pub struct Messenger {
    configured: OnceLock<Configured>,
    created: Instant,
    /// The end of events was taken together with the last of them.
    has_ended: AtomicBool,
}

struct Configured {
    server: ManuallyDrop<Arc<Server>>,
    default: Option<Py<PyAny>>,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back.
const KEPT_SCRATCH: usize = 64 << 10;

impl Messenger {
    fn configured(&self) -> PyResult<&Configured> {
        let unready = || {
            PyRuntimeError::new_err("Tantor.__init__ was not called; a subclass's own must call it")
        };
        let configured = self.configured.get().ok_or_else(unready)?;
        if configured.server.is_inherited() {
            return Err(errors::forked_error());
        }
        Ok(configured)
    }

    fn server(&self) -> PyResult<&Arc<Server>> {
        self.configured().map(|configured| &*configured.server)
    }

    fn node(&self) -> PyResult<&Arc<Node>> {
        Ok(self.server()?.node())
    }

    /// Writes a value as JSON and gives it to `act`, with the interpreter let go.
    fn with_json<T: Send>(
        &self,
        value: &Bound<'_, PyAny>,
        default: Option<&Bound<'_, PyAny>>,
        root: &str,
        act: impl FnOnce(&[u8]) -> T + Send,
    ) -> PyResult<T> {
        let py = value.py();
        let own = self
            .configured()?
            .default
            .as_ref()
            .map(|default| default.bind(py));
        // a hook may call in again, so the buffer is taken, not borrowed
        let mut bytes = SCRATCH.take();
        bytes.clear();
        json::write(&mut bytes, value, default.or(own), root)?;
        let result = py.detach(|| act(&bytes));
        if bytes.capacity() <= KEPT_SCRATCH {
            SCRATCH.set(bytes);
        }
        Ok(result)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // of another process's server nothing is touched, for its locks may be held for ever
        if !self.server.is_inherited() {
            self.server.begin_stop();
            // SAFETY: this is the only place that drops it, and nothing uses it after its owner's drop.
            unsafe { ManuallyDrop::drop(&mut self.server) };
        }
    }
}

#[pymethods]
impl Messenger {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            configured: OnceLock::new(),
            created: Instant::now(),
            has_ended: AtomicBool::new(false),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self.configured.get() {
            Some(Configured {
                default: Some(default),
                ..
            }) => visit.call(default),
            _ => Ok(()),
        }
    }

    #[pyo3(signature = (settings, default = None))]
    fn configure(
        &self,
        settings: &Bound<'_, PyMapping>,
        default: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let mut values = Vec::new();
        for item in settings.items()?.iter() {
            let (name, value): (String, Bound<'_, PyAny>) = item.extract()?;
            let value = setting_value(&name, &value)?;
            values.push((name, value));
        }
        let server = ManuallyDrop::new(Server::new(Config::from_values(&values)?));
        self.configured
            .set(Configured { server, default })
            .map_err(|_| {
                PyRuntimeError::new_err(
                    "Tantor.__init__ was called twice; make another Tantor instead",
                )
            })
    }

    #[getter]
    fn port(&self) -> PyResult<u16> {
        let server = self.server()?;
        Ok(server
            .address()
            .map_or(server.node().config.port, |address| address.port()))
    }

    #[getter]
    fn host(&self) -> PyResult<&str> {
        Ok(&self.node()?.config.host)
    }

    #[getter]
    fn is_running(&self) -> PyResult<bool> {
        Ok(self.server()?.address().is_some())
    }

    fn setting(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        let setting = SETTINGS.iter().find(|setting| setting.name == name);
        let setting = setting.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        to_python(py, setting.value(&self.node()?.config))
    }

    #[pyo3(signature = (timeout = None))]
    fn listen(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let server = self.server()?;
        Ok(py.detach(|| server.start(timeout.map(seconds)))?)
    }

    fn begin_stop(&self, py: Python<'_>) -> PyResult<()> {
        let server = self.server()?;
        py.detach(|| server.begin_stop());
        Ok(())
    }

    #[pyo3(signature = (timeout = None))]
    fn wait_stopped(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let server = self.server()?;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(seconds(timeout)));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let slice = left.map_or(SIGNAL_INTERVAL, |left| left.min(SIGNAL_INTERVAL));
            if py.detach(|| server.wait_stopped(Some(slice))) {
                return Ok(true);
            }
            // Ctrl-C counts while this waits
            py.check_signals()?;
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }

    fn stopped<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        if let Some((waiting, _guard)) = self.server()?.waiting() {
            return bridge::ended(py, &waiting);
        }
        let future = py
            .import("asyncio")?
            .call_method0("get_running_loop")?
            .call_method0("create_future")?;
        future.call_method1("set_result", (py.None(),))?;
        Ok(future)
    }

    #[pyo3(signature = (client_id, message, channel = None, *, default = None))]
    fn send(
        &self,
        client_id: &Bound<'_, PyString>,
        message: &Bound<'_, PyAny>,
        channel: Option<&Bound<'_, PyString>>,
        default: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Done> {
        let py = message.py();
        let node = self.node()?;
        let client_id = client_id.to_str()?;
        let channel = channel.map_or(Ok(&*node.config.default_channel), |channel| {
            channel.to_str()
        })?;
        let own = match message.cast::<PyDict>() {
            Ok(dict) => Some(own_fields(dict)?),
            Err(_) if message.is_instance_of::<PyString>() => None,
            Err(_) => {
                let name = message.get_type().name()?;
                return Err(PyTypeError::new_err(format!(
                    "message must be a str or a dict, not {name}"
                )));
            }
        };
        let stamp = self.with_json(message, default, "message", |bytes| {
            let body = own.map_or(Body::Message(bytes), |own| Body::Fields(bytes, own));
            node.send(client_id, channel, body)
        })??;
        Ok(Done::new(stamp.id_text().into_py_any(py)?))
    }

    #[pyo3(signature = (channel, event, data = None, *, default = None))]
    fn broadcast(
        &self,
        channel: &Bound<'_, PyString>,
        event: &Bound<'_, PyString>,
        data: Option<&Bound<'_, PyAny>>,
        default: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Done> {
        let py = channel.py();
        let node = self.node()?;
        let (channel, event) = (channel.to_str()?, event.to_str()?);
        let recipients = match data {
            Some(data) => self.with_json(data, default, "data", |bytes| {
                node.broadcast(channel, event, bytes)
            })?,
            None => py.detach(|| node.broadcast(channel, event, b"{}")),
        }?;
        Ok(Done::new(recipients.into_py_any(py)?))
    }

    fn subscribe(&self, py: Python<'_>, client_id: &str, channel: &str) -> PyResult<Done> {
        let node = self.node()?;
        py.detach(|| node.subscribe(client_id, channel))?;
        Ok(Done::new(true.into_py_any(py)?))
    }

    fn unsubscribe(&self, py: Python<'_>, client_id: &str, channel: &str) -> PyResult<Done> {
        let node = self.node()?;
        py.detach(|| node.unsubscribe(client_id, channel))?;
        Ok(Done::new(true.into_py_any(py)?))
    }

    fn emergency(&self, py: Python<'_>, message: &str) -> PyResult<Done> {
        let node = self.node()?;
        let recipients = py.detach(|| node.emergency(message))?;
        Ok(Done::new(recipients.into_py_any(py)?))
    }

    #[pyo3(signature = (channel = None))]
    fn get_presence<'py>(
        &self,
        py: Python<'py>,
        channel: Option<&str>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let node = self.node()?;
        let dict = PyDict::new(py);
        // an empty name is none, as in the original
        if let Some(channel) = channel.filter(|channel| !channel.is_empty()) {
            let users = py.detach(|| node.presence(channel));
            dict.set_item("channel", channel)?;
            dict.set_item("online", users.len())?;
            dict.set_item("users", PyList::new(py, users.iter().map(|id| &**id))?)?;
        } else {
            for (name, count) in py.detach(|| node.census()) {
                dict.set_item(&*name, count)?;
            }
        }
        Ok(dict)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let server = self.server()?;
        let node = server.node();
        let dict = PyDict::new(py);
        let connections = node.connection_count();
        let (queued_messages, queued_bytes) = node.queued();
        dict.set_item("total_connections", connections)?;
        dict.set_item("channels", self.get_presence(py, None)?)?;
        dict.set_item("queued_messages", queued_messages)?;
        dict.set_item("queued_bytes", queued_bytes)?;
        dict.set_item("uptime", self.created.elapsed().as_secs_f64())?;
        dict.set_item(
            "status",
            if server.address().is_some() {
                "listening"
            } else {
                "sleeping"
            },
        )?;
        dict.set_item(
            "mood",
            if connections > CALM_CONNECTIONS {
                "anxious"
            } else {
                "calm"
            },
        )?;
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
            ("dropped_slow_consumer", &counters.dropped_slow_consumer),
            ("inbox_pauses", &counters.inbox_pauses),
        ] {
            dict.set_item(name, counter.get())?;
        }
        dict.set_item("events_queued", node.events.len())?;
        dict.set_item("events_dropped", node.events.dropped())?;
        dict.set_item("event_pauses", node.events.pauses())?;
        dict.set_item("disconnects", counters.disconnects())?;
        dict.set_item("shards", node.config.shards)?;
        Ok(dict)
    }

    fn channel_names(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let node = self.node()?;
        Ok(py
            .detach(|| node.channel_names())
            .iter()
            .map(|name| (**name).to_owned())
            .collect())
    }

    fn channel_count(&self) -> PyResult<usize> {
        Ok(self.node()?.channel_count())
    }

    fn has_channel(&self, name: &str) -> PyResult<bool> {
        Ok(self.node()?.has_channel(name))
    }

    fn channel_info(&self, py: Python<'_>, name: &str) -> PyResult<Option<ChannelRow>> {
        let node = self.node()?;
        let info = py.detach(|| node.channel_info(name));
        Ok(info.map(|info| {
            (
                info.name.to_string(),
                info.kind.into(),
                texts(&info.subscribers),
                info.created_at,
            )
        }))
    }

    #[pyo3(signature = (name, kind = "public"))]
    fn create_channel(&self, py: Python<'_>, name: &str, kind: &str) -> PyResult<bool> {
        let node = self.node()?;
        Ok(py.detach(|| node.create_channel(name, kind))?)
    }

    fn delete_channel(&self, py: Python<'_>, name: &str) -> PyResult<bool> {
        let node = self.node()?;
        Ok(py.detach(|| node.delete_channel(name)))
    }

    fn connection_ids(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let node = self.node()?;
        Ok(texts(&py.detach(|| node.connection_ids())))
    }

    fn connection_count(&self) -> PyResult<usize> {
        Ok(self.node()?.connection_count())
    }

    fn has_connection(&self, client_id: &str) -> PyResult<bool> {
        Ok(self.node()?.has_connection(client_id))
    }

    fn connection_info(&self, py: Python<'_>, client_id: &str) -> PyResult<Option<ConnectionRow>> {
        let node = self.node()?;
        let info = py.detach(|| node.connection_info(client_id));
        Ok(info.map(|info| {
            (
                info.client_id.to_string(),
                info.joined_at,
                info.last_ping,
                texts(&info.channels),
            )
        }))
    }

    fn want_event(&self, event: &str, wanted: bool) -> PyResult<()> {
        self.node()?.events.want(event, wanted);
        Ok(())
    }

    fn set_log_level(&self, level: u8) -> PyResult<()> {
        self.node()?.events.set_log_level(level);
        Ok(())
    }

    fn next_events<'py>(
        &self,
        py: Python<'py>,
        most: usize,
    ) -> PyResult<Option<Vec<NamedDict<'py>>>> {
        let node = self.node()?;
        if self.has_ended.swap(false, Ordering::Relaxed) {
            return Ok(None);
        }
        let batch = py.detach(|| {
            let mut batch = Vec::new();
            node.events.take(most, &mut batch);
            if node.events.take_held_back() {
                node.wake_shards();
            }
            batch
        });
        if matches!(batch[..], [] | [Told::End]) {
            return Ok(None);
        }
        let mut events = Vec::with_capacity(batch.len());
        for told in batch {
            match event_dicts::told(py, told) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => self.has_ended.store(true, Ordering::Relaxed),
                Err(error) => node.events.log(LogLevel::Error, "events", || {
                    format!("an event was lost: {error}")
                }),
            }
        }
        Ok(Some(events))
    }
}

/// Name, type, subscribers, created at.
type ChannelRow = (String, String, Vec<String>, f64);

/// Client id, joined at, last ping, channels.
type ConnectionRow = (String, f64, f64, Vec<String>);

/// How often a wait looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// Above so many connections the original is anxious.
const CALM_CONNECTIONS: usize = 10;

/// A time that is no number of seconds to wait is none.
fn seconds(timeout: f64) -> Duration {
    Duration::try_from_secs_f64(timeout).unwrap_or(if timeout > 0.0 {
        Duration::MAX
    } else {
        Duration::ZERO
    })
}

fn texts(ids: &[Arc<str>]) -> Vec<String> {
    ids.iter().map(|id| (**id).to_owned()).collect()
}

fn own_fields(dict: &Bound<'_, PyDict>) -> PyResult<OwnFields> {
    Ok(OwnFields {
        id: dict.contains("id")?,
        channel: dict.contains("channel")?,
        timestamp: dict.contains("timestamp")?,
        sender: dict.contains("sender")?,
    })
}

fn setting_value(name: &str, value: &Bound<'_, PyAny>) -> PyResult<Value> {
    if let Ok(text) = value.cast::<PyString>() {
        return Ok(Value::Text(text.to_str()?.to_owned()));
    }
    if !value.is_instance_of::<PyBool>() {
        if value.is_instance_of::<PyInt>() {
            if let Ok(integer) = value.extract::<i64>() {
                return Ok(Value::Integer(integer));
            }
        } else if value.is_instance_of::<PyFloat>() {
            return Ok(Value::Number(value.extract()?));
        }
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
