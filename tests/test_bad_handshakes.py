"""What bad and endless handshakes get; a healthy client beside them notices nothing."""

import contextlib
import socket
import time
from collections.abc import Callable

import pytest
from healthy import Healthy
from support import (
    TEXT,
    WebSocketClient,
    encode_frame,
    eventually,
    handshake_request,
    http_request,
    read_http_response,
)
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


def test_a_handshake_that_never_ends_is_timed_out(make_server: MakeServer) -> None:
    server = make_server(handshake_timeout=0.3)
    with contextlib.closing(Healthy(server)) as healthy:
        for start in (b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                connection.sendall(start)
                assert read_http_response(connection)[0] == 408
        healthy.notices_nothing()


def test_a_handshake_that_trickles_is_timed_out(make_server: MakeServer) -> None:
    server = make_server(handshake_timeout=0.5)
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        started = time.monotonic()
        connection.sendall(b"GET /")
        connection.setblocking(False)

        def ended() -> bool:
            try:
                connection.sendall(b"x")
                return connection.recv(1000) != b"more"  # the answer, or the end of the stream
            except BlockingIOError:
                return False
            except ConnectionError:
                return True

        eventually(ended, "the end of the connection")
        assert 0.3 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    "request_head",
    [
        f"GET / HTTP/1.1\r\nX: {'x' * 100_000}\r\n\r\n",
        f"GET /{'x' * 100_000} HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n" + "X: y\r\n" * 20_000 + "\r\n",
        "GET / HTTP/1.1\r\nX: " + "x" * 100_000,
    ],
    ids=["one long header", "long target", "many headers", "no end"],
)
def test_100_kb_of_headers_are_refused(server: Tantor, healthy: Healthy, request_head: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request_head.encode())
        assert read_http_response(connection)[0] == 431


def test_the_limit_of_a_head_is_a_setting(make_server: MakeServer) -> None:
    server = make_server(max_header_size=1000)
    for size, status in ((500, 200), (2000, 431)):
        assert http_request(server.port, f"GET /healthz HTTP/1.1\r\nX: {'x' * size}\r\n\r\n")[0] == status


HANDSHAKES: dict[str, tuple[tuple[str, str], int]] = {
    "no key": (("Sec-WebSocket-Key", "X-Key"), 400),
    "short key": (("Sec-WebSocket-Key: ", "Sec-WebSocket-Key: x"), 400),
    "old version": (("Version: 13", "Version: 8"), 426),
    "no version": (("Sec-WebSocket-Version", "X-Version"), 426),
    "no connection header": (("Connection: Upgrade", "Connection: close"), 400),
    "another method": (("GET ", "POST "), 400),
    "old HTTP": (("HTTP/1.1", "HTTP/1.0"), 400),
}


@pytest.mark.parametrize("name", HANDSHAKES)
def test_a_handshake_that_is_none_is_refused(server: Tantor, healthy: Healthy, name: str) -> None:
    change, expected = HANDSHAKES[name]
    request = handshake_request(server.port).decode()
    assert change[0] in request
    status, headers, body = http_request(server.port, request.replace(*change))
    assert status == expected
    assert body, "what was wrong is said"
    if expected == 426:
        assert headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\n",
        b"\x00" * 100,
        b"hello\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
    ids=["TLS", "empty lines", "zeroes", "words", "no ASCII"],
)
def test_what_is_no_http_ends_the_connection(make_server: MakeServer, garbage: bytes) -> None:
    server = make_server(handshake_timeout=0.5)
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(garbage)
        assert read_http_response(connection)[0] in (400, 408)


def test_frames_that_come_with_the_handshake_are_read(server: Tantor, healthy: Healthy) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(handshake_request(server.port) + encode_frame(TEXT, b'{"action":"ping"}'))
        data = b""
        while b'"pong":true' not in data.replace(b" ", b""):
            chunk = connection.recv(65536)
            assert chunk, data
            data += chunk
