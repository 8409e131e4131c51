//! What a `Messenger` owns once it has its settings, and how it lets go of the server.

use crate::host::server::Server;
use crate::ports::calls::Calls;
use pyo3::prelude::*;
use std::sync::Arc;

pub struct Configured {
    /// `None` once this is being dropped.
    pub owned: Option<Owned>,
    /// The application's hook for values that JSON does not know.
    pub default: Option<Py<PyAny>>,
}

pub struct Owned {
    pub server: Arc<Server>,
    pub calls: Arc<dyn Calls>,
}

impl Drop for Configured {
    fn drop(&mut self) {
        let Some(owned) = self.owned.take() else {
            return;
        };
        if owned.server.is_inherited() {
            // the parent's threads may hold locks of the server for ever here, so the server must not be dropped
            std::mem::forget(owned);
            return;
        }
        let mut last = Some(owned);
        let mut end = || {
            if let Some(owned) = last.take() {
                owned.server.begin_stop();
            }
        };
        // the stop may wait for a thread that wants the interpreter lock
        if Python::try_attach(|py| py.detach(&mut end)).is_none() {
            end();
        }
    }
}
