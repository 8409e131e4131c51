//! Fan-out: one publisher, many subscribers, a number of publishes under way at once.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::audience::{Audience, gather_all};
use crate::clients::Clients;
use crate::frame::Frame;
use crate::sys;
use crate::target::Target;

pub struct Plan {
    pub targets: Vec<Target>,
    pub subscribers: usize,
    /// Publishes under way at once, one measurement each.
    pub windows: Vec<usize>,
    pub rounds: usize,
    pub duration: Duration,
    /// Payload of a delivered frame, for servers that add nothing of their own, when no Tantor is there to set it.
    pub delivered_bytes: usize,
}

const WARM_UP: Duration = Duration::from_millis(200);
/// A server that saves what it has delivered is given this long to have it saved.
const CALM_LIMIT: Duration = Duration::from_secs(10);
const CALM_LOOK: Duration = Duration::from_millis(20);
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// With fewer sockets ready than this the generator is ahead of the server, and naps. Asleep in epoll instead, it
/// would be woken by every single delivery, and the kernel charges the waking to the server.
const FEW: usize = 64;
const NAP: Duration = Duration::from_micros(50);

/// Measure every target in turn within every round, so that a busy machine is busy for all of them.
pub fn run(plan: &Plan, report: &mut impl FnMut(Value)) -> io::Result<()> {
    sys::sharpen_timers()?;
    let mut clients = Clients::new()?;
    let mut audiences = gather_all(
        &mut clients,
        &plan.targets,
        plan.subscribers,
        plan.delivered_bytes,
        |target, error| {
            report(failure(target, plan.subscribers, error));
        },
    )?;
    for round in 0..plan.rounds {
        for &window in &plan.windows {
            audiences.retain(|audience| {
                let measured = measure(&mut clients, audience, window, plan.duration);
                report(match &measured {
                    Ok(measured) => describe(audience, plan, window, round, measured),
                    Err(error) => failure(&audience.target, plan.subscribers, error),
                });
                measured.is_ok()
            });
        }
    }
    Ok(())
}

struct Measured {
    wall: Duration,
    deliveries_per_second: f64,
    deliveries: u64,
    server_cpu: Duration,
    generator_cpu: Duration,
}

fn measure(
    clients: &mut Clients,
    audience: &Audience,
    window: usize,
    duration: Duration,
) -> io::Result<Measured> {
    let mut progress = Progress::new(audience.subscribers.len(), window);
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP {
        keep_going(clients, audience, &mut progress, window)?;
    }
    finish(clients, audience, &mut progress)?;
    let deliveries = progress.deliveries;
    let server_cpu = sys::cpu_time(audience.target.process)?;
    let generator_cpu = sys::cpu_time(std::process::id())?;
    let begun = Instant::now();
    while begun.elapsed() < duration {
        keep_going(clients, audience, &mut progress, window)?;
    }
    let wall = begun.elapsed();
    let deliveries_per_second = (progress.deliveries - deliveries) as f64 / wall.as_secs_f64();
    finish(clients, audience, &mut progress)?;
    Ok(Measured {
        wall,
        deliveries_per_second,
        deliveries: progress.deliveries - deliveries,
        server_cpu: sys::cpu_time(audience.target.process)?.saturating_sub(server_cpu),
        generator_cpu: sys::cpu_time(std::process::id())?.saturating_sub(generator_cpu),
    })
}

/// What is under way arrives, and is worked off, before the next server's turn; a publish that never arrives is an error.
fn finish(clients: &mut Clients, audience: &Audience, progress: &mut Progress) -> io::Result<()> {
    while progress.finished < progress.published {
        progress.listen(clients, audience)?;
    }
    let deadline = Instant::now() + CALM_LIMIT;
    let mut used = sys::cpu_time(audience.target.process)?;
    while Instant::now() < deadline {
        std::thread::sleep(CALM_LOOK);
        let before = std::mem::replace(&mut used, sys::cpu_time(audience.target.process)?);
        if used.saturating_sub(before) < CALM_LOOK / 20 {
            return Ok(());
        }
    }
    crate::note(&format!(
        "{}: still busy {} s after its turn; what it does now is not in its figures",
        audience.target.name,
        CALM_LIMIT.as_secs()
    ));
    Ok(())
}

/// Publish as many as the window has room for, in one write, and take in what has come.
fn keep_going(
    clients: &mut Clients,
    audience: &Audience,
    progress: &mut Progress,
    window: usize,
) -> io::Result<()> {
    let room = window - (progress.published - progress.finished) as usize;
    if room > 0 {
        clients.send(audience.publisher, &audience.publish.repeat(room))?;
        progress.published += room as u64;
    }
    progress.listen(clients, audience)
}

/// How far each subscriber has come. A subscriber's deliveries arrive in order, so its n-th is publish n.
struct Progress {
    received: Vec<u64>,
    /// By publish number modulo its length: how many subscribers have it.
    reached: Vec<u32>,
    published: u64,
    finished: u64,
    deliveries: u64,
    last_arrival: Instant,
}

impl Progress {
    fn new(subscribers: usize, window: usize) -> Self {
        Self {
            received: vec![0; subscribers],
            reached: vec![0; (window + 1).next_power_of_two()],
            published: 0,
            finished: 0,
            deliveries: 0,
            last_arrival: Instant::now(),
        }
    }

    fn listen(&mut self, clients: &mut Clients, audience: &Audience) -> io::Result<()> {
        let before = self.deliveries;
        let ready = clients.turn(Some(Duration::from_millis(100)), &mut |client, frame| {
            self.take(audience, client, frame);
        })?;
        if ready < FEW {
            std::thread::sleep(NAP);
        }
        if self.deliveries > before {
            self.last_arrival = Instant::now();
        } else if self.last_arrival.elapsed() > STALL_LIMIT {
            let lost = self.published * self.received.len() as u64 - self.deliveries;
            let gone = clients.closed(audience.subscribers.clone());
            return Err(audience.error(&format!(
                "{lost} deliveries never came ({gone} subscribers were closed)"
            )));
        }
        Ok(())
    }

    #[inline]
    fn take(&mut self, audience: &Audience, client: usize, frame: Frame) {
        if !audience.is_delivery(client, frame) {
            return;
        }
        self.deliveries += 1;
        let number = &mut self.received[client - audience.subscribers.start];
        let slot = *number as usize & (self.reached.len() - 1);
        *number += 1;
        self.reached[slot] += 1;
        if self.reached[slot] as usize == self.received.len() {
            self.reached[slot] = 0;
            self.finished += 1;
        }
    }
}

fn describe(
    audience: &Audience,
    plan: &Plan,
    window: usize,
    round: usize,
    measured: &Measured,
) -> Value {
    let deliveries = measured.deliveries as f64;
    json!({
        "case": "fanout",
        "server": audience.target.name,
        "subscribers": plan.subscribers,
        "window": window,
        "round": round,
        "seconds": measured.wall.as_secs_f64(),
        "payload_bytes": audience.delivered_bytes,
        "deliveries": measured.deliveries,
        "deliveries_per_second": measured.deliveries_per_second,
        "server_cpu_us": measured.server_cpu.as_secs_f64() * 1e6 / deliveries,
        "generator_cpu_us": measured.generator_cpu.as_secs_f64() * 1e6 / deliveries,
    })
}

fn failure(target: &Target, subscribers: usize, error: &io::Error) -> Value {
    json!({ "case": "fanout", "server": target.name, "clients": subscribers, "error": error.to_string() })
}
