//! Serves the other processes of the application.

use super::server::Server;
use crate::core::events::LogLevel;
use crate::link::message::MAX_WAITING_CALLS;
use crate::link::rendezvous::Rendezvous;
use crate::link::serving::{LinkLimits, LinkServer};

impl Server {
    /// Begins to serve the other processes of the application. `None`, with a line in the log, if another process does, or
    /// if there is no place to meet: this server goes on for its own process.
    pub(super) fn serve_link(&self) -> Option<LinkServer> {
        let config = self.config();
        if config.app_id.is_empty() {
            return None;
        }
        let limits = LinkLimits {
            processes: config.max_processes,
            waiting_calls: MAX_WAITING_CALLS,
            message_size: config.max_message_size,
        };
        let events = &self.node().events;
        let warn = |problem: String| {
            events.log(LogLevel::Warning, "link", || {
                format!("other processes of the application cannot call this server: {problem}")
            });
        };
        let claimed = Rendezvous::of(&config.app_id, config.runtime_dir.as_deref())
            .and_then(|place| place.claim());
        let tenure = match claimed {
            Ok(Some(tenure)) => tenure,
            Ok(None) => {
                warn(format!(
                    "another process serves the application {:?}; give one of them another app_id",
                    config.app_id
                ));
                return None;
            }
            Err(error) => {
                warn(error.to_string());
                return None;
            }
        };
        match LinkServer::start(tenure, self.calls(), events.clone(), limits) {
            Ok(server) => Some(server),
            Err(error) => {
                warn(error.to_string());
                None
            }
        }
    }
}
