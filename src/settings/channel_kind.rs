//! The kind of a channel: a label that the application sees.

use serde::{Deserialize, Serialize};

/// The kind of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelKind {
    #[default]
    Public,
    Private,
    Emergency,
}

impl ChannelKind {
    /// The names that a caller may give, in words.
    pub const TAKES: &'static str = "\"public\", \"private\" or \"emergency\"";

    const ALL: [ChannelKind; 3] = [
        ChannelKind::Public,
        ChannelKind::Private,
        ChannelKind::Emergency,
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            ChannelKind::Public => "public",
            ChannelKind::Private => "private",
            ChannelKind::Emergency => "emergency",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name_and_named_where_a_caller_is_told() {
        for kind in ChannelKind::ALL {
            assert_eq!(ChannelKind::from_name(kind.name()), Some(kind));
            assert!(ChannelKind::TAKES.contains(kind.name()));
        }
        assert_eq!(ChannelKind::from_name("secret"), None);
    }
}
