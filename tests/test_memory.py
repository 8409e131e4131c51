"""Memory that bad input has taken is freed."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import Script, run_python
from support import TEXT, WebSocketClient, allow_descriptors, encode_frame, eventually, http_request

SERVER = """if True:
    import sys, threading
    from tantor import Tantor
    settings = {"drain_timeout": 1, "handshake_timeout": 60, "empty_channel_ttl": 0.5, "resume_ttl": 1}
    with Tantor(port=0, host="127.0.0.1", **settings) as tantor:
        print("port", tantor.port)
        threading.Event().wait()
"""
MIB = 1 << 20
MARGIN = 24 * MIB
CROWD = 150


def hold_large_messages(port: int) -> list[WebSocketClient]:
    """Clients in the middle of a message of a mebibyte: in one frame, and in fragments."""
    clients = [WebSocketClient(port) for _ in range(CROWD)]
    for number, client in enumerate(clients):
        frame = (
            encode_frame(TEXT, b"x" * 700_000, fin=False) if number % 2 else encode_frame(TEXT, b"x" * MIB)[:700_000]
        )
        client.send_raw(frame)
    return clients


def hold_heads(port: int) -> list[socket.socket]:
    """Open handshakes that never complete."""
    connections = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CROWD)]
    for connection in connections:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 15_000)
    return connections


def leave_unread(port: int) -> list[WebSocketClient]:
    """Connect clients that never read, each with half a mebibyte waiting."""
    clients = [WebSocketClient(port, receive_buffer=4096) for _ in range(CROWD // 3)]
    with WebSocketClient(port).greet() as sender:
        for _ in range(8):
            sender.action("broadcast", event="news", data="x" * 60_000)
            sender.action("ping")
            sender.receive_until(pong=True, timeout=30)
    return clients


def invent_channels(port: int) -> list[WebSocketClient]:
    clients = [WebSocketClient(port) for _ in range(CROWD)]
    for number, client in enumerate(clients):
        frames = [
            encode_frame(TEXT, json.dumps({"action": "join_channel", "channel": f"{number} {n} {'x' * 200}"}).encode())
            for n in range(120)
        ]
        client.send_raw(b"".join(frames))
    return clients


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident size is compared as Linux counts it")
@pytest.mark.parametrize("attack", [hold_large_messages, hold_heads, leave_unread, invent_channels])
def test_memory_returns_to_where_it_was(attack: Callable[[int], list[Any]], tmp_path: Path) -> None:
    allow_descriptors(2000)
    with Script([sys.executable, "-c", SERVER], log=tmp_path / "log") as script:
        port = int(script.wait_for_line("port "))
        process = psutil.Process(script.process.pid)

        def settled(connections: int) -> None:
            def connected() -> int:
                return int(json.loads(http_request(port, "GET /healthz HTTP/1.1\r\n\r\n")[2])["connections"])

            eventually(lambda: connected() == connections, connected, timeout=30)

        def resident() -> int:
            return int(process.memory_info().rss)

        with WebSocketClient(port).greet() as client:  # memory that the very first client takes stays
            client.action("broadcast", event="warm", data="x" * 100_000)
            client.receive_until(event="warm")
        settled(0)
        before = resident()
        for round_number in range(3):
            held = attack(port)
            peak = resident()
            for connection in held:
                connection.close()
            settled(0)
            eventually(
                lambda: resident() < before + MARGIN,
                lambda: f"round {round_number}: {[size >> 20 for size in (before, peak, resident())]} MiB",  # noqa: B023
                timeout=20,
            )


MANY_CHANNELS = """if True:
    import sys, time
    import psutil
    from tantor import Tantor

    def resident():
        return psutil.Process().memory_info().rss >> 20

    def make_and_end(tantor, count, how):
        names = [f"{how} {number}" for number in range(count)]
        for name in names:
            tantor.broadcast(name, "news", {"n": 1})
        peak = resident()
        if how == "deleted":
            for name in names:
                del tantor.channels[name]
        deadline = time.monotonic() + 60
        while len(tantor.channels) > 10:
            assert time.monotonic() < deadline, len(tantor.channels)
            time.sleep(0.1)
        return peak

    how = sys.argv[1]
    settings = {"history_bytes": 1 << 30, "max_empty_channels": 10_000_000, "empty_channel_ttl": 0.5}
    if how == "expired":
        settings["message_ttl"] = 10
    with Tantor(port=0, host="127.0.0.1", **settings) as tantor:
        make_and_end(tantor, 1000, how)
        before = resident()
        peak = make_and_end(tantor, 128_000, how)
        assert peak > before + 40, (before, peak)
        deadline = time.monotonic() + 60
        while resident() > before + 24:
            assert time.monotonic() < deadline, (before, peak, resident())
            time.sleep(0.1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident size is compared as Linux counts it")
@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_memory_of_many_channels_returns_however_they_end(how: str) -> None:
    ended = run_python(MANY_CHANNELS, how, timeout=180)
    assert ended.returncode == 0, ended.stderr
