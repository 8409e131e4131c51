"""SIGTERM, with which supervisors end a process, is a clean end: clients are told, and the database is closed."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Script, script, script_environment
from stored import rows
from support import WebSocketClient, eventually

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")

SETTINGS = '0, "127.0.0.1", database="sqlite:///FOLDER/tantor.db", drain_timeout=2'

PROGRAMS = {
    "asyncio.run(start())": f"""
import asyncio, threading
from tantor import Tantor
tantor = Tantor({SETTINGS})
async def main():
    server = asyncio.ensure_future(tantor.start())
    while not tantor.is_running:
        await asyncio.sleep(0.01)
    print("port", tantor.port, flush=True)
    await server
asyncio.run(main())
""",
    "in the background": f"""
import time
from tantor import Tantor
tantor = Tantor({SETTINGS}).start_background()
print("port", tantor.port, flush=True)
while True:
    time.sleep(60)
""",
    "with": f"""
import time
from tantor import Tantor
with Tantor({SETTINGS}) as tantor:
    print("port", tantor.port, flush=True)
    time.sleep(60)
""",
    "run_tantor_sync": """
import threading, time
from tantor import get_tantor, run_tantor_sync
def say():
    while get_tantor() is None or not get_tantor().is_running:
        time.sleep(0.01)
    print("port", get_tantor().port, flush=True)
threading.Thread(target=say, daemon=True).start()
run_tantor_sync(0, "127.0.0.1", database="sqlite:///FOLDER/tantor.db", drain_timeout=2)
""",
    "Flask": f"""
from flask import Flask
from tantor import init_tantor
app = Flask(__name__)
tantor = init_tantor(app, {SETTINGS})
tantor.start_background()
print("port", tantor.port, flush=True)
app.run("127.0.0.1", 0)
""",
}


def script_in(source: str, folder: Path) -> Script:
    return script(source.replace("FOLDER", str(folder)), folder)


def is_closed(folder: Path) -> bool:
    return rows(folder / "tantor.db", "SELECT value FROM state WHERE name = 'clean'") == [{"value": 1}]


def end(process: Script, number: int) -> tuple[list[str], int | None, int]:
    """What a client is told by a program that gets a signal, with which code it is closed, and the exit status."""
    with WebSocketClient(int(process.wait_for_line("port ").split()[0])).greet() as client:
        process.process.send_signal(number)
        told = client.receive_until(event="server_shutdown")["event"]
        code = client.wait_closed()
    return [told], code, process.wait()


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_cleanly(name: str, tmp_path: Path) -> None:
    with script_in(PROGRAMS[name], tmp_path) as process:
        told, code, status = end(process, signal.SIGTERM)
    assert (told, code) == (["server_shutdown"], 1001)
    assert status in (0, 143), process.output
    assert "Traceback" not in process.output
    assert is_closed(tmp_path)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Script]:
    command = [sys.executable, "-m", "tantor", "serve", "--port", "0", "--host", "127.0.0.1"]
    command += ["--database", f"sqlite:///{tmp_path}/tantor.db"]
    with Script(command, cwd=tmp_path, log=tmp_path / "log", environment=script_environment()) as process:
        yield process


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_tantor_serve_ends_cleanly(name: str, serve: Script, tmp_path: Path) -> None:
    port = serve_port(serve)
    with WebSocketClient(port).greet() as client:
        serve.process.send_signal(getattr(signal, name))
        assert client.wait_closed() == 1001
    assert serve.wait() == 0, serve.output
    assert "Traceback" not in serve.output
    assert is_closed(tmp_path)


def serve_port(serve: Script) -> int:
    def found() -> str:
        _, found, rest = serve.output.partition("listening on 127.0.0.1:")
        return rest.split()[0] if found and " " in rest else ""

    return int(eventually(found, lambda: serve.output, timeout=30))


@pytest.mark.parametrize("start", ["tantor.start_background()", "tantor.start_background(); tantor.stop_on_sigterm()"])
def test_a_handler_of_the_applications_own_is_called(start: str, tmp_path: Path) -> None:
    source = f"""
import signal, sys, time
from tantor import Tantor
def own(number, frame):
    print("own handler", number, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, own)
tantor = Tantor({SETTINGS})
{start}
print("port", tantor.port, flush=True)
while True:
    time.sleep(60)
"""
    with script_in(source, tmp_path) as process:
        told, code, status = end(process, signal.SIGTERM)
        assert process.wait_for_line("own handler") == "15"
    assert (told, code, status) == (["server_shutdown"], 1001, 7)
    assert is_closed(tmp_path)


def test_with_the_setting_off_the_signal_is_the_systems(tmp_path: Path) -> None:
    source = f"""
import signal
from tantor import Tantor
tantor = Tantor({SETTINGS}, handle_sigterm=False).start_background()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
print("port", tantor.port, flush=True)
signal.pause()
"""
    with script_in(source, tmp_path) as process:
        process.wait_for_line("port ")
        process.process.terminate()
        assert process.wait() == -signal.SIGTERM


def test_without_a_running_server_the_signal_ends_the_process_as_before(tmp_path: Path) -> None:
    source = f"""
import asyncio, signal
from tantor import Tantor
tantor = Tantor({SETTINGS}).start_background()
asyncio.run(tantor.stop())
while tantor in __import__("tantor.messenger").messenger._running:
    pass
print("stopped", flush=True)
signal.pause()
"""
    with script_in(source, tmp_path) as process:
        process.wait_for_line("stopped")
        process.process.terminate()
        assert process.wait() == -signal.SIGTERM
