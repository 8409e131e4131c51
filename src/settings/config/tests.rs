//! The table of settings: names, ranges and defaults.

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
        setting
            .set(&mut config, &setting.value(&defaults))
            .expect(setting.name);
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
        error("default_channel", Value::Text(String::new())),
        "default_channel is \"\"; it takes a text that is not empty"
    );
    assert!(
        error("host", Value::Text(String::new())).starts_with("host is \"\"; it takes addresses")
    );
    for mode in ["1000", "668", "", "rw"] {
        let error = error("unix_socket_mode", Value::Text(mode.to_owned()));
        assert!(error.contains("it takes permissions of a file"), "{error}");
    }
    assert!(
        error("heartbeat_interval", Value::Number(f64::NAN))
            .contains("it takes a number of seconds")
    );
    assert!(error("port", Value::Text("x".into())).starts_with("port is \"x\""));
    assert!(
        error("heartbeat_timeout", Value::Integer(5)).contains("more than heartbeat_interval (30)")
    );
    assert!(error("default_channel", Value::Text("a\nb".into())).contains("default_channel"));
}

#[test]
fn values_that_contradict_each_other_are_named() {
    let text = |text: &str| Value::Text(text.to_owned());
    let rules = r#"{"a": {"durable": true, "history_size": 0}}"#;
    for (values, wanted) in [
        (
            vec![("durable", Value::Boolean(true))],
            "durable is true; that takes a database",
        ),
        (
            vec![("channel_settings", text(r#"{"a": {"durable": true}}"#))],
            "\"a\" is durable; that takes a database",
        ),
        (
            vec![
                ("channel_settings", text(rules)),
                ("database", text("sqlite:///a.db")),
            ],
            "takes a history_size",
        ),
        (
            vec![
                ("resume_ttl", Value::Integer(5)),
                ("leave_delay", Value::Integer(6)),
            ],
            "leave_delay is 6; it takes at most resume_ttl (5)",
        ),
        (
            vec![
                ("mailbox_bytes", Value::Integer(4096)),
                ("max_pending_bytes", Value::Integer(2048)),
            ],
            "mailbox_bytes is 4096; it takes at most max_pending_bytes (2048)",
        ),
        (
            vec![("max_queued_bytes", Value::Integer(1 << 16))],
            "it takes at most max_queued_bytes (65536)",
        ),
        (
            vec![("slow_consumer", text("x"))],
            "slow_consumer is \"x\"; it takes",
        ),
        (
            vec![("channel_settings", text("[]"))],
            "it takes an object of channels",
        ),
        (
            vec![("durable", text("yes"))],
            "durable is \"yes\"; it takes true or false",
        ),
    ] {
        let values: Vec<_> = values
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let error = Config::from_values(&values).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error}");
    }
    let short =
        Config::from_values(&[("resume_ttl".to_owned(), Value::Integer(0))]).expect("valid");
    assert_eq!(short.leave_delay, Duration::ZERO);
}

#[test]
fn the_timeout_follows_the_interval() {
    let config =
        Config::from_values(&[("heartbeat_interval".into(), Value::Integer(5))]).expect("valid");
    assert_eq!(config.heartbeat_timeout, Duration::from_secs(15));
}

#[test]
fn an_unknown_name_is_its_own_error() {
    let result = Config::from_values(&[("prot".into(), Value::Integer(1))]);
    assert!(matches!(result, Err(Error::UnknownSetting(name)) if name == "prot"));
}
