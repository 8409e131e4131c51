//! An operation that may still be under way when the call that began it returns.

use super::bridge::LoopTasks;
use super::{arguments, errors};
use crate::base::completion::Completion;
use crate::base::error::Error;
use crate::base::fork;
use crate::base::sync::{Condvar, Mutex};
use pyo3::prelude::*;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How often a thread that waits checks for signals, so that Ctrl-C ends the wait.
pub const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// The outcome of an operation, once there is one.
pub struct Outcome {
    /// The error as text, because each caller that waits raises an error of its own. Read without a lock, so that a forked
    /// child can tell whether the operation ended before the fork.
    result: OnceLock<Result<(), String>>,
    /// Wakes futures.
    settled: Notify,
    /// Wakes threads.
    changed: Condvar,
    lock: Mutex<()>,
    /// The process that began the operation.
    generation: u32,
}

impl Outcome {
    /// Returns an outcome that is not known yet, and the completion that sets it.
    pub fn begin() -> (Arc<Self>, Completion<()>) {
        let outcome = Arc::new(Self {
            result: OnceLock::new(),
            settled: Notify::new(),
            changed: Condvar::new(),
            lock: Mutex::default(),
            generation: fork::generation(),
        });
        let own = Arc::clone(&outcome);
        let completion = Completion::new(move |result: Result<(), Error>| {
            own.settle(result.map_err(|error| error.to_string()));
        });
        (outcome, completion)
    }

    fn settle(&self, result: Result<(), String>) {
        {
            let _lock = self.lock.lock();
            // the first and only result, because a completion completes once
            let _ = self.result.set(result);
        }
        self.changed.notify_all();
        self.settled.notify_waiters();
    }

    async fn ended(self: Arc<Self>) {
        // created before the look, so that no notification is missed
        let settled = self.settled.notified();
        if self.result.get().is_none() {
            settled.await;
        }
    }

    /// Blocks until there is a result, for at most `timeout`; true if there is one.
    fn wait_for(&self, timeout: Duration) -> bool {
        let lock = self.lock.lock();
        if self.result.get().is_none() {
            drop(self.changed.wait_for(lock, timeout));
        }
        self.result.get().is_some()
    }
}

/// An operation that has begun: something is being saved, or a server stops. Python code cannot make one.
///
/// In a forked child, an operation of the parent that had not ended raises `ForkedError`.
#[pyclass(frozen, module = "tantor._tantor")]
pub struct Operation(Arc<Outcome>);

impl Operation {
    pub fn new(outcome: Arc<Outcome>) -> Self {
        Self(outcome)
    }

    /// `None` while the operation is under way. An error in a child of the process in which the operation is under way.
    fn result(&self) -> PyResult<Option<&Result<(), String>>> {
        let result = self.0.result.get();
        if result.is_none() && self.0.generation != fork::generation() {
            return Err(errors::forked_error());
        }
        Ok(result)
    }
}

#[pymethods]
impl Operation {
    /// True if the operation has ended, with success or with an error.
    fn done(&self) -> PyResult<bool> {
        Ok(self.result()?.is_some())
    }

    /// Block (without the interpreter lock) until the operation has ended; False if `timeout` seconds passed before.
    ///
    /// Errors: `StorageError` if the operation failed.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.result()?.is_none() && !wait(py, timeout, |slice| self.0.wait_for(slice))? {
            return Ok(false);
        }
        match self.0.result.get() {
            Some(Err(error)) => Err(errors::storage_error(error.clone())),
            _ => Ok(true),
        }
    }

    /// A future of the running event loop, which is done when the operation has ended, also with an error.
    ///
    /// `tasks` are the tasks of that loop.
    fn future<'py>(&self, py: Python<'py>, tasks: &LoopTasks) -> PyResult<Bound<'py, PyAny>> {
        self.result()?;
        tasks.future(py, Arc::clone(&self.0).ended())
    }
}

/// Calls `wait_for` without the interpreter lock until it returns true; false if `timeout` seconds passed before. Checks for
/// signals between the calls.
pub fn wait(
    py: Python<'_>,
    timeout: Option<f64>,
    wait_for: impl Fn(Duration) -> bool + Sync,
) -> PyResult<bool> {
    let deadline =
        timeout.and_then(|timeout| Instant::now().checked_add(arguments::seconds(timeout)));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let slice = left.map_or(SIGNAL_INTERVAL, |left| left.min(SIGNAL_INTERVAL));
        if py.detach(|| wait_for(slice)) {
            return Ok(true);
        }
        py.check_signals()?;
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(false);
        }
    }
}
