//! Connecting: what a connect costs the server in CPU time, and an idle connection in memory.

use std::io;
use std::time::Instant;

use serde_json::{Value, json};

use crate::audience::settle;
use crate::clients::Clients;
use crate::sys;
use crate::target::{Role, Target};

/// Connect `count` clients to a server that has none yet, and wait until it has nothing more to say about it.
pub fn run(target: &Target, count: usize, round: usize, report: &mut impl FnMut(Value)) {
    report(measure(target, count, round).unwrap_or_else(|error| {
        json!({ "case": "connect", "server": target.name, "clients": count, "error": error.to_string() })
    }));
}

fn measure(target: &Target, count: usize, round: usize) -> io::Result<Value> {
    let mut clients = Clients::new()?;
    let mut greeted = vec![false; count];
    let resident_before = sys::resident_bytes(target.process)?;
    let server_cpu = sys::cpu_time(target.process)?;
    let generator_cpu = sys::cpu_time(std::process::id())?;
    let begun = Instant::now();
    clients.open(target, Role::Idle, count, &mut |client, _| {
        greeted[client] = true;
    })?;
    let connecting = begun.elapsed();
    // The notices of who joined belong to the price of connecting: wait them out.
    settle(&mut clients, target, &mut |client, _| {
        greeted[client] = true;
    })?;
    let server_cpu = sys::cpu_time(target.process)?.saturating_sub(server_cpu);
    let generator_cpu = sys::cpu_time(std::process::id())?.saturating_sub(generator_cpu);
    let resident = sys::resident_bytes(target.process)?;
    if let Some(client) = greeted
        .iter()
        .position(|&greeted| !greeted && target.protocol.server_speaks_first())
    {
        return Err(io::Error::other(format!(
            "{}: client {client} was never welcomed",
            target.name
        )));
    }
    if clients.closed(0..count) > 0 {
        return Err(io::Error::other(format!(
            "{}: it closed idle connections",
            target.name
        )));
    }
    Ok(json!({
        "case": "connect",
        "server": target.name,
        "connections": count,
        "round": round,
        "connects_per_second": count as f64 / connecting.as_secs_f64(),
        "server_cpu_us": server_cpu.as_secs_f64() * 1e6 / count as f64,
        "generator_cpu_us": generator_cpu.as_secs_f64() * 1e6 / count as f64,
        "resident_bytes_before": resident_before,
        "resident_bytes": resident,
    }))
}
