//! `Messenger`: a node and its server, as Python sees them. `tantor.Tantor` is made of it.

use super::arguments::{own_fields, publish_options, setting_value};
use super::commit::{Commit, Settled};
use super::done::Done;
use super::{bridge, errors, event_dicts, json, to_python};
use crate::config::{Config, SETTINGS};
use crate::history::Page;
use crate::node::Node;
use crate::protocol::{self, Body};
use crate::server::Server;
use crate::store::Committed;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyString, PyTuple};
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
            // SAFETY: this is the only place that takes it, and nothing uses it after its owner's drop.
            let server = unsafe { ManuallyDrop::take(&mut self.server) };
            let mut last = Some(server);
            let mut end = || {
                if let Some(server) = last.take() {
                    server.begin_stop();
                }
            };
            // what is waited for may wait for somebody who wants the interpreter
            if Python::try_attach(|py| py.detach(&mut end)).is_none() {
                end();
            }
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

    fn close_storage(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let node = self.node()?;
        py.detach(|| node.close_store(seconds(timeout)));
        Ok(())
    }

    fn stopped<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let server = self.server()?;
        if let Some((waiting, _guard)) = py.detach(|| server.waiting()) {
            return bridge::ended(py, &waiting);
        }
        let future = py
            .import("asyncio")?
            .call_method0("get_running_loop")?
            .call_method0("create_future")?;
        future.call_method1("set_result", (py.None(),))?;
        Ok(future)
    }

    #[pyo3(signature = (client_id, message, channel = None, *, default = None, priority = None, durable = false,
        idempotency_key = None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of the Python method"
    )]
    fn send(
        &self,
        client_id: &Bound<'_, PyString>,
        message: &Bound<'_, PyAny>,
        channel: Option<&Bound<'_, PyString>>,
        default: Option<&Bound<'_, PyAny>>,
        priority: Option<&str>,
        durable: bool,
        idempotency_key: Option<&str>,
    ) -> PyResult<Py<PyAny>> {
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
        let options = publish_options(priority, durable, idempotency_key)?;
        let mut waited_for = None;
        let sent = self.with_json(message, default, "message", |bytes| {
            let body = own.map_or(Body::Message(bytes), |own| Body::Fields(bytes, own));
            let mut commit = || begin_commit(&mut waited_for);
            node.send(client_id, channel, body, &options, &mut commit)
        })??;
        outcome(py, sent.stamp.id_text().into_py_any(py)?, None, waited_for)
    }

    #[pyo3(signature = (channel, event, data = None, *, default = None, priority = None, durable = false,
        idempotency_key = None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of the Python method"
    )]
    fn broadcast(
        slf: &Bound<'_, Self>,
        channel: &Bound<'_, PyString>,
        event: &Bound<'_, PyString>,
        data: Option<&Bound<'_, PyAny>>,
        default: Option<&Bound<'_, PyAny>>,
        priority: Option<&str>,
        durable: bool,
        idempotency_key: Option<&str>,
    ) -> PyResult<Py<PyAny>> {
        let py = channel.py();
        let this = slf.get();
        let node = this.node()?;
        let (channel, event) = (channel.to_str()?, event.to_str()?);
        let options = publish_options(priority, durable, idempotency_key)?;
        let mut waited_for = None;
        let mut commit = || begin_commit(&mut waited_for);
        let published = match data {
            Some(data) => this.with_json(data, default, "data", |bytes| {
                node.broadcast(channel, event, bytes, &options, &mut commit)
            })?,
            None => py.detach(|| node.broadcast(channel, event, b"{}", &options, &mut commit)),
        }?;
        if published.recipients == 0 && !IS_TOLD.load(Ordering::Relaxed) && !this.is_running()? {
            IS_TOLD.store(true, Ordering::Relaxed);
            slf.call_method0("_warn_unless_running")?;
        }
        outcome(py, published.recipients.into_py_any(py)?, None, waited_for)
    }

    #[pyo3(signature = (channel, limit = 100, after = None, before = None))]
    fn history(
        &self,
        py: Python<'_>,
        channel: &str,
        limit: i128,
        after: Option<i128>,
        before: Option<i128>,
    ) -> PyResult<Done> {
        let node = self.node()?;
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
        let page = Page {
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
            after: offset("after", after)?,
            before: offset("before", before)?,
        };
        let page = py.detach(|| node.history(channel, page, usize::MAX))?;
        let publications = page
            .publications
            .iter()
            .map(|frame| PyBytes::new(py, frame.payload()));
        let publications = PyList::new(py, publications)?;
        let epoch = protocol::epoch_text(page.epoch);
        let history = py
            .import("tantor.views")?
            .getattr("History")?
            .call_method1("from_wire", (epoch, page.offset, publications))?;
        Ok(Done::new(history.unbind()))
    }

    fn delivery<'py>(
        &self,
        py: Python<'py>,
        message_id: &str,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(report) = self.node()?.delivery(message_id) else {
            return Ok(None);
        };
        let dict = PyDict::new(py);
        dict.set_item("handed_over", report.handed_over)?;
        dict.set_item("written", report.written)?;
        dict.set_item("acknowledged", report.acknowledged)?;
        dict.set_item("waiting", report.waiting)?;
        Ok(Some(dict))
    }

    fn resume_token(&self, py: Python<'_>, client_id: &str) -> PyResult<String> {
        let node = self.node()?;
        Ok(py.detach(|| node.resume_token(client_id))?)
    }

    fn user_data<'py>(
        &self,
        py: Python<'py>,
        client_id: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let node = self.node()?;
        let json = py.detach(|| node.user_data(client_id));
        Ok(json.map(|json| PyBytes::new(py, &json)))
    }

    fn set_user_data(&self, client_id: &str, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let node = self.node()?;
        self.with_json(data, None, "user_data", |bytes| {
            node.set_user_data(client_id, bytes.to_vec());
        })
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

    fn emergency(&self, py: Python<'_>, message: &str) -> PyResult<Py<PyAny>> {
        let node = self.node()?;
        let mut waited_for = None;
        let sent = py.detach(|| node.emergency(message, &mut || begin_commit(&mut waited_for)))?;
        let recipients = sent.recipients.into_py_any(py)?;
        outcome(py, recipients, Some(sent.stamp.id_text()), waited_for)
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
        super::stats::stats(py, self.server()?, self.created)
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
        Ok(py.detach(|| node.delete_channel(name))?)
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
    ) -> PyResult<Option<Vec<event_dicts::EventDict<'py>>>> {
        let node = self.node()?;
        Ok(event_dicts::next_events(py, node, &self.has_ended, most))
    }
}

/// Name, type, subscribers, created at.
type ChannelRow = (String, String, Vec<String>, f64);

/// Client id, joined at, last ping, channels.
type ConnectionRow = (String, f64, f64, Vec<String>);

/// This process has logged that what it publishes reaches nobody.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// How often a wait looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

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

fn begin_commit(waited_for: &mut Option<Arc<Settled>>) -> Committed {
    let (settled, committed) = Settled::begin();
    *waited_for = Some(settled);
    committed
}

/// What a call returns: something done, or something that is done when it is saved. An emergency's has its id.
fn outcome(
    py: Python<'_>,
    value: Py<PyAny>,
    message_id: Option<String>,
    waited_for: Option<Arc<Settled>>,
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
        .call1((value, Commit::new(settled), message_id))?
        .unbind())
}
