//! The command line: one case to measure, or the bare server to run.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use crate::target::Target;
use crate::{attack, bare, connect, fanout, flood, latency, listen, recover, resume, sys};

const USAGE: &str = "\
usage: tantor-bench bare --port PORT
       tantor-bench fanout  --target T... [--subscribers 100] [--windows 1,16,64] [--rounds 1] [--seconds 3]
                            [--payload 300]
       tantor-bench latency --target T... [--subscribers 100] [--rate 1000] [--rounds 1] [--seconds 3]
                            [--payload 300]
       tantor-bench connect --target T [--count 10000] [--round 0]
       tantor-bench flood   --target T [--connections 8] [--seconds 3] [--text '{\"action\":\"chat\"}']
       tantor-bench attack  --target T --flood NAME [--seconds 3]
       tantor-bench listen  --target T [--subscribers 1]
       tantor-bench recover --target T [--publications 300] [--joins 200] [--rounds 1]
       tantor-bench resume  --target T [--clients 10000] [--mailed 100] [--missed 20] [--at-once 4000] [--round 0]
T is name:protocol:port:process, with the protocols tantor, echo and socketio";

pub fn run(arguments: impl Iterator<Item = String>) -> Result<(), String> {
    let mut options = Options::read(arguments)?;
    sys::raise_open_file_limit()
        .map_err(|error| format!("raising the limit of open files: {error}"))?;
    let mut report = |line: Value| println!("{line}");
    let outcome = match options.case.clone().as_str() {
        "bare" => {
            let port = options.required("port")?;
            options.end()?;
            bare::run(port)
        }
        "fanout" => {
            let plan = fanout::Plan {
                targets: options.targets()?,
                subscribers: options.value("subscribers", 100)?,
                windows: options.list("windows", &[1, 16, 64])?,
                rounds: options.value("rounds", 1)?,
                duration: options.seconds()?,
                delivered_bytes: options.value("payload", 300)?,
            };
            options.end()?;
            fanout::run(&plan, &mut report)
        }
        "latency" => {
            let plan = latency::Plan {
                targets: options.targets()?,
                subscribers: options.value("subscribers", 100)?,
                publishes_per_second: options.value("rate", 1_000)?,
                rounds: options.value("rounds", 1)?,
                duration: options.seconds()?,
                delivered_bytes: options.value("payload", 300)?,
            };
            options.end()?;
            latency::run(&plan, &mut report)
        }
        "connect" => {
            let target = options.target()?;
            let count = options.value("count", 10_000)?;
            let round = options.value("round", 0)?;
            options.end()?;
            connect::run(&target, count, round, &mut report);
            Ok(())
        }
        "flood" => {
            let target = options.target()?;
            let connections = options.value("connections", 8)?;
            let duration = options.seconds()?;
            let text = options.value("text", r#"{"action":"chat"}"#.to_owned())?;
            options.end()?;
            flood::run(&target, connections, duration, &text, &mut report)
        }
        "attack" => {
            let target = options.target()?;
            let flood: String = options.required("flood")?;
            let duration = options.seconds()?;
            options.end()?;
            attack::run(&target, &flood, duration, &mut report)
        }
        "listen" => {
            let target = options.target()?;
            let subscribers = options.value("subscribers", 1)?;
            options.end()?;
            listen::run(&target, subscribers)
        }
        "recover" => {
            let plan = recover::Plan {
                target: options.target()?,
                publications: options.value("publications", 300)?,
                joins: options.value("joins", 200)?,
                rounds: options.value("rounds", 1)?,
            };
            options.end()?;
            recover::run(&plan, &mut report);
            Ok(())
        }
        "resume" => {
            let plan = resume::Plan {
                target: options.target()?,
                clients: options.value("clients", 10_000)?,
                mailed: options.value("mailed", 100)?,
                missed: options.value("missed", 20)?,
                at_once: options.value("at-once", 4_000)?,
                round: options.value("round", 0)?,
            };
            options.end()?;
            resume::run(&plan, &mut report);
            Ok(())
        }
        other => return Err(format!("there is no case {other:?}\n{USAGE}")),
    };
    outcome.map_err(|error| error.to_string())
}

/// `--name value` pairs, each taken once; what is left over is an error.
struct Options {
    case: String,
    values: HashMap<String, Vec<String>>,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let case = arguments.next().ok_or(USAGE)?;
        let mut values: HashMap<String, Vec<String>> = HashMap::new();
        while let Some(name) = arguments.next() {
            let name = name
                .strip_prefix("--")
                .ok_or_else(|| format!("{name:?} is no option\n{USAGE}"))?;
            let value = arguments
                .next()
                .ok_or_else(|| format!("--{name} needs a value\n{USAGE}"))?;
            values.entry(name.to_owned()).or_default().push(value);
        }
        Ok(Self { case, values })
    }

    fn required<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<T, String> {
        let values = self.values.remove(name).unwrap_or_default();
        let [value] = values.as_slice() else {
            return Err(format!("--{name} is needed, once\n{USAGE}"));
        };
        parse(name, value)
    }

    fn value<T: FromStr<Err: Display>>(&mut self, name: &str, default: T) -> Result<T, String> {
        if self.values.contains_key(name) {
            self.required(name)
        } else {
            Ok(default)
        }
    }

    fn list(&mut self, name: &str, default: &[usize]) -> Result<Vec<usize>, String> {
        let text: String = self.value(name, String::new())?;
        if text.is_empty() {
            return Ok(default.to_vec());
        }
        text.split(',').map(|item| parse(name, item)).collect()
    }

    fn seconds(&mut self) -> Result<Duration, String> {
        let seconds = self.value("seconds", 3.0)?;
        Duration::try_from_secs_f64(seconds)
            .map_err(|error| format!("--seconds {seconds}: {error}"))
    }

    fn targets(&mut self) -> Result<Vec<Target>, String> {
        let targets = self
            .values
            .remove("target")
            .ok_or_else(|| format!("--target is needed\n{USAGE}"))?;
        targets
            .iter()
            .map(|target| parse("target", target))
            .collect()
    }

    fn target(&mut self) -> Result<Target, String> {
        self.required("target")
    }

    fn end(&self) -> Result<(), String> {
        match self.values.keys().next() {
            Some(name) => Err(format!("{} takes no --{name}\n{USAGE}", self.case)),
            None => Ok(()),
        }
    }
}

fn parse<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|error| format!("--{name} {value}: {error}"))
}
