"""Whole processes: signals, exit with traffic flowing, forks, the interpreter lock held.

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
from support import (
    QUIET_FORK,
    WebSocketClient,
    accepts_connections,
    eventually,
    handshake_request,
    http_request,
    read_http_response,
    run_python,
    script,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")


def works(source: str, *options: str) -> str:
    """Run a script that must end well and say nothing on stderr; what it printed."""
    done = run_python(textwrap.dedent(source), options=(*QUIET_FORK, *options), timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    """Clients that send and read all the while, and come and go, until the server is gone."""
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


# Forks

CHILD = """
import os, sys, threading, time
from support import WebSocketClient, http_request
from tantor import Tantor

def serves(server):
    with WebSocketClient(server.port).greet() as client:
        server.broadcast("jungle", "news")
        client.receive_until(event="news")
    return True

def in_child(work, ending=os._exit):
    "Runs work in a fork; fails when it fails or does not end in time."
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        ending(0)
    deadline = time.monotonic() + 20
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, 6)  # it shows where it is
            os.waitpid(pid, 0)
            raise SystemExit("the child hung")
        time.sleep(0.01)
    assert status == 0, f"the child ended with {status}"

def make():
    return Tantor(port=0, host="127.0.0.1", drain_timeout=1)
"""


@needs_fork
@pytest.mark.parametrize("ending", ["os._exit", "sys.exit"])
def test_a_fork_before_the_start(ending: str) -> None:
    works(f"""{CHILD}
tantor = make()
tantor.subscribe("client_1", "den")

def work():
    assert tantor.get_presence("den")["users"] == ["client_1"]
    with tantor:
        assert serves(tantor)
    tantor.start_background()
    assert serves(tantor)

in_child(work, {ending})
with tantor:
    assert serves(tantor)
    in_child(lambda: None, {ending})
    assert serves(tantor)
""")


@needs_fork
@pytest.mark.parametrize("ending", ["os._exit", "sys.exit"])
def test_a_fork_after_the_start(ending: str) -> None:
    works(f"""{CHILD}
import asyncio
tantor = make()
tantor.start_background()
port = tantor.port
client = WebSocketClient(port).greet()

def work():
    calls = [
        lambda: tantor.send("client_1", "hello"),
        lambda: tantor.broadcast("jungle", "news"),
        lambda: tantor.subscribe("client_1", "den"),
        lambda: tantor.unsubscribe("client_1", "den"),
        lambda: tantor.emergency("fire"),
        lambda: tantor.get_presence("jungle"),
        lambda: tantor.stats(),
        lambda: tantor.get_client_info("client_1"),
        lambda: list(tantor.channels),
        lambda: list(tantor.connections),
        lambda: tantor.start_background(),
        lambda: asyncio.run(tantor.start()),
    ]
    for number, call in enumerate(calls):
        try:
            call()
        except RuntimeError as error:
            assert "fork" in str(error) and "process" in str(error), error
        else:
            raise SystemExit(f"call {{number}} was no error in the child")
    own = make()
    with own:
        assert own.port != port
        assert serves(own)
    own.start_background()
    assert serves(own)

in_child(work, {ending})
tantor.broadcast("jungle", "still here")
client.receive_until(event="still here")
assert serves(tantor)
asyncio.run(tantor.stop())
assert client.wait_closed() == 1001
""")


@needs_fork
def test_the_end_of_a_child_ends_nothing_of_its_parent() -> None:
    works(f"""{CHILD}
with make() as tantor:
    client = WebSocketClient(tantor.port).greet()
    for ending in (os._exit, sys.exit) * 2:
        in_child(lambda: None, ending)
        client.settle(tantor)
    def drop():
        global tantor
        del tantor
        __import__("gc").collect()
    in_child(drop, sys.exit)
    assert http_request(tantor.port, "GET /healthz HTTP/1.1\\r\\n\\r\\n")[0] == 200
    client.settle(tantor)
""")


@needs_fork
def test_a_port_is_free_after_a_stop_though_a_child_lives_on() -> None:
    works(f"""{CHILD}
tantor = make()
tantor.start_background()
port = tantor.port
pid = os.fork()
if pid == 0:
    time.sleep(60)
    os._exit(0)
try:
    __import__("asyncio").run(tantor.stop())
    again = Tantor(port, "127.0.0.1", drain_timeout=1)
    with again:
        assert serves(again)
finally:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
""")


@needs_fork
def test_forks_while_traffic_flows() -> None:
    works(f"""{CHILD}
with make() as tantor:
    stop = threading.Event()
    def publish():
        while not stop.is_set():
            tantor.broadcast("jungle", "news", {{"n": 1}})
            tantor.stats()
    threads = [threading.Thread(target=publish, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    def work():
        own = make()
        with own:
            assert serves(own)
    for ending in (os._exit, sys.exit) * 5:
        in_child(work, ending)
    stop.set()
    for thread in threads:
        thread.join()
    assert serves(tantor)
""")


@needs_fork
@pytest.mark.parametrize("is_saved", [False, True])
def test_forks_while_other_threads_start_save_and_stop(is_saved: bool, tmp_path: Path) -> None:
    works(f"""{CHILD}
import itertools
names = itertools.count()
def make_one(name):
    database = f"sqlite:///{tmp_path}/{{name}}.db" if {is_saved} else ""
    return Tantor(port=0, host="127.0.0.1", drain_timeout=1, database=database)
stop = threading.Event()
failures = []
def churn(name):
    try:
        while not stop.is_set():
            with make_one(name) as one:
                for number in range(20):
                    one.broadcast("jungle", "news", number)
                one.broadcast("jungle", "news", durable={is_saved}).result()
    except BaseException as error:
        failures.append(error)
threads = [threading.Thread(target=churn, args=(f"thread {{number}}",)) for number in range(2)]
for thread in threads:
    thread.start()
def work():
    with make_one(f"child {{next(names)}}") as own:
        assert serves(own)
try:
    for _ in range(100):
        in_child(work)
        next(names)
finally:
    stop.set()
    for thread in threads:
        thread.join()
assert not failures, failures
""")


@needs_fork
def test_forks_while_servers_are_looked_at_start_and_are_let_go(tmp_path: Path) -> None:
    """Whoever has the interpreter's lock waits for nobody who waits for a fork."""
    works(f"""{CHILD}
import gc
current = idle = make()
stop = threading.Event()
def look():
    while not stop.is_set():
        current.port, current.is_running, current.stats(), idle.is_running
def fork():
    while not stop.is_set():
        in_child(lambda: idle.is_running)
threads = [threading.Thread(target=look), threading.Thread(target=fork)]
for thread in threads:
    thread.start()
try:
    for number in range(60):
        name = f"{tmp_path}/{{number % 3}}.db"
        current = Tantor(port=0, host="127.0.0.1", drain_timeout=0.1, database=f"sqlite:///{{name}}")
        with current:
            current.broadcast("jungle", "news", number, durable=True).result()
        current.broadcast("jungle", "news", number)
        current = make()
        gc.collect()
finally:
    stop.set()
    for thread in threads:
        thread.join()
""")


@needs_fork
@pytest.mark.parametrize("begin", ["t.start_background()", "t.broadcast('jungle', 'news')"])
def test_a_fork_in_the_middle_of_a_beginning_hangs_in_no_call_and_at_no_end(begin: str, tmp_path: Path) -> None:
    works(f"""{CHILD}
from tantor import ForkedError
database = "sqlite:///{tmp_path}/tantor.db"
def make_one():
    return Tantor(port=0, host="127.0.0.1", drain_timeout=0.1, database=database)
t = make_one()
for number in range(20_000):
    t.broadcast("jungle", "news", number, idempotency_key=str(number))
t._close_storage(30)
told = 0
for number in range(24):
    t = make_one()
    thread = threading.Thread(target=lambda: {begin})
    thread.start()
    time.sleep(number * 0.003)
    read, write = os.pipe()
    def work():
        try:
            t.port
        except ForkedError:
            os.write(write, b"x")
        else:
            return  # forked before: here it may be used like any other
        for call in (lambda: t.is_running, lambda: t.broadcast("jungle", "news"), t.stats, lambda: t.history("", 0)):
            try:
                call()
            except ForkedError:
                continue
            raise SystemExit("it was no error")
    in_child(work, sys.exit)
    os.close(write)
    told += len(os.read(read, 10))
    os.close(read)
    thread.join()
    t._begin_stop()
    assert t._wait_stopped(15)
    t._close_storage(15)
assert told > 0, "some were forked in the middle of it"
""")


@needs_fork
def test_an_application_s_own_hook_may_start_a_server_in_the_child() -> None:
    works(f"""{CHILD}
own = None
def begin():
    global own
    own = make()
    own.start_background()
os.register_at_fork(after_in_child=begin)
with make() as tantor:
    in_child(lambda: serves(own))
    assert serves(tantor)
""")


@needs_fork
def test_a_child_keeps_its_standard_streams(tmp_path: Path) -> None:
    """Though SQLite has plugged those that were closed at the start."""
    works(f"""
import os
os.close(0)
os.close(1)
{CHILD}
tantor = Tantor(port=0, database="sqlite:///{tmp_path}/tantor.db")
tantor.broadcast("jungle", "news", durable=True).result()
os.dup2(os.open("{tmp_path}/log", os.O_CREAT | os.O_WRONLY), 1)
in_child(lambda: os.write(1, b"still open"))
assert open("{tmp_path}/log").read() == "still open"
""")


@needs_fork
def test_a_lock_of_the_application_may_be_taken_before_a_fork_and_held_over_a_commit(tmp_path: Path) -> None:
    works(f"""
import os, threading
lock = threading.Lock()
os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
{CHILD}
tantor = Tantor(port=0, database="sqlite:///{tmp_path}/tantor.db")
stop = threading.Event()
def publish():
    while not stop.is_set():
        with lock:
            tantor.broadcast("jungle", "news", durable=True).result()
thread = threading.Thread(target=publish)
thread.start()
try:
    for _ in range(5):
        in_child(lambda: None)
finally:
    stop.set()
    thread.join()
""")


@pytest.mark.parametrize("method", [pytest.param("fork", marks=needs_fork), "spawn"])
def test_multiprocessing(method: str, tmp_path: Path) -> None:
    source = f"""
import multiprocessing
from support import WebSocketClient
from tantor import Tantor

def serve(queue):
    with Tantor(port=0, host="127.0.0.1", drain_timeout=1) as server:
        with WebSocketClient(server.port).greet() as client:
            queue.put(server.broadcast("jungle", "news").result())

def run(context):
    queue = context.Queue()
    process = context.Process(target=serve, args=(queue,))
    process.start()
    assert queue.get(timeout=30) == 1
    process.join(30)
    assert process.exitcode == 0, process.exitcode

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    tantor = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
    run(context)
    with tantor:
        run(context)
        with WebSocketClient(tantor.port).greet() as client:
            client.settle(tantor)
    run(context)
    print("good")
"""
    with script(source, tmp_path) as process:
        assert process.wait(90) == 0, process.output
        assert process.output.splitlines() == ["good"]


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
