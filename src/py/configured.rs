//! The parts of a `Messenger` that has its settings, and how the messenger releases the server.

use crate::host::reach::ReachingCalls;
use crate::host::server::Server;
use pyo3::prelude::*;
use std::sync::Arc;

pub struct Configured {
    /// `None` once this value is being dropped.
    owned: Option<Owned>,
}

pub struct Owned {
    pub server: Arc<Server>,
    pub calls: Arc<ReachingCalls>,
    /// The application's hook for values that JSON does not know.
    pub default: Option<Py<PyAny>>,
}

impl Configured {
    pub fn new(server: Arc<Server>, default: Option<Py<PyAny>>) -> Self {
        Self {
            owned: Some(Owned {
                calls: Arc::new(ReachingCalls::new(Arc::clone(&server))),
                server,
                default,
            }),
        }
    }

    pub fn owned(&self) -> Option<&Owned> {
        self.owned.as_ref()
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        let Some(owned) = self.owned.take() else {
            return;
        };
        if owned.server.is_inherited() {
            // the server must not be dropped here: threads that this process does not have may hold locks of the server
            std::mem::forget(owned);
            return;
        }
        // without the interpreter lock, because the stop may wait for a thread that wants it
        let stop = || owned.server.begin_stop();
        if Python::try_attach(|py| py.detach(stop)).is_none() {
            stop();
        }
    }
}
