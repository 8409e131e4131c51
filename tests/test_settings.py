"""The constructor and its settings."""

import threading
from typing import Any

import pytest
from support import accepts_connections
from tantor import SettingError, Tantor


def test_defaults() -> None:
    tantor = Tantor()
    assert (tantor.port, tantor.host) == (8080, "0.0.0.0")
    expected = {
        "default_channel": "jungle",
        "heartbeat_interval": 30,
        "heartbeat_timeout": 40,
        "message_ttl": 3600,
        "emergency_ttl": 86400,
        "max_message_size": 1 << 20,
        "notice_limit": 200,
        "max_depth": 128,
        "max_digits": 100,
    }
    assert {name: tantor.setting(name) for name in expected} == expected
    assert 1 <= tantor.setting("shards") <= 4


def test_port_and_host_may_be_given_by_place() -> None:
    tantor = Tantor(8081, "127.0.0.1")
    assert (tantor.port, tantor.host) == (8081, "127.0.0.1")


def test_the_constructor_starts_nothing(free_port: int) -> None:
    before = threading.active_count()
    tantor = Tantor(free_port, "127.0.0.1")
    assert threading.active_count() == before
    assert not accepts_connections(free_port)
    assert not tantor.is_running
    assert tantor.stats()["status"] == "sleeping"


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("heartbeat_intervall", "heartbeat_interval"),
        ("max_connection", "max_connections"),
        ("prot", "port"),
        ("message_tt", "message_ttl"),
    ],
)
def test_a_setting_that_does_not_exist_names_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(TypeError, match=rf"{wrong}.*\b{nearest}\b"):
        Tantor(**{wrong: 1})


BAD_SETTINGS: list[tuple[str, Any]] = [
    ("port", -1),
    ("port", 65_536),
    ("port", "eighty"),
    ("port", 80.5),
    ("port", True),
    ("host", ""),
    ("host", 7),
    ("default_channel", "a\nb"),
    ("default_channel", "x" * 256),
    ("heartbeat_interval", 0),
    ("heartbeat_interval", -1),
    ("heartbeat_interval", float("nan")),
    ("heartbeat_interval", float("inf")),
    ("heartbeat_interval", "soon"),
    ("heartbeat_timeout", 5),
    ("message_ttl", -1),
    ("emergency_ttl", -1),
    ("max_connections", 0),
    ("max_connections", 1 << 70),
    ("max_message_size", 0),
    ("max_message_size", 1.5),
    ("max_depth", 0),
    ("max_depth", 501),
    ("max_digits", 15),
    ("max_digits", 641),
    ("max_header_size", -5),
    ("handshake_timeout", 0),
    ("max_channels_per_client", 0),
    ("max_pending_bytes", 0),
    ("publisher_hold", -1),
    ("event_queue_bytes", 0),
    ("drain_timeout", -1),
    ("notice_limit", -1),
    ("empty_channel_ttl", -1),
    ("shards", 0),
    ("shards", []),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS)
def test_a_bad_setting_is_an_error_that_names_it_its_value_and_what_it_takes(name: str, value: Any) -> None:
    with pytest.raises(SettingError) as raised:
        Tantor(**{name: value})
    message = str(raised.value)
    assert name in message
    assert "take" in message, message
    # a text that is too long or cannot be shown is told by what is wrong with it
    shown = {"a\nb": "U+000A", "x" * 256: "256 bytes", "": '""'}.get(value, value) if isinstance(value, str) else value
    assert str(shown).lower() in message.lower(), f"the value {value!r} is not in {message!r}"
    assert isinstance(raised.value, ValueError)


def test_a_setting_can_be_asked_for_only_by_a_name_that_exists() -> None:
    with pytest.raises(KeyError):
        Tantor().setting("colour")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"resume_ttl": 5, "leave_delay": 6}, r"leave_delay is 6; it takes at most resume_ttl \(5\)"),
        ({"max_pending_bytes": 1 << 20, "max_queued_bytes": 1 << 16}, "max_pending_bytes is 1048576; it takes at most"),
        (
            {"mailbox_bytes": 4096, "max_pending_bytes": 2048},
            "mailbox_bytes is 4096; it takes at most max_pending_bytes",
        ),
        ({"mailbox_bytes": 4096, "mailboxes_bytes": 2048}, "mailbox_bytes is 4096; it takes at most mailboxes_bytes"),
        ({"durable": True}, "durable is true; that takes a database"),
        ({"channel_settings": {"orders:*": {"durable": True}}}, '"orders:\\*" is durable; that takes a database'),
        (
            {"durable": True, "database": "sqlite:///a.db", "history_size": 0},
            "durable is true; that takes a history_size and a message_ttl above 0",
        ),
        ({"slow_consumer": "wait"}, 'slow_consumer is "wait"; it takes "disconnect", "drop_oldest" or "latest"'),
        (
            {"channel_settings": {"a": {"slow_consumer": "wait"}}},
            '"a": slow_consumer is "wait"; it takes "disconnect", "drop_oldest" or "latest"',
        ),
        ({"channel_settings": {"system": {"history_size": 1}}}, "can match no channel: it is the server's own"),
        ({"ack_timeout": 0}, "ack_timeout is 0; it takes a number of seconds from 0.05"),
        ({"mailbox_size": 0}, "mailbox_size is 0; it takes a whole number from 1"),
        ({"max_idempotency_keys": -1}, "max_idempotency_keys is -1; it takes a whole number from 0"),
    ],
)
def test_settings_that_contradict_each_other_or_cannot_be_are_named_with_what_would_do(
    settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(SettingError, match=says):
        Tantor(**settings)
