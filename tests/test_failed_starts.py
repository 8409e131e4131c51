"""A start that fails leaves nothing behind, whichever of its steps fails."""

import os
import socket
from pathlib import Path

import pytest
from processes import run_python
from tantor import Tantor

# as another user, because the limit of processes does not hold for root
SOURCE = """
import os, resource, socket, sys, threading

import asyncio, json, logging, sqlite3, websockets.sync.client
from tantor import Tantor
from tantor.client import send

os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(65534)
os.setuid(65534)

def threads():
    return len(os.listdir("/proc/self/task"))

def eventually(condition):
    import time
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, threads()
        time.sleep(0.01)

hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
before = threads()
failures = 0
for allowed in range(12):
    told = []
    tantor = Tantor(0, "127.0.0.1", shards=3, database=f"sqlite:///{allowed}.db", drain_timeout=1)
    tantor.on_event("say", lambda data: told.append(data["data"]))
    resource.setrlimit(resource.RLIMIT_NPROC, (before + allowed, hard))
    try:
        tantor.start_background()
    except Exception as error:
        failures += 1
        print(allowed, type(error).__name__, error)
        assert not tantor.is_running
        assert tantor.port == 0, "no port is open"
        eventually(lambda: threads() == before)
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    tantor.start_background()
    send(f"ws://127.0.0.1:{tantor.port}", "jungle", "say", allowed)
    eventually(lambda: told == [allowed])
    asyncio.run(tantor.stop())
    tantor._close_storage(10)
    eventually(lambda: threads() == before)
print("failures", failures)
"""


@pytest.mark.alone
@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="only root can become another user")
def test_a_start_that_can_have_no_more_threads_undoes_all_that_was_started(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o011)
    done = run_python(SOURCE, tmp_path, timeout=100)
    assert done.returncode == 0, (done.stdout, done.stderr)
    failures = int(done.stdout.rpartition("failures ")[2])
    # the database's thread, three shards, the server's and the handlers'
    assert failures >= 6, done.stdout


def test_a_start_on_a_taken_port_lets_go_of_the_database(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = Tantor(taken.getsockname()[1], "127.0.0.1", database=database)
        with pytest.raises(OSError, match="cannot listen on 127"):
            server.start_background()
        other = Tantor(0, "127.0.0.1", database=database)
        other.broadcast("jungle", "news", durable=True).result()
        other._close_storage(10)
    assert not server.is_running
