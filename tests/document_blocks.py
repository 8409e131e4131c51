"""The code blocks of the user's document, and the functions that run them in tests."""

import ast
import asyncio
import contextlib
import inspect
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from fenced_blocks import read_blocks
from support import TESTS, WebSocketClient, eventually
from tantor import Tantor
from websockets.sync.client import ClientConnection, connect

if TYPE_CHECKING:
    pass

BLOCKS = read_blocks((TESTS / "document" / "tantor-python-edition.md").read_text(encoding="utf-8"))
COVERED: set[str] = set()


def covers(*titles: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Mark a test with the numbers of the blocks that it runs."""
    assert set(titles) <= BLOCKS.keys(), f"no such block: {set(titles) - BLOCKS.keys()}"
    COVERED.update(titles)
    return lambda test: test


def block(title: str, port: int | None = None, **renamed: str) -> str:
    """A block's source, with its port moved; `renamed` puts a real client's id in place of an invented one."""
    source = BLOCKS[title].source
    if port is not None:
        source, count = re.subn(r"\b80\d\d\b", str(port), source)
        assert count, f"there is no port in {title!r}"
    for name, value in renamed.items():
        assert name in source, f"there is no {name} in {title!r}"
        source = source.replace(name, value)
    return source


def execute(source: str, **names: Any) -> dict[str, Any]:
    """Run a block and return its names; one that awaits at its top level runs on a loop."""
    names["__name__"] = "document"
    result = eval(compile(source, "<document>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.iscoroutine(result):
        asyncio.run(result)
    return names


@contextlib.contextmanager
def output_of() -> Iterator[io.StringIO]:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        yield output


@contextlib.contextmanager
def welcomed(port: int) -> Iterator[tuple[ClientConnection, str]]:
    """A client of the `websockets` package that has its welcome, and its client id."""
    with connect(f"ws://127.0.0.1:{port}", proxy=None) as client:
        yield client, receive(client, event="welcome")["client_id"]


def receive(client: ClientConnection, **fields: Any) -> dict[str, Any]:
    """Return the next message that has these fields."""
    seen = []
    while True:
        try:
            seen.append(json.loads(client.recv(timeout=10)))
        except TimeoutError:
            pytest.fail(f"no message with {fields} in {seen}")
        if fields.items() <= seen[-1].items():
            return seen[-1]


@contextlib.contextmanager
def backlog(make_server: Callable[..., Tantor]) -> Iterator[Tantor]:
    """A server on which more than 100 messages wait, because a client does not read."""
    tantor = make_server(max_pending_bytes=256 << 20)
    with WebSocketClient(tantor.port, receive_buffer=4096).greet():

        def waiting() -> bool:
            tantor.broadcast("jungle", "news", "x" * 60_000)
            return bool(tantor.stats()["queued_messages"] > 100)

        eventually(waiting, lambda: f"more than 100 waiting messages in {tantor.stats()}", timeout=30)
        yield tantor
