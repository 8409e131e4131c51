"""Arguments that cannot be: each error names the argument, its value and what would be right."""

import os
import re
from collections.abc import Callable
from typing import Any

import pytest
from tantor import Channel, DataError, SettingError, Tantor
from tantor.settings import known_settings

HALF = "a\ud800"

# the argument that is wrong, and the call with it
CALLS: list[tuple[str, Callable[[Tantor, Any], object]]] = [
    ("client_id", lambda tantor, wrong: tantor.send(wrong, "x")),
    ("channel", lambda tantor, wrong: tantor.send("client_1", "x", wrong)),
    ("idempotency_key", lambda tantor, wrong: tantor.send("client_1", "x", idempotency_key=wrong)),
    ("priority", lambda tantor, wrong: tantor.send("client_1", "x", priority=wrong)),
    ("channel", lambda tantor, wrong: tantor.broadcast(wrong, "e")),
    ("event", lambda tantor, wrong: tantor.broadcast("c", wrong)),
    ("idempotency_key", lambda tantor, wrong: tantor.broadcast("c", "e", idempotency_key=wrong)),
    ("priority", lambda tantor, wrong: tantor.broadcast("c", "e", priority=wrong)),
    ("client_id", lambda tantor, wrong: tantor.subscribe(wrong, "c")),
    ("channel", lambda tantor, wrong: tantor.subscribe("client_1", wrong)),
    ("client_id", lambda tantor, wrong: tantor.unsubscribe(wrong, "c")),
    ("channel", lambda tantor, wrong: tantor.unsubscribe("client_1", wrong)),
    ("message", lambda tantor, wrong: tantor.emergency(wrong)),
    ("channel", lambda tantor, wrong: tantor.history(wrong)),
    ("channel", lambda tantor, wrong: tantor.get_presence(wrong)),
    ("message_id", lambda tantor, wrong: tantor.delivery(wrong)),
    ("client_id", lambda tantor, wrong: tantor.resume_token(wrong)),
    ("name", lambda tantor, wrong: tantor.create_channel(wrong)),
    ("kind", lambda tantor, wrong: tantor.create_channel("c", wrong)),
    ("name", lambda tantor, wrong: tantor.delete_channel(wrong)),
    ("event", lambda tantor, wrong: tantor.on_event(wrong, print)),
]

IDS = [f"{number}-{name}" for number, (name, _) in enumerate(CALLS)]


@pytest.mark.parametrize(("name", "call"), CALLS, ids=IDS)
def test_another_type_is_named_with_its_argument(name: str, call: Callable[[Tantor, Any], object]) -> None:
    with pytest.raises(TypeError, match=rf"\b{name}\b.*\bint\b") as raised:
        call(Tantor(), 42)
    if name != "event":
        assert "42" in str(raised.value)
    assert "str" in str(raised.value)


@pytest.mark.parametrize(("name", "call"), CALLS, ids=IDS)
def test_half_a_surrogate_pair_is_named_with_its_argument(name: str, call: Callable[[Tantor, Any], object]) -> None:
    with pytest.raises(DataError, match=rf"{name} is 'a\\ud800'; it takes text without half surrogate pairs"):
        call(Tantor(), HALF)


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(TypeError) as raised:
        Tantor().broadcast(list(range(10_000)), "e")  # type: ignore[arg-type]
    assert len(str(raised.value)) < 200
    assert "channel is [0, 1, 2" in str(raised.value)


def test_what_can_be_no_name_is_not_found() -> None:
    tantor = Tantor()
    for wrong in (42, HALF, None):
        assert wrong not in tantor.channels
        assert wrong not in tantor.connections
        assert tantor.channels.get(wrong) is None  # type: ignore[call-overload]
        assert tantor.connections.get(wrong) is None  # type: ignore[call-overload]
    assert tantor.get_client_info(HALF) is None


def test_a_setting_with_half_a_surrogate_pair_is_named() -> None:
    for name in ("host", "default_channel", "database"):
        with pytest.raises(SettingError, match=rf"{name} is 'a\\ud800'"):
            Tantor(**{name: HALF})  # type: ignore[arg-type]


def test_a_channel_is_of_one_of_three_kinds() -> None:
    tantor = Tantor()
    with pytest.raises(ValueError, match='kind is "secret"; it takes "public", "private" or "emergency"'):
        tantor.create_channel("c", "secret")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='kind is "secret"'):
        tantor.channels["c"] = Channel("c", "secret")
    assert "c" not in tantor.channels
    for kind in ("public", "private", "emergency"):
        assert tantor.create_channel(f"is {kind}", kind)  # type: ignore[arg-type]
        assert tantor.channels[f"is {kind}"].type == kind


def test_a_type_is_told_with_its_module() -> None:
    class bool_:  # noqa: N801  # as numpy's
        pass

    bool_.__module__, bool_.__qualname__ = "numpy", "bool_"
    with pytest.raises(DataError, match=r"data\.on: .*numpy\.bool_"):
        Tantor().broadcast("c", "e", {"on": bool_()})
    with pytest.raises(TypeError, match=r"message must be a str or a dict, not numpy\.bool_"):
        Tantor().send("client_1", bool_())


def test_none_arrives_as_an_empty_object(server: Tantor) -> None:
    server.broadcast("news", "e", None)
    assert [kept["data"] for kept in server.history("news").result().publications] == [{}]


def test_an_emergency_has_a_message_id() -> None:
    assert re.fullmatch(r"msg_[0-9a-f]+", Tantor().emergency("fire").message_id)


def test_the_types_of_settings_are_those_of_the_table() -> None:
    from tantor.setting_types import Settings

    names = {
        "integer": "int",
        "number": "float",
        "boolean": "bool",
        "text": "str",
        "json": "str",
        "list": "Sequence",
        "mode": "int",
    }
    annotations = Settings.__annotations__
    assert list(annotations) == [name for name in known_settings() if name not in ("port", "host")]
    for name, annotation in annotations.items():
        kind = names[known_settings()[name].kind]
        assert name == "slow_consumer" or kind in re.findall(r"\w+", str(annotation)), name


def test_a_taken_port_is_told_once(server: Tantor) -> None:
    with pytest.raises(OSError, match="cannot listen on") as raised:
        Tantor(server.port, "127.0.0.1").start_background()
    number = raised.value.errno
    assert number is not None
    assert str(raised.value).startswith(f"[Errno {number}] cannot listen on 127.0.0.1:{server.port}: ")
    assert os.strerror(number) in str(raised.value)
    assert "os error" not in str(raised.value)
