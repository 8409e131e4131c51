//! Calls on a messenger, as the methods of `Messenger` make them.

use super::configured::Owned;
use super::json;
use super::operation::Outcome;
use crate::base::error::Error;
use crate::ports::calls::{Call, Progress, Reply};
use crate::ports::completion::Completion;
use pyo3::prelude::*;
use std::cell::RefCell;
use std::sync::Arc;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A scratch buffer larger than this is given back.
const KEPT_SCRATCH: usize = 64 << 10;

impl Owned {
    /// Makes a call, and returns its reply and, while its result is being saved, the outcome that the caller may wait for.
    pub fn begin(&self, call: Call<'_>) -> Result<(Reply, Option<Arc<Outcome>>), Error> {
        let mut begun = None;
        let mut when_saved = || {
            let (outcome, completion) = Outcome::begin();
            begun = Some(outcome);
            completion
        };
        match self.calls.call(call, &mut when_saved) {
            Progress::Ended(reply) => Ok((reply?, None)),
            Progress::Saving(reply) => Ok((reply, begun)),
        }
    }

    /// Makes a call without the interpreter lock, and returns its reply. Nothing waits for what is being saved.
    pub fn ask(&self, py: Python<'_>, call: Call<'_>) -> Result<Reply, Error> {
        py.detach(|| self.ask_holding(call))
    }

    /// As `ask`, for a caller that has released the interpreter lock, or for a call that ends sooner than a release takes.
    pub fn ask_holding(&self, call: Call<'_>) -> Result<Reply, Error> {
        match self.calls.call(call, &mut || Completion::new(|_| ())) {
            Progress::Ended(reply) => reply,
            Progress::Saving(reply) => Ok(reply),
        }
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
