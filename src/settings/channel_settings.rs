//! Settings of channels, by name or by pattern: how much is kept, how long, how safely, and what a slow consumer gets.

use crate::base::names::MAX_CHANNEL_NAME;
use crate::base::priority::SlowConsumer;
use serde_json::{Map, Value};
use std::time::Duration;

/// The settings of one channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChannelSettings {
    /// Publications kept; 0 keeps none.
    pub history_size: usize,
    /// How long a publication is kept.
    pub message_ttl: Duration,
    /// Publications are saved before they are handed over.
    pub durable: bool,
    pub slow_consumer: SlowConsumer,
}

impl ChannelSettings {
    /// True when publications are kept at all. `history_bytes` bounds those that are not durable.
    pub fn keeps(&self, history_bytes: usize) -> bool {
        self.history_size > 0 && !self.message_ttl.is_zero() && (self.durable || history_bytes > 0)
    }
}

/// The values of one rule. A setting without a value is as for every channel.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Overrides {
    history_size: Option<usize>,
    message_ttl: Option<Duration>,
    durable: Option<bool>,
    slow_consumer: Option<SlowConsumer>,
}

/// One key of the setting `channel_settings`.
#[derive(Clone, Debug, PartialEq)]
struct Rule {
    /// A channel's name, or with `*` for any number of characters.
    pattern: String,
    overrides: Overrides,
}

/// The setting `channel_settings`. An exact name goes before patterns, a longer pattern before a shorter one; only
/// the first that fits counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelRules {
    /// The rules, in the order in which they are tried.
    rules: Vec<Rule>,
    text: String,
}

/// Most publications that a channel may keep.
pub const MAX_HISTORY_SIZE: i64 = 10_000_000;

/// The longest time to live, in seconds: a year.
pub const MAX_TTL: f64 = 365.0 * 86_400.0;

impl ChannelRules {
    /// Reads JSON: `{"chat:*": {"history_size": 1000, "message_ttl": 60}}`.
    ///
    /// Errors: the problem, with its pattern and key, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| format!("no JSON: {error}"))?;
        let Value::Object(table) = value else {
            return Err(format!(
                "{value} is no object of channels and their settings"
            ));
        };
        let mut rules = table
            .iter()
            .map(|(pattern, overrides)| rule(pattern, overrides))
            .collect::<Result<Vec<_>, _>>()?;
        rules.sort_by_key(|rule| {
            (
                rule.pattern.contains('*'),
                std::cmp::Reverse(rule.pattern.len()),
            )
        });
        let text = if rules.is_empty() {
            String::new()
        } else {
            Value::Object(table).to_string()
        };
        Ok(Self { rules, text })
    }

    /// The setting as JSON.
    pub fn text(&self) -> &str {
        if self.text.is_empty() {
            "{}"
        } else {
            &self.text
        }
    }

    /// The settings of a channel, where `general` are the settings of every channel.
    pub fn of(&self, channel: &str, general: ChannelSettings) -> ChannelSettings {
        let found = self
            .rules
            .iter()
            .find(|rule| matches(&rule.pattern, channel));
        found.map_or(general, |rule| over(general, rule.overrides))
    }

    /// The pattern and settings of every rule, where `general` holds for every channel.
    pub fn all(&self, general: ChannelSettings) -> impl Iterator<Item = (&str, ChannelSettings)> {
        self.rules
            .iter()
            .map(move |rule| (rule.pattern.as_str(), over(general, rule.overrides)))
    }
}

fn over(general: ChannelSettings, overrides: Overrides) -> ChannelSettings {
    ChannelSettings {
        history_size: overrides.history_size.unwrap_or(general.history_size),
        message_ttl: overrides.message_ttl.unwrap_or(general.message_ttl),
        durable: overrides.durable.unwrap_or(general.durable),
        slow_consumer: overrides.slow_consumer.unwrap_or(general.slow_consumer),
    }
}

fn rule(pattern: &str, overrides: &Value) -> Result<Rule, String> {
    if let Some(problem) = unmatchable(pattern) {
        return Err(format!("{pattern:?} can match no channel: it {problem}"));
    }
    let Value::Object(table) = overrides else {
        return Err(format!(
            "{pattern:?} is {overrides}; it takes an object of settings"
        ));
    };
    Ok(Rule {
        pattern: pattern.to_owned(),
        overrides: read_overrides(table).map_err(|problem| format!("{pattern:?}: {problem}"))?,
    })
}

fn read_overrides(table: &Map<String, Value>) -> Result<Overrides, String> {
    let mut overrides = Overrides::default();
    for (key, value) in table {
        let is_taken = match key.as_str() {
            "history_size" => {
                overrides.history_size = value
                    .as_i64()
                    .filter(|size| (0..=MAX_HISTORY_SIZE).contains(size))
                    .map(i64::unsigned_abs)
                    .map(|size| size as usize);
                overrides.history_size.is_some()
            }
            "message_ttl" => {
                overrides.message_ttl = value
                    .as_f64()
                    .filter(|seconds| (0.0..=MAX_TTL).contains(seconds))
                    .map(Duration::from_secs_f64);
                overrides.message_ttl.is_some()
            }
            "durable" => {
                overrides.durable = value.as_bool();
                overrides.durable.is_some()
            }
            "slow_consumer" => {
                overrides.slow_consumer = value.as_str().and_then(SlowConsumer::from_name);
                overrides.slow_consumer.is_some()
            }
            _ => {
                return Err(format!(
                    "there is no {key:?}; there are history_size, message_ttl, durable and slow_consumer"
                ));
            }
        };
        if !is_taken {
            let takes = match key.as_str() {
                "history_size" => format!("a whole number from 0 to {MAX_HISTORY_SIZE}"),
                "message_ttl" => format!("a number of seconds from 0 to {MAX_TTL}"),
                "durable" => "true or false".to_owned(),
                _ => SlowConsumer::TAKES.to_owned(),
            };
            return Err(format!("{key} is {value}; it takes {takes}"));
        }
    }
    Ok(overrides)
}

/// The reason for which no name of a channel can match a pattern; `None` if one can.
fn unmatchable(pattern: &str) -> Option<String> {
    let fixed = pattern.len() - pattern.matches('*').count();
    if pattern.is_empty() {
        Some("is empty".to_owned())
    } else if fixed > MAX_CHANNEL_NAME {
        Some(format!(
            "has {fixed} bytes, and a name has at most {MAX_CHANNEL_NAME}"
        ))
    } else if pattern == crate::base::names::SYSTEM_CHANNEL {
        Some("is the server's own".to_owned())
    } else {
        let control = pattern.chars().find(|character| character.is_control())?;
        Some(format!(
            "has the control character U+{:04X}",
            control as u32
        ))
    }
}

/// True if a name matches a pattern, in which `*` stands for any number of characters.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn general() -> ChannelSettings {
        ChannelSettings {
            history_size: 100,
            message_ttl: Duration::from_secs(3600),
            durable: false,
            slow_consumer: SlowConsumer::Disconnect,
        }
    }

    #[test]
    fn a_name_goes_before_patterns_and_a_longer_pattern_first() {
        let rules = ChannelRules::parse(
            r#"{"*": {"history_size": 1}, "chat:*": {"history_size": 2}, "chat:a*z": {"history_size": 3, "durable": true},
                "chat:abcz": {"message_ttl": 0.5, "slow_consumer": "latest"}}"#,
        )
        .expect("valid");
        let of = |name: &str| rules.of(name, general());
        assert_eq!(of("x").history_size, 1);
        assert_eq!(of("chat:").history_size, 2);
        assert_eq!(
            (of("chat:a-z").history_size, of("chat:a-z").durable),
            (3, true)
        );
        assert_eq!(of("chat:abcz").history_size, 100);
        assert_eq!(of("chat:abcz").message_ttl, Duration::from_millis(500));
        assert_eq!(of("chat:abcz").slow_consumer, SlowConsumer::Latest);
        assert_eq!(ChannelRules::default().of("x", general()), general());
    }

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("*a", "ba", true),
            ("*a", "ab", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("a*a", "a", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_where_it_stood() {
        for (text, wanted) in [
            ("[", "no JSON"),
            ("[]", "no object"),
            (r#"{"": {}}"#, "can match no channel"),
            (r#"{"a\n*": {}}"#, "U+000A"),
            (r#"{"system": {}}"#, "server's own"),
            (r#"{"a": 1}"#, "\"a\" is 1; it takes an object"),
            (
                r#"{"a": {"history_size": -1}}"#,
                "\"a\": history_size is -1; it takes a whole number",
            ),
            (r#"{"a": {"history_size": 1.5}}"#, "history_size is 1.5"),
            (
                r#"{"a": {"message_ttl": "1"}}"#,
                "message_ttl is \"1\"; it takes a number of seconds",
            ),
            (
                r#"{"a": {"durable": 1}}"#,
                "durable is 1; it takes true or false",
            ),
            (
                r#"{"a": {"slow_consumer": "x"}}"#,
                "slow_consumer is \"x\"; it takes",
            ),
            (r#"{"a": {"histroy": 1}}"#, "there is no \"histroy\""),
        ] {
            let error = ChannelRules::parse(text).expect_err(text);
            assert!(error.contains(wanted), "{error}");
        }
        let long = format!("{{\"{}*\": {{}}}}", "x".repeat(256));
        assert!(
            ChannelRules::parse(&long)
                .expect_err("too long")
                .contains("256 bytes")
        );
    }
}
