//! `Messenger`: the base class of `tantor.Tantor`, a server and the calls on it.

use super::arguments::{key, optional_text, page, seconds, setting_values, text, texts};
use super::asking::content_of;
use super::configured::{Configured, Owned};
use super::done::Done;
use super::operation::{self, Operation, Outcome};
use super::publishing::{self, awaitable, own_fields, publish_options};
use super::{errors, event_dicts, reports, to_python};
use crate::host::server::Server;
use crate::ports::calls::{Call, Reply};
use crate::settings::config::{Config, SETTINGS};
use crate::wire::messages::Body;
use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyKeyError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyMapping, PyTuple};
use pyo3::{PyTraverseError, PyVisit};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// A server, and the calls on it. Every method may be called from any thread.
///
/// In a forked child, every method of a messenger that the parent started raises `ForkedError`.
#[pyclass(frozen, subclass, module = "tantor._tantor")]
pub struct Messenger {
    configured: OnceLock<Configured>,
    /// The last events were returned, so the next call returns the end.
    has_ended: AtomicBool,
}

impl Messenger {
    /// Errors: the messenger has no settings yet; this process inherited a server that runs in its parent.
    fn owned(&self) -> PyResult<&Owned> {
        let owned = self.configured.get().and_then(Configured::owned);
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
}

#[pymethods]
impl Messenger {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            configured: OnceLock::new(),
            has_ended: AtomicBool::new(false),
        }
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let owned = self.configured.get().and_then(Configured::owned);
        visit.call(owned.and_then(|owned| owned.default.as_ref()))
    }

    /// Apply the settings, once. Before this call, every other method raises `RuntimeError`.
    ///
    /// Errors: `SettingError` for a value that a setting does not take, `TypeError` for an unknown setting.
    #[pyo3(name = "_configure", signature = (settings, default = None))]
    fn configure(
        &self,
        settings: &Bound<'_, PyMapping>,
        default: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let values = setting_values(settings)?;
        let server = Server::new(Config::from_values(&values)?)?;
        self.configured
            .set(Configured::new(server, default))
            .map_err(|_| {
                let problem = "Tantor.__init__ was called twice; make another Tantor instead";
                PyRuntimeError::new_err(problem)
            })
    }

    /// The configured TCP port; while the server listens, the port in use. 0 where every host is a Unix socket.
    #[getter]
    fn port(&self) -> PyResult<u16> {
        Ok(self.server()?.port())
    }

    /// The configured addresses, host names and Unix sockets.
    #[getter]
    fn host(&self) -> PyResult<&str> {
        Ok(self.server()?.config().host.text())
    }

    /// True while the server listens, in this process.
    #[getter]
    fn is_running(&self) -> PyResult<bool> {
        Ok(self.server()?.is_running())
    }

    /// Set a function without arguments that tells whether calls may go to another process of the application.
    #[pyo3(name = "_ask_before_attach")]
    fn ask_before_attach(&self, may_attach: Py<PyAny>) -> PyResult<()> {
        // an interpreter that ends, or a function that fails, has no use for another process
        let ask = move || Python::try_attach(|py| may_attach.call0(py)?.is_truthy(py));
        let calls = &self.owned()?.calls;
        calls.ask_before_attach(Box::new(move || matches!(ask(), Some(Ok(true)))));
        Ok(())
    }

    /// True if calls reach a server: that of this process, or that of another process of the application.
    #[getter(_reaches_server)]
    fn reaches_server(&self, py: Python<'_>) -> PyResult<bool> {
        self.owned()?.reaches_server(py)
    }

    /// The value in force of a setting. `KeyError` for an unknown name.
    fn setting(&self, py: Python<'_>, name: &str) -> PyResult<Py<PyAny>> {
        let setting = SETTINGS.iter().find(|setting| setting.name == name);
        let setting = setting.ok_or_else(|| PyKeyError::new_err(name.to_owned()))?;
        to_python(py, setting.value(self.server()?.config()))
    }

    /// Bind the addresses and start the shards; return once connections are accepted.
    ///
    /// False if the server listens already. Errors: `OSError` that names host and port, or the path of a Unix
    /// socket; `TimeoutError` if the server does not listen within `timeout` seconds.
    #[pyo3(name = "_listen", signature = (timeout = None))]
    fn listen(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let server = self.server()?;
        Ok(py.detach(|| server.start(timeout.map(seconds)))?)
    }

    /// Start to stop the server, and return at once. Does nothing if the server does not run.
    #[pyo3(name = "_begin_stop")]
    fn begin_stop(&self, py: Python<'_>) -> PyResult<()> {
        let server = self.server()?;
        py.detach(|| server.begin_stop());
        Ok(())
    }

    /// Block (without the interpreter lock) until the server has ended; False if `timeout` seconds passed before.
    #[pyo3(name = "_wait_stopped", signature = (timeout = None))]
    fn wait_stopped(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let server = self.server()?;
        operation::wait(py, timeout, |slice| server.wait_stopped(Some(slice)))
    }

    /// Save the waiting changes, for at most `timeout` seconds, and close the database until its next use.
    #[pyo3(name = "_close_storage")]
    fn close_storage(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let server = self.server()?;
        py.detach(|| server.close_storage(seconds(timeout)));
        Ok(())
    }

    /// The end of the server as an operation, which ends at once if the server does not run.
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
    #[expect(clippy::too_many_arguments, reason = "options of the Python method")]
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
        let owned = self.owned()?;
        let client = text("client_id", client_id)?;
        let channel = optional_text("channel", channel)?;
        let own = own_fields(message)?;
        let options = publish_options(priority, durable, idempotency_key)?;
        let (sent, outcome) = owned.with_json(message, default, "message", |bytes| {
            let body = own.map_or(Body::Message(bytes), |own| Body::Fields(bytes, own));
            owned.begin(Call::Send {
                client,
                channel,
                body,
                options,
            })
        })??;
        let sent = content_of!(sent, Reply::Sent)?;
        awaitable(py, sent.stamp.id_text().into_py_any(py)?, None, outcome)
    }

    /// Publish to all subscribers of a channel. The result is the number of connected subscribers reached.
    ///
    /// `data` is a value that JSON can hold. None, or no data, arrives as `{}`, as with the original Tantor.
    /// `priority` is "low", "normal" (the default), "high" or "emergency". With `durable`, or on a durable channel,
    /// the awaitable is done when the message is saved. A repeat with the same `idempotency_key` publishes nothing,
    /// and returns the first result. Errors: `DataError` for data that JSON cannot hold; `ValueError` for an
    /// invalid name or option; `StorageError` if the database cannot be used.
    #[pyo3(signature = (channel, event, data = None, *, default = None, priority = None, durable = false,
        idempotency_key = None))]
    #[expect(clippy::too_many_arguments, reason = "options of the Python method")]
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
        let owned = slf.get().owned()?;
        let (channel, event) = (text("channel", channel)?, text("event", event)?);
        let options = publish_options(priority, durable, idempotency_key)?;
        let broadcast = |data: &[u8]| {
            owned.begin(Call::Broadcast {
                channel,
                event,
                data,
                options,
            })
        };
        let (published, outcome) = match data {
            Some(data) => owned.with_json(data, default, "data", broadcast)?,
            None => py.detach(|| broadcast(b"{}")),
        }?;
        let published = content_of!(published, Reply::Published)?;
        if published.recipients == 0 && !owned.reaches_server(py)? {
            publishing::warn_once(slf.as_any())?;
        }
        awaitable(py, published.recipients.into_py_any(py)?, None, outcome)
    }

    /// A page of a channel's history: the oldest `limit` publications after the offset `after`, or else the newest
    /// `limit` publications (before the offset `before`, if given). `ValueError` for an invalid limit or offset.
    #[pyo3(signature = (channel, limit = 100, after = None, before = None))]
    fn history(
        &self,
        py: Python<'_>,
        channel: &Bound<'_, PyAny>,
        limit: i128,
        after: Option<i128>,
        before: Option<i128>,
    ) -> PyResult<Done> {
        let owned = self.owned()?;
        let channel = text("channel", channel)?;
        let page = page(limit, after, before)?;
        let page = owned.ask(py, Call::History { channel, page })?;
        reports::history(py, &content_of!(page, Reply::History)?)
    }

    /// The progress of a message or an emergency, as `{"handed_over", "written", "acknowledged", "waiting"}`.
    ///
    /// `handed_over` counts the connections that the message was queued for, `written` the sockets that took the
    /// message, `acknowledged` the clients that acknowledged the message, `waiting` the clients that the message is
    /// kept for. None for an unknown id; the server knows the last 100,000 messages.
    fn delivery<'py>(
        &self,
        py: Python<'py>,
        message_id: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let owned = self.owned()?;
        let message_id = text("message_id", message_id)?;
        let report = owned.ask_briefly(Call::Delivery { message_id })?;
        reports::delivery(py, content_of!(report, Reply::Delivery)?)
    }

    /// A token with which a client can connect under this id, as `ws://host/?resume=<token>`.
    ///
    /// `ValueError` if `resume_ttl` is 0.
    fn resume_token(&self, client_id: &Bound<'_, PyAny>) -> PyResult<String> {
        let owned = self.owned()?;
        let client = text("client_id", client_id)?;
        let token = owned.ask(client_id.py(), Call::ResumeToken { client })?;
        content_of!(token, Reply::Token)
    }

    /// The data that the application keeps for a client, as JSON; None if there is none.
    #[pyo3(name = "_user_data")]
    fn user_data<'py>(
        &self,
        py: Python<'py>,
        client_id: &str,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let owned = self.owned()?;
        let json = owned.ask(py, Call::UserData { client: client_id })?;
        let json = content_of!(json, Reply::UserData)?;
        Ok(json.map(|json| PyBytes::new(py, &json)))
    }

    /// Keep data for a client while the server knows the client. `DataError` for data that JSON cannot hold.
    #[pyo3(name = "_set_user_data")]
    fn set_user_data(&self, client_id: &str, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let owned = self.owned()?;
        let client = client_id;
        owned.with_json(data, None, "user_data", |json| {
            owned.ask_detached(Call::SetUserData { client, json })
        })??;
        Ok(())
    }

    /// Subscribe a client, connected or not, to a channel. The result is always True.
    fn subscribe(
        &self,
        client_id: &Bound<'_, PyAny>,
        channel: &Bound<'_, PyAny>,
    ) -> PyResult<Done> {
        self.owned()?
            .change(client_id, channel, |client, channel| Call::Subscribe {
                client,
                channel,
            })
    }

    /// Unsubscribe a client from a channel. The result is always True.
    fn unsubscribe(
        &self,
        client_id: &Bound<'_, PyAny>,
        channel: &Bound<'_, PyAny>,
    ) -> PyResult<Done> {
        self.owned()?
            .change(client_id, channel, |client, channel| Call::Unsubscribe {
                client,
                channel,
            })
    }

    /// Send a message to every connected client, once, before all other waiting messages.
    ///
    /// The result is the number of clients; the awaitable also has the `message_id`.
    fn emergency(&self, message: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = message.py();
        let owned = self.owned()?;
        let message = text("message", message)?;
        let (sent, outcome) = py.detach(|| owned.begin(Call::Emergency { message }))?;
        let sent = content_of!(sent, Reply::Alarmed)?;
        let recipients = sent.recipients.into_py_any(py)?;
        awaitable(py, recipients, Some(sent.stamp.id_text()), outcome)
    }

    /// The subscribers of one channel as `{"channel", "online", "users"}`, or `{name: count}` of all channels.
    #[pyo3(signature = (channel = None))]
    fn get_presence<'py>(
        &self,
        py: Python<'py>,
        channel: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let owned = self.owned()?;
        // an empty name is none, as in the original
        let channel = optional_text("channel", channel)?.filter(|channel| !channel.is_empty());
        if let Some(channel) = channel {
            let users = owned.ask(py, Call::Presence { channel })?;
            return reports::presence(py, channel, &content_of!(users, Reply::Ids)?);
        }
        let census = owned.ask(py, Call::Census)?;
        reports::census(py, &content_of!(census, Reply::Census)?)
    }

    /// Counters and gauges of the server; docs/protocol.md lists the keys.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let owned = self.owned()?;
        let stats = content_of!(owned.ask(py, Call::Stats)?, Reply::Stats)?;
        super::stats::dict(py, &stats)
    }

    #[pyo3(name = "_channel_names")]
    fn channel_names(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let names = content_of!(self.owned()?.ask(py, Call::ChannelNames)?, Reply::Ids)?;
        Ok(texts(&names))
    }

    #[pyo3(name = "_channel_count")]
    fn channel_count(&self) -> PyResult<usize> {
        content_of!(self.owned()?.ask_briefly(Call::ChannelCount)?, Reply::Count)
    }

    #[pyo3(name = "_has_channel")]
    fn has_channel(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let owned = self.owned()?;
        let Some(name) = key(name) else {
            return Ok(false);
        };
        content_of!(owned.ask_briefly(Call::HasChannel { name })?, Reply::Known)
    }

    /// A channel as `(name, type, subscribers, created_at)`; None if there is none of this name.
    #[pyo3(name = "_channel_info")]
    fn channel_info(&self, name: &Bound<'_, PyAny>) -> PyResult<Option<reports::ChannelRow>> {
        let owned = self.owned()?;
        let Some(key) = key(name) else {
            return Ok(None);
        };
        let info = owned.ask(name.py(), Call::Channel { name: key })?;
        Ok(content_of!(info, Reply::Channel)?.map(|info| reports::channel_row(&info)))
    }

    /// Create a channel; False if there is one of this name. `ValueError` for an invalid name or kind.
    #[pyo3(signature = (name, kind = None), text_signature = "($self, name, kind='public')")]
    fn create_channel(
        &self,
        name: &Bound<'_, PyAny>,
        kind: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let py = name.py();
        let owned = self.owned()?;
        let name = text("name", name)?;
        let kind = optional_text("kind", kind)?.unwrap_or("public");
        let is_new = owned.ask(py, Call::CreateChannel { name, kind })?;
        content_of!(is_new, Reply::Changed)
    }

    /// Delete a channel with its history and its subscriptions; False if there is none of this name.
    fn delete_channel(&self, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        let py = name.py();
        let owned = self.owned()?;
        let name = text("name", name)?;
        let was_there = owned.ask(py, Call::DeleteChannel { name })?;
        content_of!(was_there, Reply::Changed)
    }

    #[pyo3(name = "_connection_ids")]
    fn connection_ids(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let ids = content_of!(self.owned()?.ask(py, Call::ConnectionIds)?, Reply::Ids)?;
        Ok(texts(&ids))
    }

    #[pyo3(name = "_connection_count")]
    fn connection_count(&self) -> PyResult<usize> {
        content_of!(
            self.owned()?.ask_briefly(Call::ConnectionCount)?,
            Reply::Count
        )
    }

    #[pyo3(name = "_has_connection")]
    fn has_connection(&self, client_id: &Bound<'_, PyAny>) -> PyResult<bool> {
        let owned = self.owned()?;
        let Some(client) = key(client_id) else {
            return Ok(false);
        };
        content_of!(
            owned.ask_briefly(Call::HasConnection { client })?,
            Reply::Known
        )
    }

    /// A client as `(client_id, joined_at, last_ping, channels)`, times in Unix seconds; None if not connected.
    #[pyo3(name = "_connection_info")]
    fn connection_info(
        &self,
        client_id: &Bound<'_, PyAny>,
    ) -> PyResult<Option<reports::ConnectionRow>> {
        let owned = self.owned()?;
        let Some(client) = key(client_id) else {
            return Ok(None);
        };
        let info = owned.ask(client_id.py(), Call::Connection { client })?;
        Ok(content_of!(info, Reply::Connection)?.map(|info| reports::connection_row(&info)))
    }

    /// Queue events of this name for `_next_events`, or stop queueing them. Log records are always queued.
    #[pyo3(name = "_want_event")]
    fn want_event(&self, event: &Bound<'_, PyAny>, wanted: bool) -> PyResult<()> {
        let server = self.server()?;
        server.events().want(text("event", event)?, wanted);
        Ok(())
    }

    /// Queue no log records below this level of `logging`.
    #[pyo3(name = "_set_log_level")]
    fn set_log_level(&self, level: u8) -> PyResult<()> {
        self.server()?.events().set_log_level(level);
        Ok(())
    }

    /// Wait (without the interpreter lock) for events; None once the server has ended and all events were taken.
    ///
    /// An event is `(name, fields, bytes)`, where `bytes` is its share of `event_queue_bytes`. The events of one
    /// call count as handled at the next call. A log record is `("", {"logger", "level", "message"}, bytes)`, with
    /// the level of `logging`.
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
