//! The listening sockets: one for each address of each host in the setting `host`.

use crate::base::error::Error;
use crate::base::fork::ClosedInChild;
#[cfg(unix)]
use crate::net::unix_socket::{self, SocketFile};
use crate::settings::hosts::{Host, Hosts, show_unix};
use socket2::{Domain, Protocol, Socket, Type};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// The number of connections that the system may queue until the server accepts them.
const BACKLOG: i32 = 4096;

/// The number of ports, chosen by the system, that are tried until one is free on every address.
const MOST_PORTS: u32 = 16;

/// Every address to listen on.
#[derive(Debug, Default)]
pub struct Addresses {
    tcp: Vec<TcpAddress>,
    unix: Vec<PathBuf>,
}

/// An address to listen on, and the host that it comes from.
#[derive(Debug)]
struct TcpAddress {
    host: String,
    socket: SocketAddr,
    /// The name has other addresses too. One of them is enough if the system lacks the network of this address.
    is_one_of_many: bool,
}

/// Finds every address of each host.
///
/// Errors: a name without addresses.
pub fn resolve(hosts: &Hosts, port: u16) -> Result<Addresses, Error> {
    let mut addresses = Addresses::default();
    for host in hosts.list() {
        match host {
            Host::Tcp(name) => resolve_name(name, port, &mut addresses.tcp)?,
            Host::Unix(path) if !addresses.unix.contains(path) => addresses.unix.push(path.clone()),
            Host::Unix(_) => {}
        }
    }
    Ok(addresses)
}

fn resolve_name(host: &str, port: u16, addresses: &mut Vec<TcpAddress>) -> Result<(), Error> {
    let unknown = |source| cannot_bind(host, port, source);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut found: Vec<SocketAddr> = (bare, port).to_socket_addrs().map_err(unknown)?.collect();
    found.dedup();
    for socket in &found {
        if !addresses.iter().any(|known| known.socket == *socket) {
            addresses.push(TcpAddress {
                host: host.to_owned(),
                socket: *socket,
                is_one_of_many: found.len() > 1,
            });
        }
    }
    Ok(())
}

/// An address that is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => f.write_str(&show_unix(path)),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub enum ListeningSocket {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// A connected socket.
#[derive(Debug)]
pub enum Accepted {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl ListeningSocket {
    pub fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => Ok(Accepted::Tcp(listener.accept()?.0)),
            #[cfg(unix)]
            Self::Unix(listener) => Ok(Accepted::Unix(listener.accept()?.0)),
        }
    }
}

#[cfg(unix)]
impl std::os::fd::AsFd for ListeningSocket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

#[cfg(unix)]
impl std::os::fd::AsRawFd for ListeningSocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(self).as_raw_fd()
    }
}

/// The listening sockets of a server; all TCP sockets have the same port. Make and close them under a `ForkGuard`.
pub struct Listeners {
    claims: Claims,
    endpoints: Vec<Endpoint>,
    sockets: Vec<ListeningSocket>,
}

/// To be undone when the sockets are closed: descriptors that a forked child closes, and the files of Unix
/// sockets. Drop the value before the sockets.
#[derive(Default)]
pub struct Claims {
    descriptors: Vec<ClosedInChild>,
    #[cfg(unix)]
    files: Vec<SocketFile>,
}

impl Listeners {
    /// Listens on every address. With port 0, the system chooses one port for all of them. The files of Unix sockets get
    /// the permissions of `mode`.
    ///
    /// Errors: an address is taken, or no address could be bound. The error names host and port, or the path.
    pub fn bind(addresses: &Addresses, mode: u32) -> Result<Self, Error> {
        let mut listeners = Self::bind_tcp(&addresses.tcp)?;
        #[cfg(unix)]
        for path in &addresses.unix {
            let (socket, file) = unix_socket::listen(path, mode, BACKLOG)?;
            listeners.claims.files.push(file);
            listeners.add(ListeningSocket::Unix(socket), Endpoint::Unix(path.clone()));
        }
        Ok(listeners)
    }

    pub fn into_parts(self) -> (Claims, Vec<Endpoint>, Vec<ListeningSocket>) {
        (self.claims, self.endpoints, self.sockets)
    }

    fn add(&mut self, socket: ListeningSocket, endpoint: Endpoint) {
        self.claims
            .descriptors
            .push(ClosedInChild::register(&socket));
        self.endpoints.push(endpoint);
        self.sockets.push(socket);
    }

    fn bind_tcp(addresses: &[TcpAddress]) -> Result<Self, Error> {
        let is_any = addresses.iter().all(|address| address.socket.port() == 0);
        let mut tries_left = if is_any && addresses.len() > 1 {
            MOST_PORTS
        } else {
            1
        };
        loop {
            tries_left -= 1;
            match Self::bind_tcp_once(addresses) {
                Err(Error::Bind { source, .. })
                    if source.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => {}
                result => return result,
            }
        }
    }

    fn bind_tcp_once(addresses: &[TcpAddress]) -> Result<Self, Error> {
        let has_ipv4_any = addresses
            .iter()
            .any(|address| address.socket.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let mut listeners = Self {
            claims: Claims::default(),
            endpoints: Vec::new(),
            sockets: Vec::new(),
        };
        let mut failed = None;
        for TcpAddress {
            host,
            socket,
            is_one_of_many,
        } in addresses
        {
            let mut wanted = *socket;
            if let Some(Endpoint::Tcp(first)) = listeners.endpoints.first() {
                wanted.set_port(first.port());
            }
            let failure = |error| cannot_bind(host, wanted.port(), error);
            match listen(wanted, has_ipv4_any) {
                Ok(socket) => {
                    let bound = socket.local_addr().map_err(failure)?;
                    listeners.add(ListeningSocket::Tcp(socket), Endpoint::Tcp(bound));
                }
                Err(error)
                    if *is_one_of_many && error.kind() == io::ErrorKind::AddrNotAvailable =>
                {
                    failed = Some(failure(error));
                }
                Err(error) => return Err(failure(error)),
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
        hint: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(hosts: &str, port: u16) -> Result<Addresses, Error> {
        resolve(&Hosts::parse(hosts).unwrap(), port)
    }

    fn bind(hosts: &str, port: u16) -> Result<Vec<Endpoint>, Error> {
        Ok(Listeners::bind(&resolved(hosts, port)?, 0o600)?
            .into_parts()
            .1)
    }

    fn bound(hosts: &str) -> Vec<SocketAddr> {
        let of_tcp = |endpoint| match endpoint {
            Endpoint::Tcp(address) => address,
            Endpoint::Unix(path) => panic!("{path:?} is not TCP"),
        };
        bind(hosts, 0).unwrap().into_iter().map(of_tcp).collect()
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
        // another program may take the port of the first address at any moment
        for _ in 0..100 {
            let taken = TcpListener::bind("127.0.0.2:0").unwrap();
            let port = taken.local_addr().unwrap().port();
            let error = bind("127.0.0.1,127.0.0.2", port).unwrap_err().to_string();
            let is_named = error.contains(&format!("127.0.0.2:{port}"));
            if is_named && TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return;
            }
        }
        panic!("the first address stays open, or the second is not named");
    }

    #[test]
    fn a_name_without_addresses_is_an_error() {
        let error = resolved("127.0.0.1,no-such-host.invalid", 0).unwrap_err();
        assert!(error.to_string().contains("no-such-host.invalid:0"));
    }
}
