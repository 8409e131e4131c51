//! The sockets that connections come in by: one for each address of each host that is given.

use crate::error::Error;
use crate::fork::ParentsOwn;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};

/// Connections that the system may hold until they are accepted.
const BACKLOG: i32 = 4096;

/// Ports of the system's choice that are tried until one is free on every address.
const MOST_PORTS: u32 = 16;

/// An address to listen on, and the host that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    socket: SocketAddr,
    /// A name has this address besides others, of which one is enough where the system has no such network.
    is_one_of_many: bool,
}

/// Every address of each host of a list that is separated by commas.
///
/// Errors: a name without addresses.
pub fn resolve(hosts: &str, port: u16) -> Result<Vec<Address>, Error> {
    let mut addresses: Vec<Address> = Vec::new();
    for host in hosts.split(',').map(str::trim) {
        let unknown = |source| cannot_bind(host, port, source);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let mut found: Vec<SocketAddr> = (bare, port).to_socket_addrs().map_err(unknown)?.collect();
        found.dedup();
        for socket in &found {
            if !addresses.iter().any(|known| known.socket == *socket) {
                addresses.push(Address {
                    host: host.to_owned(),
                    socket: *socket,
                    is_one_of_many: found.len() > 1,
                });
            }
        }
    }
    Ok(addresses)
}

/// Sockets that listen, all on one port. To be made and closed under a `Whole`.
pub struct Listeners {
    // let go of before the sockets are closed
    registered: Vec<ParentsOwn>,
    sockets: Vec<TcpListener>,
}

impl Listeners {
    /// Listens on every address. With port 0, the system chooses one port for all of them.
    ///
    /// Errors: an address that is taken, or none could be listened on; it names host and port.
    pub fn bind(addresses: &[Address]) -> Result<Self, Error> {
        let is_any = addresses.iter().all(|address| address.socket.port() == 0);
        let mut tries_left = if is_any && addresses.len() > 1 {
            MOST_PORTS
        } else {
            1
        };
        loop {
            tries_left -= 1;
            match Self::bind_once(addresses) {
                Err(Error::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => {}
                result => return result,
            }
        }
    }

    pub fn into_parts(self) -> (Vec<ParentsOwn>, Vec<TcpListener>) {
        (self.registered, self.sockets)
    }

    fn bind_once(addresses: &[Address]) -> Result<Self, Error> {
        let has_ipv4_any = addresses
            .iter()
            .any(|address| address.socket.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut listeners = Self {
            registered: Vec::new(),
            sockets: Vec::new(),
        };
        let mut failed = None;
        for Address {
            host,
            socket,
            is_one_of_many,
        } in addresses
        {
            let mut wanted = *socket;
            if let Some(Ok(first)) = listeners.sockets.first().map(TcpListener::local_addr) {
                wanted.set_port(first.port());
            }
            match listen(wanted, has_ipv4_any) {
                Ok(socket) => {
                    listeners.registered.push(ParentsOwn::register(&socket));
                    listeners.sockets.push(socket);
                }
                Err(error)
                    if *is_one_of_many && error.kind() == io::ErrorKind::AddrNotAvailable =>
                {
                    failed = Some(cannot_bind(host, wanted.port(), error));
                }
                Err(error) => return Err(cannot_bind(host, wanted.port(), error)),
            }
        }
        match failed {
            Some(error) if listeners.sockets.is_empty() => Err(error),
            _ => Ok(listeners),
        }
    }
}

fn listen(address: SocketAddr, has_ipv4_any: bool) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    // elsewhere it would let two servers share a port
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `::` takes IPv4 too, whatever the system's default, unless 0.0.0.0 has a socket of its own
        let is_dual = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !has_ipv4_any;
        socket.set_only_v6(!is_dual)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn cannot_bind(host: &str, port: u16, source: io::Error) -> Error {
    Error::Bind {
        address: format!("{host}:{port}"),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(hosts: &str) -> Vec<SocketAddr> {
        let listeners = Listeners::bind(&resolve(hosts, 0).unwrap()).unwrap();
        let (_, sockets) = listeners.into_parts();
        sockets
            .iter()
            .map(|socket| socket.local_addr().unwrap())
            .collect()
    }

    #[test]
    fn a_list_of_hosts_has_a_socket_each_on_one_port() {
        let bound = bound("127.0.0.1, 127.0.0.2,127.0.0.1");
        assert_eq!(bound.len(), 2);
        assert_eq!(bound[0].port(), bound[1].port());
        assert_ne!(bound[0].ip(), bound[1].ip());
    }

    #[test]
    fn an_address_that_is_taken_is_named_and_leaves_nothing_open() {
        let taken = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let addresses = resolve("127.0.0.1,127.0.0.2", port).unwrap();
        let error = Listeners::bind(&addresses).err().unwrap().to_string();
        assert!(error.contains(&format!("127.0.0.2:{port}")), "{error}");
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn a_name_without_addresses_is_an_error() {
        let error = resolve("127.0.0.1,no-such-host.invalid", 0).unwrap_err();
        assert!(error.to_string().contains("no-such-host.invalid:0"));
    }
}
