//! Every setting: one table that holds name, range, default and help, and the validated values.
//!
//! The Python layer reads the table for `--help`, environment and TOML names, so a setting is added here only.

pub use super::setting::{Setting, Value};

use super::setting::Access;
use crate::base::error::Error;
use crate::base::priority::SlowConsumer;
use crate::settings::application::{read_app_id, read_runtime_dir, write_runtime_dir};
use crate::settings::channel_settings::{ChannelRules, ChannelSettings, MAX_HISTORY_SIZE};
use crate::settings::database::Database;
use crate::settings::hosts::Hosts;
use crate::settings::subprotocols::Subprotocols;
use std::path::PathBuf;
use std::time::Duration;

/// The validated values of all settings. Sizes are in bytes; times that are no `Duration` are in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub port: u16,
    pub host: Hosts,
    pub unix_socket_mode: u32,
    pub default_channel: String,
    pub heartbeat_interval: Duration,
    pub heartbeat_timeout: Duration,
    pub message_ttl: Duration,
    pub emergency_ttl: Duration,
    pub max_connections: usize,
    pub max_handshakes: usize,
    pub max_message_size: usize,
    pub max_unfinished_bytes: usize,
    pub message_timeout: Duration,
    pub min_message_rate: usize,
    pub send_buffer_bytes: usize,
    pub receive_buffer_bytes: usize,
    pub max_depth: usize,
    pub max_digits: usize,
    pub max_header_size: usize,
    /// Empty, or a path that begins with a slash and does not end with a slash.
    pub http_prefix: String,
    pub subprotocols: Subprotocols,
    pub handshake_timeout: Duration,
    pub max_channels_per_client: usize,
    pub max_pending_bytes: usize,
    pub max_queued_bytes: usize,
    pub publisher_hold: Duration,
    pub slow_consumer: SlowConsumer,
    pub history_size: usize,
    pub history_bytes: usize,
    pub durable_bytes: usize,
    pub channel_settings: ChannelRules,
    pub resume_ttl: Duration,
    pub leave_delay: Duration,
    pub max_away_clients: usize,
    pub away_bytes: usize,
    pub mailbox_size: usize,
    pub mailbox_bytes: usize,
    pub mailboxes_bytes: usize,
    pub ack_timeout: Duration,
    pub idempotency_ttl: Duration,
    pub max_idempotency_keys: usize,
    pub max_client_keys: usize,
    pub database: Database,
    pub database_bytes: u64,
    pub database_queue_bytes: usize,
    pub durable: bool,
    /// Only the Python layer reads this.
    pub app_context: bool,
    pub inbox_bytes: usize,
    /// Empty where no other process shares the messenger.
    pub app_id: String,
    pub runtime_dir: Option<PathBuf>,
    pub max_processes: usize,
    pub event_queue_bytes: usize,
    pub notice_limit: usize,
    pub empty_channel_ttl: Duration,
    pub max_empty_channels: usize,
    pub drain_timeout: Duration,
    /// Only the Python layer reads this.
    pub handle_sigterm: bool,
    pub reconnect_window: Duration,
    pub shards: usize,
}

/// Added to `heartbeat_interval` where no `heartbeat_timeout` is given.
const HEARTBEAT_SLACK: Duration = Duration::from_secs(10);

const DAY: f64 = 86_400.0;
const YEAR: f64 = 365.0 * DAY;
const GIB: i64 = 1 << 30;

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 8080,
            host: Hosts::default(),
            unix_socket_mode: 0o660,
            default_channel: "jungle".to_owned(),
            heartbeat_interval: Duration::from_secs(30),
            heartbeat_timeout: Duration::from_secs(40),
            message_ttl: Duration::from_secs(3600),
            emergency_ttl: Duration::from_secs(86_400),
            max_connections: 100_000,
            max_handshakes: 1024,
            max_message_size: 1 << 20,
            max_unfinished_bytes: 64 << 20,
            message_timeout: Duration::from_secs(10),
            min_message_rate: 8 << 10,
            send_buffer_bytes: 128 << 10,
            receive_buffer_bytes: 64 << 10,
            max_depth: 128,
            max_digits: 100,
            max_header_size: 16 << 10,
            http_prefix: String::new(),
            subprotocols: Subprotocols::default(),
            handshake_timeout: Duration::from_secs(10),
            max_channels_per_client: 128,
            max_pending_bytes: 1 << 20,
            max_queued_bytes: 1 << 30,
            publisher_hold: Duration::from_secs(1),
            slow_consumer: SlowConsumer::Disconnect,
            history_size: 100,
            history_bytes: 64 << 20,
            durable_bytes: 1 << 30,
            channel_settings: ChannelRules::default(),
            resume_ttl: Duration::from_secs(120),
            leave_delay: Duration::from_secs(15),
            max_away_clients: 100_000,
            away_bytes: 64 << 20,
            mailbox_size: 1000,
            mailbox_bytes: 256 << 10,
            mailboxes_bytes: 64 << 20,
            ack_timeout: Duration::from_secs(10),
            idempotency_ttl: Duration::from_secs(300),
            max_idempotency_keys: 100_000,
            max_client_keys: 1000,
            database: Database::default(),
            database_bytes: 1 << 30,
            database_queue_bytes: 64 << 20,
            durable: false,
            app_context: true,
            inbox_bytes: 64 << 20,
            app_id: String::new(),
            runtime_dir: None,
            max_processes: 1000,
            event_queue_bytes: 16 << 20,
            notice_limit: 200,
            empty_channel_ttl: Duration::from_secs(60),
            max_empty_channels: 10_000,
            drain_timeout: Duration::from_secs(5),
            handle_sigterm: true,
            reconnect_window: Duration::from_secs(10),
            shards: default_shards(),
        }
    }
}

impl Config {
    /// Returns the defaults, overridden by these values.
    ///
    /// Errors: a name that is not in the table; a value that its row does not take; values that contradict
    /// each other.
    pub fn from_values(values: &[(String, Value)]) -> Result<Self, Error> {
        let mut config = Self::default();
        for (name, value) in values {
            let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
                return Err(Error::UnknownSetting(name.clone()));
            };
            setting.set(&mut config, value).map_err(Error::Setting)?;
        }
        let given = |wanted: &str| values.iter().any(|(name, _)| name == wanted);
        if !given("heartbeat_timeout") {
            config.heartbeat_timeout = config.heartbeat_interval + HEARTBEAT_SLACK;
        }
        if !given("durable_bytes") {
            config.durable_bytes = usize::try_from(config.database_bytes).unwrap_or(usize::MAX);
        }
        if !given("leave_delay") {
            config.leave_delay = config.leave_delay.min(config.resume_ttl);
        }
        if !given("mailbox_bytes") {
            config.mailbox_bytes = config
                .mailbox_bytes
                .min(config.max_pending_bytes / 2)
                .min(config.mailboxes_bytes);
        }
        config.validate()?;
        Ok(config)
    }

    /// The settings of a channel.
    pub fn of_channel(&self, name: &str) -> ChannelSettings {
        self.channel_settings.of(name, self.every_channel(name))
    }

    fn every_channel(&self, name: &str) -> ChannelSettings {
        let is_emergency = name == crate::base::names::EMERGENCY_CHANNEL;
        ChannelSettings {
            history_size: self.history_size,
            message_ttl: if is_emergency {
                self.emergency_ttl
            } else {
                self.message_ttl
            },
            durable: self.durable,
            slow_consumer: self.slow_consumer,
        }
    }

    fn validate(&self) -> Result<(), Error> {
        let contradiction = self
            .contradiction()
            .or_else(|| self.unsavable())
            .or_else(|| {
                let refusal =
                    crate::base::names::check_channel_name(&self.default_channel).err()?;
                Some(format!("default_channel: {}", refusal.message))
            });
        contradiction.map_or(Ok(()), |problem| Err(Error::Setting(problem)))
    }

    /// The first contradiction between two values, as text.
    fn contradiction(&self) -> Option<String> {
        if self.heartbeat_timeout <= self.heartbeat_interval {
            return Some(format!(
                "heartbeat_timeout is {}; it takes more than heartbeat_interval ({}), or every quiet client is closed",
                self.heartbeat_timeout.as_secs_f64(),
                self.heartbeat_interval.as_secs_f64()
            ));
        }
        if self.leave_delay > self.resume_ttl {
            return Some(format!(
                "leave_delay is {}; it takes at most resume_ttl ({}), after which nobody can return",
                self.leave_delay.as_secs_f64(),
                self.resume_ttl.as_secs_f64()
            ));
        }
        for (name, value, other, most, reason) in [
            (
                "max_pending_bytes",
                self.max_pending_bytes,
                "max_queued_bytes",
                self.max_queued_bytes,
                "which holds for all clients together",
            ),
            (
                "mailbox_bytes",
                self.mailbox_bytes,
                "max_pending_bytes",
                self.max_pending_bytes,
                "or a client that returns is too slow at once",
            ),
            (
                "mailbox_bytes",
                self.mailbox_bytes,
                "mailboxes_bytes",
                self.mailboxes_bytes,
                "which holds for all clients together",
            ),
        ] {
            if value > most {
                return Some(format!(
                    "{name} is {value}; it takes at most {other} ({most}), {reason}"
                ));
            }
        }
        None
    }

    /// The first setting that makes a channel durable although nothing can be saved, as text.
    fn unsavable(&self) -> Option<String> {
        let general = self.every_channel("");
        let rules = self.channel_settings.all(general);
        let durable = std::iter::once(("", general))
            .chain(rules)
            .find(|(_, settings)| settings.durable)?;
        let (pattern, settings) = durable;
        let durable = if pattern.is_empty() {
            "durable is true".to_owned()
        } else {
            format!("channel_settings: {pattern:?} is durable")
        };
        if self.database == Database::Memory {
            return Some(format!("{durable}; that takes a database"));
        }
        (!settings.keeps(self.history_bytes)).then(|| {
            format!("{durable}; that takes a history_size and a message_ttl above 0, for what is saved is its history")
        })
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
            // the range was checked, and no range exceeds the type of its field
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
    ($field:ident, boolean) => {
        Access::Boolean {
            set: |config, value| config.$field = value,
            get: |config| config.$field,
        }
    };
    ($field:ident, read($kind:expr, $takes:expr, $read:expr, $write:expr)) => {
        Access::Read {
            kind: $kind,
            takes: $takes,
            set: |config, text| {
                config.$field = $read(text)?;
                Ok(())
            },
            get: |config| $write(&config.$field),
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
    ($($field:ident: $kind:ident $(($($argument:expr),*))?, $derived:expr, $help:expr;)*) => {
        /// The table, in the order of `--help`.
        pub static SETTINGS: &[Setting<Config>] = &[$(Setting {
            name: stringify!($field),
            derived: $derived,
            help: $help,
            access: access!($field, $kind $(($($argument),*))?),
        }),*];
    };
}

const GIVEN: bool = false;
const DERIVED: bool = true;

settings! {
    port: integer(0, 65_535), GIVEN, "TCP port to listen on; 0 picks a free one";
    host: read("list", Hosts::TAKES, Hosts::parse, write_hosts), GIVEN, "addresses or names to listen on, with commas between them: every address of each, all on one port; unix:/run/app/tantor.sock for a Unix socket";
    unix_socket_mode: read("mode", "permissions of a file from 0 to 777, octal in text", read_mode, write_mode), GIVEN, "permissions of the file of a Unix socket, in octal digits; who may write to the file may connect";
    default_channel: text, GIVEN, "channel that every client is in from the start, and that commands without one mean";
    heartbeat_interval: seconds(0.05, DAY), GIVEN, "seconds between heartbeats";
    heartbeat_timeout: seconds(0.05, DAY), DERIVED, "seconds of silence after which a client is closed (default: the interval plus 10)";
    message_ttl: seconds(0.0, YEAR), GIVEN, "seconds that a message is kept";
    emergency_ttl: seconds(0.0, YEAR), GIVEN, "seconds that an emergency is kept";
    max_connections: integer(1, 10_000_000), GIVEN, "clients at once; a connect beyond it gets status 503";
    max_message_size: integer(64, GIB), GIVEN, "bytes of one message, in or out";
    max_unfinished_bytes: integer(1 << 16, 64 * GIB), GIVEN, "bytes of messages and request heads that have not arrived in full, of all clients together; beyond it the clients with most are closed (3015)";
    message_timeout: seconds(0.05, DAY), GIVEN, "seconds for a message to arrive in full, besides one second for each min_message_rate bytes of it; beyond them the client is closed (3016)";
    min_message_rate: integer(1, GIB), GIVEN, "bytes a second at which a message has to arrive";
    send_buffer_bytes: integer(0, GIB), GIVEN, "bytes that the system may hold for one client to send, of which it takes up to double; 0 leaves the size to the system, which may take megabytes";
    receive_buffer_bytes: integer(0, GIB), GIVEN, "bytes that the system may hold of one client unread, of which it takes up to double; 0 leaves the size to the system";
    max_depth: integer(1, 500), GIVEN, "nesting of arrays and objects in a client's message; Python's JSON parser reads no more than about 1000";
    max_digits: integer(16, 640), GIVEN, "digits of a number in a client's message";
    max_header_size: integer(256, 1 << 20), GIVEN, "bytes of an HTTP request head";
    http_prefix: read("text", "nothing, or a path like /rt", read_prefix, String::clone), GIVEN, "path before that of each page, where a proxy keeps it: with /rt, /rt/healthz is answered as /healthz is (default: none)";
    subprotocols: read("list", "names of WebSocket subprotocols, or * for whatever a client offers first", Subprotocols::parse, Subprotocols::text), GIVEN, "WebSocket subprotocols that the server selects, each client's first that is listed; * for the first offered (default: none)";
    max_handshakes: integer(1, 10_000_000), GIVEN, "connections whose request head has not arrived yet, besides max_connections; beyond it the oldest are closed";
    handshake_timeout: seconds(0.05, 3600.0), GIVEN, "seconds for an HTTP request head to arrive, and for the decision whether the client may connect";
    max_channels_per_client: integer(1, 1_000_000), GIVEN, "channels that one client may join";
    max_pending_bytes: integer(1024, GIB), GIVEN, "bytes that may wait for one client before it is closed as a slow consumer (3008)";
    max_queued_bytes: integer(1024, 64 * GIB), GIVEN, "bytes that may wait for all clients together; beyond it the one with most is treated as a slow consumer";
    publisher_hold: seconds(0.0, 60.0), GIVEN, "seconds for which a subscriber that half of max_pending_bytes waits for holds back the clients that publish to it; 0 for never";
    slow_consumer: read("text", SlowConsumer::TAKES, read_slow_consumer, write_slow_consumer), GIVEN, "what happens over max_pending_bytes: disconnect, drop_oldest, or latest (only the newest of a channel waits)";
    history_size: integer(0, MAX_HISTORY_SIZE), GIVEN, "publications kept of each channel, for clients that return; 0 keeps none";
    history_bytes: integer(0, 64 * GIB), GIVEN, "bytes of publications kept of all channels, but for durable ones; beyond it the channels that take most lose their oldest";
    durable_bytes: integer(1 << 16, 1024 * GIB), DERIVED, "bytes of durable publications kept of all channels; beyond it new ones are refused (default: database_bytes)";
    channel_settings: read("json", "an object of channels or patterns, each with an object of settings", ChannelRules::parse, write_rules), GIVEN, "history_size, message_ttl, durable and slow_consumer by channel or pattern: {\"chat:*\": {\"history_size\": 1000}}";
    resume_ttl: seconds(0.0, YEAR), GIVEN, "seconds in which a client that was lost can return as the same; 0 for never";
    leave_delay: seconds(0.0, YEAR), DERIVED, "seconds after which others are told that a client was lost (default: 15, at most resume_ttl)";
    max_away_clients: integer(0, 10_000_000), GIVEN, "lost clients that may return; beyond it those that never sent a frame cannot, then those of the address that has most";
    away_bytes: integer(0, 64 * GIB), GIVEN, "bytes that lost clients which may return take, with their channels; beyond it those that never sent a frame cannot, then those of the address that has most";
    mailbox_size: integer(1, 10_000_000), GIVEN, "messages kept for one client that is away; the oldest go first";
    mailbox_bytes: integer(0, GIB), DERIVED, "bytes kept for one client that is away (default: 256 KiB, at most half of max_pending_bytes)";
    mailboxes_bytes: integer(0, 64 * GIB), GIVEN, "bytes kept for all clients that are away; the oldest go first";
    ack_timeout: seconds(0.05, DAY), GIVEN, "seconds after which an emergency is sent again to a client that acknowledges and has not";
    idempotency_ttl: seconds(0.0, DAY), GIVEN, "seconds in which an idempotency key is known";
    max_idempotency_keys: integer(0, 10_000_000), GIVEN, "idempotency keys known at once, of the application and of all clients each; beyond it the client with the most loses its oldest";
    max_client_keys: integer(1, 10_000_000), GIVEN, "idempotency keys of one client known at once; beyond it the client loses its oldest";
    database: read("text", "sqlite:/// and a path, or nothing", Database::parse, write_database), GIVEN, "where history, mailboxes and clients are saved: sqlite:///tantor.db (default: nowhere)";
    database_bytes: integer(1 << 20, 1024 * GIB), GIVEN, "bytes that the database's file may take; beyond it nothing more is saved until something has expired";
    database_queue_bytes: integer(1 << 16, 64 * GIB), GIVEN, "bytes of changes that may wait to be saved; beyond it they are not, and counted";
    durable: boolean, GIVEN, "publications of every channel are saved before they are handed over";
    app_context: boolean, GIVEN, "handlers run in the application context of the Flask app, where init_tantor made the Tantor";
    inbox_bytes: integer(1 << 16, 64 * GIB), GIVEN, "bytes that may wait for one shard before publishers are held back";
    app_id: read("text", "a name of up to 255 bytes, or nothing", read_app_id, String::clone), GIVEN, "name by which the processes of one application find each other: those that do not serve make their calls on the one that serves (default: none; for a Flask app its user, name and folder)";
    runtime_dir: read("text", "an absolute path, or nothing", read_runtime_dir, write_runtime_dir), GIVEN, "folder in which the processes of an application meet (default: the first of /run, /tmp and /dev/shm that can be written)";
    max_processes: integer(1, 10_000), GIVEN, "processes of the application that make calls on this one at once; more are refused";
    event_queue_bytes: integer(1024, 64 * GIB), GIVEN, "bytes of events that may wait for Python before clients are read no further";
    notice_limit: integer(0, 1_000_000), GIVEN, "subscribers up to which each join and leave is told; beyond it, one notice a second";
    empty_channel_ttl: seconds(0.0, YEAR), GIVEN, "seconds until a channel without subscribers disappears";
    max_empty_channels: integer(1, 10_000_000), GIVEN, "channels without subscribers and without history that are held at once; the oldest go first";
    drain_timeout: seconds(0.0, 3600.0), GIVEN, "seconds that a stop waits for queues to empty";
    handle_sigterm: boolean, GIVEN, "SIGTERM stops the server as Ctrl-C does, where the application has no handler of its own";
    reconnect_window: seconds(0.0, 3600.0), GIVEN, "seconds over which clients are told to come back after a stop, each at a time of its own";
    shards: integer(1, 256), DERIVED, "threads that own connections (default: the machine's cores, at most 4)";
}

fn read_slow_consumer(text: &str) -> Result<SlowConsumer, String> {
    SlowConsumer::from_name(text).ok_or_else(|| "there is no such policy".to_owned())
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "as the table calls every such function"
)]
fn write_slow_consumer(policy: &SlowConsumer) -> String {
    policy.name().to_owned()
}

fn read_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        Ok(_) => Err("it is more than 777".to_owned()),
        Err(_) => Err("it has other characters than octal digits".to_owned()),
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "as the table calls every such function"
)]
fn write_mode(mode: &u32) -> String {
    format!("{mode:o}")
}

fn write_hosts(hosts: &Hosts) -> String {
    hosts.text().to_owned()
}

fn write_rules(rules: &ChannelRules) -> String {
    rules.text().to_owned()
}

fn write_database(database: &Database) -> String {
    database.url().to_owned()
}

fn read_prefix(path: &str) -> Result<String, String> {
    let path = path.trim_end_matches('/');
    let is_sound = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    if path.is_empty() || is_sound && !path.contains(['?', '#']) {
        return Ok(path.to_owned());
    }
    Err("it must begin with a slash, and have no spaces, ? or #".to_owned())
}

#[cfg(test)]
mod tests;
