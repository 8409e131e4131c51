//! Where a connection comes from.

use std::net::IpAddr;

/// The other side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    Ip(IpAddr),
    /// A process of this machine, such as a proxy, by a Unix socket.
    Unix,
}
