//! The load generator of `make bench`, and the bare loop that it measures against.
//!
//! `benches/run.py` starts the servers, pins them and this program to cores of their own, and turns the lines
//! of JSON that come out here into tables. Linux only: it counts with epoll and the scheduler's clocks.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "its output is its purpose"
)]
#![cfg_attr(test, allow(clippy::expect_used, reason = "a test fails by panicking"))]

#[cfg(target_os = "linux")]
mod arguments;
#[cfg(target_os = "linux")]
mod attack;
#[cfg(target_os = "linux")]
mod attack_state;
#[cfg(target_os = "linux")]
mod audience;
#[cfg(target_os = "linux")]
mod bare;
#[cfg(target_os = "linux")]
mod clients;
#[cfg(target_os = "linux")]
mod connect;
#[cfg(target_os = "linux")]
mod fanout;
#[cfg(target_os = "linux")]
mod flood;
#[cfg(target_os = "linux")]
mod frame;
#[cfg(target_os = "linux")]
mod histogram;
#[cfg(target_os = "linux")]
mod latency;
#[cfg(target_os = "linux")]
mod listen;
#[cfg(target_os = "linux")]
mod message;
#[cfg(target_os = "linux")]
mod recover;
#[cfg(target_os = "linux")]
mod resume;
#[cfg(target_os = "linux")]
mod siege;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(target_os = "linux")]
mod target;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    match arguments::run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("tantor-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!(
        "tantor-bench measures with Linux's epoll and scheduler clocks, and runs nowhere else"
    );
    ExitCode::FAILURE
}

/// Tell whoever watches, apart from the measurements on the standard output.
#[cfg(target_os = "linux")]
fn note(message: &str) {
    eprintln!("tantor-bench: {message}");
}
