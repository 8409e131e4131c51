//! Calls on a messenger, as the methods of `Messenger` make them.

use super::arguments::text;
use super::configured::Owned;
use super::done::Done;
use super::json;
use super::operation::{Outcome, SIGNAL_INTERVAL};
use crate::base::completion::{Abandoned, Completion, Progress};
use crate::base::error::Error;
use crate::ports::calls::{Call, Calls, Reply};
use flume::RecvTimeoutError;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back.
const KEPT_SCRATCH: usize = 64 << 10;

impl Owned {
    /// Makes a call, and returns its reply and, if the result is still to be saved, the outcome that the caller may wait for.
    /// Blocks until there is a reply.
    pub fn begin(&self, call: Call<'_>) -> PyResult<(Reply, Option<Arc<Outcome>>)> {
        let mut begun = None;
        let mut later = || {
            let (saved, completion) = Outcome::begin();
            let (tell, told) = flume::bounded(1);
            begun = Some((saved, told));
            Completion::new(move |outcome: Result<Reply, Error>| {
                let text = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
                // only a caller without a reply receives
                let _ = tell.send(outcome);
                completion.complete(text.map_err(Error::Storage));
            })
        };
        match (self.calls.call(call, &mut later), begun) {
            (Progress::Ended(reply), _) => Ok((reply?, None)),
            (Progress::Begun(Some(reply)), begun) => Ok((reply, begun.map(|(saved, _)| saved))),
            (Progress::Begun(None), Some((_, told))) => Ok((receive(&told)?, None)),
            (Progress::Begun(None), None) => Err(Error::abandoned().into()),
        }
    }

    /// Makes a call without the interpreter lock, and blocks until it has ended.
    pub fn ask(&self, py: Python<'_>, call: Call<'_>) -> PyResult<Reply> {
        py.detach(|| self.ask_detached(call))
    }

    /// As `ask`, for a call that ends sooner than a release of the lock takes, if this process serves.
    pub fn ask_briefly(&self, call: Call<'_>) -> PyResult<Reply> {
        if self.calls.is_local() {
            self.ask_detached(call)
        } else {
            Python::attach(|py| self.ask(py, call))
        }
    }

    /// As `ask`, for a caller that has released the interpreter lock.
    pub fn ask_detached(&self, call: Call<'_>) -> PyResult<Reply> {
        let mut begun = None;
        let mut later = || {
            let (tell, told) = flume::bounded(1);
            begun = Some(told);
            // a caller that waits is there to receive
            Completion::new(move |reply: Result<Reply, Error>| drop(tell.send(reply)))
        };
        match (self.calls.call(call, &mut later), begun) {
            (Progress::Ended(reply), _) => Ok(reply?),
            (Progress::Begun(_), Some(told)) => receive(&told),
            (Progress::Begun(_), None) => Err(Error::abandoned().into()),
        }
    }

    /// True if calls reach a server: that of this process, or that of another process of the application.
    pub fn reaches_server(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(py.detach(|| self.calls.reaches_server())?)
    }

    /// Makes a call about a client and a channel, which always succeeds for valid names.
    pub fn change<'a>(
        &self,
        client_id: &'a Bound<'_, PyAny>,
        channel: &'a Bound<'_, PyAny>,
        call: impl FnOnce(&'a str, &'a str) -> Call<'a>,
    ) -> PyResult<Done> {
        let (client, name) = (text("client_id", client_id)?, text("channel", channel)?);
        self.ask(channel.py(), call(client, name))?;
        Ok(Done::new(true.into_py_any(channel.py())?))
    }

    /// Writes a value as JSON, and gives the bytes to `act`, without the interpreter lock.
    ///
    /// `default` is the hook of this call for values that JSON does not know; `root` names the value in errors.
    pub fn with_json<T: Send>(
        &self,
        value: &Bound<'_, PyAny>,
        default: Option<&Bound<'_, PyAny>>,
        root: &str,
        act: impl FnOnce(&[u8]) -> T + Send,
    ) -> PyResult<T> {
        let py = value.py();
        let own = self.default.as_ref().map(|default| default.bind(py));
        // taken, not borrowed, because the hook may make a call that needs the buffer
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

/// Blocks until the outcome of a call is told. Checks for signals meanwhile, so that Ctrl-C ends the wait for a process that
/// does not answer.
fn receive(told: &flume::Receiver<Result<Reply, Error>>) -> PyResult<Reply> {
    loop {
        match told.recv_timeout(SIGNAL_INTERVAL) {
            Ok(outcome) => return Ok(outcome?),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::abandoned().into()),
            // an interpreter that ends has no more signals to handle
            Err(RecvTimeoutError::Timeout) => {
                Python::try_attach(|py| {
                    py.check_signals()?;
                    Ok::<_, PyErr>(())
                })
                .unwrap_or(Ok(()))?;
            }
        }
    }
}

/// The content of a reply; an error for a reply of another kind than the call has.
macro_rules! content_of {
    ($reply:expr, $kind:path) => {
        match $reply {
            $kind(content) => Ok(content),
            other => Err(pyo3::exceptions::PyRuntimeError::new_err(format!(
                "the messenger gave an unexpected reply: {other:?}"
            ))),
        }
    };
}

pub(super) use content_of;
