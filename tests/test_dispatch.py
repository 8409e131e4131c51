"""The one thread that all events go through: nothing that a handler does may end it, nor mix up two runs."""

import asyncio
import logging
import textwrap
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from processes import run_python
from support import WebSocketClient, eventually
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
Data = dict[str, Any]


class NoWord:
    """A handler that fails, and cannot even be shown."""

    def __call__(self, data: Data) -> Any:
        raise ValueError("as the test asked for")

    def __repr__(self) -> str:
        raise RuntimeError("no word")


class NoClass:
    """A result that cannot be asked what it is."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise RuntimeError("no class")


async def leave(data: Data) -> None:
    raise SystemExit(3)


def chat(client: WebSocketClient) -> None:
    client.send_json({"action": "chat"})


@pytest.mark.parametrize("handler", [leave, NoWord(), lambda data: NoClass()], ids=["exits", "unshowable", "weird"])
def test_whatever_a_handler_does_the_next_event_is_handled(
    server: Tantor, connect: Connect, handler: Callable[[Data], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Data] = []
    server.on_event("message", handler)
    server.on_event("message", seen.append)
    client = connect(server)
    for _ in range(3):
        chat(client)
    eventually(lambda: len(seen) == 3, lambda: f"{len(seen)} of 3 events were handled")
    capfd.readouterr()


def test_a_logging_filter_that_raises_ends_nothing(
    server: Tantor, connect: Connect, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("as the test asked for")

    seen: list[Data] = []
    server.on_event("message", NoWord())
    server.on_event("message", seen.append)
    logger = logging.getLogger("tantor.events")
    logger.addFilter(refuse)
    try:
        client = connect(server)
        chat(client)
        chat(client)
        eventually(lambda: len(seen) == 2, lambda: f"{len(seen)} of 2 events were handled")
    finally:
        logger.removeFilter(refuse)
    assert "as the test asked for" in capfd.readouterr().err


@pytest.fixture
def restarted(connect: Connect) -> Iterator[Callable[[Callable[[Data], Any]], tuple[Tantor, list[Data]]]]:
    """A server that was stopped and started again while `handler` was busy with the first run's event."""
    servers: list[Tantor] = []

    def restart(handler: Callable[[Data], Any]) -> tuple[Tantor, list[Data]]:
        server = Tantor(port=0, host="127.0.0.1")
        servers.append(server)
        seen: list[Data] = []
        server.on_event("message", seen.append)
        server.on_event("message", handler)
        server.start_background()
        chat(connect(server))
        eventually(lambda: seen, "the first event was not handled")
        server._begin_stop()
        assert server._wait_stopped(15)
        server.start_background()
        return server, seen

    yield restart
    for server in servers:
        server._begin_stop()
        assert server._wait_stopped(15)


def test_a_run_begins_its_events_behind_those_of_the_run_before(
    restarted: Callable[..., tuple[Tantor, list[Data]]], connect: Connect
) -> None:
    free = threading.Event()
    server, seen = restarted(lambda data: free.wait(30) and None)
    try:
        chat(connect(server))
        assert not server._dispatcher.wait_finished(0), "the second run's dispatcher has ended"
    finally:
        free.set()
    eventually(lambda: len(seen) == 2, lambda: f"{len(seen)} of 2 events were handled")
    server._begin_stop()
    assert server._wait_stopped(15)
    assert server._dispatcher.wait_finished(15), "the second run's dispatcher did not end"


def test_each_start_has_its_handlers_on_its_own_loop(connect: Connect) -> None:
    server = Tantor(port=0, host="127.0.0.1")
    loops: list[asyncio.AbstractEventLoop] = []

    @server.on("message")
    async def remember(data: Data) -> None:
        loops.append(asyncio.get_running_loop())

    async def run() -> asyncio.AbstractEventLoop:
        serving = asyncio.create_task(server.start())
        while not server.is_running:
            await asyncio.sleep(0.005)
        handled = len(loops)
        client = await asyncio.to_thread(connect, server)
        chat(client)
        async with asyncio.timeout(15):
            while len(loops) == handled:
                await asyncio.sleep(0.005)
        await server.stop()
        await serving
        return asyncio.get_running_loop()

    ran = [asyncio.run(run()), asyncio.run(run())]
    assert loops == ran


def test_at_exit_async_handlers_hear_of_the_shutdown() -> None:
    script = """
        from tantor import Tantor

        tantor = Tantor(port=0, host="127.0.0.1")

        @tantor.on("server_shutdown")
        async def bye(data):
            print("bye", flush=True)

        tantor.start_background()
        """
    ran = run_python(textwrap.dedent(script))
    assert (ran.returncode, ran.stdout.strip()) == (0, "bye"), ran


def test_arguments_of_a_subclass_reach_it() -> None:
    class Chat(Tantor):
        def __init__(self, name: str, **settings: Any) -> None:
            super().__init__(9123, "127.0.0.1", **settings)
            self.name = name

    chat = Chat("jungle", shards=1)
    assert (chat.name, chat.port, chat.host, chat.setting("shards")) == ("jungle", 9123, "127.0.0.1", 1)


def test_a_subclass_that_forgets_its_base_is_told() -> None:
    class Forgetful(Tantor):
        def __init__(self) -> None:
            pass

    with pytest.raises(RuntimeError, match="__init__ was not called"):
        Forgetful().broadcast("jungle", "x")


def test_a_dict_that_changes_while_it_is_read_is_an_error() -> None:
    data: Data = {}

    class Growing(Decimal):
        def __str__(self) -> str:
            data[f"more{len(data)}"] = 1
            return "1"

    data |= {"a": Growing(1), "b": 2}
    with pytest.raises(RuntimeError, match="data: the dict changed size while it was read"):
        Tantor(port=0).broadcast("jungle", "x", data)
