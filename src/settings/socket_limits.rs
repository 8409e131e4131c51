//! The number of connections that this process has room for, by the settings and by the limit of open files.

use crate::settings::config::Config;

/// Sockets that the process may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketLimits {
    /// Clients that may be connected at once.
    pub connections: usize,
    /// Sockets that may be in their handshake at once, besides.
    pub handshakes: usize,
    /// The limit of open files, where it leaves less room than the settings ask for.
    pub limited_by: Option<usize>,
}

/// Descriptors that stay free for the application: its files, databases and sockets.
const RESERVED: usize = 64;

impl SocketLimits {
    /// The limits that the settings ask for.
    pub fn of_settings(config: &Config) -> Self {
        Self {
            connections: config.max_connections,
            handshakes: config.max_handshakes,
            limited_by: None,
        }
    }

    /// Raises the soft limit of open files as far as the settings need and the hard limit allows, and returns what the
    /// limit leaves room for.
    pub fn claim(config: &Config) -> Self {
        let wanted = Self::of_settings(config);
        let used = RESERVED + open_descriptors();
        let needed = used
            .saturating_add(wanted.connections)
            .saturating_add(wanted.handshakes);
        match raise_limit(needed) {
            Some(limit) if limit < needed => wanted.within(limit, limit.saturating_sub(used)),
            _ => wanted,
        }
    }

    /// Divides the room that a limit leaves: at most a quarter of it is for handshakes.
    fn within(self, limit: usize, room: usize) -> Self {
        let handshakes = self.handshakes.min(room / 4).max(1);
        Self {
            connections: self.connections.min(room.saturating_sub(handshakes)).max(1),
            handshakes,
            limited_by: Some(limit),
        }
    }
}

/// Returns the soft limit of open files in force, raised to `needed` where that is allowed; `None` where there is none.
#[cfg(unix)]
fn raise_limit(needed: usize) -> Option<usize> {
    let (soft, hard) = rlimit::Resource::NOFILE.get().ok()?;
    let wanted = (needed as u64).min(hard);
    let in_force = if soft < wanted {
        rlimit::increase_nofile_limit(wanted).unwrap_or(soft)
    } else {
        soft
    };
    usize::try_from(in_force).ok()
}

#[cfg(not(unix))]
fn raise_limit(_needed: usize) -> Option<usize> {
    None
}

/// The number of open descriptors; 0 where the system does not tell.
fn open_descriptors() -> usize {
    std::fs::read_dir("/dev/fd").map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_leaves_a_quarter_of_its_room_for_handshakes() {
        let wanted = SocketLimits::of_settings(&Config::default());
        assert_eq!(
            wanted.within(1024, 900),
            SocketLimits {
                connections: 675,
                handshakes: 225,
                limited_by: Some(1024),
            }
        );
        let roomy = wanted.within(50_000, 49_900);
        assert_eq!((roomy.handshakes, roomy.connections), (1024, 48_876));
        let full = wanted.within(64, 0);
        assert_eq!((full.handshakes, full.connections), (1, 1));
    }
}
