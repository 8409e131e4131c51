//! Floods at full rate, and what two clients that have nothing to do with the flood notice of it.
//!
//! The pair has a channel of its own and a thread that runs before all others. One of the two publishes at a fixed
//! rate; the latency counts from the time at which a publish was due. The pair is measured before, during and after
//! the flood.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::attack_state::{DRAINED, ENDING, FLOODING, Outcome, READY, Shared, wait_for};
use crate::audience::settle;
use crate::clients::{Clients, Opening};
use crate::frame::{TEXT, client_frame};
use crate::histogram::Histogram;
use crate::message::{Message, broadcast, join};
use crate::siege::SIEGES;
use crate::sys;
use crate::target::Target;

/// What a flood sends, and who gets it.
struct Flood {
    name: &'static str,
    /// Clients that join the channel `flood` and read what comes.
    readers: usize,
    /// Most bytes a second that each reader takes; `None` for as many as it can.
    reader_rate: Option<usize>,
    /// Clients that keep their sockets full of `frames`.
    senders: usize,
    /// Bytes that each sender sends again and again.
    frames: fn() -> Vec<u8>,
    /// Bytes after which a sender has sent enough; `None` for as many as it can.
    total: Option<usize>,
}

/// The rows of the table in `benches/README.md`.
const FLOODS: &[Flood] = &[
    Flood {
        name: "broadcasts",
        readers: 1_000,
        reader_rate: None,
        senders: 1,
        frames: || broadcast(100).repeat(256),
        total: None,
    },
    Flood {
        name: "joins",
        readers: 199,
        reader_rate: None,
        senders: 1,
        frames: || {
            let leave = r#"{"action":"leave_channel","channel":"flood"}"#;
            let mut both = join("flood");
            both.extend(client_frame(TEXT, leave.as_bytes()));
            both.repeat(256)
        },
        total: None,
    },
    Flood {
        name: "pings",
        readers: 0,
        reader_rate: None,
        senders: 64,
        frames: || client_frame(TEXT, br#"{"action":"ping"}"#).repeat(512),
        total: None,
    },
    Flood {
        name: "burst",
        readers: 20,
        reader_rate: Some(12_500_000),
        senders: 1,
        frames: || broadcast(20_000),
        total: Some(40_000_000),
    },
    Flood {
        name: "large",
        readers: 1_000,
        reader_rate: None,
        senders: 1,
        frames: || broadcast(900_000),
        total: Some(9_000_000),
    },
    Flood {
        name: "half-frames",
        readers: 0,
        reader_rate: None,
        senders: 1_000,
        frames: || {
            let mut frame = client_frame(TEXT, &vec![b'x'; 1 << 20]);
            frame.truncate(1 << 19);
            frame
        },
        total: Some(1 << 19),
    },
    Flood {
        name: "keys",
        readers: 0,
        reader_rate: None,
        senders: 1,
        frames: || {
            let publish = |number| {
                let text = format!(
                    r#"{{"action":"broadcast","channel":"flood","event":"flood","idempotency_key":"{number}"}}"#
                );
                client_frame(TEXT, text.as_bytes())
            };
            (0..100_001).flat_map(publish).collect()
        },
        total: Some(1),
    },
    Flood {
        name: "histories",
        readers: 0,
        reader_rate: None,
        senders: 1,
        frames: || {
            let ask = |number| {
                let text = format!(r#"{{"action":"history","channel":"invented {number}"}}"#);
                client_frame(TEXT, text.as_bytes())
            };
            (0..10_001).flat_map(ask).collect()
        },
        total: None,
    },
];

const PUBLISHES_PER_SECOND: u32 = 200;
/// A pair that waits longer for one publish is cut off; what is missing counts as this long.
const STALL_LIMIT: Duration = Duration::from_secs(30);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// How long readers may take to read what waits for them after a flood.
const DRAIN_LIMIT: Duration = Duration::from_secs(30);

pub fn run(
    target: &Target,
    name: &str,
    duration: Duration,
    report: &mut impl FnMut(Value),
) -> io::Result<()> {
    let siege = SIEGES.iter().find(|siege| siege.name == name);
    let flood = FLOODS.iter().find(|flood| flood.name == name);
    if siege.is_none() && flood.is_none() {
        let floods = FLOODS.iter().map(|flood| flood.name);
        let names: Vec<&str> = floods
            .chain(SIEGES.iter().map(|siege| siege.name))
            .collect();
        let names = names.join(", ");
        return Err(io::Error::other(format!(
            "--flood {name}: there is {names}"
        )));
    }
    let send = |shared: &Shared| match (siege, flood) {
        (Some(siege), _) => (siege.lay)(target, shared),
        (None, Some(flood)) => send_flood(target, flood, shared),
        (None, None) => Ok(Outcome::default()),
    };
    let shared = Shared::default();
    let result = std::thread::scope(|scope| {
        let flooding = scope.spawn(|| {
            let outcome = send(&shared);
            // a flood that has failed, or has closed its connections, is not waited for
            shared.enter(DRAINED);
            outcome
        });
        scope.spawn(|| sample_memory(target, &shared));
        let measured = watch_pair(target, duration, &shared);
        shared.is_over.store(true, Ordering::Release);
        let outcome = flooding
            .join()
            .map_err(|_| io::Error::other("the flood panicked"))??;
        Ok::<_, io::Error>((measured?, outcome))
    });
    let (pair, outcome) = result?;
    report(json!({
        "case": "attack",
        "server": target.name,
        "flood": name,
        "before": pair.before,
        "during": pair.during,
        "after": pair.after,
        "memory_before": pair.memory_before,
        "memory_most": shared.most_memory.load(Ordering::Relaxed),
        "memory_after": pair.memory_after,
        "kernel_memory_before": pair.kernel_memory_before,
        "kernel_memory_most": shared.most_kernel_memory.load(Ordering::Relaxed),
        "kernel_memory_after": sys::kernel_tcp_bytes()?,
        "sent_bytes": outcome.sent_bytes,
        "received_bytes": outcome.received_bytes,
        "clients": outcome.clients,
        "closed": outcome.closed,
        "drained_after_seconds": outcome.drained_after.as_secs_f64(),
        "server_cpu_share": pair.server_cpu_share,
    }));
    Ok(())
}

struct Measured {
    before: Value,
    during: Value,
    after: Value,
    memory_before: u64,
    memory_after: u64,
    kernel_memory_before: u64,
    server_cpu_share: f64,
}

fn watch_pair(target: &Target, duration: Duration, shared: &Shared) -> io::Result<Measured> {
    sys::sharpen_timers()?;
    let mut clients = Clients::reading()?;
    let join = join("pair");
    let opening = |client| Opening {
        path: "/".to_owned(),
        greeting: (client == 1).then(|| join.clone()),
    };
    let pair = clients.open_each(target, 2, 2, opening, &mut |_, _| {})?;
    wait_for(shared, READY);
    settle(&mut clients, target, &mut |_, _| {})?;
    if !sys::run_first() {
        crate::note("the pair's thread may not run first here: its own waiting is in the figures");
    }
    let mut phase = |duration| measure(&mut clients, &pair, duration);
    phase(Duration::from_millis(500))?;
    let memory_before = sys::resident_bytes(target.process)?;
    let kernel_memory_before = sys::kernel_tcp_bytes()?;
    let before = phase(duration)?;
    let (cpu, begun) = (sys::cpu_time(target.process)?, Instant::now());
    shared.enter(FLOODING);
    let during = phase(duration)?;
    shared.enter(ENDING);
    let cpu = sys::cpu_time(target.process)?.saturating_sub(cpu);
    let server_cpu_share = cpu.as_secs_f64() / begun.elapsed().as_secs_f64();
    wait_for(shared, DRAINED);
    let after = phase(duration)?;
    Ok(Measured {
        before: summary(&before),
        during: summary(&during),
        after: summary(&after),
        memory_before,
        kernel_memory_before,
        memory_after: sys::resident_bytes(target.process)?,
        server_cpu_share,
    })
}

fn summary(histogram: &Histogram) -> Value {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    json!({
        "p50_ms": milliseconds(histogram.quantile(50)),
        "p99_ms": milliseconds(histogram.quantile(99)),
        "max_ms": milliseconds(histogram.longest),
    })
}

/// Publish for a while, and wait until the other one of the pair has it all.
fn measure(
    clients: &mut Clients,
    pair: &Range<usize>,
    duration: Duration,
) -> io::Result<Histogram> {
    let interval = Duration::from_secs(1) / PUBLISHES_PER_SECOND;
    let total = (duration.as_nanos() / interval.as_nanos()) as u32;
    let text = r#"{"action":"broadcast","channel":"pair","event":"tick","data":{"text":"hello"}}"#;
    let publish = client_frame(TEXT, text.as_bytes());
    let begun = Instant::now();
    let due = |number: u32| begun + interval * number;
    let mut histogram = Histogram::default();
    let (mut published, mut arrived) = (0, 0);
    while arrived < total {
        while published < total && due(published) <= Instant::now() {
            clients.send(pair.start, &publish)?;
            published += 1;
        }
        let wait = if published < total {
            due(published).saturating_duration_since(Instant::now())
        } else {
            Duration::from_millis(50)
        };
        clients.turn(Some(wait), &mut |client, frame| {
            // what else comes are heartbeats, and notices on the default channel
            if client == pair.start + 1
                && Message::read(frame).is_some_and(|message| message.is("tick"))
            {
                histogram.record(due(arrived).elapsed());
                arrived += 1;
            }
        })?;
        if clients.closed(pair.clone()) > 0 {
            return Err(io::Error::other("the server closed one of the pair"));
        }
        if arrived < published && due(arrived).elapsed() > STALL_LIMIT {
            for _ in arrived..total {
                histogram.record(STALL_LIMIT);
            }
            return Ok(histogram);
        }
    }
    Ok(histogram)
}

fn send_flood(target: &Target, flood: &Flood, shared: &Shared) -> io::Result<Outcome> {
    let mut clients = Clients::new()?.expecting_losses();
    let join = join("flood");
    let opening = |client| Opening {
        path: "/".to_owned(),
        greeting: (client < flood.readers).then(|| join.clone()),
    };
    let count = flood.readers + flood.senders;
    let all = clients.open_each(target, count, 64, opening, &mut |_, _| {})?;
    let (readers, senders) = (0..flood.readers, flood.readers..all.end);
    settle(&mut clients, target, &mut |_, _| {})?;
    shared.enter(READY);
    while shared.phase() < FLOODING {
        clients.turn(Some(Duration::from_millis(10)), &mut |_, _| {})?;
    }
    let frames = (flood.frames)();
    let mut sent = vec![0; flood.senders];
    let mut received = 0;
    let begun = Instant::now();
    let mut last_received = begun;
    let mut ended_at = None;
    while !shared.is_over.load(Ordering::Acquire) {
        let is_ending = shared.phase() >= ENDING;
        for sender in senders.clone().filter(|_| !is_ending) {
            let sent = &mut sent[sender - senders.start];
            while flood.total.is_none_or(|total| *sent < total)
                && !clients.is_blocked(sender)
                && clients.closed(sender..sender + 1) == 0
            {
                if let Err(error) = clients.send(sender, &frames) {
                    crate::note(&format!("a sender lost its connection: {error}"));
                    break;
                }
                *sent += frames.len();
            }
        }
        let before = received;
        clients.turn(Some(Duration::from_millis(10)), &mut |_, frame| {
            received += frame.payload_bytes as usize;
        })?;
        if received > before {
            last_received = Instant::now();
        }
        if let Some(rate) = flood.reader_rate {
            let due = received as f64 / (rate * flood.readers) as f64;
            let ahead = due - begun.elapsed().as_secs_f64();
            if ahead > 0.0 {
                std::thread::sleep(Duration::from_secs_f64(ahead.min(0.1)));
            }
        }
        if is_ending && shared.phase() == ENDING {
            let ended = *ended_at.get_or_insert_with(Instant::now);
            let is_quiet = last_received.max(ended).elapsed() > Duration::from_millis(300);
            if is_quiet || ended.elapsed() > DRAIN_LIMIT {
                shared.enter(DRAINED);
            }
        }
    }
    let counted = if flood.readers > 0 { readers } else { senders };
    Ok(Outcome {
        sent_bytes: sent.iter().sum(),
        received_bytes: received,
        clients: counted.len(),
        closed: clients.closed(counted),
        drained_after: ended_at.map_or(Duration::ZERO, |ended| last_received - ended),
    })
}

fn sample_memory(target: &Target, shared: &Shared) {
    while !shared.is_over.load(Ordering::Acquire) {
        for (most, now) in [
            (&shared.most_memory, sys::resident_bytes(target.process)),
            (&shared.most_kernel_memory, sys::kernel_tcp_bytes()),
        ] {
            let Ok(now) = now else { return };
            most.fetch_max(now, Ordering::Relaxed);
        }
        std::thread::sleep(SAMPLE_INTERVAL);
    }
}
