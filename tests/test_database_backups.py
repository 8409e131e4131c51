"""`tantor backup` and `tantor restore`, and an older copy in the place of a database."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import script_environment
from stored import history_of, rows, stop
from support import WebSocketClient
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tantor", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env=script_environment({}),
        check=False,
    )


def publish(server: Tantor, first: int, last: int) -> None:
    for number in range(first, last + 1):
        server.broadcast("chat", "message", {"n": number}, durable=True).result(10)


@pytest.mark.parametrize("way", ["command", "copy"])
def test_a_client_is_told_of_what_a_restored_backup_has_lost(
    make_server: MakeServer, database: str, tmp_path: Path, connect: Connect, way: str
) -> None:
    file, backup = tmp_path / "tantor.db", tmp_path / "backup.db"
    first = make_server(database=database, durable=True)
    publish(first, 1, 50)
    made = command("backup", file, backup)
    assert made.returncode == 0, made.stderr
    publish(first, 51, 80)
    seen = history_of(first, "chat")
    assert seen.offset == 80
    stop(first)
    if way == "command":
        restored = command("restore", backup, file)
        assert restored.returncode == 0, restored.stderr
    else:
        shutil.copy(backup, file)
    second = make_server(database=database, durable=True)
    publish(second, 51, 110)
    client = connect(second)
    client.action("join_channel", channel="chat", ref=1, recover={"epoch": seen.epoch, "offset": seen.offset})
    reply = client.receive_until(event="reply")
    assert reply["recovered"] is False, reply
    assert reply["epoch"] != seen.epoch
    assert reply["offset"] == 110


def test_a_backup_is_made_while_the_server_publishes(make_server: MakeServer, database: str, tmp_path: Path) -> None:
    server = make_server(database=database)
    file, backup = tmp_path / "tantor.db", tmp_path / "backup.db"
    publish(server, 1, 10)
    assert command("backup", file, backup).returncode == 0
    assert len(rows(backup, "SELECT * FROM tantor_messages")) == 10
    publish(server, 11, 20)
    used = command("restore", backup, file)
    assert used.returncode == 1
    assert "uses it" in used.stderr
    again = command("backup", file, backup)
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_a_kill_costs_no_epoch_where_nothing_was_published(tmp_path: Path, database: str) -> None:
    source = """
        import os, signal, sys
        from tantor import Tantor
        tantor = Tantor(port=0, host="127.0.0.1", database=sys.argv[1]).start_background()
        tantor.broadcast("chat", "message", {"n": 1})
        epochs = [tantor.history(name).result().epoch for name in ("jungle", "chat")]
        tantor.broadcast("durable", "message", durable=True).result(10)
        print(*epochs, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    script = tmp_path / "script.py"
    script.write_text("\n".join(line.removeprefix("        ") for line in source.splitlines()))
    runs = []
    for _ in range(3):
        ended = subprocess.run(
            [sys.executable, script, database],
            capture_output=True,
            text=True,
            timeout=60,
            env=script_environment({}),
            check=False,
        )
        runs.append(ended.stdout.split())
        assert len(runs[-1]) == 2, ended.stderr
    quiet, published = zip(*runs, strict=True)
    assert len(set(quiet)) == 1, "nothing was published there"
    assert len(set(published)) == len(runs), "something may have been lost there"
