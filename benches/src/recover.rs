//! Recovering: how long a client waits, after its `join_channel` with `recover`, for the whole of what it missed.

use std::borrow::Cow;
use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clients::Clients;
use crate::message::{Message, command};
use crate::sys;
use crate::target::{Role, Target, publish_with_ref};

pub struct Plan {
    pub target: Target,
    /// Missed, each time; the server has to keep as many.
    pub publications: usize,
    pub joins: usize,
    pub rounds: usize,
}

const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub fn run(plan: &Plan, report: &mut impl FnMut(Value)) {
    if let Err(error) = measure_all(plan, report) {
        report(
            json!({ "case": "recover", "server": plan.target.name, "clients": 1, "error": error.to_string() }),
        );
    }
}

fn measure_all(plan: &Plan, report: &mut impl FnMut(Value)) -> io::Result<()> {
    sys::sharpen_timers()?;
    let mut client = Client::connect(&plan.target)?;
    let epoch = client.publish(plan.publications)?;
    for round in 0..plan.rounds {
        report(measure(&mut client, plan, round, &epoch)?);
    }
    Ok(())
}

fn measure(client: &mut Client, plan: &Plan, round: usize, epoch: &str) -> io::Result<Value> {
    let ping = command(&json!({ "action": "ping", "ref": "ping" }));
    let join = command(&json!({
        "action": "join_channel",
        "channel": "bench",
        "ref": "join",
        "recover": { "epoch": epoch, "offset": 0 },
    }));
    let leave = command(&json!({ "action": "leave_channel", "channel": "bench", "ref": "leave" }));
    let (mut pings, mut joins) = (Vec::new(), Vec::new());
    let mut reply_bytes = 0;
    let server_cpu = sys::cpu_time(plan.target.process)?;
    let generator_cpu = sys::cpu_time(std::process::id())?;
    for _ in 0..plan.joins {
        pings.push(client.ask(&ping)?.waited);
        let joined = client.ask(&join)?;
        if joined.publications != plan.publications {
            return Err(io::Error::other(format!(
                "{}: {} of {} publications were recovered",
                plan.target.name, joined.publications, plan.publications
            )));
        }
        reply_bytes = joined.bytes;
        joins.push(joined.waited);
        client.ask(&leave)?;
    }
    let server_cpu = sys::cpu_time(plan.target.process)?.saturating_sub(server_cpu);
    let generator_cpu = sys::cpu_time(std::process::id())?.saturating_sub(generator_cpu);
    pings.sort_unstable();
    joins.sort_unstable();
    let quantile = |sorted: &[Duration], percent: usize| {
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted[rank.saturating_sub(1)].as_secs_f64() * 1e3
    };
    Ok(json!({
        "case": "recover",
        "server": plan.target.name,
        "publications": plan.publications,
        "joins": plan.joins,
        "round": round,
        "reply_bytes": reply_bytes,
        "join_p50_ms": quantile(&joins, 50),
        "join_p99_ms": quantile(&joins, 99),
        "join_max_ms": quantile(&joins, 100),
        "ping_p50_ms": quantile(&pings, 50),
        "ping_p99_ms": quantile(&pings, 99),
        "ping_max_ms": quantile(&pings, 100),
        // a join, its ping and its leave together
        "server_cpu_us": server_cpu.as_secs_f64() * 1e6 / plan.joins as f64,
        "generator_cpu_us": generator_cpu.as_secs_f64() * 1e6 / plan.joins as f64,
    }))
}

/// A single client, which asks and waits for the answer.
struct Client {
    clients: Clients,
    number: usize,
}

struct Answer {
    waited: Duration,
    bytes: u64,
    publications: usize,
    epoch: Option<String>,
}

impl Client {
    fn connect(target: &Target) -> io::Result<Self> {
        let mut clients = Clients::reading()?;
        let opened = clients.open(target, Role::Idle, 1, &mut |_, _| {})?;
        Ok(Self {
            clients,
            number: opened.start,
        })
    }

    /// Fill the channel's history; returns its epoch.
    fn publish(&mut self, publications: usize) -> io::Result<String> {
        let publish = publish_with_ref("publish");
        let mut epoch = None;
        for _ in 0..publications {
            epoch = self.ask(&publish)?.epoch;
        }
        epoch.ok_or_else(|| io::Error::other("the server keeps no history"))
    }

    /// Send a command that has a `ref`, and wait for its answer: each has exactly one, and only one is under way.
    fn ask(&mut self, command: &[u8]) -> io::Result<Answer> {
        let begun = Instant::now();
        self.clients.send(self.number, command)?;
        let mut answer = None;
        loop {
            self.clients
                .turn(Some(Duration::from_millis(100)), &mut |_, frame| {
                    let waited = begun.elapsed();
                    match Message::read(frame) {
                        Some(message) if message.is("error") => {
                            let problem = message.text.unwrap_or_default().into_owned();
                            answer = Some(Err(io::Error::other(problem)));
                        }
                        Some(message) if message.is("reply") => {
                            answer = Some(Ok(Answer {
                                waited,
                                bytes: frame.payload_bytes,
                                publications: message.publications.len(),
                                epoch: message.epoch.map(Cow::into_owned),
                            }));
                        }
                        _ => {}
                    }
                })?;
            if let Some(answer) = answer.take() {
                return answer;
            }
            if begun.elapsed() > ANSWER_LIMIT || self.clients.closed(0..1) > 0 {
                return Err(io::Error::other("a command was not answered"));
            }
        }
    }
}
