//! `Messenger`: a server and the calls on it, as Python sees them. `tantor.Tantor` is made of it.

use super::arguments::{key, optional_text, page, seconds, setting_value, text, texts, type_name};
use super::asking::{begin, content_of, reply};
use super::configured::{Configured, Owned};
use super::done::Done;
use super::operation::{self, Operation, Outcome};
use super::publishing::{outcome, own_fields, publish_options};
use super::{errors, event_dicts, json, to_python};
use crate::base::fork::CountedThread;
use crate::host::server::Server;
use crate::ports::calls::{Call, Reply};
use crate::settings::config::{Config, SETTINGS};
use crate::wire::messages::{self, Body};
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyMapping, PyString, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A server and the calls on it. Every method may be called from any thread.
///
/// In a child process that inherited a started one, every method raises `RuntimeError`.
#[pyclass(frozen, subclass, module = "tantor._tantor")]
pub struct Messenger {
    configured: OnceLock<Configured>,
    created: Instant,
    /// The end of events was taken together with the last of them.
    has_ended: AtomicBool,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back.
const KEPT_SCRATCH: usize = 64 << 10;

impl Messenger {
    fn owned(&self) -> PyResult<&Owned> {
        let configured = self.configured.get();
        let owned = configured.and_then(|configured| configured.owned.as_ref());
        let owned = owned.ok_or_else(|| {
            PyRuntimeError::new_err("Tantor.__init__ was not called; a subclass's own must call it")
        })?;
        if owned.server.is_inherited() {
            return Err(errors::forked_error());
        }
        Ok(owned)
    }

    fn server(&self) -> PyResult<&Arc<Server>> {
        Ok(&self.owned()?.server)
    }

    /// Makes a call without the interpreter lock, and returns its reply and what the caller may wait for.
    fn make(&self, py: Python<'_>, call: Call<'_>) -> PyResult<(Reply, Option<Arc<Outcome>>)> {
        let calls = &self.owned()?.calls;
        Ok(py.detach(|| begin(&**calls, call))?)
    }

    /// Makes a call that nothing waits for, without the interpreter lock, and returns its reply.
    fn ask(&self, py: Python<'_>, call: Call<'_>) -> PyResult<Reply> {
        let calls = &self.owned()?.calls;
        Ok(py.detach(|| reply(&**calls, call))?)
    }

    /// As `ask`, for a call that is over so soon that letting the interpreter lock go would take longer.
    fn ask_holding(&self, call: Call<'_>) -> PyResult<Reply> {
        Ok(reply(&*self.owned()?.calls, call)?)
    }

    /// Writes a value as JSON and gives it to `act`, without the interpreter lock.
    fn with_json<T: Send>(
        &self,
        value: &Bound<'_, PyAny>,
        default: Option<&Bound<'_, PyAny>>,
        root: &str,
        act: impl FnOnce(&[u8]) -> T + Send,
    ) -> PyResult<T> {
        let py = value.py();
        self.owned()?;
        let own = self
            .configured
            .get()
            .and_then(|configured| configured.default.as_ref())
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

    /// Make the node, once; before it, every other method raises `RuntimeError`.
    ///
    /// Raises `SettingError` for a bad value, `TypeError` for an unknown setting.
    #[pyo3(name = "_configure", signature = (settings, default = None))]
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
        let server = Server::new(Config::from_values(&values)?)?;
        self.configured
            .set(Configured {
                owned: Some(Owned {
                    calls: server.calls(),
                    server,
                }),
                default,
            })
            .map_err(|_| {
                PyRuntimeError::new_err(
                    "Tantor.__init__ was called twice; make another Tantor instead",
                )
            })
    }

    /// The TCP port asked for; once listening, the one in use. 0 where every host is a Unix socket.
    #[getter]
    fn port(&self) -> PyResult<u16> {
        Ok(self.server()?.port())
    }

    /// The addresses, names and Unix sockets asked for.
    #[getter]
    fn host(&self) -> PyResult<&str> {
        Ok(self.server()?.config().host.text())
    }

    /// Whether it listens, in this process.
    #[getter]
    fn is_running(&self) -> PyResult<bool> {
        Ok(self.server()?.is_running())
    }

    /// The value in force of one setting; `KeyError` if there is none of that name.
    fn setting(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        let setting = SETTINGS.iter().find(|setting| setting.name == name);
        let setting = setting.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        to_python(py, setting.value(self.server()?.config()))
    }

    /// Bind and start the shards; returns once connections are accepted.
    ///
    /// False when it is already listening. Raises `OSError` naming host and port, or the path of a Unix socket;
    /// `TimeoutError` when it does not listen after `timeout` seconds.
    #[pyo3(name = "_listen", signature = (timeout = None))]
    fn listen(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let server = self.server()?;
        Ok(py.detach(|| server.start(timeout.map(seconds)))?)
    }

    /// Start to drain; returns at once. Nothing happens when it is not running.
    #[pyo3(name = "_begin_stop")]
    fn begin_stop(&self, py: Python<'_>) -> PyResult<()> {
        let server = self.server()?;
        py.detach(|| server.begin_stop());
        Ok(())
    }

    /// Block (without the interpreter lock) until the server has ended; False when time ran out.
    #[pyo3(name = "_wait_stopped", signature = (timeout = None))]
    fn wait_stopped(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let server = self.server()?;
        operation::wait(py, timeout, |slice| server.wait_stopped(Some(slice)))
    }

    /// Have saved what is still to be, within so many seconds; then the database is closed until it is needed.
    #[pyo3(name = "_close_storage")]
    fn close_storage(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let server = self.server()?;
        py.detach(|| server.close_storage(seconds(timeout)));
        Ok(())
    }

    /// The end of the server, which may not have begun yet.
    #[pyo3(name = "_stopped")]
    fn stopped(&self, py: Python<'_>) -> PyResult<Operation> {
        let server = self.server()?;
        let (outcome, completion) = Outcome::begin();
        py.detach(|| server.when_ended(completion));
        Ok(Operation::new(outcome))
    }

    /// As `tantor.Tantor.send`.
    #[pyo3(signature = (client_id, message, channel = None, *, default = None, priority = None, durable = false,
        idempotency_key = None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of the Python method"
    )]
    fn send(
        &self,
        client_id: &Bound<'_, PyAny>,
        message: &Bound<'_, PyAny>,
        channel: Option<&Bound<'_, PyAny>>,
        default: Option<&Bound<'_, PyAny>>,
        priority: Option<&Bound<'_, PyAny>>,
        durable: bool,
        idempotency_key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = message.py();
        let calls = &self.owned()?.calls;
        let client = text("client_id", client_id)?;
        let channel = optional_text("channel", channel)?;
        let own = match message.cast::<PyDict>() {
            Ok(dict) => Some(own_fields(dict)?),
            Err(_) if message.is_instance_of::<PyString>() => None,
            Err(_) => {
                let name = type_name(message);
                return Err(PyTypeError::new_err(format!(
                    "message must be a str or a dict, not {name}"
                )));
            }
        };
        let options = publish_options(priority, durable, idempotency_key)?;
        let (sent, settled) = self.with_json(message, default, "message", |bytes| {
            let body = own.map_or(Body::Message(bytes), |own| Body::Fields(bytes, own));
            let call = Call::Send {
                client,
                channel,
                body,
                options,
            };
            begin(&**calls, call)
        })??;
        let sent = content_of!(sent, Reply::Sent)?;
        outcome(py, sent.stamp.id_text().into_py_any(py)?, None, settled)
    }

    /// Publish to everyone subscribed to a channel; gives the number of connected subscribers it was handed to.
    ///
    /// `data` is what JSON can hold. None, or no data, arrives as `{}`, as with the original Tantor.
    /// `priority` is "low", "normal" (the default), "high" or "emergency". With `durable`, or on a durable channel, the
    /// awaitable is done when it is saved. A repeat with an `idempotency_key` publishes nothing and gives the first
    /// result. Errors: `DataError` for what JSON cannot hold; `ValueError` for a name or option that cannot be;
    /// `StorageError` if the database cannot be used.
    #[pyo3(signature = (channel, event, data = None, *, default = None, priority = None, durable = false,
        idempotency_key = None))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the options of the Python method"
    )]
    fn broadcast(
        slf: &Bound<'_, Self>,
        channel: &Bound<'_, PyAny>,
        event: &Bound<'_, PyAny>,
        data: Option<&Bound<'_, PyAny>>,
        default: Option<&Bound<'_, PyAny>>,
        priority: Option<&Bound<'_, PyAny>>,
        durable: bool,
        idempotency_key: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let py = channel.py();
        let this = slf.get();
        let calls = &this.owned()?.calls;
        let (channel, event) = (text("channel", channel)?, text("event", event)?);
        let options = publish_options(priority, durable, idempotency_key)?;
        let broadcast = |data: &[u8]| {
            let call = Call::Broadcast {
                channel,
                event,
                data,
                options,
            };
            begin(&**calls, call)
        };
        let (published, settled) = match data {
            Some(data) => this.with_json(data, default, "data", broadcast)?,
            None => py.detach(|| broadcast(b"{}")),
        }?;
        let published = content_of!(published, Reply::Published)?;
        if published.recipients == 0 && !IS_TOLD.load(Ordering::Relaxed) && !this.is_running()? {
            IS_TOLD.store(true, Ordering::Relaxed);
            // the end of the interpreter waits: it would end this thread in the middle of Python code
            let _counted = CountedThread::new();
            slf.call_method0("_warn_unless_running")?;
        }
        outcome(py, published.recipients.into_py_any(py)?, None, settled)
    }

    /// What is kept of a channel: with `after` the oldest `limit` behind that offset, else the newest `limit`
    /// (before the offset `before`, if given). `ValueError` for what cannot be.
    #[pyo3(signature = (channel, limit = 100, after = None, before = None))]
    fn history(
        &self,
        py: Python<'_>,
        channel: &Bound<'_, PyAny>,
        limit: i128,
        after: Option<i128>,
        before: Option<i128>,
    ) -> PyResult<Done> {
        self.owned()?;
        let channel = text("channel", channel)?;
        let page = page(limit, after, before)?;
        let page = content_of!(
            self.ask(py, Call::History { channel, page })?,
            Reply::History
        )?;
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

    /// `{"handed_over", "written", "acknowledged", "waiting"}` of a message that was sent, or of an emergency: to
    /// how many connections it was handed over, how many sockets took it, how many clients acknowledged it, and for
    /// how many it is kept. None for one that is not known any more (the last 100,000 are).
    fn delivery<'py>(
        &self,
        py: Python<'py>,
        message_id: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        self.owned()?;
        let message_id = text("message_id", message_id)?;
        let report = self.ask_holding(Call::Delivery { message_id })?;
        let Some(report) = content_of!(report, Reply::Delivery)? else {
            return Ok(None);
        };
        let dict = PyDict::new(py);
        dict.set_item("handed_over", report.handed_over)?;
        dict.set_item("written", report.written)?;
        dict.set_item("acknowledged", report.acknowledged)?;
        dict.set_item("waiting", report.waiting)?;
        Ok(Some(dict))
    }

    /// A token with which a client can connect under this id: `ws://host/?resume=` and the token.
    ///
    /// `ValueError` if `resume_ttl` is 0.
    fn resume_token(&self, client_id: &Bound<'_, PyAny>) -> PyResult<String> {
        self.owned()?;
        let client = text("client_id", client_id)?;
        let token = self.ask(client_id.py(), Call::ResumeToken { client })?;
        content_of!(token, Reply::Token)
    }

    /// What is kept for a client, as JSON; None when nothing is.
    #[pyo3(name = "_user_data")]
    fn user_data<'py>(
        &self,
        py: Python<'py>,
        client_id: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let json = self.ask(py, Call::UserData { client: client_id })?;
        let json = content_of!(json, Reply::UserData)?;
        Ok(json.map(|json| PyBytes::new(py, &json)))
    }

    /// Keep something for a client, as long as it is known. `DataError` for what JSON cannot hold.
    #[pyo3(name = "_set_user_data")]
    fn set_user_data(&self, client_id: &str, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let calls = &self.owned()?.calls;
        self.with_json(data, None, "user_data", |json| {
            let call = Call::SetUserData {
                client: client_id,
                json,
            };
            reply(&**calls, call)
        })??;
        Ok(())
    }

    /// Put a client on a channel; it need not be connected. Always True.
    fn subscribe(
        &self,
        client_id: &Bound<'_, PyAny>,
        channel: &Bound<'_, PyAny>,
    ) -> PyResult<Done> {
        let py = channel.py();
        self.owned()?;
        let (client, channel) = (text("client_id", client_id)?, text("channel", channel)?);
        self.ask(py, Call::Subscribe { client, channel })?;
        Ok(Done::new(true.into_py_any(py)?))
    }

    /// Take a client off a channel. Always True.
    fn unsubscribe(
        &self,
        client_id: &Bound<'_, PyAny>,
        channel: &Bound<'_, PyAny>,
    ) -> PyResult<Done> {
        let py = channel.py();
        self.owned()?;
        let (client, channel) = (text("client_id", client_id)?, text("channel", channel)?);
        self.ask(py, Call::Unsubscribe { client, channel })?;
        Ok(Done::new(true.into_py_any(py)?))
    }

    /// To every connected client once, ahead of all that waits; gives how many, and has the `message_id`.
    fn emergency(&self, message: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = message.py();
        self.owned()?;
        let message = text("message", message)?;
        let (sent, settled) = self.make(py, Call::Emergency { message })?;
        let sent = content_of!(sent, Reply::Alarmed)?;
        let recipients = sent.recipients.into_py_any(py)?;
        outcome(py, recipients, Some(sent.stamp.id_text()), settled)
    }

    /// `{"channel", "online", "users"}` of one channel, or `{name: count}` of all.
    #[pyo3(signature = (channel = None))]
    fn get_presence<'py>(
        &self,
        py: Python<'py>,
        channel: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        self.owned()?;
        let channel = optional_text("channel", channel)?;
        let dict = PyDict::new(py);
        // an empty name is none, as in the original
        if let Some(channel) = channel.filter(|channel| !channel.is_empty()) {
            let users = content_of!(self.ask(py, Call::Presence { channel })?, Reply::Ids)?;
            dict.set_item("channel", channel)?;
            dict.set_item("online", users.len())?;
            dict.set_item("users", PyList::new(py, users.iter().map(|id| &**id))?)?;
        } else {
            for (name, count) in content_of!(self.ask(py, Call::Census)?, Reply::Census)? {
                dict.set_item(&*name, count)?;
            }
        }
        Ok(dict)
    }

    /// Counters and gauges; see docs/protocol.md for the keys.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = content_of!(self.ask(py, Call::Stats)?, Reply::Stats)?;
        let is_running = self.server()?.is_running();
        super::stats::dict(py, &stats, is_running, self.created.elapsed())
    }

    #[pyo3(name = "_channel_names")]
    fn channel_names(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let names = content_of!(self.ask(py, Call::ChannelNames)?, Reply::Ids)?;
        Ok(texts(&names))
    }

    #[pyo3(name = "_channel_count")]
    fn channel_count(&self) -> PyResult<usize> {
        content_of!(self.ask_holding(Call::ChannelCount)?, Reply::Count)
    }

    #[pyo3(name = "_has_channel")]
    fn has_channel(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.owned()?;
        let Some(name) = key(name) else {
            return Ok(false);
        };
        content_of!(self.ask_holding(Call::HasChannel { name })?, Reply::Known)
    }

    /// `(name, type, subscribers, created_at)`, or None.
    #[pyo3(name = "_channel_info")]
    fn channel_info(&self, name: &Bound<'_, PyAny>) -> PyResult<Option<ChannelRow>> {
        self.owned()?;
        let Some(key) = key(name) else {
            return Ok(None);
        };
        let info = self.ask(name.py(), Call::Channel { name: key })?;
        Ok(content_of!(info, Reply::Channel)?.map(|info| {
            (
                info.name.to_string(),
                info.kind.name().to_owned(),
                texts(&info.subscribers),
                info.created_at.seconds(),
            )
        }))
    }

    /// Make a channel; False when there is one of this name. `ValueError` for a name or kind that cannot be.
    #[pyo3(signature = (name, kind = None), text_signature = "($self, name, kind='public')")]
    fn create_channel(
        &self,
        name: &Bound<'_, PyAny>,
        kind: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let py = name.py();
        self.owned()?;
        let name = text("name", name)?;
        let kind = optional_text("kind", kind)?.unwrap_or("public");
        let is_new = self.ask(py, Call::CreateChannel { name, kind })?;
        content_of!(is_new, Reply::Changed)
    }

    /// Drop a channel, its history and its subscriptions; False when there is none of that name.
    fn delete_channel(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = name.py();
        self.owned()?;
        let name = text("name", name)?;
        let was_there = self.ask(py, Call::DeleteChannel { name })?;
        content_of!(was_there, Reply::Changed)
    }

    #[pyo3(name = "_connection_ids")]
    fn connection_ids(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let ids = content_of!(self.ask(py, Call::ConnectionIds)?, Reply::Ids)?;
        Ok(texts(&ids))
    }

    #[pyo3(name = "_connection_count")]
    fn connection_count(&self) -> PyResult<usize> {
        content_of!(self.ask_holding(Call::ConnectionCount)?, Reply::Count)
    }

    #[pyo3(name = "_has_connection")]
    fn has_connection(&self, client_id: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.owned()?;
        let Some(client) = key(client_id) else {
            return Ok(false);
        };
        content_of!(
            self.ask_holding(Call::HasConnection { client })?,
            Reply::Known
        )
    }

    /// `(client_id, joined_at, last_ping, channels)`, times in Unix seconds; None when not connected.
    #[pyo3(name = "_connection_info")]
    fn connection_info(&self, client_id: &Bound<'_, PyAny>) -> PyResult<Option<ConnectionRow>> {
        self.owned()?;
        let Some(client) = key(client_id) else {
            return Ok(None);
        };
        let info = self.ask(client_id.py(), Call::Connection { client })?;
        Ok(content_of!(info, Reply::Connection)?.map(|info| {
            (
                info.client_id.to_string(),
                info.joined_at.seconds(),
                info.last_ping.seconds(),
                texts(&info.channels),
            )
        }))
    }

    /// Queue events of this name for `_next_events`, or stop to. Log records are always queued.
    #[pyo3(name = "_want_event")]
    fn want_event(&self, event: &Bound<'_, PyAny>, wanted: bool) -> PyResult<()> {
        let server = self.server()?;
        server.events().want(text("event", event)?, wanted);
        Ok(())
    }

    /// Make no log records below this level of `logging`.
    #[pyo3(name = "_set_log_level")]
    fn set_log_level(&self, level: u8) -> PyResult<()> {
        self.server()?.events().set_log_level(level);
        Ok(())
    }

    /// Wait (without the interpreter lock) for events; None once the server has ended and all are taken.
    ///
    /// Each is `(name, fields, bytes that it took of event_queue_bytes)`; those of the call before count as handled.
    /// A log record is `("", {"logger", "level", "message"}, bytes)` with the level of `logging`.
    #[pyo3(name = "_next_events")]
    fn next_events<'py>(
        &self,
        py: Python<'py>,
        most: usize,
    ) -> PyResult<Option<Vec<event_dicts::EventDict<'py>>>> {
        let server = self.server()?;
        Ok(event_dicts::next_events(py, server, &self.has_ended, most))
    }
}

/// Name, type, subscribers, created at.
type ChannelRow = (String, String, Vec<String>, f64);

/// Client id, joined at, last ping, channels.
type ConnectionRow = (String, f64, f64, Vec<String>);

/// This process has logged that what it publishes reaches nobody.
static IS_TOLD: AtomicBool = AtomicBool::new(false);

/// The process ends: from now on no call of this module runs Python code to warn. To be called with the interpreter
/// held, as the warning begins with the interpreter held.
pub fn warn_no_more() {
    IS_TOLD.store(true, Ordering::Relaxed);
}
