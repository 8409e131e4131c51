//! Latency at a fixed offered rate, from the time at which a publish was due, not from when it left.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::audience::{Audience, gather_all};
use crate::clients::Clients;
use crate::histogram::Histogram;
use crate::sys;
use crate::target::Target;

pub struct Plan {
    pub targets: Vec<Target>,
    pub subscribers: usize,
    pub publishes_per_second: u32,
    pub rounds: usize,
    pub duration: Duration,
    pub delivered_bytes: usize,
}

/// Not counted: the first publishes warm caches and congestion windows.
const WARM_UP: Duration = Duration::from_millis(500);
const STALL_LIMIT: Duration = Duration::from_secs(10);

pub fn run(plan: &Plan, report: &mut impl FnMut(Value)) -> io::Result<()> {
    sys::sharpen_timers()?;
    let mut clients = Clients::new()?;
    let audiences = gather_all(
        &mut clients,
        &plan.targets,
        plan.subscribers,
        plan.delivered_bytes,
        |target, error| {
            report(failure(target, plan.subscribers, error));
        },
    )?;
    for round in 0..plan.rounds {
        for audience in &audiences {
            let measured = measure(&mut clients, audience, plan, round);
            report(
                measured
                    .unwrap_or_else(|error| failure(&audience.target, plan.subscribers, &error)),
            );
        }
    }
    Ok(())
}

fn measure(
    clients: &mut Clients,
    audience: &Audience,
    plan: &Plan,
    round: usize,
) -> io::Result<Value> {
    let interval = Duration::from_secs(1) / plan.publishes_per_second;
    let publishes_in = |duration: Duration| (duration.as_nanos() / interval.as_nanos()) as u64;
    let warm_up = publishes_in(WARM_UP);
    let total = warm_up + publishes_in(plan.duration);
    let server_cpu = sys::cpu_time(audience.target.process)?;
    let begun = Instant::now();
    let due = |publish: u64| begun + interval.mul_f64(publish as f64);
    let mut received = vec![0_u64; audience.subscribers.len()];
    let mut histogram = Histogram::default();
    let mut arrived = 0;
    let mut published = 0;
    let mut last_arrival = begun;
    while arrived < total * received.len() as u64 {
        let now = Instant::now();
        while published < total && due(published) <= now {
            clients.send(audience.publisher, &audience.publish)?;
            published += 1;
        }
        let wait = if published < total {
            due(published).saturating_duration_since(Instant::now())
        } else {
            Duration::from_millis(100)
        };
        let before = arrived;
        clients.turn(Some(wait), &mut |client, frame| {
            if audience.is_delivery(client, frame) {
                let number = &mut received[client - audience.subscribers.start];
                if *number >= warm_up {
                    histogram.record(due(*number).elapsed());
                }
                *number += 1;
                arrived += 1;
            }
        })?;
        if arrived > before {
            last_arrival = Instant::now();
        } else if last_arrival.elapsed() > STALL_LIMIT {
            return Err(audience.error(&format!(
                "{} deliveries never came",
                published * received.len() as u64 - arrived
            )));
        }
    }
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    Ok(json!({
        "case": "latency",
        "server": audience.target.name,
        "subscribers": plan.subscribers,
        "publishes_per_second": plan.publishes_per_second,
        "round": round,
        "payload_bytes": audience.delivered_bytes,
        "deliveries": histogram.count,
        "p50_ms": milliseconds(histogram.quantile(50)),
        "p99_ms": milliseconds(histogram.quantile(99)),
        "max_ms": milliseconds(histogram.longest),
        "server_cpu_us": sys::cpu_time(audience.target.process)?.saturating_sub(server_cpu).as_secs_f64() * 1e6
            / arrived as f64,
    }))
}

fn failure(target: &Target, subscribers: usize, error: &io::Error) -> Value {
    json!({ "case": "latency", "server": target.name, "clients": subscribers, "error": error.to_string() })
}
