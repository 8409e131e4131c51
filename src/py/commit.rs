//! Waiting until something is saved, without a thread of its own and without the interpreter on the store's thread:
//! a `Commit` is settled there, and rings the bells of the event loops that wait for it.

use super::errors;
use crate::base::error::Error;
use crate::base::sync::{Condvar, Mutex};
use crate::ports::completion::Completion;
use pyo3::exceptions::{PyOSError, PyTimeoutError};
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a wait looks for signals.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

/// The outcome of saving something, once there is one.
#[derive(Default)]
pub struct Settled {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The error as text, because each waiting caller raises its own.
    outcome: Option<Result<(), String>>,
    bells: Vec<Arc<Ringer>>,
}

impl Settled {
    /// Returns an outcome that is not known yet, and the completion that tells it.
    pub fn begin() -> (Arc<Self>, Completion<()>) {
        let settled = Arc::new(Self::default());
        let own = Arc::clone(&settled);
        let completion = Completion::new(move |outcome: Result<(), Error>| {
            own.settle(outcome.map_err(|error| error.to_string()));
        });
        (settled, completion)
    }

    fn settle(&self, outcome: Result<(), String>) {
        let bells = {
            let mut state = self.state.lock();
            state.outcome = Some(outcome);
            std::mem::take(&mut state.bells)
        };
        self.changed.notify_all();
        for bell in bells {
            bell.ring();
        }
    }
}

/// Something that is being saved. Not made by Python.
#[pyclass(frozen, module = "tantor._tantor")]
pub struct Commit {
    settled: Arc<Settled>,
}

impl Commit {
    pub fn new(settled: Arc<Settled>) -> Self {
        Self { settled }
    }
}

#[pymethods]
impl Commit {
    /// Whether it is saved, or could not be.
    fn done(&self) -> bool {
        self.settled.state.lock().outcome.is_some()
    }

    /// Block (without the interpreter lock) until it is. `StorageError` if it could not be; `TimeoutError`.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let deadline = timeout
            .and_then(|timeout| Duration::try_from_secs_f64(timeout.max(0.0)).ok())
            .and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let outcome = py.detach(|| {
                let mut state = self.settled.state.lock();
                if state.outcome.is_none() {
                    (state, _) = self.settled.changed.wait_for(state, SIGNAL_INTERVAL);
                }
                state.outcome.clone()
            });
            match outcome {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => return Err(errors::storage_error(error)),
                None => py.check_signals()?,
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(PyTimeoutError::new_err("it is not saved yet"));
            }
        }
    }

    /// Have a bell rung when it is; False, without a ring, when it is already.
    fn ring_when_done(&self, bell: &Bell) -> bool {
        let mut state = self.settled.state.lock();
        let is_waiting = state.outcome.is_none();
        if is_waiting
            && !state
                .bells
                .iter()
                .any(|known| Arc::ptr_eq(known, &bell.ringer))
        {
            state.bells.push(Arc::clone(&bell.ringer));
        }
        is_waiting
    }
}

/// A socket that becomes readable when what it was given to is done. `OSError` where there are none.
#[pyclass(frozen, module = "tantor._tantor")]
pub struct Bell {
    ringer: Arc<Ringer>,
    #[cfg(unix)]
    ear: std::os::unix::net::UnixStream,
}

struct Ringer {
    /// It was rung since it was last heard.
    is_ringing: AtomicBool,
    #[cfg(unix)]
    rope: std::os::unix::net::UnixStream,
}

impl Ringer {
    fn ring(&self) {
        if !self.is_ringing.swap(true, Ordering::AcqRel) {
            #[cfg(unix)]
            {
                use std::io::Write;
                // a full socket is readable already
                let _ = (&self.rope).write(&[1]);
            }
        }
    }
}

#[pymethods]
impl Bell {
    #[new]
    #[cfg(unix)]
    fn new() -> PyResult<Self> {
        let (rope, ear) = std::os::unix::net::UnixStream::pair()?;
        rope.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        let is_ringing = AtomicBool::new(false);
        let ringer = Arc::new(Ringer { is_ringing, rope });
        Ok(Self { ringer, ear })
    }

    #[new]
    #[cfg(not(unix))]
    fn new() -> PyResult<Self> {
        Err(PyOSError::new_err("there are no bells on this system"))
    }

    /// The socket's file descriptor.
    #[cfg(unix)]
    fn fileno(&self) -> i32 {
        use std::os::fd::AsRawFd;
        self.ear.as_raw_fd()
    }

    /// The socket's file descriptor.
    #[cfg(not(unix))]
    #[expect(clippy::unused_self, reason = "there is a socket only on Unix")]
    fn fileno(&self) -> PyResult<i32> {
        Err(PyOSError::new_err("there are no bells on this system"))
    }

    /// Make it unreadable until it is rung again.
    fn hear(&self) -> PyResult<()> {
        #[cfg(unix)]
        {
            use std::io::{ErrorKind, Read};
            let mut buffer = [0; 64];
            match (&self.ear).read(&mut buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(PyOSError::new_err(error.to_string())),
            }
        }
        // behind the reading: a byte that came in between would be read along, and the bell be silent for good. What is
        // rung in between without a byte is seen, because whoever hears looks at what is done after this
        self.ringer.is_ringing.swap(false, Ordering::AcqRel);
        Ok(())
    }
}
