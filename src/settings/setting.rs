//! A row of the table of settings: its range, and access to its field of the configuration `C`.

use std::fmt;
use std::time::Duration;

/// A setting's value before it is validated.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Integer(i64),
    Number(f64),
    Boolean(bool),
    Text(String),
}

/// How a setting is checked, written and read.
#[derive(Debug)]
pub(super) enum Access<C> {
    Integer {
        low: i64,
        high: i64,
        set: fn(&mut C, i64),
        get: fn(&C) -> i64,
    },
    Seconds {
        low: f64,
        high: f64,
        set: fn(&mut C, Duration),
        get: fn(&C) -> Duration,
    },
    Boolean {
        set: fn(&mut C, bool),
        get: fn(&C) -> bool,
    },
    Text {
        set: fn(&mut C, String),
        get: fn(&C) -> String,
    },
    /// Text that a function of the row parses. The function's error says what is wrong with the text.
    Read {
        kind: &'static str,
        takes: &'static str,
        set: fn(&mut C, &str) -> Result<(), String>,
        get: fn(&C) -> String,
    },
}

/// One row of the table.
#[derive(Debug)]
pub struct Setting<C> {
    pub name: &'static str,
    /// The default is derived from other settings or from the machine; `help` says how.
    pub derived: bool,
    pub help: &'static str,
    pub(super) access: Access<C>,
}

impl<C> Clone for Access<C> {
    fn clone(&self) -> Self {
        *self
    }
}

// not derived, because `C` itself need not be `Copy`
impl<C> Copy for Access<C> {}

impl<C> Setting<C> {
    /// "integer", "number", "boolean", "text", "json" for text that holds JSON, "list" for names with commas between, or
    /// "mode" for permissions in octal digits.
    pub fn kind(&self) -> &'static str {
        match self.access {
            Access::Integer { .. } => "integer",
            Access::Seconds { .. } => "number",
            Access::Boolean { .. } => "boolean",
            Access::Text { .. } => "text",
            Access::Read { kind, .. } => kind,
        }
    }

    pub fn value(&self, config: &C) -> Value {
        match self.access {
            Access::Integer { get, .. } => Value::Integer(get(config)),
            Access::Seconds { get, .. } => Value::Number(get(config).as_secs_f64()),
            Access::Boolean { get, .. } => Value::Boolean(get(config)),
            Access::Text { get, .. } | Access::Read { get, .. } => Value::Text(get(config)),
        }
    }

    /// Writes the value.
    ///
    /// Errors: the row does not take the value; the error says what the row takes.
    pub(super) fn set(&self, config: &mut C, value: &Value) -> Result<(), String> {
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
            (Access::Boolean { set, .. }, Value::Boolean(given)) => set(config, *given),
            (Access::Text { set, .. }, Value::Text(given)) if !given.is_empty() => {
                set(config, given.clone());
            }
            (Access::Read { set, takes, .. }, Value::Text(given)) => {
                set(config, given).map_err(|problem| {
                    format!("{} is {value}; it takes {takes}: {problem}", self.name)
                })?;
            }
            _ => {
                return Err(format!(
                    "{} is {value}; it takes {}",
                    self.name,
                    self.takes()
                ));
            }
        }
        Ok(())
    }

    /// The values that the setting takes, in words.
    pub fn takes(&self) -> String {
        match self.access {
            Access::Integer { low, high, .. } => format!("a whole number from {low} to {high}"),
            Access::Seconds { low, high, .. } => {
                format!("a number of seconds from {low} to {high}")
            }
            Access::Boolean { .. } => "true or false".to_owned(),
            Access::Text { .. } => "a text that is not empty".to_owned(),
            Access::Read { takes, .. } => takes.to_owned(),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(value) => write!(f, "{value}"),
            Value::Number(value) => write!(f, "{value}"),
            Value::Boolean(value) => write!(f, "{value}"),
            Value::Text(value) => write!(f, "{value:?}"),
        }
    }
}
