"""Tantor in application servers: gunicorn, and gevent with its monkey patching."""

import contextlib
import importlib.util
import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import QUIET_FORK, Script, script
from support import TESTS, WebSocketClient, accepts_connections, eventually, http_request, missing
from support import free_port as a_free_port

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")


# gunicorn

SITE = """
import json
from flask import Flask, jsonify
from tantor import get_tantor, init_tantor

app = Flask(__name__)
tantor = init_tantor(app, port={port}, host="127.0.0.1")
{at_import}

@app.errorhandler(RuntimeError)
def failed(error):
    return jsonify(error=str(error)), 500

@app.get("/stats")
def stats():
    {at_request}
    return jsonify(get_tantor().stats())

@app.get("/say/<word>")
def say(word):
    return jsonify(get_tantor().broadcast("jungle", word).result())
"""


def get(port: int, path: str) -> tuple[int, object]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            return response.status, json.load(response)
    except urllib.request.HTTPError as error:
        with error:
            return error.code, json.load(error)


@contextlib.contextmanager
def gunicorn(tmp_path: Path, port: int, *options: str, at_import: str, at_request: str) -> Iterator[tuple[Script, int]]:
    """A site under gunicorn with one worker; its process, and the port of its HTTP."""
    if importlib.util.find_spec("gunicorn") is None:
        missing("gunicorn")
    source = SITE.format(port=port, at_import=at_import, at_request=at_request)
    (tmp_path / "site_of_ours.py").write_text(source, encoding="utf-8")
    http = a_free_port()
    command = [sys.executable, *QUIET_FORK, "-m", "gunicorn", "-w", "1", "-b", f"127.0.0.1:{http}"]
    command += ["--graceful-timeout", "5", "--no-control-socket", *options, "site_of_ours:app"]
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{TESTS}"}
    with Script(command, cwd=tmp_path, log=tmp_path / "log", environment=environment) as process:
        eventually(lambda: accepts_connections(http), lambda: process.output, timeout=30)
        yield process, http


@needs_fork
@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_gunicorn_that_starts_it_in_the_worker(preload: bool, free_port: int, tmp_path: Path) -> None:
    options = ["--preload"] if preload else []
    starting = "tantor.start_background()"
    with gunicorn(tmp_path, free_port, *options, at_import="", at_request=starting) as (process, http):
        status, stats = get(http, "/stats")
        assert (status, isinstance(stats, dict) and stats["status"]) == (200, "listening"), process.output
        with WebSocketClient(free_port).greet() as client:
            assert get(http, "/say/hello") == (200, 1)
            client.receive_until(event="hello")
            process.process.terminate()
            client.wait_closed()
        assert process.wait(30) == 0, process.output
    assert not accepts_connections(free_port)


@needs_fork
def test_gunicorn_that_starts_it_at_import(free_port: int, tmp_path: Path) -> None:
    starting = "tantor.start_background()"
    with gunicorn(tmp_path, free_port, at_import=starting, at_request="") as (process, http):
        eventually(lambda: accepts_connections(free_port), lambda: process.output, timeout=30)
        with WebSocketClient(free_port).greet() as client:
            assert get(http, "/say/hello") == (200, 1)
            client.receive_until(event="hello")
        process.process.terminate()
        assert process.wait(30) == 0, process.output
    assert not accepts_connections(free_port)


@needs_fork
def test_gunicorn_with_preload_that_starts_it_at_import_says_what_is_wrong(free_port: int, tmp_path: Path) -> None:
    starting = "tantor.start_background()"
    with gunicorn(tmp_path, free_port, "--preload", at_import=starting, at_request="") as (process, http):
        status, answer = get(http, "/stats")
        assert status == 500, process.output
        assert "fork" in str(answer), answer
        process.process.terminate()
        assert process.wait(30) == 0, process.output
    assert not accepts_connections(free_port)


# Flask's reloader


def is_healthy(port: int) -> bool:
    """True if the new worker serves, and not the worker that is stopping."""
    with contextlib.suppress(OSError, AssertionError):  # no server, or none that answers any more
        return http_request(port, "GET /healthz HTTP/1.1\r\n\r\n")[0] == 200
    return False


def test_flasks_reloader_serves_it_once_and_anew_in_each_child(free_port: int, tmp_path: Path) -> None:
    source = f"""
        from flask import Flask
        from tantor import init_tantor
        from werkzeug.serving import is_running_from_reloader

        app = Flask(__name__)
        tantor = init_tantor(app, port={free_port}, host="127.0.0.1")
        if is_running_from_reloader():
            tantor.start_background()
        app.run("127.0.0.1", {a_free_port()}, debug=True, reloader_type="stat", reloader_interval=0.1)
    """
    with script(source, tmp_path) as process:
        file = tmp_path / "script.py"
        for _ in range(3):
            eventually(lambda: is_healthy(free_port), lambda: process.output, timeout=30)
            with WebSocketClient(free_port).greet() as client:

                def told(client: WebSocketClient = client) -> bool:
                    # more than once, because the reloader may not have taken its first look
                    os.utime(file, (later := file.stat().st_mtime + 10, later))
                    with contextlib.suppress(TimeoutError):
                        return client.receive(0.3).get("event") == "server_shutdown"
                    return False

                eventually(told, lambda: process.output, timeout=30)
                assert client.wait_closed() == 1001
        eventually(lambda: is_healthy(free_port), lambda: process.output, timeout=30)
        assert "cannot listen" not in process.output, process.output


# gevent and eventlet


@pytest.mark.parametrize("start", ["tantor.start_background()", "Thread(target=run, daemon=True).start()"])
@pytest.mark.parametrize(
    ("library", "patch"),
    [("gevent", "from gevent import monkey; monkey.patch_all()"), ("eventlet", "eventlet.monkey_patch()")],
)
def test_under_monkey_patching(library: str, patch: str, start: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(library) is None:
        missing(library)
    if library == "eventlet" and "start()" in start:
        # an asyncio loop of eventlet's green threads needs eventlet's own asyncio hub
        start = "eventlet.patcher.original('threading').Thread(target=run, daemon=True).start()"
    source = f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import {library}
        {patch}
        import asyncio, time
        from threading import Thread
        from tantor import Tantor

        tantor = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
        turns = 0

        def turn():
            global turns
            while True:
                turns += 1
                {library}.sleep(0.001)

        def run():
            asyncio.run(tantor.start())

        def echo(data):
            tantor.broadcast("jungle", "echo", data["data"])

        async def async_echo(data):
            await tantor.broadcast("jungle", "async echo", data["data"])

        tantor.on_event("say", echo)
        tantor.on_event("say", async_echo)
        {library}.spawn(turn)
        {start}
        while not tantor.is_running:
            {library}.sleep(0.01)
        print("port", tantor.port)
        {library}.sleep(0.5)
        print("turns", turns)
        while "stop" not in tantor.channels:
            {library}.sleep(0.01)
        tantor._begin_stop()
        while tantor.is_running:
            {library}.sleep(0.01)
        print("stopped")
    """
    with script(source, tmp_path) as process:
        with WebSocketClient(int(process.wait_for_line("port "))).greet() as client:
            client.action("broadcast", event="say", data="hello")
            client.receive_until(event="echo", data="hello")
            client.receive_until(event="async echo", data="hello")
            turns = int(process.wait_for_line("turns "))
            assert turns > 50, f"other greenlets had {turns} turns in half a second"
            client.action("join_channel", channel="stop")
            assert client.wait_closed() == 1001
        process.wait_for_line("stopped")
        assert process.wait() == 0, process.output
