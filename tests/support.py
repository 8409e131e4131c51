"""Shared by all tests: waiting for conditions, optional parts, and a WebSocket client that shows every byte."""

import base64
import contextlib
import hashlib
import json
import os
import secrets
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

import pytest

if TYPE_CHECKING:
    from flask import Flask

REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
TESTS = Path(__file__).parent

T = TypeVar("T")

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION = 0x0


def missing(part: str) -> NoReturn:
    """Skip a test by the name of the missing part; fail instead where REQUIRE_ALL=1."""
    if REQUIRE_ALL:
        pytest.fail(f"{part} is missing, and REQUIRE_ALL=1 wants everything tested")
    pytest.skip(f"{part} is missing")


def eventually(condition: Callable[[], T], message: str | Callable[[], object], timeout: float = 10.0) -> T:
    """Poll `condition` until it is true and return its value; fail with `message` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            seen = message() if callable(message) else message
            pytest.fail(f"not within {timeout:g} s: {seen}")
        time.sleep(0.005)
    return value


# Sockets that reserve the numbers of ports for this process; see `free_port`.
_RESERVATIONS: list[socket.socket] = []


def free_port() -> int:
    """Return a free port of the loopback interface, which no other test process gets.

    The port is below the ports that systems give to outgoing connections. A UDP socket with the same number reserves
    the port until this process ends: TCP ports are not affected by it, and other test processes cannot bind it.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
        else:
            _RESERVATIONS.append(reservation)
            return port


def accepts_connections(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((host, port)) == 0


@dataclass(frozen=True)
class Frame:
    """One WebSocket frame, as on the wire."""

    opcode: int
    payload: bytes
    fin: bool
    rsv: int


class ClosedError(Exception):
    """The server closed the connection: with a close frame (`code`, `reason`), or without one (`code` is None)."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(f"closed with {code} {reason!r}")
        self.code = code
        self.reason = reason


def encode_frame(
    opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, rsv: int = 0, length: int | None = None
) -> bytes:
    """Encode a frame of a client, perhaps a malformed one. `length` replaces the declared length of the payload."""
    length = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 1 << 16:
        head += bytes([mask_bit | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    key = secrets.token_bytes(4)
    repeated = key * (len(payload) // 4 + 1)
    xored = int.from_bytes(payload) ^ int.from_bytes(repeated[: len(payload)])
    return head + key + xored.to_bytes(len(payload))


def handshake_request(port: int | Path, path: str = "/", *, key: str = "", headers: Iterable[str] = ()) -> bytes:
    key = key or base64.b64encode(secrets.token_bytes(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost" if isinstance(port, Path) else f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class WebSocketClient:
    """A WebSocket client that shows every byte. It answers pings only while a test reads from it."""

    def __init__(
        self,
        port: int | Path,
        path: str = "/",
        *,
        headers: Iterable[str] = (),
        receive_buffer: int = 0,
        answers: bool = True,
    ) -> None:
        """Connect to a port of this machine, or to a Unix socket, and open the WebSocket."""
        self.socket = socket.socket(socket.AF_UNIX if isinstance(port, Path) else socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(15)
        self.client_id = ""
        self.welcome: dict[str, Any] = {}
        self.pings = 0
        self.heard: list[dict[str, Any]] = []
        self._answers = answers
        self._buffer = bytearray()
        try:
            self.socket.connect(str(port) if isinstance(port, Path) else ("127.0.0.1", port))
            key = base64.b64encode(secrets.token_bytes(16)).decode()
            self.send_raw(handshake_request(port, path, key=key, headers=headers))
            self.response = self._read_response()
            expected = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest())
            assert self.response.startswith("HTTP/1.1 101 "), f"the handshake got {self.response!r}"
            assert expected.decode() in self.response, f"wrong accept key in {self.response!r}"
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def greet(self) -> Self:
        """Read the welcome, which is the first message."""
        self.welcome = self.receive()
        assert self.welcome.get("event") == "welcome", f"the first message was {self.welcome}"
        self.client_id = self.welcome["client_id"]
        return self

    def send_json(self, value: object) -> None:
        self.send_text(json.dumps(value))

    def send_text(self, text: str) -> None:
        self.send_frame(TEXT, text.encode())

    def send_frame(self, opcode: int, payload: bytes = b"", **form: Any) -> None:
        """Send one frame; `form` has the options of `encode_frame`."""
        self.send_raw(encode_frame(opcode, payload, **form))

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)

    def action(self, action: str, **fields: Any) -> None:
        self.send_json({"action": action, **fields})

    def ask(self, action: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        """Send a command with a new `ref`; return its reply or error. Other messages go to `heard`."""
        reference = secrets.token_hex(8)
        self.action(action, ref=reference, **fields)
        *others, answer = self.receive_all_until(ref=reference, timeout=timeout)
        self.heard += others
        return answer

    def receive(self, timeout: float = 10.0) -> dict[str, Any]:
        """Return the next JSON message. Raises `ClosedError` if the server closes the connection."""
        deadline = time.monotonic() + timeout
        while True:
            frame = self.read_frame(max(0.001, deadline - time.monotonic()))
            if frame.opcode == TEXT:
                assert frame.fin, "the server sent a fragment"
                message = json.loads(frame.payload)
                assert isinstance(message, dict), f"the server sent {message!r}"
                return message
            if frame.opcode == PING:
                self.pings += 1
                if self._answers:
                    self.send_frame(PONG, frame.payload)
            elif frame.opcode == CLOSE:
                code = int.from_bytes(frame.payload[:2]) if frame.payload else None
                raise ClosedError(code, frame.payload[2:].decode())
            else:
                assert frame.opcode == PONG, f"the server sent {frame}"

    def receive_until(
        self, condition: Callable[[dict[str, Any]], object] | None = None, /, timeout: float = 10.0, **fields: Any
    ) -> dict[str, Any]:
        """Skip messages until one meets the condition and has these fields; return that message."""
        return self.receive_all_until(condition, timeout=timeout, **fields)[-1]

    def receive_all_until(
        self, condition: Callable[[dict[str, Any]], object] | None = None, /, timeout: float = 10.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Return all messages up to the first, inclusive, that meets the condition and has these fields."""
        deadline = time.monotonic() + timeout
        seen: list[dict[str, Any]] = []
        while True:
            try:
                message = self.receive(max(0.001, deadline - time.monotonic()))
            except (ClosedError, TimeoutError) as error:
                pytest.fail(f"no message with {fields or condition}: {error!r} after {seen[-20:]}")
            seen.append(message)
            if all(message.get(name) == value for name, value in fields.items()) and (
                condition is None or condition(message)
            ):
                return seen

    def settle(self, server: Any) -> list[dict[str, Any]]:
        """Return all messages that were under way. The server has then handled every frame that this client sent.

        A ping runs through the client's own commands, then a `send` through what Python has handed over.
        """
        self.action("ping")
        seen = self.receive_all_until(lambda message: "ref" not in message, pong=True)
        fence = secrets.token_hex(8)
        server.send(self.client_id, {"fence": fence})
        return seen[:-1] + self.receive_all_until(fence=fence)[:-1]

    def read_frame(self, timeout: float = 10.0) -> Frame:
        """Return the next frame of any kind. Raises `ClosedError(None)` at the end of the stream."""
        deadline = time.monotonic() + timeout
        first, second = self._read(2, deadline)
        assert not second & 0x80, "the server masked a frame"
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", self._read(2, deadline))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._read(8, deadline))
        payload = self._read(length, deadline)
        return Frame(first & 0x0F, payload, bool(first & 0x80), first >> 4 & 0b111)

    def wait_closed(self, timeout: float = 15.0) -> int | None:
        """Read to the end of the stream; return the close code, or None if the server sent none."""
        deadline = time.monotonic() + timeout
        code: int | None = None
        while True:
            try:
                self.receive(max(0.001, deadline - time.monotonic()))
            except ClosedError as closed:
                if closed.code is None:
                    return code
                code = closed.code
                self._answer_close(code)

    def close(self) -> None:
        """End the connection without a close frame."""
        self.socket.close()

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def say_goodbye(self, code: int = 1000) -> None:
        """Send a close frame as a browser does, and wait for the answer."""
        self.send_frame(CLOSE, code.to_bytes(2))
        assert self.wait_closed() == code
        self.close()

    def _answer_close(self, code: int) -> None:
        with contextlib.suppress(OSError):  # the server need not wait for this end
            self.send_frame(CLOSE, code.to_bytes(2))

    def _read(self, count: int, deadline: float) -> bytes:
        while len(self._buffer) < count:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(max(65536, count - len(self._buffer)))
            except ConnectionResetError:
                raise ClosedError(None, "reset") from None
            if not data:
                raise ClosedError(None, "end of stream")
            self._buffer += data
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    def _read_response(self) -> str:
        deadline = time.monotonic() + 10
        response = b""
        while not response.endswith(b"\r\n\r\n"):
            response += self._read(1, deadline)
        return response.decode()


def http_request(port: int | Path, request: bytes | str, timeout: float = 10.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes and read the whole answer; return status, headers with lower-case names, and body."""
    with socket.socket(socket.AF_UNIX if isinstance(port, Path) else socket.AF_INET) as connection:
        connection.settimeout(timeout)
        connection.connect(str(port) if isinstance(port, Path) else ("127.0.0.1", port))
        connection.sendall(request.encode() if isinstance(request, str) else request)
        return read_http_response(connection)


def read_http_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
    except ConnectionResetError:
        pass  # the bytes before the reset count
    head, separator, body = data.partition(b"\r\n\r\n")
    assert separator, f"no HTTP answer in {data!r}"
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, body


def allow_descriptors(count: int) -> None:
    """Raise the limit of open files of this process; skip the test where the system does not allow that."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        missing(f"a limit of {count} open files (it is {hard})")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Site:
    """A Flask application behind a real HTTP server."""

    def __init__(self, app: "Flask") -> None:
        from werkzeug.serving import make_server

        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.port = self._server.port
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def get(self, path: str) -> tuple[int, Any]:
        return self._request(path, None)

    def post(self, path: str, **fields: Any) -> tuple[int, Any]:
        return self._request(path, json.dumps(fields).encode())

    def _request(self, path: str, body: bytes | None) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def waits_for(server: Any, client: WebSocketClient) -> int:
    """Return the bytes that wait for the socket of a client."""
    return int(dict(server.stats()["worst_connections"]).get(client.client_id, 0))


def fill_socket(server: Any, client: WebSocketClient, size: int = 32 << 10) -> int:
    """Send to a client that does not read until its socket takes nothing more; returns how many messages that took.

    Each has `size` bytes under `fill`. The last waits whole: what the system may still take is not what follows it.
    """
    for count in range(1, 2000):
        before = waits_for(server, client)
        message = server.send(client.client_id, {"fill": "x" * size}).result()

        def is_dealt_with(message: str = message, before: int = before) -> bool:
            return bool(server.delivery(message)["written"]) or waits_for(server, client) > before

        eventually(is_dealt_with, lambda: server.stats())
        if waits_for(server, client) > size + 1024:
            return count
    pytest.fail("the socket takes everything")


def lose(server: Any, client: WebSocketClient) -> str:
    """Break a client's connection and wait until the server knows; returns the path with which it can return."""
    client.reset()
    eventually(lambda: client.client_id not in server.connections, lambda: server.stats())
    return f"/?resume={client.welcome['resume']}"


def wait_for_delivery(server: Any, message: str | None, **wanted: int) -> None:
    """Wait until `delivery` says so of a message; what is not named is 0."""
    complete = {"handed_over": 0, "written": 0, "acknowledged": 0, "waiting": 0} | wanted
    eventually(
        lambda: server.delivery(str(message)) == complete, lambda: f"{complete}, but {server.delivery(str(message))}"
    )
