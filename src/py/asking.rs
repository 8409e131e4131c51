//! Calls as the methods of `Messenger` make them.

use super::operation::Outcome;
use crate::base::error::Error;
use crate::ports::calls::{Call, Calls, Progress, Reply};
use crate::ports::completion::Completion;
use std::sync::Arc;

/// Makes a call, and returns its reply and, while its result is being saved, what the caller may wait for.
pub fn begin(calls: &dyn Calls, call: Call<'_>) -> Result<(Reply, Option<Arc<Outcome>>), Error> {
    let mut waited_for = None;
    let mut when_saved = || {
        let (settled, completion) = Outcome::begin();
        waited_for = Some(settled);
        completion
    };
    match calls.call(call, &mut when_saved) {
        Progress::Ended(reply) => Ok((reply?, None)),
        Progress::Saving(reply) => Ok((reply, waited_for)),
    }
}

/// Makes a call that nothing waits for, and returns its reply.
pub fn reply(calls: &dyn Calls, call: Call<'_>) -> Result<Reply, Error> {
    match calls.call(call, &mut || Completion::new(|_| ())) {
        Progress::Ended(reply) => reply,
        Progress::Saving(reply) => Ok(reply),
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
