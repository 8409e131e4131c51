//! A flood of frames from a few clients, for the rate at which a server takes them in.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::Clients;
use crate::frame::{PING, PONG, TEXT, client_frame};
use crate::sys;
use crate::target::{Role, Target};

/// Frames that go into one write.
const FRAMES_AT_ONCE: usize = 512;
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Keep every connection's socket full of `text` frames for a while, then wait until the server has read it all.
pub fn run(
    target: &Target,
    connections: usize,
    duration: Duration,
    text: &str,
    report: &mut impl FnMut(Value),
) -> io::Result<()> {
    let mut clients = Clients::new()?;
    let senders = clients.open(target, Role::Idle, connections, &mut |_, _| {})?;
    let burst = client_frame(TEXT, text.as_bytes()).repeat(FRAMES_AT_ONCE);
    let generator_cpu = sys::cpu_time(std::process::id())?;
    let begun = Instant::now();
    let mut sent = 0_u64;
    while begun.elapsed() < duration {
        for sender in senders.clone() {
            if !clients.is_blocked(sender) {
                clients.send(sender, &burst)?;
                sent += FRAMES_AT_ONCE as u64;
            }
        }
        clients.turn(Some(Duration::from_millis(10)), &mut |_, _| {})?;
        if clients.closed(senders.clone()) > 0 {
            return Err(io::Error::other(format!(
                "{}: it closed a flooding client",
                target.name
            )));
        }
    }
    drain(&mut clients, senders, &target.name)?;
    let wall = begun.elapsed().as_secs_f64();
    let generator_cpu = sys::cpu_time(std::process::id())?
        .saturating_sub(generator_cpu)
        .as_secs_f64();
    report(json!({
        "case": "flood",
        "server": target.name,
        "connections": connections,
        "frames": sent,
        "seconds": wall,
        "frames_per_second": sent as f64 / wall,
        "generator_cpu_us": generator_cpu * 1e6 / sent as f64,
        "generator_cpu_share": generator_cpu / wall,
    }));
    Ok(())
}

/// A pong says that the server has taken in all that was sent before the ping.
fn drain(clients: &mut Clients, senders: Range<usize>, server: &str) -> io::Result<()> {
    for sender in senders.clone() {
        clients.send(sender, &client_frame(PING, b""))?;
    }
    let mut answered = 0;
    let deadline = Instant::now() + DRAIN_LIMIT;
    while answered < senders.len() {
        clients.turn(Some(Duration::from_millis(100)), &mut |_, frame| {
            answered += usize::from(frame.opcode == PONG);
        })?;
        if Instant::now() > deadline || clients.closed(senders.clone()) > 0 {
            return Err(io::Error::other(format!(
                "{server}: {answered} of {} floods were read to their end",
                senders.len()
            )));
        }
    }
    Ok(())
}
