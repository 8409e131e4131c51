//! Work of the whole process that is due from time to time. It runs on the server's own thread, so that no shard's
//! connections wait for it.

use crate::base::memory;
use crate::core::events::LogLevel;
use crate::node::Node;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;

/// Has the node do its due work every `tick`, until the future is dropped. A panic ends one round of work.
pub(super) async fn keep_house(node: &Arc<Node>, tick: Duration) -> Infallible {
    let mut interval = tokio::time::interval(tick);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut freed = 0;
    loop {
        interval.tick().await;
        match catch_unwind(AssertUnwindSafe(|| node.tick())) {
            Ok(bytes) => freed += bytes,
            Err(_) => node.events.log(LogLevel::Error, "server", || {
                "housekeeping: a panic was contained; please report it".to_owned()
            }),
        }
        memory::give_back_if_due(&mut freed);
    }
}
