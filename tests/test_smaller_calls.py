"""Calls in places where they are easily forgotten: without a loop, in a forked child, behind a proxy, in an app."""

import asyncio
import logging
import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, has_app_context
from processes import run_python
from support import WebSocketClient, accepts_connections, eventually, free_port
from tantor import Tantor, init_tantor


def test_stop_begins_at_the_call_and_has_a_result(server: Tantor) -> None:
    port = server.port
    stopping = server.stop()
    assert stopping.result(15) is None  # type: ignore[func-returns-value]
    assert stopping.done()
    assert "done" in repr(stopping)
    assert not server.is_running
    assert not accepts_connections(port)
    assert Tantor().stop().result() is None  # type: ignore[func-returns-value]


def test_a_stop_that_takes_longer_is_a_timeout(make_server: Callable[..., Tantor]) -> None:
    server = make_server(drain_timeout=30)
    with WebSocketClient(server.port).greet():
        stopping = server.stop()
        with pytest.raises(TimeoutError, match=r"has not ended within 0\.01 s"):
            stopping.result(0.01)


def test_stop_can_be_awaited_in_every_way() -> None:
    async def main() -> None:
        server = Tantor(0, "127.0.0.1")
        for stop in (lambda: server.stop(), lambda: asyncio.create_task(server.stop())):
            server.start_background()
            await stop()
            assert not server.is_running
        server.start_background()
        stopping = server.stop()
        await asyncio.gather(stopping, server.stop())
        await stopping

    asyncio.run(main())
    server = Tantor(0, "127.0.0.1").start_background()
    asyncio.run(server.stop())
    assert not server.is_running


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")
def test_a_forked_child_can_show_its_parents_tantor() -> None:
    done = run_python(
        textwrap.dedent("""
        import os, sys
        from tantor import Tantor
        with Tantor(0, "127.0.0.1") as tantor:
            pid = os.fork()
            if pid == 0:
                print(repr(tantor), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
    """)
    )
    assert "<Tantor of the process that this one was forked from>" in done.stdout, done


def test_the_module_under_the_originals_path_has_a_file() -> None:
    done = run_python(
        textwrap.dedent("""
        import inspect
        import tantor.dropin
        import tsk_flask.herd.elephants.tantor as served
        print(inspect.getfile(served), inspect.getsourcefile(served))
    """)
    )
    assert done.stdout.count("dropin.py") == 2, done


def test_the_test_page_has_the_servers_own_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def port_of(path: str) -> str:
        return Path(path).read_text(encoding="utf-8").partition('data-port="')[2].partition('"')[0]

    assert port_of(Tantor(9123).create_test_client_html()) == "9123"
    assert port_of(Tantor(9123).create_test_client_html(9124)) == "9124"
    assert port_of(Tantor(0).create_test_client_html()) == "8080"
    with Tantor(0, "127.0.0.1") as tantor:
        assert port_of(tantor.create_test_client_html()) == str(tantor.port)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("is_on", [True, False])
def test_handlers_run_in_the_apps_context_unless_it_is_turned_off(is_async: bool, is_on: bool) -> None:
    app = Flask("the app")
    tantor = init_tantor(app, port=0, host="127.0.0.1", drain_timeout=1, app_context=is_on)
    seen: list[str | None] = []

    def note() -> None:
        seen.append(current_app.name if has_app_context() else None)

    async def note_later(data: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        note()

    tantor.on_event("hello", note_later if is_async else lambda data: note())
    with tantor, WebSocketClient(tantor.port).greet() as client:
        client.action("broadcast", event="hello")
        client.action("broadcast", event="hello")
        eventually(lambda: len(seen) == 2, lambda: seen)
    assert seen == (["the app"] * 2 if is_on else [None] * 2)


def test_a_failing_handler_leaves_its_context(caplog: pytest.LogCaptureFixture) -> None:
    app = Flask("the app")
    torn_down: list[BaseException | None] = []
    app.teardown_appcontext(torn_down.append)
    tantor = init_tantor(app, port=0, host="127.0.0.1", drain_timeout=1)

    @tantor.on("hello")
    def fail(data: dict[str, Any]) -> None:
        raise LookupError("on purpose")

    with tantor, WebSocketClient(tantor.port).greet() as client:
        client.action("broadcast", event="hello")
        eventually(lambda: len(torn_down) == 1, lambda: torn_down)
    eventually(lambda: "on purpose" in caplog.text, lambda: caplog.text)


@pytest.mark.asyncio
async def test_a_client_tells_at_once_why_there_is_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    from tantor.client import ConnectTimeoutError, connect

    with caplog.at_level(logging.WARNING, logger="tantor.client"):
        opening = asyncio.create_task(connect(f"ws://127.0.0.1:{free_port()}", connect_timeout=60).open())
        deadline = asyncio.get_running_loop().time() + 30
        while not caplog.messages and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises((asyncio.CancelledError, ConnectTimeoutError)):
            await opening
    assert "the client tries again" in caplog.messages[0]
    assert "127.0.0.1" in caplog.messages[0]


@pytest.mark.asyncio
async def test_a_proxy_is_named_and_never_used_for_a_loopback_address(
    server: Tantor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tantor import SettingError
    from tantor.client import ConnectError, connect
    from tantor.client.connecting import choose_proxy

    wrong = f"http://user:secret@127.0.0.1:{free_port()}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, wrong)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with connect(f"ws://127.0.0.1:{server.port}") as client:
        assert client.state == "connected"
    for host in ("localhost", "app.localhost", "127.8.9.1", "[::1]"):
        assert choose_proxy(f"ws://{host}:8080", True) is None
    assert choose_proxy("ws://tantor.example:8080", True) == wrong
    assert choose_proxy("ws://tantor.example:8080", None) is None
    with pytest.raises(ConnectError, match=r"through the proxy http://127\.0\.0\.1:\d+\)") as raised:
        await connect(f"ws://127.0.0.1:{server.port}", proxy=wrong, connect_timeout=0.5).open()
    assert "secret" not in str(raised.value)
    with pytest.raises(SettingError, match="proxy is ''; it takes the URL of a proxy"):
        connect("ws://localhost:8080", proxy="")
