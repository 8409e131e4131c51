//! The order of messages to a connection that is behind, and the policies for a connection that is too far behind.

use serde::{Deserialize, Serialize};

/// The lane of a message; a higher one overtakes lower ones that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Priority {
    Low,
    #[default]
    Normal,
    High,
    Emergency,
}

impl Priority {
    /// The values that a caller may give, in words.
    pub const TAKES: &'static str = "\"low\", \"normal\", \"high\" or \"emergency\"";

    const NAMES: [(&'static str, Priority); 4] = [
        ("low", Priority::Low),
        ("normal", Priority::Normal),
        ("high", Priority::High),
        ("emergency", Priority::Emergency),
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        let named = Self::NAMES.iter().find(|(known, _)| *known == name);
        named.map(|(_, priority)| *priority)
    }
}

/// The policy for the publications that wait for a connection when more waits than `max_pending_bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlowConsumer {
    /// The connection is closed (3008); the client returns and recovers.
    #[default]
    Disconnect,
    /// The oldest are dropped.
    DropOldest,
    /// Only the newest of the channel waits.
    Latest,
}

impl SlowConsumer {
    /// The values that a setting may have, in words.
    pub const TAKES: &'static str = "\"disconnect\", \"drop_oldest\" or \"latest\"";

    const NAMES: [(&'static str, SlowConsumer); 3] = [
        ("disconnect", SlowConsumer::Disconnect),
        ("drop_oldest", SlowConsumer::DropOldest),
        ("latest", SlowConsumer::Latest),
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        let named = Self::NAMES.iter().find(|(known, _)| *known == name);
        named.map(|(_, policy)| *policy)
    }

    /// The word in settings, and the reason on the wire.
    pub fn name(self) -> &'static str {
        match self {
            SlowConsumer::Disconnect => "disconnect",
            SlowConsumer::DropOldest => "drop_oldest",
            SlowConsumer::Latest => "latest",
        }
    }
}
