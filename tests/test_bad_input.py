"""What bad input gets, item by item; a healthy client beside it notices nothing."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from healthy import Healthy
from support import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    ClosedError,
    WebSocketClient,
    encode_frame,
    eventually,
)
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


# Frames that get an error, after which the connection lives on


def too_deep(depth: int) -> str:
    return '{"action":"broadcast","event":"deep","data":' + "[" * depth + "]" * depth + "}"


def with_data(data: str) -> str:
    return f'{{"action":"broadcast","event":"number","data":{data}}}'


REFUSED: list[tuple[str, int, str]] = [
    ("", 101, "JSON"),
    ("hello", 101, "JSON"),
    ("{", 101, "JSON"),
    ('{"action":"ping"', 101, "JSON"),
    ('{"action":"ping"} {"action":"ping"}', 101, "JSON"),
    ("{'action': 'ping'}", 101, "JSON"),
    ('{"action":"broadcast","data":NaN}', 101, "JSON"),
    ('{"action":"broadcast","data":01}', 101, "JSON"),
    ('{"action":"broadcast","data":[1,]}', 101, "JSON"),
    ('{"action":"ping","x":"\n"}', 101, "JSON"),
    ("\ufeff{}", 101, "JSON"),
    ("[" * 100_000, 106, "128"),
    ("[]", 102, "object"),
    ('[{"action":"ping"}]', 102, "object"),
    ("null", 102, "object"),
    ("7", 102, "object"),
    ('"ping"', 102, "object"),
    ("true", 102, "object"),
    ('{"action":7}', 103, "action"),
    ('{"action":null}', 103, "action"),
    ('{"action":["ping"]}', 103, "action"),
    ('{"action":"join_channel","channel":7}', 103, "channel"),
    ('{"action":"join_channel","channel":null}', 103, "channel"),
    ('{"action":"leave_channel","channel":{}}', 103, "channel"),
    ('{"action":"broadcast","channel":["jungle"]}', 103, "channel"),
    ('{"action":"broadcast","event":7}', 103, "event"),
    ('{"action":"broadcast","event":{}}', 103, "event"),
    ('{"action":"broadcast","event":""}', 103, "event"),
    ('{"action":"broadcast","event":"' + "x" * 256 + '"}', 103, "event"),
    ('{"action":"broadcast","event":"\\u0007"}', 103, "event"),
    ('{"action":"broadcast","event":"\\ud800"}', 103, "event"),
    (too_deep(128), 106, "128"),
    (too_deep(100_000), 106, "128"),
    (with_data("7" * 4301), 115, "4301 digits"),
    (with_data("-" + "7" * 101), 115, "max_digits"),
    (with_data("[0." + "7" * 100 + "]"), 115, "max_digits"),
    (with_data('{"price":1e999}'), 115, "double"),
    (with_data("-1e309"), 115, "double"),
    ('{"action":"chat","number":' + "7" * 101 + "}", 115, "max_digits"),
    ('{"action":"join_channel","channel":""}', 107, "channel"),
    ('{"action":"join_channel","channel":"' + "x" * 256 + '"}', 107, "255"),
    ('{"action":"join_channel","channel":"' + "é" * 128 + '"}', 107, "255"),
    ('{"action":"join_channel","channel":"a\\u0000b"}', 107, "control"),
    ('{"action":"join_channel","channel":"a\\nb"}', 107, "control"),
    ('{"action":"join_channel","channel":"a\\u0085b"}', 107, "control"),
    ('{"action":"leave_channel","channel":""}', 107, "channel"),
    ('{"action":"broadcast","channel":"\\u007f"}', 107, "control"),
]


@pytest.mark.parametrize(("text", "code", "named"), REFUSED, ids=[f"{code}: {text[:45]}" for text, code, _ in REFUSED])
def test_a_bad_frame_gets_an_error_and_the_connection_lives_on(
    server: Tantor, connect: Connect, healthy: Healthy, text: str, code: int, named: str
) -> None:
    client = connect(server)
    client.settle(server)
    client.send_text(text)
    seen = client.settle(server)
    assert len(seen) == 1, seen
    error = seen[0]
    assert set(error) == {"id", "channel", "timestamp", "sender", "event", "code", "message"}
    assert (error["event"], error["channel"], error["code"]) == ("error", "system", code), error
    assert named in error["message"], error
    assert len(error["message"]) < 500, "what is wrong is named, not repeated at length"


def test_unknown_fields_and_missing_ones_are_no_error(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.settle(server)
    client.send_json({"action": "join_channel", "unknown": {"deep": [1]}, "event": "x"})
    client.send_json({"action": "leave_channel", "data": 7})
    client.send_json({})
    events = [message.get("event") for message in client.settle(server)]
    assert "error" not in events


def test_binary_frames_get_an_error(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.settle(server)
    client.send_frame(BINARY, b"\x00\xff")
    client.send_frame(BINARY, json.dumps({"action": "ping"}).encode())
    client.send_frame(BINARY, b"a", fin=False)
    client.send_frame(CONTINUATION, b"b")
    assert [error["code"] for error in client.settle(server)] == [104] * 3


# Over the limit


def test_a_message_over_the_limit_is_skipped(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_message_size=1000)
    with contextlib.closing(Healthy(server)) as healthy:
        client = connect(server)
        client.settle(server)
        client.send_text(json.dumps({"action": "broadcast", "data": "x" * 2000}))
        client.action("broadcast", event="fits", data="x" * 900)
        error, fits = client.settle(server)
        assert error["code"] == 105, error
        assert "1000" in error["message"]
        assert fits["data"] == "x" * 900
        client.send_frame(TEXT, b"x" * 600, fin=False)
        client.send_frame(CONTINUATION, b"x" * 600, fin=False)
        client.send_frame(PING, b"in between")
        client.send_frame(CONTINUATION, b"x" * 600)
        assert [error["code"] for error in client.settle(server)] == [105]
        client.send_frame(BINARY, b"x" * 1001)
        assert [error["code"] for error in client.settle(server)] == [105]
        healthy.notices_nothing()


def test_a_message_of_exactly_the_limit_is_taken(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_message_size=1000)
    client = connect(server)
    client.settle(server)
    before = server.stats()["messages_received"]
    frame = json.dumps({"fill": ""})
    client.send_text(frame.replace('""', f'"{"x" * (1000 - len(frame))}"'))
    assert client.settle(server) == []
    client.send_text(frame.replace('""', f'"{"x" * (1001 - len(frame))}"'))
    assert [error["code"] for error in client.settle(server)] == [105]
    assert server.stats()["messages_received"] == before + 1


def test_the_default_limit_is_a_mebibyte(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.settle(server)
    client.action("broadcast", event="large", data="x" * ((1 << 20) - 100))
    large = client.receive_until(event="large")
    assert len(large["data"]) == (1 << 20) - 100
    client.action("broadcast", event="large", data="x" * (1 << 20))
    assert client.receive_until(event="error")["code"] == 105


@pytest.mark.parametrize("length", [16 * 1000 + 1, 1 << 31, 1 << 62, (1 << 63) - 1])
def test_a_declared_length_far_over_the_limit_closes(make_server: MakeServer, connect: Connect, length: int) -> None:
    server = make_server(max_message_size=1000)
    with contextlib.closing(Healthy(server)) as healthy:
        client = connect(server)
        client.send_raw(encode_frame(TEXT, b"x" * 10, length=length))
        assert client.wait_closed() == 1009
        healthy.notices_nothing()


# Violations of the protocol


def fragment(opcode: int, payload: bytes = b"x") -> bytes:
    return encode_frame(opcode, payload, fin=False)


VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "unmasked text": (encode_frame(TEXT, b"{}", masked=False), 1002),
    "unmasked ping": (encode_frame(PING, b"", masked=False), 1002),
    "unmasked close": (encode_frame(CLOSE, b"", masked=False), 1002),
    "reserved bit 1": (encode_frame(TEXT, b"{}", rsv=4), 1002),
    "reserved bit 2": (encode_frame(TEXT, b"{}", rsv=2), 1002),
    "reserved bit 3": (encode_frame(TEXT, b"{}", rsv=1), 1002),
    "reserved bit of a ping": (encode_frame(PING, b"", rsv=4), 1002),
    "reserved data opcode": (encode_frame(0x3, b"{}"), 1002),
    "reserved control opcode": (encode_frame(0xB, b""), 1002),
    "continuation of nothing": (encode_frame(CONTINUATION, b"{}"), 1002),
    "text within fragments": (fragment(TEXT) + encode_frame(TEXT, b"{}"), 1002),
    "fragments within fragments": (fragment(TEXT) + fragment(TEXT), 1002),
    "fragmented ping": (fragment(PING), 1002),
    "fragmented close": (fragment(CLOSE), 1002),
    "long ping": (encode_frame(PING, b"x" * 126), 1002),
    "long close": (encode_frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "close with half a code": (encode_frame(CLOSE, b"\x03"), 1002),
    "close with 1005": (encode_frame(CLOSE, (1005).to_bytes(2)), 1002),
    "close with 1006": (encode_frame(CLOSE, (1006).to_bytes(2)), 1002),
    "close with 999": (encode_frame(CLOSE, (999).to_bytes(2)), 1002),
    "close with 5000": (encode_frame(CLOSE, (5000).to_bytes(2)), 1002),
    "close with a reason that is no UTF-8": (encode_frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "text that is no UTF-8": (encode_frame(TEXT, b'{"action":"\xff"}'), 1007),
    "half a surrogate pair in UTF-8": (encode_frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "an overlong form in UTF-8": (encode_frame(TEXT, b'"\xc0\xaf"'), 1007),
    "fragments that are no UTF-8": (fragment(TEXT, b'"\xf0\x9f') + encode_frame(CONTINUATION, b'"'), 1007),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_a_violation_gets_its_close_code(server: Tantor, connect: Connect, healthy: Healthy, name: str) -> None:
    frames, code = VIOLATIONS[name]
    client = connect(server)
    client.settle(server)
    client.send_raw(frames)
    assert client.wait_closed() == code
    eventually(lambda: client.client_id not in server.connections, lambda: list(server.connections))


def test_what_came_before_a_violation_counts(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    ping = encode_frame(TEXT, b'{"action":"ping"}')
    client.send_raw(ping + encode_frame(TEXT, b"{}", masked=False) + ping)
    client.receive_until(pong=True)
    assert client.wait_closed() == 1002


def test_what_came_before_a_close_is_answered_before_it(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.send_raw(
        encode_frame(TEXT, b'{"action":"ping"}') + encode_frame(PING, b"x") + encode_frame(CLOSE, b"\x03\xe8")
    )
    client.receive_until(pong=True)
    assert client.wait_closed() == 1000


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 4999])
def test_a_close_is_answered_with_its_code(server: Tantor, connect: Connect, healthy: Healthy, code: int) -> None:
    connect(server).say_goodbye(code)


def test_a_close_without_a_code_is_answered(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.settle(server)
    client.send_frame(CLOSE)
    frame = client.read_frame()
    assert (frame.opcode, frame.payload) in [(CLOSE, b""), (CLOSE, b"\x03\xe8")], frame
    with pytest.raises(ClosedError):
        client.read_frame()


def test_after_a_close_nothing_is_read(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    before = server.stats()["messages_received"]
    client.send_raw(encode_frame(CLOSE, b"\x03\xe8") + encode_frame(TEXT, b"{}") * 10)
    assert client.wait_closed() == 1000
    assert server.stats()["messages_received"] == before


# Fragments and partial frames


def test_a_message_in_fragments_is_one_message(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.settle(server)
    text = '{"action":"broadcast","event":"news","data":"🐘"}'.encode()
    for cut in (1, 5, len(text) - 5):
        client.send_raw(fragment(TEXT, text[:cut]) + encode_frame(PING, b"hi") + encode_frame(CONTINUATION, text[cut:]))
        assert client.receive_until(event="news")["data"] == "🐘"
    client.send_raw(fragment(TEXT, b"") + fragment(CONTINUATION, b"") + encode_frame(CONTINUATION, text))
    assert client.receive_until(event="news")["data"] == "🐘"


def test_a_thousand_tiny_fragments_are_one_message(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    text = json.dumps({"action": "broadcast", "event": "news", "data": "x" * 1000}).encode()
    frames = [encode_frame(CONTINUATION, bytes([byte]), fin=False) for byte in text[1:-1]]
    client.send_raw(fragment(TEXT, text[:1]) + b"".join(frames) + encode_frame(CONTINUATION, text[-1:]))
    assert client.receive_until(event="news")["data"] == "x" * 1000


def test_fragments_without_end_are_bounded(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_message_size=10_000)
    with contextlib.closing(Healthy(server)) as healthy:
        client = connect(server)
        client.send_raw(fragment(TEXT))
        more = fragment(CONTINUATION, b"x" * 5000)
        with contextlib.suppress(OSError):
            for _ in range(1000):
                client.send_raw(more)
        assert client.wait_closed() in (1009, None), "None when the answer was lost to a reset"
        eventually(lambda: client.client_id not in server.connections, lambda: list(server.connections))
        healthy.notices_nothing()


def test_empty_fragments_without_end_harm_nobody(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.send_raw(fragment(TEXT, b""))
    for _ in range(20):
        client.send_raw(fragment(CONTINUATION, b"") * 1000)
    healthy.notices_nothing()
    client.send_raw(encode_frame(CONTINUATION, b'{"action":"ping"}'))
    client.receive_until(pong=True)


def test_a_frame_that_comes_byte_by_byte(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in encode_frame(TEXT, b'{"action":"ping"}'):
        client.send_raw(bytes([byte]))
    client.receive_until(pong=True)


@pytest.mark.parametrize("cut", [1, 2, 5, 8, 20])
def test_a_client_that_ends_in_the_middle_of_a_frame(
    server: Tantor, connect: Connect, healthy: Healthy, cut: int
) -> None:
    client = connect(server)
    client.settle(server)
    client.send_raw(encode_frame(TEXT, json.dumps({"action": "chat", "fill": "x" * 200}).encode())[:cut])
    client.close()
    eventually(lambda: client.client_id not in server.connections, lambda: list(server.connections))


def test_control_frames_are_answered_in_any_number(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    client = connect(server)
    client.settle(server)
    client.send_raw(b"".join(encode_frame(PING, str(number).encode()) for number in range(500)))
    client.send_raw(encode_frame(PONG, b"unasked"))
    answers = [client.read_frame() for _ in range(500)]
    assert {answer.opcode for answer in answers} == {PONG}
    assert [int(answer.payload) for answer in answers] == list(range(500))


# Clients that do not read, or send without pause


def test_a_client_that_never_reads_is_closed_as_a_slow_consumer(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=1 << 20)
    ended: list[dict[str, Any]] = []
    server.on_event("disconnect", ended.append)
    with contextlib.closing(Healthy(server)) as healthy:
        deaf = connect(server, receive_buffer=4096)

        def closed() -> bool:
            server.broadcast("jungle", "news", "x" * 60_000)
            healthy.notices_nothing()
            return deaf.client_id not in server.connections

        eventually(closed, lambda: server.stats(), timeout=30)
        eventually(lambda: ended, "the disconnect event")
        assert (ended[0]["client_id"], ended[0]["reason"], ended[0]["code"]) == (deaf.client_id, "slow_consumer", 3008)
        assert deaf.wait_closed() in (3008, None)
        assert server.stats()["queued_messages"] == 0


def test_pings_of_a_client_that_never_reads_are_bounded(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=64 << 10)
    with contextlib.closing(Healthy(server)) as healthy:
        deaf = connect(server, receive_buffer=4096)
        deaf.socket.settimeout(1)
        pings = encode_frame(PING, b"x" * 125) * 500

        def closed() -> bool:
            with contextlib.suppress(OSError):
                deaf.send_raw(pings)
            return deaf.client_id not in server.connections

        eventually(closed, lambda: server.stats(), timeout=30)
        healthy.notices_nothing()


def test_a_client_that_sends_without_pause_starves_nobody(server: Tantor, connect: Connect, healthy: Healthy) -> None:
    noisy = connect(server)
    stop = threading.Event()
    frames = encode_frame(TEXT, b'{"action":"chat","fill":"' + b"x" * 100 + b'"}') * 1000

    def flood() -> None:
        while not stop.is_set():
            noisy.send_raw(frames)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        before = server.stats()["messages_received"]
        for _ in range(20):
            healthy.notices_nothing()
        eventually(lambda: server.stats()["messages_received"] > before + 5000, server.stats)
    finally:
        stop.set()
        thread.join(10)
