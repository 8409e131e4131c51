//! A server's subscribers and its publisher, connected, settled, and with the delivered frame's size known.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::time::{Duration, Instant};

use crate::clients::Clients;
use crate::frame::{Frame, TEXT};
use crate::target::{Protocol, Role, Target};

pub struct Audience {
    pub target: Target,
    pub subscribers: Range<usize>,
    pub publisher: usize,
    /// One publish as the publisher sends it.
    pub publish: Vec<u8>,
    /// Payload bytes of the delivered frame, as the probes brought it.
    pub delivered_bytes: u64,
}

/// An audience for each server; `on_failure` hears of those that can't have one, and it is an error if none can.
pub fn gather_all(
    clients: &mut Clients,
    targets: &[Target],
    subscribers: usize,
    delivered_bytes: usize,
    mut on_failure: impl FnMut(&Target, &io::Error),
) -> io::Result<Vec<Audience>> {
    let mut delivered_bytes = delivered_bytes;
    let mut audiences = Vec::new();
    // Tantor first: what it delivers sets the size for the others.
    let mut targets: Vec<&Target> = targets.iter().collect();
    targets.sort_by_key(|target| target.protocol != Protocol::Tantor);
    for target in targets {
        match Audience::gather(clients, target, subscribers, delivered_bytes) {
            Ok(audience) => {
                if target.protocol == Protocol::Tantor {
                    delivered_bytes = audience.delivered_bytes as usize;
                }
                audiences.push(audience);
            }
            Err(error) => on_failure(target, &error),
        }
    }
    if audiences.is_empty() {
        return Err(io::Error::other("no server could be measured"));
    }
    Ok(audiences)
}

/// Longer than the second to which a server may hold back its notices of who joined.
const QUIET: Duration = Duration::from_millis(1500);
const SETTLE_LIMIT: Duration = Duration::from_secs(60);
const PROBES: usize = 5;
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// Digits of a timestamp, an offset or an id may come and go.
const LENGTH_TOLERANCE: u64 = 16;

impl Audience {
    /// Connect everyone, wait until the server has said all that it says about that, and probe.
    ///
    /// `delivered_bytes` is the size that servers which add nothing of their own are made to deliver.
    fn gather(
        clients: &mut Clients,
        target: &Target,
        subscribers: usize,
        delivered_bytes: usize,
    ) -> io::Result<Self> {
        let publisher = clients
            .open(target, Role::Publisher, 1, &mut |_, _| {})?
            .start;
        let subscribers = clients.open(target, Role::Subscriber, subscribers, &mut |_, _| {})?;
        settle(clients, target, &mut |_, _| {})?;
        let mut audience = Self {
            target: target.clone(),
            subscribers,
            publisher,
            publish: target.protocol.publish(delivered_bytes),
            delivered_bytes: 0,
        };
        for _ in 0..PROBES {
            audience.probe(clients)?;
        }
        Ok(audience)
    }

    /// Whether this frame to this client is a delivery, and not a notice or a heartbeat.
    pub fn is_delivery(&self, client: usize, frame: Frame) -> bool {
        self.subscribers.contains(&client)
            && frame.opcode == TEXT
            && self.delivered_range().contains(&frame.payload_bytes)
    }

    pub fn error(&self, message: &str) -> io::Error {
        io::Error::other(format!("{}: {message}", self.target.name))
    }

    fn delivered_range(&self) -> RangeInclusive<u64> {
        self.delivered_bytes - LENGTH_TOLERANCE.min(self.delivered_bytes)
            ..=self.delivered_bytes + LENGTH_TOLERANCE
    }

    /// One publish in a settled server: exactly one text frame for each subscriber, all of one size.
    fn probe(&mut self, clients: &mut Clients) -> io::Result<()> {
        clients.send(self.publisher, &self.publish)?;
        let first = self.subscribers.start;
        let mut received = vec![0_u32; self.subscribers.len()];
        let mut arrived = 0;
        let mut sizes = (u64::MAX, 0);
        let deadline = Instant::now() + PROBE_LIMIT;
        while arrived < received.len() {
            clients.turn(
                Some(Duration::from_millis(100)),
                &mut |client, frame: Frame| {
                    if self.subscribers.contains(&client) && frame.opcode == TEXT {
                        received[client - first] += 1;
                        arrived += 1;
                        sizes = (
                            sizes.0.min(frame.payload_bytes),
                            sizes.1.max(frame.payload_bytes),
                        );
                    }
                },
            )?;
            if Instant::now() > deadline {
                return Err(self.error(&format!(
                    "a publish reached {arrived} of {} subscribers",
                    received.len()
                )));
            }
        }
        if sizes.0 != sizes.1 || received.iter().any(|&count| count != 1) {
            return Err(self.error(&format!(
                "a publish brought {} to {} frames a subscriber, of {} to {} bytes; wanted is one each, all alike",
                received.iter().min().unwrap_or(&0),
                received.iter().max().unwrap_or(&0),
                sizes.0,
                sizes.1
            )));
        }
        self.delivered_bytes = sizes.0;
        Ok(())
    }
}

/// Wait until nothing has come in for a while; `on_frame` gets what does.
pub fn settle(
    clients: &mut Clients,
    target: &Target,
    on_frame: &mut impl FnMut(usize, Frame),
) -> io::Result<()> {
    let begun = Instant::now();
    let mut last_heard = begun;
    while last_heard.elapsed() < QUIET {
        let mut heard = false;
        clients.turn(Some(Duration::from_millis(100)), &mut |client, frame| {
            heard = true;
            on_frame(client, frame);
        })?;
        if heard {
            last_heard = Instant::now();
        }
        if begun.elapsed() > SETTLE_LIMIT {
            return Err(io::Error::other(format!(
                "{}: still talking {} s after the last client joined",
                target.name,
                SETTLE_LIMIT.as_secs()
            )));
        }
    }
    Ok(())
}
