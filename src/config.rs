//! Every setting: one table that holds name, range, default and help, and the validated values.
//!
//! The Python layer reads the table for `--help`, environment and TOML names, so a setting is added here only.

use crate::error::Error;
use std::fmt;
use std::time::Duration;

/// A setting's value before it is validated.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Integer(i64),
    Number(f64),
    Text(String),
}

/// How a setting is checked, written and read.
#[derive(Clone, Copy, Debug)]
enum Access {
    Integer {
        low: i64,
        high: i64,
        set: fn(&mut Config, i64),
        get: fn(&Config) -> i64,
    },
    Seconds {
        low: f64,
        high: f64,
        set: fn(&mut Config, Duration),
        get: fn(&Config) -> Duration,
    },
    Text {
        set: fn(&mut Config, String),
        get: fn(&Config) -> String,
    },
}

/// One row of the table.
#[derive(Debug)]
pub struct Setting {
    pub name: &'static str,
    /// The default is derived from other settings or from the machine; `help` says how.
    pub derived: bool,
    pub help: &'static str,
    access: Access,
}

impl Setting {
    /// "integer", "number" or "text".
    pub fn kind(&self) -> &'static str {
        match self.access {
            Access::Integer { .. } => "integer",
            Access::Seconds { .. } => "number",
            Access::Text { .. } => "text",
        }
    }

    pub fn value(&self, config: &Config) -> Value {
        match self.access {
            Access::Integer { get, .. } => Value::Integer(get(config)),
            Access::Seconds { get, .. } => Value::Number(get(config).as_secs_f64()),
            Access::Text { get, .. } => Value::Text(get(config)),
        }
    }

    /// Writes the value, if the row takes it.
    fn set(&self, config: &mut Config, value: &Value) -> bool {
        match (self.access, value) {
            (Access::Integer { low, high, set, .. }, Value::Integer(given))
                if (low..=high).contains(given) =>
            {
                set(config, *given);
            }
            (Access::Seconds { low, high, set, .. }, Value::Integer(given))
                if (low..=high).contains(&(*given as f64)) =>
            {
                set(config, Duration::from_secs_f64(*given as f64));
            }
            (Access::Seconds { low, high, set, .. }, Value::Number(given))
                if (low..=high).contains(given) =>
            {
                set(config, Duration::from_secs_f64(*given));
            }
            (Access::Text { set, .. }, Value::Text(given)) if !given.is_empty() => {
                set(config, given.clone());
            }
            _ => return false,
        }
        true
    }

    /// What it takes, in words.
    pub fn takes(&self) -> String {
        match self.access {
            Access::Integer { low, high, .. } => format!("a whole number from {low} to {high}"),
            Access::Seconds { low, high, .. } => {
                format!("a number of seconds from {low} to {high}")
            }
            Access::Text { .. } => "a text that is not empty".to_owned(),
        }
    }
}

/// The values in force. Sizes are bytes, times are seconds where not a `Duration`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub port: u16,
    pub host: String,
    pub default_channel: String,
    pub heartbeat_interval: Duration,
    pub heartbeat_timeout: Duration,
    pub message_ttl: Duration,
    pub emergency_ttl: Duration,
    pub max_connections: usize,
    pub max_message_size: usize,
    pub max_depth: usize,
    pub max_header_size: usize,
    pub handshake_timeout: Duration,
    pub max_channels_per_client: usize,
    pub max_pending_bytes: usize,
    pub inbox_bytes: usize,
    pub event_queue_bytes: usize,
    pub notice_limit: usize,
    pub empty_channel_ttl: Duration,
    pub max_empty_channels: usize,
    pub drain_timeout: Duration,
    pub shards: usize,
}

/// Longest channel name, in bytes of UTF-8.
pub const MAX_CHANNEL_NAME: usize = 255;

/// Added to `heartbeat_interval` where no `heartbeat_timeout` is given.
const HEARTBEAT_SLACK: Duration = Duration::from_secs(10);

const DAY: f64 = 86_400.0;
const YEAR: f64 = 365.0 * DAY;
const GIB: i64 = 1 << 30;

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 8080,
            host: "0.0.0.0".to_owned(),
            default_channel: "jungle".to_owned(),
            heartbeat_interval: Duration::from_secs(30),
            heartbeat_timeout: Duration::from_secs(40),
            message_ttl: Duration::from_secs(3600),
            emergency_ttl: Duration::from_secs(86_400),
            max_connections: 100_000,
            max_message_size: 1 << 20,
            max_depth: 128,
            max_header_size: 16 << 10,
            handshake_timeout: Duration::from_secs(10),
            max_channels_per_client: 128,
            max_pending_bytes: 1 << 20,
            inbox_bytes: 64 << 20,
            event_queue_bytes: 16 << 20,
            notice_limit: 200,
            empty_channel_ttl: Duration::from_secs(60),
            max_empty_channels: 10_000,
            drain_timeout: Duration::from_secs(5),
            shards: default_shards(),
        }
    }
}

impl Config {
    /// The defaults with these values over them.
    ///
    /// Errors: a name that is not in the table; a value that its row does not take; values that contradict
    /// each other.
    pub fn from_values(values: &[(String, Value)]) -> Result<Self, Error> {
        let mut config = Self::default();
        for (name, value) in values {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
                return Err(Error::UnknownSetting(name.clone()));
            };
            if !setting.set(&mut config, value) {
                return Err(Error::Setting(format!(
                    "{name} is {value}; it takes {}",
                    setting.takes()
                )));
            }
        }
        let given = |wanted: &str| values.iter().any(|(name, _)| name == wanted);
        if !given("heartbeat_timeout") {
            config.heartbeat_timeout = config.heartbeat_interval + HEARTBEAT_SLACK;
        }
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), Error> {
        if self.heartbeat_timeout <= self.heartbeat_interval {
            return Err(Error::Setting(format!(
                "heartbeat_timeout is {}; it takes more than heartbeat_interval ({}), or every quiet client is closed",
                self.heartbeat_timeout.as_secs_f64(),
                self.heartbeat_interval.as_secs_f64()
            )));
        }
        if let Err(refusal) = crate::protocol::check_channel_name(&self.default_channel) {
            return Err(Error::Setting(format!(
                "default_channel: {}",
                refusal.message
            )));
        }
        Ok(())
    }
}

fn default_shards() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(4))
}

macro_rules! access {
    ($field:ident, integer($low:expr, $high:expr)) => {
        Access::Integer {
            low: $low,
            high: $high,
            // the range was checked, and no row's exceeds its field's type
            #[allow(clippy::cast_sign_loss)]
            set: |config, value| config.$field = value as _,
            #[allow(clippy::cast_possible_wrap, clippy::cast_lossless)]
            get: |config| config.$field as i64,
        }
    };
    ($field:ident, seconds($low:expr, $high:expr)) => {
        Access::Seconds {
            low: $low,
            high: $high,
            set: |config, value| config.$field = value,
            get: |config| config.$field,
        }
    };
    ($field:ident, text) => {
        Access::Text {
            set: |config, value| config.$field = value,
            get: |config| config.$field.clone(),
        }
    };
}

macro_rules! settings {
    ($($field:ident: $kind:ident $(($low:expr, $high:expr))?, $derived:expr, $help:expr;)*) => {
        /// The table, in the order of `--help`.
        pub static SETTINGS: &[Setting] = &[$(Setting {
            name: stringify!($field),
            derived: $derived,
            help: $help,
            access: access!($field, $kind $(($low, $high))?),
        }),*];
    };
}

const GIVEN: bool = false;
const DERIVED: bool = true;

settings! {
    port: integer(0, 65_535), GIVEN, "TCP port to listen on; 0 picks a free one";
    host: text, GIVEN, "address or name to listen on";
    default_channel: text, GIVEN, "channel that every client is in from the start, and that commands without one mean";
    heartbeat_interval: seconds(0.05, DAY), GIVEN, "seconds between heartbeats";
    heartbeat_timeout: seconds(0.05, DAY), DERIVED, "seconds of silence after which a client is closed (default: the interval plus 10)";
    message_ttl: seconds(0.0, YEAR), GIVEN, "seconds that a message is kept";
    emergency_ttl: seconds(0.0, YEAR), GIVEN, "seconds that an emergency is kept";
    max_connections: integer(1, 10_000_000), GIVEN, "clients at once; a connect beyond it gets status 503";
    max_message_size: integer(64, GIB), GIVEN, "bytes of one message, in or out";
    max_depth: integer(1, 10_000), GIVEN, "nesting of arrays and objects in a client's message";
    max_header_size: integer(256, 1 << 20), GIVEN, "bytes of an HTTP request head";
    handshake_timeout: seconds(0.05, 3600.0), GIVEN, "seconds for an HTTP request head to arrive";
    max_channels_per_client: integer(1, 1_000_000), GIVEN, "channels that one client may join";
    max_pending_bytes: integer(1024, GIB), GIVEN, "bytes that may wait for one client before it is closed as a slow consumer (3008)";
    inbox_bytes: integer(1 << 16, 64 * GIB), GIVEN, "bytes that may wait for one shard before publishers are held back";
    event_queue_bytes: integer(1024, 64 * GIB), GIVEN, "bytes of events that may wait for Python before clients are read no further";
    notice_limit: integer(0, 1_000_000), GIVEN, "subscribers up to which each join and leave is told; beyond it, one notice a second";
    empty_channel_ttl: seconds(0.0, YEAR), GIVEN, "seconds until a channel without subscribers disappears";
    max_empty_channels: integer(1, 10_000_000), GIVEN, "channels without subscribers that are held at once; the oldest go first";
    drain_timeout: seconds(0.0, 3600.0), GIVEN, "seconds that a stop waits for queues to empty";
    shards: integer(1, 256), DERIVED, "threads that own connections (default: the machine's cores, at most 4)";
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(value) => write!(f, "{value}"),
            Value::Number(value) => write!(f, "{value}"),
            Value::Text(value) => write!(f, "{value:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(name: &str, value: Value) -> String {
        Config::from_values(&[(name.to_owned(), value)])
            .expect_err("must be refused")
            .to_string()
    }

    #[test]
    fn every_row_takes_its_own_default() {
        let defaults = Config::default();
        for setting in SETTINGS {
            let mut config = defaults.clone();
            assert!(
                setting.set(&mut config, &setting.value(&defaults)),
                "{}",
                setting.name
            );
            assert_eq!(config, defaults, "{}", setting.name);
        }
    }

    #[test]
    fn a_bad_value_is_named_with_what_it_takes() {
        assert_eq!(
            error("port", Value::Integer(65_536)),
            "port is 65536; it takes a whole number from 0 to 65535"
        );
        assert_eq!(
            error("host", Value::Text(String::new())),
            "host is \"\"; it takes a text that is not empty"
        );
        assert!(
            error("heartbeat_interval", Value::Number(f64::NAN))
                .contains("it takes a number of seconds")
        );
        assert!(error("port", Value::Text("x".into())).starts_with("port is \"x\""));
        assert!(
            error("heartbeat_timeout", Value::Integer(5))
                .contains("more than heartbeat_interval (30)")
        );
        assert!(error("default_channel", Value::Text("a\nb".into())).contains("default_channel"));
    }

    #[test]
    fn the_timeout_follows_the_interval() {
        let config = Config::from_values(&[("heartbeat_interval".into(), Value::Integer(5))])
            .expect("valid");
        assert_eq!(config.heartbeat_timeout, Duration::from_secs(15));
    }

    #[test]
    fn an_unknown_name_is_its_own_error() {
        let result = Config::from_values(&[("prot".into(), Value::Integer(1))]);
        assert!(matches!(result, Err(Error::UnknownSetting(name)) if name == "prot"));
    }
}
