"""Whole processes: signals, exit with traffic flowing, the interpreter lock held.

Each runs in a process of its own, with a limit on its time. What the process printed is shown when it fails.
"""

import contextlib
import os
import signal
import socket
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import run_python, script, works
from support import (
    WebSocketClient,
    accepts_connections,
    eventually,
    handshake_request,
    http_request,
    read_http_response,
)

# Import


def test_importing_starts_nothing() -> None:
    works("""
        import sys, threading
        def modules(): return {name.split(".")[0] for name in sys.modules}
        before = modules()
        import tantor, elephants.py_ele.tantor
        tantor.Tantor()
        assert threading.active_count() == 1, threading.enumerate()
        assert len(__import__("os").listdir("/proc/self/task")) == 1 if sys.platform == "linux" else True
        # `_xxsubinterpreters` is CPython's own, though 3.11 and 3.12 do not list it
        ours = {"tantor", "elephants", "_xxsubinterpreters"}
        foreign = modules() - before - sys.stdlib_module_names - ours
        assert not foreign, f"the standard library is all that it needs, but it imported {foreign}"
    """)


# Signals

INTERRUPTED: dict[str, str] = {
    "asyncio.run(start())": "asyncio.run(tantor.start())",
    "start() in a task": """
async def main():
    task = asyncio.create_task(tantor.start())
    await task
asyncio.run(main())""",
    "start_background()": """
tantor.start_background()
while True:  # a signal that comes just before a wait without an end does not end it
    threading.Event().wait(0.05)""",
    "a context": """
with tantor:
    while True:
        threading.Event().wait(0.05)""",
    "run_tantor_sync()": "run_tantor_sync(port=PORT, host='127.0.0.1')",
    "run_tantor()": "asyncio.run(run_tantor(port=PORT, host='127.0.0.1'))",
}


@pytest.mark.parametrize("way", INTERRUPTED)
def test_ctrl_c_ends_the_server_and_the_process(way: str, free_port: int, tmp_path: Path) -> None:
    source = f"""
PORT = {free_port}
import asyncio, threading
from tantor import Tantor, run_tantor, run_tantor_sync
tantor = Tantor(PORT, "127.0.0.1", drain_timeout=1)
try:
{textwrap.indent(INTERRUPTED[way], "    ")}
except KeyboardInterrupt:
    print("ended")
"""
    with script(source, tmp_path) as process:
        eventually(lambda: accepts_connections(free_port), lambda: process.output, timeout=30)
        with WebSocketClient(free_port).greet() as client:
            process.process.send_signal(signal.SIGINT)
            if way == "start_background()":
                client.wait_closed()
            else:
                client.receive_until(event="server_shutdown")
                assert client.wait_closed() == 1001
        assert process.wait() == 0, process.output
        assert process.output.splitlines() == ["ended"]
    assert not accepts_connections(free_port)


@pytest.mark.alone
def test_ctrl_c_in_the_moment_of_starting_leaves_nothing_behind() -> None:
    works("""
        import atexit, time
        from tantor import Tantor

        class Interrupted(Tantor):
            def _listen(self, *arguments):
                super()._listen(*arguments)
                raise KeyboardInterrupt  # as it comes when the signal arrives while listen() waits

        try:
            Interrupted(port=0, host="127.0.0.1", drain_timeout=1).start_background()
        except KeyboardInterrupt:
            pass
        began = time.monotonic()
        atexit._run_exitfuncs()
        assert time.monotonic() - began < 3, f"the end took {time.monotonic() - began:.1f} s"
    """)


# Exit with traffic flowing

TRAFFIC = """
import asyncio, sys, threading
from tantor import Tantor

tantor = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
heard = 0

@tantor.on("message")
def handle(data):
    global heard
    heard += 1
    tantor.broadcast("jungle", "heard", data)

@tantor.on("chat")
async def answer(data):
    await tantor.send(data["client_id"], {{"answer": data["data"]}})

def publish():
    while True:
        tantor.broadcast("jungle", "news", {{"fill": "x" * 100}})
        tantor.get_presence("jungle")

{start}
while not tantor.is_running:
    pass
for _ in range(2):
    threading.Thread(target=publish, daemon=True).start()
print("port", tantor.port)
while heard < 200:
    pass
{end}
"""

STARTS: dict[str, str] = {
    "in the background": "tantor.start_background()",
    "in a thread": "threading.Thread(target=lambda: asyncio.run(tantor.start()), daemon=True).start()",
}

ENDS: dict[str, tuple[str, int]] = {
    "with stop": ("asyncio.run(tantor.stop())", 0),
    "without stop": ("", 0),
    "in the middle of a stop": ("tantor._begin_stop()", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise SystemExit(4)", 4),
    "a stop by a thread": ("threading.Thread(target=lambda: asyncio.run(tantor.stop())).start()", 0),
}


@contextlib.contextmanager
def traffic(port: int) -> Iterator[None]:
    """Run clients that send, read, connect and disconnect until the server has ended."""
    over = threading.Event()

    def talk() -> None:
        while not over.is_set():
            try:
                with WebSocketClient(port) as client:
                    for number in range(300):
                        client.action("chat", n=number)
                        client.action("broadcast", event="chat", data=number)
                        client.receive()
            except (OSError, AssertionError, Exception):
                # refused, reset or closed: the server is going, which is the point
                over.wait(0.01)

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("end", ENDS)
def test_exit_with_traffic_flowing(start: str, end: str, tmp_path: Path) -> None:
    ending, code = ENDS[end]
    for _ in range(2):
        with script(TRAFFIC.format(start=STARTS[start], end=ending), tmp_path) as process:
            port = int(process.wait_for_line("port "))
            with traffic(port):
                started = time.monotonic()
                assert process.wait(30) == code, process.output
            lines = process.output.splitlines()
            assert lines == [f"port {port}"], process.output
            assert time.monotonic() - started < 20
        assert not accepts_connections(port)


def test_exit_while_calls_of_other_threads_are_under_way() -> None:
    for _ in range(3):
        works("""
            import threading, time
            from tantor import Tantor
            tantor = Tantor(port=0, host="127.0.0.1")
            tantor.start_background()
            def call():
                while True:
                    tantor._wait_stopped(0.001)
                    tantor.broadcast("jungle", "news", {"n": [1, 2, 3]})
                    tantor.stats()
            for _ in range(8):
                threading.Thread(target=call, daemon=True).start()
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline:
                tantor.broadcast("jungle", "news")
        """)


def test_exit_in_the_middle_of_the_warning_that_nobody_is_connected() -> None:
    # CPython before 3.14 ends a thread that runs Python code then, and this code was called by Rust
    source = """
import logging, os, threading, time
from tantor import Tantor

def slowly(record):  # in a filter, because the end waits for handlers
    has_begun.set()
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass
    os.write(1, b"warned\\n")

has_begun = threading.Event()
logging.getLogger("tantor.server").addFilter(slowly)
tantor = Tantor(port=0)
threading.Thread(target=tantor.broadcast, args=("jungle", "news"), daemon=True).start()
has_begun.wait()
"""
    for _ in range(5):
        done = run_python(source, environment={"WITH_WARNINGS": "1"}, timeout=30)
        assert (done.returncode, done.stdout) == (0, "warned\n"), done.stderr


def test_exit_in_the_middle_of_an_async_handler(tmp_path: Path) -> None:
    source = """
        import asyncio, threading
        from tantor import Tantor
        tantor = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
        called = threading.Event()

        @tantor.on("connect")
        async def forever(data):
            called.set()
            await asyncio.Event().wait()

        tantor.start_background()
        print("port", tantor.port)
        called.wait()
    """
    with script(source, tmp_path) as process, WebSocketClient(int(process.wait_for_line("port "))).greet():
        assert process.wait() == 0, process.output


# The interpreter lock held


@pytest.mark.alone
@pytest.mark.skipif(sys.platform == "win32", reason="usleep is a function of POSIX systems")
def test_clients_are_served_while_the_interpreter_lock_is_held(tmp_path: Path) -> None:
    source = """
        import ctypes, threading, time
        from tantor import Tantor
        tantor = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
        usleep = ctypes.PyDLL(None).usleep  # unlike CDLL, keeps the interpreter lock

        @tantor.on("hold")
        def hold(data):
            began = time.monotonic()
            usleep(999_999)
            print("held", began, time.monotonic())

        with tantor:
            print("port", tantor.port)
            while tantor.stats()["connections_total"] == 0 or len(tantor.connections) > 0:
                time.sleep(0.01)
    """
    with script(source, tmp_path) as process:
        port = int(process.wait_for_line("port "))
        with WebSocketClient(port).greet() as one, WebSocketClient(port).greet() as two:
            one.action("broadcast", event="hold")
            times: list[tuple[float, float]] = []
            stop_at = time.monotonic() + 2
            while time.monotonic() < stop_at:
                began = time.monotonic()
                one.action("ping")
                one.receive_until(pong=True)
                one.action("broadcast", event="fan-out", data=began)
                two.receive_until(event="fan-out", data=began)
                with WebSocketClient(port) as newcomer:
                    newcomer.greet()
                assert http_request(port, "GET /healthz HTTP/1.1\r\n\r\n")[0] == 200
                times.append((began, time.monotonic()))
            lock_taken, lock_given = map(float, process.wait_for_line("held ").split())
        assert process.wait() == 0, process.output
    assert lock_given - lock_taken > 0.9
    served = [end - began for began, end in times if began > lock_taken and end < lock_given]
    assert len(served) > 20, f"{len(served)} rounds while the lock was held, {len(times)} in all"
    assert max(served) < 0.5, f"the slowest round took {max(served):.3f} s"


def test_a_client_may_connect_while_the_main_thread_computes(tmp_path: Path) -> None:
    source = """
        import sys
        from tantor import Tantor
        with Tantor(port=0, host="127.0.0.1", drain_timeout=1) as tantor:
            print("port", tantor.port)
            while len(tantor.channels) < 4:
                sum(range(10_000))
    """
    with script(source, tmp_path) as process:
        port = int(process.wait_for_line("port "))
        with WebSocketClient(port).greet() as client:
            assert http_request(port, handshake_request(port).replace(b"13", b"8"))[0] == 426
            client.action("join_channel", channel="enough")
            assert client.wait_closed() == 1001
        assert process.wait() == 0, process.output


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_pause_of_the_process_closes_nobody(tmp_path: Path) -> None:
    source = """
        import time
        from tantor import Tantor

        with Tantor(0, "127.0.0.1", heartbeat_interval=0.5, heartbeat_timeout=2, drain_timeout=1) as tantor:
            print("port", tantor.port, flush=True)
            while "stop" not in tantor.channels:
                time.sleep(0.01)
            print("disconnects", tantor.stats()["disconnects"], flush=True)
    """
    with script(source, tmp_path) as process:
        with WebSocketClient(int(process.wait_for_line("port "))).greet() as client:
            os.kill(process.process.pid, signal.SIGSTOP)
            until = time.monotonic() + 4  # longer than the timeout
            eventually(lambda: time.monotonic() > until, "time stands still")
            os.kill(process.process.pid, signal.SIGCONT)
            for _ in range(3):  # heartbeats, each of which is answered
                client.receive_until(ping=True)
            client.action("join_channel", channel="stop")
            assert process.wait_for_line("disconnects ") == "{}"
        assert process.wait() == 0, process.output


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_process_that_was_paused_answers_what_came_meanwhile(tmp_path: Path) -> None:
    source = """
        import threading
        from tantor import Tantor

        with Tantor(0, "127.0.0.1", drain_timeout=1) as tantor:
            print("port", tantor.port, flush=True)
            threading.Event().wait()
    """
    with script(source, tmp_path) as process:
        port = int(process.wait_for_line("port "))
        with socket.create_connection(("127.0.0.1", port), 20) as connection, WebSocketClient(port).greet():
            os.kill(process.process.pid, signal.SIGSTOP)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            until = time.monotonic() + 3  # longer than a connection is given to close
            eventually(lambda: time.monotonic() > until, "time stands still")
            os.kill(process.process.pid, signal.SIGCONT)
            assert read_http_response(connection)[0] == 200
