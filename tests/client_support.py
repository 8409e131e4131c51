"""Shared by the tests of `tantor.client`: clients with short timeouts, and waiting inside an event loop."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from tantor import Tantor
from tantor.client import Client, Gap, State, connect

T = TypeVar("T")

Message = dict[str, Any]

DEADLINE = 60.0


async def soon(condition: Callable[[], T], message: str | Callable[[], object], timeout: float = DEADLINE) -> T:
    """Wait for a condition as `support.eventually` does, while the event loop runs."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            seen = message() if callable(message) else message
            pytest.fail(f"not within {timeout:g} s: {seen}")
        await asyncio.sleep(0.005)
    return value


class Watched:
    """A client with short timeouts, and the events that it got."""

    def __init__(self, port: int, path: str = "/", **settings: Any) -> None:
        self.states: list[State] = []
        self.gaps: list[Gap] = []
        quick = {"reconnect_base": 0.02, "reconnect_cap": 0.2, "ack_delay": 0.0, "command_timeout": DEADLINE}
        self.client = connect(
            f"ws://127.0.0.1:{port}{path}",
            on_state=self.states.append,
            on_gap=self.gaps.append,
            **(quick | {"connect_timeout": DEADLINE} | settings),
        )

    async def __aenter__(self) -> "Watched":
        await self.client.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.client.__aexit__(*error)

    async def reconnected(self, times: int = 1) -> None:
        await soon(lambda: self.states.count("connected") > times, lambda: self.states)

    async def numbers(self, count: int, channel: str = "news") -> list[int]:
        """The numbers of the next publications on a channel."""
        seen: list[int] = []
        while len(seen) < count:
            message = await self.client.receive(DEADLINE)
            if message.get("event") == "number" and message["channel"] == channel:
                seen.append(message["data"])
        return seen

    async def mail(self, count: int) -> list[str]:
        """The next messages to this client alone."""
        seen: list[str] = []
        while len(seen) < count:
            message = await self.client.receive(DEADLINE)
            if "message" in message:
                seen.append(message["message"])
        return seen


def publish(server: Tantor, numbers: range, channel: str = "news") -> None:
    for number in numbers:
        server.broadcast(channel, "number", number)


def is_idle(client: Client) -> bool:
    """True if no command is left in the client."""
    return not client._futures and not client._session.is_waiting


class Refusing:
    """An HTTP server that gives each connection the same answer, and records the times."""

    def __init__(self, answer: str) -> None:
        self._answer = answer.encode()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[float] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                self.asked.append(time.monotonic())
                connection.sendall(self._answer)
