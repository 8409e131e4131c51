//! A server killed and started again: everyone comes back at once, and must get what was published meanwhile.

use std::borrow::Cow;
use std::io::{self, BufRead};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::audience::settle;
use crate::clients::{Clients, Opening};
use crate::frame::Frame;
use crate::message::{Message, command};
use crate::sys;
use crate::target::Target;

pub struct Plan {
    pub target: Target,
    pub clients: usize,
    /// Of the clients, those that a message of their own is kept for.
    pub mailed: usize,
    /// Publications that everybody misses.
    pub missed: usize,
    /// Handshakes under way at once: a little less than the server's accept queue holds.
    pub at_once: usize,
    pub round: usize,
}

/// Connect, say who is to get mail, wait for the line that names the server that was started in place of the first, and
/// come back to that.
pub fn run(plan: &Plan, report: &mut impl FnMut(Value)) {
    let measured = measure(plan, report).unwrap_or_else(|error| {
        json!({ "case": "resume", "server": plan.target.name, "clients": plan.clients, "error": error.to_string() })
    });
    report(measured);
}

fn measure(plan: &Plan, report: &mut impl FnMut(Value)) -> io::Result<Value> {
    let mut clients = Clients::reading()?;
    let first = connect(&mut clients, plan)?;
    let to_mail: Vec<&str> = mailed_clients(plan)
        .map(|client| first[client].id.as_str())
        .collect();
    report(json!({ "connected": first.len(), "to_mail": to_mail }));
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let restarted: Target = line.trim().parse().map_err(io::Error::other)?;
    drop(clients);
    come_back(plan, &restarted, &first)
}

/// Spread over all of them, so that they are neither the first nor the last to come.
fn mailed_clients(plan: &Plan) -> impl Iterator<Item = usize> {
    let mailed = plan.mailed.min(plan.clients);
    (0..mailed).map(move |index| index * plan.clients / mailed)
}

/// Where a client was when it lost its server.
#[derive(Default)]
struct Position {
    id: String,
    token: String,
    epoch: String,
    offset: u64,
}

fn connect(clients: &mut Clients, plan: &Plan) -> io::Result<Vec<Position>> {
    let mut positions: Vec<Position> = (0..plan.clients).map(|_| Position::default()).collect();
    let opening = |_| Opening {
        path: "/".to_owned(),
        greeting: Some(command(
            &json!({ "action": "join_channel", "channel": "bench", "ref": "join" }),
        )),
    };
    let mut note = |client: usize, frame: Frame| {
        let Some(message) = Message::read(frame) else {
            return;
        };
        let position = &mut positions[client];
        if message.is("welcome") {
            position.id = message.client_id.map(Cow::into_owned).unwrap_or_default();
            position.token = message.resume.map(Cow::into_owned).unwrap_or_default();
        } else if message.is("reply") {
            position.epoch = message.epoch.map(Cow::into_owned).unwrap_or_default();
            position.offset = message.offset.unwrap_or(0);
        }
    };
    clients.open_each(&plan.target, plan.clients, plan.at_once, opening, &mut note)?;
    settle(clients, &plan.target, &mut note)?;
    let unready = |position: &&Position| position.token.is_empty() || position.epoch.is_empty();
    match positions.iter().filter(unready).count() {
        0 => Ok(positions),
        count => Err(io::Error::other(format!(
            "{}: {count} of {} clients have no token or no position",
            plan.target.name, plan.clients
        ))),
    }
}

/// What a client got that came back.
#[derive(Default)]
struct Returned {
    is_same: bool,
    has_recovered: bool,
    answered: Option<Instant>,
    offsets: Vec<u64>,
    mail: usize,
}

impl Returned {
    fn take(&mut self, before: &Position, frame: Frame) {
        let Some(message) = Message::read(frame) else {
            return;
        };
        if message.is("welcome") {
            self.is_same = message.resumed && message.client_id.as_deref() == Some(&before.id);
        } else if message.is("reply") {
            self.answered = Some(Instant::now());
            self.has_recovered = message.recovered;
            let missed = message.publications.iter().map(|kept| kept.offset);
            self.offsets.extend(missed);
        } else if message.mail.is_some() {
            self.mail += 1;
        } else if message.channel.as_deref() == Some("bench") {
            // a live publication; notices of who joined have no offset
            self.offsets.extend(message.offset);
        }
    }

    /// How many of the missed publications never came, and how many came more than once or were none of them.
    fn lost_and_surplus(&self, before: &Position, missed: usize) -> (usize, usize) {
        let expected = before.offset + 1..=before.offset + missed as u64;
        let lost = expected
            .filter(|offset| !self.offsets.contains(offset))
            .count();
        (lost, self.offsets.len() + lost - missed)
    }
}

fn come_back(plan: &Plan, target: &Target, before: &[Position]) -> io::Result<Value> {
    let mut clients = Clients::reading()?;
    let mut returned: Vec<Returned> = before.iter().map(|_| Returned::default()).collect();
    let opening = |client: usize| Opening {
        path: format!("/?resume={}", before[client].token),
        greeting: Some(command(&json!({
            "action": "join_channel",
            "channel": "bench",
            "ref": "join",
            "recover": { "epoch": before[client].epoch, "offset": before[client].offset },
        }))),
    };
    let mut answered = 0;
    let mut take = |client: usize, frame: Frame| {
        let was_answered = returned[client].answered.is_some();
        returned[client].take(&before[client], frame);
        answered += usize::from(!was_answered && returned[client].answered.is_some());
    };
    let server_cpu = sys::cpu_time(target.process)?;
    let generator_cpu = sys::cpu_time(std::process::id())?;
    let begun = Instant::now();
    clients.open_each(target, before.len(), plan.at_once, opening, &mut take)?;
    let connecting = begun.elapsed();
    settle(&mut clients, target, &mut take)?;
    let server_cpu = sys::cpu_time(target.process)?.saturating_sub(server_cpu);
    let generator_cpu = sys::cpu_time(std::process::id())?.saturating_sub(generator_cpu);
    let last_answer = returned
        .iter()
        .filter_map(|client| client.answered)
        .max()
        .ok_or_else(|| io::Error::other(format!("{}: nobody was answered", target.name)))?;
    let of_each = |cost: Duration| cost.as_secs_f64() * 1e6 / before.len() as f64;
    let tally = Tally::of(plan, before, &returned);
    Ok(json!({
        "case": "resume",
        "server": target.name,
        "clients": before.len(),
        "round": plan.round,
        "missed": plan.missed,
        "answered": answered,
        "resumed": tally.resumed,
        "recovered": tally.recovered,
        "complete": tally.complete,
        "lost": tally.lost,
        "surplus": tally.surplus,
        "mailed": mailed_clients(plan).count(),
        "mail_lost": tally.mail_lost,
        "mail_surplus": tally.mail_surplus,
        "disconnected": clients.closed(0..before.len()),
        "seconds": last_answer.duration_since(begun).as_secs_f64(),
        "connects_per_second": before.len() as f64 / connecting.as_secs_f64(),
        "server_cpu_us": of_each(server_cpu),
        "generator_cpu_us": of_each(generator_cpu),
    }))
}

/// What all of them got together.
#[derive(Default)]
struct Tally {
    resumed: usize,
    recovered: usize,
    /// Clients that got each of the missed publications once.
    complete: usize,
    lost: usize,
    surplus: usize,
    mail_lost: usize,
    mail_surplus: usize,
}

impl Tally {
    fn of(plan: &Plan, before: &[Position], returned: &[Returned]) -> Self {
        let mut mail_due = vec![0_usize; before.len()];
        for mailed in mailed_clients(plan) {
            mail_due[mailed] += 1;
        }
        let mut tally = Self::default();
        for ((before, client), mail_due) in before.iter().zip(returned).zip(mail_due) {
            let (lost, surplus) = client.lost_and_surplus(before, plan.missed);
            tally.resumed += usize::from(client.is_same);
            tally.recovered += usize::from(client.has_recovered);
            tally.complete += usize::from(lost == 0 && surplus == 0);
            tally.lost += lost;
            tally.surplus += surplus;
            tally.mail_lost += mail_due.saturating_sub(client.mail);
            tally.mail_surplus += client.mail.saturating_sub(mail_due);
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(offsets: &[u64], mail: usize) -> Returned {
        Returned {
            offsets: offsets.to_vec(),
            mail,
            ..Returned::default()
        }
    }

    #[test]
    fn what_is_lost_and_what_comes_twice_is_counted() {
        let plan = Plan {
            target: "tantor:tantor:1:1".parse().expect("a target"),
            clients: 4,
            mailed: 2,
            missed: 3,
            at_once: 1,
            round: 0,
        };
        assert_eq!(mailed_clients(&plan).collect::<Vec<_>>(), [0, 2]);
        let before: Vec<Position> = (0..4)
            .map(|_| Position {
                offset: 5,
                ..Position::default()
            })
            .collect();
        let all = [
            returned(&[6, 7, 8], 1),
            returned(&[6, 8], 0),
            returned(&[6, 7, 7, 8], 0),
            returned(&[5, 6, 7, 8], 2),
        ];
        let tally = Tally::of(&plan, &before, &all);
        assert_eq!((tally.complete, tally.lost, tally.surplus), (1, 1, 2));
        assert_eq!((tally.mail_lost, tally.mail_surplus), (1, 2));
    }
}
