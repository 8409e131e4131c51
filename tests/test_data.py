"""Data on its way from Python to JSON: every type, and where in the data a bad value stood."""

import collections
import contextlib
import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import math
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import WebSocketClient, eventually
from tantor import DataError, Tantor

Connect = Callable[..., WebSocketClient]

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def running() -> Iterator[Tantor]:
    """One server for the whole page: what is tested is the way of data, not servers."""
    server = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
    with server:
        yield server


@pytest.fixture(scope="module")
def client(running: Tantor) -> Iterator[WebSocketClient]:
    with WebSocketClient(running.port).greet() as client:
        yield client


def delivered(server: Tantor, client: WebSocketClient, data: Any, **options: Any) -> Any:
    """What a client gets for this data."""
    event = f"data {next(NUMBERS)}"
    assert server.broadcast("jungle", event, data, **options).result() == 1
    return client.receive_until(event=event)["data"]


# What JSON has


class Text(str):
    pass


class Whole(int):
    def __repr__(self) -> str:
        return "not JSON"


class Real(float):
    def __repr__(self) -> str:
        return "not JSON"


class Names(dict[str, Any]):
    pass


class Items(list[Any]):
    pass


class Point(NamedTuple):
    x: int
    y: int


PLAIN: list[Any] = [
    True,
    False,
    0,
    -1,
    2**31,
    -(2**63),
    2**63,
    2**64,
    10**400,
    -(10**400),
    0.0,
    -0.0,
    1.5,
    1e-320,
    5e-324,
    1.7976931348623157e308,
    0.1,
    1e16,
    1e22,
    "",
    "plain",
    'quotes " and \\ and / and \b\f\n\r\t',
    "\u0000\u0001\u001f\u007f\u0080\u2028\u2029",
    "é 🐘 \U0010ffff",
    "</script>",
    [],
    {},
    [[]],
    [{}, [], ""],
    {"": {"": [None]}},
    {"a": 1, "b": [1, 2.5, "x", None, True, {"c": []}]},
    list(range(1000)),
    {str(number): number for number in range(1000)},
    "x" * 100_000,
    "🐘" * 10_000,
]


@pytest.mark.parametrize("data", PLAIN, ids=lambda data: repr(data)[:40])
def test_what_json_has_arrives_as_it_is(running: Tantor, client: WebSocketClient, data: Any) -> None:
    received = delivered(running, client, data)
    assert received == data
    assert type(received) is type(data)
    if isinstance(data, float):
        assert math.copysign(1, received) == math.copysign(1, data)


def test_no_data_is_an_empty_object(running: Tantor, client: WebSocketClient) -> None:
    assert delivered(running, client, None) == {}
    assert delivered(running, client, {"none": None}) == {"none": None}


SUBCLASSES: list[tuple[Any, Any]] = [
    (Text("text"), "text"),
    (Whole(7), 7),
    (Whole(10**30), 10**30),
    (Real(1.5), 1.5),
    (Names(a=1), {"a": 1}),
    (Items([1, 2]), [1, 2]),
    ((1, (2, 3)), [1, [2, 3]]),
    (Point(1, 2), [1, 2]),
    (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    ({Text("key"): Text("value")}, {"key": "value"}),
]


@pytest.mark.parametrize(("data", "expected"), SUBCLASSES, ids=lambda value: repr(value)[:40])
def test_subclasses_are_what_they_derive_from(
    running: Tantor, client: WebSocketClient, data: Any, expected: Any
) -> None:
    assert delivered(running, client, data) == expected == json.loads(json.dumps(expected))


def test_the_order_of_keys_is_kept(running: Tantor, client: WebSocketClient) -> None:
    data = {key: number for number, key in enumerate("zyxabc")}
    assert list(delivered(running, client, data)) == list("zyxabc")


@pytest.mark.parametrize("key", [1, 1.5, True, None], ids=repr)
def test_keys_that_are_no_strings_are_as_in_json(running: Tantor, client: WebSocketClient, key: Any) -> None:
    data = {key: 1}
    assert delivered(running, client, data) == json.loads(json.dumps(data))


# What the standard library's `json` needs a default for


@dataclasses.dataclass
class Banana:
    ripe: bool
    weight: decimal.Decimal
    peel: "Banana | None" = None


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    x: int
    tags: tuple[str, ...] = ("a",)


class Colour(enum.Enum):
    GREEN = "green"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    HIGH = 3


class Mode(enum.StrEnum):
    FAST = "fast"


class Flags(enum.IntFlag):
    A = 1
    B = 2


MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901)

RICH: list[tuple[Any, Any]] = [
    (Banana(True, decimal.Decimal("1.10")), {"ripe": True, "weight": "1.10", "peel": None}),
    (
        Banana(False, decimal.Decimal(1), Banana(True, decimal.Decimal(2))),
        {"ripe": False, "weight": "1", "peel": {"ripe": True, "weight": "2", "peel": None}},
    ),
    (Slotted(1), {"x": 1, "tags": ["a"]}),
    (Colour.GREEN, "green"),
    (Colour.PAIR, [1, 2]),
    (Level.HIGH, 3),
    (Mode.FAST, "fast"),
    (Flags.A | Flags.B, 3),
    (MOMENT, "2026-01-02T03:04:05.678901"),
    (MOMENT.replace(tzinfo=datetime.UTC), "2026-01-02T03:04:05.678901+00:00"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (datetime.time(3, 4), "03:04:00"),
    (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (decimal.Decimal("123456789.123456789123456789"), "123456789.123456789123456789"),
    ({"mode": Mode.FAST, "at": [MOMENT.date()]}, {"mode": "fast", "at": ["2026-01-02"]}),
    ({Mode.FAST: 1}, {"fast": 1}),
]


@pytest.mark.parametrize(("data", "expected"), RICH, ids=lambda value: repr(value)[:40])
def test_richer_types(running: Tantor, client: WebSocketClient, data: Any, expected: Any) -> None:
    assert delivered(running, client, data) == expected


def test_send_takes_the_same_data(running: Tantor, client: WebSocketClient) -> None:
    message_id = running.send(client.client_id, Names(banana=Slotted(1), at=MOMENT, text=Text("x"))).result()
    message = client.receive_until(id=message_id)
    assert message["banana"] == {"x": 1, "tags": ["a"]}
    assert message["at"] == "2026-01-02T03:04:05.678901"
    message_id = running.send(client.client_id, Text("hello")).result()
    assert client.receive_until(id=message_id)["message"] == "hello"


# The hook


class Tree:
    def __init__(self, *leaves: Any) -> None:
        self.leaves = leaves


def as_list(value: Any) -> Any:
    if isinstance(value, Tree):
        return value.leaves
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no data of ours")


def test_the_default_hook_of_a_call(running: Tantor, client: WebSocketClient) -> None:
    data = {"tree": Tree(1, Tree(2, {3}))}
    assert delivered(running, client, data, default=as_list) == {"tree": [1, [2, [3]]]}
    message_id = running.send(client.client_id, {"tree": Tree()}, default=as_list).result()
    assert client.receive_until(id=message_id)["tree"] == []


def test_the_default_hook_of_a_server() -> None:
    server = Tantor(port=0, host="127.0.0.1", default=as_list, drain_timeout=1)
    with server, WebSocketClient(server.port).greet() as client:
        assert delivered(server, client, Tree({1})) == [[1]]
        assert delivered(server, client, Tree(), default=lambda value: "the call's wins") == "the call's wins"


def test_the_hook_is_asked_only_for_what_has_no_form_of_its_own(running: Tantor, client: WebSocketClient) -> None:
    asked: list[Any] = []

    def hook(value: Any) -> Any:
        asked.append(value)
        return "hooked"

    data = [1, "a", MOMENT, uuid.UUID(int=7), Slotted(1), Colour.GREEN, b"bytes"]
    assert delivered(running, client, data, default=hook)[-1] == "hooked"
    assert asked == [b"bytes"]


def test_what_a_hook_raises_reaches_the_caller(running: Tantor) -> None:
    with pytest.raises(TypeError, match="object is no data of ours"):
        running.broadcast("jungle", "data", {"a": [object()]}, default=as_list)
    with pytest.raises(ZeroDivisionError):
        running.broadcast("jungle", "data", object(), default=lambda value: 1 / 0)


def test_a_hook_that_returns_what_it_got_ends(running: Tantor) -> None:
    with pytest.raises((TypeError, ValueError)):
        running.broadcast("jungle", "data", object(), default=lambda value: value)
    with pytest.raises((TypeError, ValueError)):
        running.broadcast("jungle", "data", object(), default=lambda value: [value])


@pytest.mark.parametrize("hook", [7, "hook"])
def test_a_hook_that_cannot_be_called_is_refused(running: Tantor, hook: Any) -> None:
    with pytest.raises(TypeError):
        running.broadcast("jungle", "data", {1}, default=hook)


# What JSON cannot hold


def nested(depth: int, innermost: Any = 1) -> Any:
    data = innermost
    for _ in range(depth):
        data = [data]
    return data


def cyclic() -> dict[str, Any]:
    data: dict[str, Any] = {"items": [{}, {}]}
    data["items"][1]["back"] = data
    return data


class Broken:
    __slots__ = ()


BAD: list[tuple[Any, str]] = [
    ({"items": [{}, {}, {}, {"price": {1}}]}, "data.items[3].price"),
    ({"items": [{}, {}, {}, {"price": math.nan}]}, "data.items[3].price"),
    (math.inf, "data"),
    ([1, [-math.inf]], "data[1][0]"),
    ({"a": b"bytes"}, "data.a"),
    ({"a": bytearray(b"x")}, "data.a"),
    ({"a": memoryview(b"x")}, "data.a"),
    ({"a": frozenset()}, "data.a"),
    ({"a": (1, 2, 1j)}, "data.a[2]"),
    ({"a": object()}, "data.a"),
    ({"a": Broken()}, "data.a"),
    ({"a": Broken}, "data.a"),
    ({"a": lambda: None}, "data.a"),
    ({"a": (x for x in ())}, "data.a"),
    ({"a": types.MappingProxyType({})}, "data.a"),
    ({"a": "half a pair: \ud800"}, "data.a"),
    ({"\udfff": 1}, "data"),
    ({"a": {(1, 2): 3}}, "data.a"),
    ({"a": {b"key": 3}}, "data.a"),
    ({"a b": {1}}, "a b"),
    (cyclic(), "data.items[1].back"),
    (Banana(True, {1}), "data.weight"),  # type: ignore[arg-type]
    (nested(200), "[0]"),
    ({"x": nested(128)}, "data.x[0]"),
]


@pytest.mark.parametrize(("data", "place"), BAD, ids=[place + f" {number}" for number, (_, place) in enumerate(BAD)])
def test_what_json_cannot_hold_raises_and_says_where(
    running: Tantor, client: WebSocketClient, data: Any, place: str
) -> None:
    with pytest.raises(DataError) as raised:
        running.broadcast("jungle", "data", data)
    assert place in str(raised.value), f"{place} is not in {raised.value}"
    assert isinstance(raised.value, (TypeError, ValueError))
    assert [message for message in client.settle(running) if message.get("event") == "data"] == [], "nothing was sent"


def test_send_says_where_too(running: Tantor, client: WebSocketClient) -> None:
    with pytest.raises(DataError, match=r"\.items\[1\]"):
        running.send(client.client_id, {"items": [1, {1}]})
    with pytest.raises(ValueError, match="message"):
        running.send(client.client_id, "\ud800")


def test_depth_within_the_limit_goes(running: Tantor, client: WebSocketClient) -> None:
    data = nested(127)
    assert delivered(running, client, data) == data


def test_a_thing_that_stands_twice_is_no_cycle(running: Tantor, client: WebSocketClient) -> None:
    leaf = {"n": 1}
    data = {"a": leaf, "b": [leaf, leaf]}
    assert delivered(running, client, data) == data


def test_data_that_changes_while_it_is_read_harms_nothing(running: Tantor) -> None:
    data: dict[str, Any] = {"a": 1, "hook": {1}, "z": 1}

    def hook(value: Any) -> Any:
        data.update({str(number): number for number in range(1000)})
        return None

    # as iterating over a dict does, or with the keys of before
    with contextlib.suppress(RuntimeError):
        running.broadcast("jungle", "data", data, default=hook)
    assert len(data) > 1000, "the hook was asked"


def test_names_with_half_a_surrogate_pair_are_refused(running: Tantor) -> None:
    for call in (
        lambda: running.broadcast("\ud800", "data"),
        lambda: running.broadcast("jungle", "\ud800"),
        lambda: running.emergency("\ud800"),
        lambda: running.subscribe("\ud800", "jungle"),
    ):
        with pytest.raises(ValueError, match="surrogate"):
            call()


# Anything at all

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=JSON)
def test_any_json_arrives_as_it_is(running: Tantor, client: WebSocketClient, data: Any) -> None:
    received = delivered(running, client, {"data": data})["data"]
    assert received == data
    assert repr(received) == repr(data), "types and signs are kept too"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=JSON)
def test_any_json_of_a_client_reaches_handlers_as_it_is(running: Tantor, client: WebSocketClient, data: Any) -> None:
    received: list[Any] = []
    running.on_event("anything", received.append)
    try:
        client.action("broadcast", event="anything", data=data)
        client.receive_until(event="anything")
        eventually(lambda: received, "the handler's call")
    finally:
        running.off_event("anything", received.append)
    assert repr(received[0]["data"]) == repr(data)
