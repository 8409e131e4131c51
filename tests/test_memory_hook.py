"""Flask-TSK's `Memory`, or the application's own: it is handed what is sent, as the original did, off the hot path."""

import json
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import run_python, script_environment
from support import TESTS, WebSocketClient, eventually, missing
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


class Recorder:
    """A Memory that records its calls and their threads."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any, Any]] = []
        self.threads: set[str] = set()

    def remember(self, key: str, value: Any, ttl: int) -> None:
        self.threads.add(threading.current_thread().name)
        self.entries.append((key, value, ttl))


class Held(Recorder):
    """A Memory that waits for a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.has_begun = threading.Event()

    def remember(self, key: str, value: Any, ttl: int) -> None:
        self.has_begun.set()
        self.gate.wait(30)
        super().remember(key, value, ttl)


def package(folder: Path, memory: str) -> dict[str, str]:
    """A package `tsk_flask` with this `memory` module; the environment in which it is found."""
    (folder / "tsk_flask").mkdir()
    (folder / "tsk_flask" / "__init__.py").write_text("")
    (folder / "tsk_flask" / "memory.py").write_text(textwrap.dedent(memory))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)])}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of the storage from warnings on; others may log meanwhile."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "tantor.storage" and record.levelno >= logging.WARNING
    ]


# A Memory that the application sets


def test_what_is_sent_is_handed_over_with_the_originals_key_value_and_ttl(server: Tantor) -> None:
    memory = Recorder()
    server.memory = memory
    text = server.send("user-7", "hello").result()
    fields = server.send("user-7", {"action": "go", "n": 1}, channel="news").result()
    sent = server.emergency("fire")
    eventually(lambda: len(memory.entries) == 3, lambda: memory.entries)
    first, second, third = memory.entries
    assert (first[0], first[2]) == (f"tantor_msg_{text}", 3600)
    assert {**first[1], "timestamp": 0} == {
        "id": text,
        "channel": "jungle",
        "message": "hello",
        "timestamp": 0,
        "sender": "tantor",
    }
    assert (second[0], second[2]) == (f"tantor_msg_{fields}", 3600)
    assert {**second[1], "timestamp": 0} == {
        "id": fields,
        "channel": "news",
        "action": "go",
        "n": 1,
        "timestamp": 0,
        "sender": "tantor",
    }
    assert (third[0], third[2]) == (f"tantor_emergency_{int(third[1]['timestamp'])}", 86_400)
    assert {**third[1], "timestamp": 0} == {"message": "fire", "timestamp": 0, "recipients": sent.value}
    assert all(abs(value["timestamp"] - time.time()) < 60 for _, value, _ in memory.entries)


def test_the_fields_of_a_message_win_as_on_the_wire(server: Tantor) -> None:
    memory = Recorder()
    server.memory = memory
    sent = server.send("user-7", {"id": "mine", "sender": "me", "client_id": "her"}).result()
    eventually(lambda: memory.entries, "an entry")
    key, value, _ = memory.entries[0]
    assert key == f"tantor_msg_{sent}"
    assert (value["id"], value["sender"], value["client_id"]) == ("mine", "me", "her")


def test_the_times_to_live_are_those_of_the_settings_in_whole_seconds(make_server: MakeServer) -> None:
    server = make_server(message_ttl=0.5, emergency_ttl=7)
    memory = Recorder()
    server.memory = memory
    server.send("user-7", "hello")
    server.emergency("fire")
    eventually(lambda: len(memory.entries) == 2, lambda: memory.entries)
    assert [ttl for _, _, ttl in memory.entries] == [1, 7]


def test_broadcasts_are_not_handed_over_as_with_the_original(server: Tantor) -> None:
    memory = Recorder()
    server.memory = memory
    server.broadcast("jungle", "news", {"n": 1})
    server.send("user-7", "hello")
    eventually(lambda: memory.entries, "an entry")
    assert [key.split("_")[1] for key, _, _ in memory.entries] == ["msg"]


def test_a_message_that_is_refused_is_not_handed_over(server: Tantor) -> None:
    memory = Recorder()
    server.memory = memory
    with pytest.raises(ValueError, match="client_id is empty"):
        server.send("", "hello")
    with pytest.raises(TypeError):
        server.send("user-7", {"bad": {1, 2}})
    server.send("user-7", "good")
    eventually(lambda: memory.entries, "an entry")
    assert [value["message"] for _, value, _ in memory.entries] == ["good"]


def test_a_memory_that_raises_is_logged_and_harms_nothing(
    server: Tantor, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Recorder):
        def remember(self, key: str, value: Any, ttl: int) -> None:
            super().remember(key, value, ttl)
            raise RuntimeError("the cache is gone")

    client = connect(server)
    memory = Failing()
    server.memory = memory
    with caplog.at_level(logging.ERROR, "tantor.storage"):
        ids = [server.send(client.client_id, {"n": number}).result() for number in range(3)]
        eventually(lambda: len(said(caplog)) == 3, lambda: caplog.text)
    assert [client.receive_until(n=number)["id"] for number in range(3)] == ids
    assert said(caplog) == [f"Memory did not remember tantor_msg_{each}" for each in ids]
    assert "the cache is gone" in caplog.text


def test_a_slow_memory_holds_nobody_up_and_gets_all_in_order(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    memory = Held()
    server.memory = memory
    for number in range(1000):
        server.send(client.client_id, {"n": number})
    assert client.receive_until(n=999)
    assert memory.has_begun.wait(10)
    assert memory.entries == []
    memory.gate.set()
    eventually(lambda: len(memory.entries) == 1000, lambda: len(memory.entries))
    assert [value["n"] for _, value, _ in memory.entries] == list(range(1000))
    assert memory.threads == {"tantor-memory"}


def test_what_a_memory_is_behind_with_is_bounded_and_that_is_said_once(
    server: Tantor, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Held()
    server.memory = memory
    with caplog.at_level(logging.WARNING, "tantor.storage"):
        server.send("user-7", "first")
        assert memory.has_begun.wait(10)
        for _ in range(10_500):
            server.send("user-7", "hello")
        memory.gate.set()
        eventually(lambda: len(memory.entries) == 10_001, lambda: len(memory.entries))
        eventually(lambda: len(said(caplog)) == 2, lambda: caplog.text)
    messages = said(caplog)
    assert len(messages) == 2
    assert messages[0].startswith("Memory is behind: tantor_msg_")
    assert messages[1] == "Memory has caught up: 500 entries were not remembered"


def test_the_thread_ends_when_nothing_comes_and_begins_again(server: Tantor) -> None:
    def is_running() -> bool:
        return any(thread.name == "tantor-memory" for thread in threading.enumerate())

    memory = Recorder()
    server.memory = memory
    for count in (1, 2):
        server.send("user-7", "hello")
        eventually(lambda count=count: len(memory.entries) == count, lambda: memory.entries)
        eventually(lambda: not is_running(), "the thread still runs")


def test_without_a_memory_there_is_no_thread(server: Tantor) -> None:
    # the thread of a test before this one may be about to end
    before = set(threading.enumerate())
    server.send("user-7", "hello")
    assert server.memory is None
    assert all(thread.name != "tantor-memory" for thread in set(threading.enumerate()) - before)


# The end of the process, and forks


def test_the_end_of_the_process_waits_for_what_is_still_to_be_handed_over() -> None:
    ended = run_python(
        """
        import time
        from tantor import Tantor
        class Slow:
            def remember(self, key, value, ttl):
                time.sleep(0.01)
                print(value["n"], flush=True)
        tantor = Tantor(port=0)
        tantor.memory = Slow()
        for number in range(50):
            tantor.send("user-7", {"n": number})
        """.replace("\n        ", "\n")
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.split() == [str(number) for number in range(50)]


def test_what_is_sent_while_the_interpreter_ends_is_handed_over() -> None:
    # Python 3.12 starts no thread any more by then
    source = """
        import atexit, os
        from tantor import Tantor
        class Memory:
            def remember(self, key, value, ttl):
                os.write(1, (value["message"] + "\\n").encode())  # as one
        def send():
            for n in range(3):
                tantor.send("client", f"last {n}")
            os.write(1, b"sent\\n")
        tantor = Tantor(port=0, host="127.0.0.1")
        tantor.memory = Memory()
        with tantor:
            pass
        atexit.register(send)
    """
    ended = run_python(textwrap.dedent(source))
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr
    assert sorted(ended.stdout.splitlines()) == ["last 0", "last 1", "last 2", "sent"]


def test_the_end_of_the_process_does_not_wait_for_a_memory_that_hangs() -> None:
    ended = run_python(
        """
        import threading
        from tantor import Tantor
        class Hanging:
            def remember(self, key, value, ttl):
                threading.Event().wait()
        with Tantor(port=0, host="127.0.0.1") as tantor:
            tantor.memory = Hanging()
            tantor.send("user-7", "hello")
        print("done")
        """.replace("\n        ", "\n")
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_hands_over_what_it_sends_itself() -> None:
    ended = run_python(
        """
        import os, warnings
        warnings.simplefilter("ignore")
        from tantor import Tantor
        class Printing:
            def remember(self, key, value, ttl):
                print(os.getpid() == parent, value["message"], flush=True)
        parent = os.getpid()
        tantor = Tantor(port=0)
        tantor.memory = Printing()
        tantor.send("user-7", "before")
        child = os.fork()
        if child == 0:
            tantor.send("user-7", "in the child")
        else:
            assert os.waitpid(child, 0)[1] == 0
        """.replace("\n        ", "\n")
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines()) == ["False in the child", "True before"]


# Flask-TSK's


FOUND = """
from tantor import Tantor
with Tantor(port=0, host="127.0.0.1") as tantor:
    print("found" if tantor.memory is not None else "none")
    tantor.send("user-7", "hello")
"""


def found(environment: dict[str, str]) -> str:
    ended = run_python(FOUND, environment=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize(
    "memory",
    [
        # the original calls it on the class
        """
        class Memory:
            def __init__(self, needed): raise AssertionError("it is not to be made")
            @classmethod
            def remember(cls, key, value, ttl): print(key[:15], value["message"], ttl, flush=True)
        """,
        """
        class Memory:
            @staticmethod
            def remember(key, value, ttl): print(key[:15], value["message"], ttl, flush=True)
        """,
        """
        class Memory:
            def remember(self, key, value, ttl): print(key[:15], value["message"], ttl, flush=True)
        """,
        """
        class Memory:
            is_shared = False
            def remember(self, key, value, ttl):
                assert self.is_shared
                print(key[:15], value["message"], ttl, flush=True)
        shared = Memory()
        shared.is_shared = True
        def get_memory(): return shared
        """,
        """
        class _Memory:
            def remember(self, key, value, ttl): print(key[:15], value["message"], ttl, flush=True)
        Memory = _Memory()
        """,
    ],
    ids=["classmethod", "staticmethod", "instance", "the shared one", "an object"],
)
def test_a_memory_that_remembers_is_found_however_it_is_made(tmp_path: Path, memory: str) -> None:
    assert found(package(tmp_path, memory)) == "found\ntantor_msg_msg_ hello 3600\n"


@pytest.mark.parametrize(
    "memory",
    [
        "",
        "Memory = None",
        "class Memory:\n    def get(self, key): ...",
        "class Memory:\n    remember = 7",
        "raise RuntimeError('broken')",
        "import a_module_that_is_not_there",
        "class Memory:\n    def __init__(self): raise RuntimeError('broken')\n    def remember(self, *entry): ...",
    ],
)
def test_a_memory_that_cannot_be_used_is_none(tmp_path: Path, memory: str) -> None:
    assert found(package(tmp_path, memory)) == "none\n"


def test_without_flask_tsk_there_is_none(tmp_path: Path) -> None:
    assert found({"PYTHONPATH": str(TESTS)}) == "none\n"


def test_the_applications_own_goes_before_flask_tsks(tmp_path: Path) -> None:
    environment = package(tmp_path, "class Memory:\n    def remember(self, key, value, ttl): print('theirs')")
    ended = run_python(
        FOUND.replace("with Tantor(", "tantor = Tantor(")
        .replace(") as tantor:", ")")
        .replace('    print("found" if tantor.memory is not None else "none")\n    tantor.send', "tantor.send")
        .replace(
            "tantor.send",
            "class Own:\n    def remember(self, *entry): print('own')\ntantor.memory = Own()\n"
            "tantor.start_background()\ntantor.send",
        ),
        environment=environment,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "own\n", "")


def test_importing_tantor_looks_for_no_memory(tmp_path: Path) -> None:
    environment = package(tmp_path, "print('imported')")
    ended = run_python("import tantor; tantor.Tantor(port=0)", environment=environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# The original, as Flask-TSK 2.0.4 has it. Its own `Memory` has no `remember`, so one is given to it; and it is not
# found there, for a module that is imported beside it is missing.

RECORDING = """
import asyncio, json, re, sys
import tsk_flask.memory
has_remember = hasattr(tsk_flask.memory.Memory, "remember")
entries = []
tsk_flask.memory.Memory.remember = staticmethod(lambda key, value, ttl: entries.append((key, value, ttl)))
"""

SAID = """
assert not has_remember
shown = [(re.sub("(?<=msg_)[0-9a-f]+|(?<=emergency_)[0-9]+", "N", key), list(value), value, ttl)
         for key, value, ttl in entries]
print("entries: " + json.dumps(shown))
"""

ORIGINAL = (
    RECORDING
    + """
import tsk_flask.herd.elephants.tantor as original
original.Memory = tsk_flask.memory.Memory
async def main():
    tantor = original.Tantor()
    tantor.connections["user-7"] = None
    await tantor.send("user-7", "hello")
    await tantor.send("user-7", {"n": 1, "channel": "mine"}, "news")
    await tantor.emergency("fire")
asyncio.run(main())
"""
    + SAID
)

OURS = (
    RECORDING
    + """
import tantor
with tantor.Tantor(port=0, host="127.0.0.1") as ours:
    ours.send("user-7", "hello")
    ours.send("user-7", {"n": 1, "channel": "mine"}, "news")
    ours.emergency("fire")
    assert ours._keeper.wait_empty(10)
"""
    + SAID
)


@pytest.fixture(scope="module")
def flask_tsk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Flask-TSK and what the original needs."""
    folder = tmp_path_factory.mktemp("flask-tsk")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", str(folder)]
    for packages in (["flask-tsk==2.0.4"], ["--no-deps", "--upgrade", "pyotp==2.9.0", "websockets==13.1"]):
        done = subprocess.run([*pip, *packages], capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            missing(f"a package index ({done.stderr.strip().splitlines()[-1:]})")
    return folder


def recorded(source: str, folder: Path) -> list[Any]:
    environment = script_environment({"PYTHONPATH": os.pathsep.join([str(folder), str(TESTS)])})
    ended = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line.startswith("entries: ")]
    entries = json.loads(line.removeprefix("entries: "))
    for _, _, value, _ in entries:
        assert abs(value.pop("timestamp") - time.time()) < 120
        if "id" in value:
            value["id"] = value["id"].startswith("msg_")
    assert isinstance(entries, list)
    return entries


def test_keys_values_and_times_are_the_originals(flask_tsk: Path) -> None:
    original, ours = recorded(ORIGINAL, flask_tsk), recorded(OURS, flask_tsk)
    assert len(original) == 3
    assert [(key, sorted(names), value, ttl) for key, names, value, ttl in ours] == [
        (key, sorted(names), value, ttl) for key, names, value, ttl in original
    ]
