"""Forks: children with servers of their own, and what they inherit."""

import os
from pathlib import Path

import pytest
from processes import script, works

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is missing")


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
            os.kill(pid, 6)  # SIGABRT makes the process print its stacks
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
    """A thread that holds the interpreter lock never waits for a thread that waits for a fork."""
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
