"""The database of a process: where its setting comes from, forks, and who has the file."""

import json
import logging
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from processes import QUIET_FORK, run_python, script
from stored import locked_by_another, numbers
from support import WebSocketClient, eventually, http_request
from tantor import Tantor, init_tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


def test_the_database_comes_from_flask_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    app = Flask(__name__)
    app.config["TANTOR_CONFIG"] = {"database": f"sqlite:///{tmp_path}/flask.db", "port": free_port}
    with init_tantor(app) as tantor:
        tantor.broadcast("chat", "message", durable=True).result(10)
        assert tantor.stats()["storage"]["path"] == f"{tmp_path}/flask.db"
        status, _, body = http_request(tantor.port, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (status, json.loads(body)["status"]) == (200, "ok")
    monkeypatch.setenv("TANTOR_DATABASE", f"sqlite:///{tmp_path}/environment.db")
    assert Tantor().stats()["storage"]["path"] == f"{tmp_path}/environment.db"
    assert not (tmp_path / "environment.db").exists(), "making one opens nothing"


FORKED = """
    import os, sys
    from tantor import ForkedError, StorageError, Tantor

    folder = sys.argv[1]
    tantor = Tantor(port=0, host="127.0.0.1", database=f"sqlite:///{folder}/tantor.db").start_background()
    tantor.on_event("message", print)

    def what_a_child_can_do():
        try:
            tantor.broadcast("chat", "message", {"n": 1})
        except ForkedError as error:
            yield "forked"
        other = Tantor(database=f"sqlite:///{folder}/tantor.db")
        try:
            other.broadcast("chat", "message")
        except StorageError as error:
            yield "in use" if f"process {os.getppid()} uses it" in str(error) else str(error)
        with Tantor(port=0, host="127.0.0.1", database=f"sqlite:///{folder}/own.db") as own:
            own.broadcast("chat", "message", durable=True).result(10)
            yield "own"

    for number in range(30):
        tantor.broadcast("chat", "message", {"n": number})
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, ",".join(what_a_child_can_do()).encode())
            sys.exit()
        os.close(write)
        with open(read) as said:
            print(said.read(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    tantor.broadcast("chat", "message", {"n": 30}, durable=True).result(10)
    print([publication["data"]["n"] for publication in tantor.history("chat").result().publications])
"""


def test_forked_children_have_their_own_or_an_error(tmp_path: Path) -> None:
    """A child's own threads once crashed on what the parent's had left in a table of locks."""
    ended = run_python(textwrap.dedent(FORKED), tmp_path, options=("-W", "ignore::DeprecationWarning"))
    assert ended.returncode == 0, ended.stderr
    *children, kept = ended.stdout.splitlines()
    assert children == ["forked,in use,own 0"] * 30
    assert kept == str(list(range(31)))


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_a_fork_closes_none_of_the_application_s_files(tmp_path: Path) -> None:
    """Though Python's own SQLite had the database open, and its descriptors were given to other files since."""
    source = f"""
        import os, sqlite3
        from tantor import Tantor
        file = "{tmp_path}/tantor.db"
        tantor = Tantor(port=0, database=f"sqlite:///{{file}}")
        tantor.broadcast("jungle", "news", 1)
        tantor._close_storage(10)
        connection, kept = sqlite3.connect(file), sqlite3.connect(file)
        for one in (connection, kept):
            one.execute("SELECT count(*) FROM streams").fetchall()
        tantor.broadcast("jungle", "news", 2, durable=True).result()
        connection.close()
        files = [open(__file__ if "__file__" in globals() else os.devnull) for _ in range(8)]
        pid = os.fork()
        if pid == 0:
            for one in files:
                os.fstat(one.fileno())
            kept.execute("SELECT count(*) FROM streams").fetchall()
            assert not [name for name in os.listdir("/proc/self/fd") if is_the_lock(name)]
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    """
    source = source.replace(
        "        from tantor",
        """        def is_the_lock(name):
            try:
                return os.readlink(f"/proc/self/fd/{name}").endswith("-lock")
            except OSError:
                return False
        from tantor""",
        1,
    )
    ended = run_python(textwrap.dedent(source), options=QUIET_FORK)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_file_is_free_once_its_process_was_killed_though_a_fork_of_it_lives(tmp_path: Path, database: str) -> None:
    source = f"""
        import os, time
        from tantor import Tantor
        tantor = Tantor(database={database!r})
        tantor.broadcast("chat", "message", {{"n": 0}}, durable=True).result(10)
        if os.fork() == 0:
            print("forked", flush=True)
            time.sleep(60)
        print("ready", flush=True)
        time.sleep(60)
    """
    with script(source, tmp_path) as parent:
        parent.wait_for_line("forked")
        parent.wait_for_line("ready")
        parent.process.kill()
        parent.process.wait(30)
        tantor = Tantor(database=database)
        assert numbers(tantor, "chat") == [0]
        tantor._close_storage(10)


def test_a_server_in_trouble_says_so_once(
    make_server: MakeServer, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = make_server(database=database)
    server.broadcast("chat", "message", durable=True).result(10)

    def errors() -> list[str]:
        found = [record for record in caplog.records if record.name == "tantor.storage" and record.levelname == "ERROR"]
        return [record.getMessage() for record in found]

    with locked_by_another(tmp_path / "tantor.db", tmp_path):
        server.broadcast("chat", "message")
        eventually(errors, "a line in the log")
    eventually(lambda: "can be written again" in caplog.text, "a line in the log")
    assert len(errors()) == 1
    assert "tantor.db cannot be written: database is locked" in errors()[0]
