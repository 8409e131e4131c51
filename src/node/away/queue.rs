//! Clients that are away, in the order in which they went, and which of them makes room for others.

use crate::base::clock::SteadyTime;
use crate::net::peer::Peer;
use crate::node::client::Client;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

/// Clients by the sequence number of their absence, each with its deadline.
#[derive(Default)]
pub struct Due(BTreeMap<u64, (SteadyTime, Arc<Client>)>);

impl Due {
    /// Adds a client for which something is due after `wait`.
    pub fn push(&mut self, wait: Duration, number: u64, client: &Arc<Client>) {
        let at = SteadyTime::now() + wait;
        self.0.insert(number, (at, Arc::clone(client)));
    }

    pub fn remove(&mut self, number: u64) -> Option<Arc<Client>> {
        self.0.remove(&number).map(|(_, client)| client)
    }

    /// Takes the first client for which something is due by `now`.
    pub fn pop_due(&mut self, now: SteadyTime) -> Option<(u64, Arc<Client>)> {
        let first = self.0.first_entry()?;
        if first.get().0 > now {
            return None;
        }
        let (number, (_, client)) = first.remove_entry();
        Some((number, client))
    }
}

/// Clients that may come back, by when they are forgotten.
#[derive(Default)]
pub struct Expected {
    due: Due,
    /// Where each of them last came from.
    networks: HashMap<u64, Network>,
    /// Clients that never sent a frame.
    silent: BTreeSet<u64>,
    by_network: HashMap<Network, BTreeSet<u64>>,
    /// The networks of `by_network` by how many clients each has. Clients of no known network are counted as 0: they were
    /// restored after a restart, or named by the application, and make room last.
    by_count: BTreeSet<(usize, Network)>,
}

/// Where a client last came from: an IPv4 address, the part of an IPv6 address that one site has (RFC 6177), or a Unix
/// socket. All clients of a proxy share one network, whether the proxy connects by TCP or by a Unix socket.
type Network = Option<Peer>;

impl Expected {
    pub fn push(&mut self, wait: Duration, number: u64, client: &Arc<Client>) {
        self.due.push(wait, number, client);
        if !client.has_spoken() {
            self.silent.insert(number);
        }
        let network = network_of(client);
        self.networks.insert(number, network);
        let numbers = self.by_network.entry(network).or_default();
        self.by_count.remove(&(weight(network, numbers), network));
        numbers.insert(number);
        self.by_count.insert((weight(network, numbers), network));
    }

    pub fn remove(&mut self, number: u64) {
        if self.due.remove(number).is_some() {
            self.forget(number);
        }
    }

    /// Takes the first client whose time is over by `now`.
    pub fn pop_due(&mut self, now: SteadyTime) -> Option<(u64, Arc<Client>)> {
        let (number, client) = self.due.pop_due(now)?;
        self.forget(number);
        Some((number, client))
    }

    /// Takes the client that makes room: of those that never sent a frame the one that is away longest, else of the
    /// network with the most clients the one that is away longest.
    pub fn pop_surplus(&mut self) -> Option<(u64, Arc<Client>)> {
        let silent = self.silent.first().copied();
        let number = silent.or_else(|| {
            let (_, network) = self.by_count.last()?;
            self.by_network.get(network)?.first().copied()
        })?;
        let client = self.due.remove(number)?;
        self.forget(number);
        Some((number, client))
    }

    pub fn clients(&self) -> Vec<Arc<Client>> {
        let clients = self.due.0.values();
        clients.map(|(_, client)| Arc::clone(client)).collect()
    }

    fn forget(&mut self, number: u64) {
        self.silent.remove(&number);
        let Some(network) = self.networks.remove(&number) else {
            return;
        };
        let Some(numbers) = self.by_network.get_mut(&network) else {
            return;
        };
        self.by_count.remove(&(weight(network, numbers), network));
        numbers.remove(&number);
        if numbers.is_empty() {
            self.by_network.remove(&network);
        } else {
            self.by_count.insert((weight(network, numbers), network));
        }
    }
}

fn weight(network: Network, numbers: &BTreeSet<u64>) -> usize {
    network.map_or(0, |_| numbers.len())
}

fn network_of(client: &Client) -> Network {
    client.peer().map(|peer| match peer {
        Peer::Ip(IpAddr::V6(full)) => Peer::Ip(match full.to_ipv4_mapped() {
            Some(mapped) => mapped.into(),
            None => Ipv6Addr::from_bits(full.to_bits() & !u128::from(u64::MAX)).into(),
        }),
        Peer::Ip(IpAddr::V4(_)) | Peer::Unix => peer,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::WallTime;

    fn peer(address: &str) -> Option<Peer> {
        match address {
            "unix" => Some(Peer::Unix),
            _ => address.parse().ok().map(Peer::Ip),
        }
    }

    fn client(name: &str, address: &str, has_spoken: bool) -> Arc<Client> {
        let client = Client::new(name.into(), WallTime::now());
        client.begin_connection(false, peer(address));
        if has_spoken {
            client.set_spoken();
        }
        Arc::new(client)
    }

    #[test]
    fn silent_clients_make_room_first_then_the_network_with_most() {
        let mut expected = Expected::default();
        let clients = [
            client("honest", "192.0.2.1", true),
            client("silent", "192.0.2.2", false),
            client("flood 1", "2001:db8::1", true),
            client("flood 2", "2001:db8::2", true),
            client("flood 3", "2001:db8::3", true),
        ];
        for (number, client) in (1..).zip(&clients) {
            expected.push(Duration::from_secs(60), number, client);
        }
        let mut order = Vec::new();
        while let Some((_, client)) = expected.pop_surplus() {
            order.push(client.id.to_string());
        }
        assert_eq!(order[..3], ["silent", "flood 1", "flood 2"]);
        assert_eq!(order.len(), 5);
        assert!(expected.by_count.is_empty() && expected.by_network.is_empty());
    }

    #[test]
    fn clients_of_no_known_network_make_room_last() {
        let mut expected = Expected::default();
        let clients = [
            client("restored 1", "", true),
            client("restored 2", "", true),
            client("flood 1", "192.0.2.1", true),
            client("flood 2", "192.0.2.1", true),
        ];
        for (number, client) in (1..).zip(&clients) {
            expected.push(Duration::from_secs(60), number, client);
        }
        let order: Vec<String> = std::iter::from_fn(|| expected.pop_surplus())
            .map(|(_, client)| client.id.to_string())
            .collect();
        assert_eq!(order, ["flood 1", "flood 2", "restored 1", "restored 2"]);
        assert!(expected.by_count.is_empty() && expected.by_network.is_empty());
    }

    #[test]
    fn clients_of_a_unix_socket_make_room_as_those_of_one_address() {
        let mut expected = Expected::default();
        let clients = [
            client("restored", "", true),
            client("direct", "192.0.2.1", true),
            client("proxied 1", "unix", true),
            client("proxied 2", "unix", true),
        ];
        for (number, client) in (1..).zip(&clients) {
            expected.push(Duration::from_secs(60), number, client);
        }
        let first = expected.pop_surplus().unwrap().1;
        assert_eq!(&*first.id, "proxied 1");
    }

    #[test]
    fn a_client_that_comes_back_is_expected_no_longer() {
        let mut expected = Expected::default();
        let silent = client("silent", "192.0.2.1", false);
        expected.push(Duration::ZERO, 1, &silent);
        expected.push(Duration::from_secs(60), 2, &silent);
        // by its return it has another address
        silent.begin_connection(true, peer("192.0.2.9"));
        expected.remove(2);
        assert_eq!(expected.clients().len(), 1);
        let due = expected.pop_due(SteadyTime::now());
        assert_eq!(due.map(|(number, _)| number), Some(1));
        assert!(expected.pop_surplus().is_none() && expected.silent.is_empty());
        assert!(expected.by_count.is_empty() && expected.by_network.is_empty());
    }
}
