"""For the tests of the database: its content, read by the server and by another process."""

import contextlib
import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processes import run_python, script
from support import WebSocketClient
from tantor import History, Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


def history_of(tantor: Tantor, channel: str, **page: Any) -> History:
    return tantor.history(channel, **page).result()


def numbers(tantor: Tantor, channel: str) -> list[Any]:
    return [publication["data"]["n"] for publication in history_of(tantor, channel, limit=100_000).publications]


def rows(file: Path, sql: str) -> list[dict[str, Any]]:
    """Return rows as another process reads them."""
    source = """
        import json, sqlite3, sys
        connection = sqlite3.connect(sys.argv[1])
        connection.row_factory = sqlite3.Row
        print(json.dumps([dict(row) for row in connection.execute(sys.argv[2])]))
    """
    ended = run_python(textwrap.dedent(source), file, sql)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert isinstance(found, list)
    return found


@contextlib.contextmanager
def locked_by_another(file: Path, folder: Path) -> Iterator[None]:
    """Hold the write lock of the file in another process."""
    source = f"""
        import sqlite3, time
        connection = sqlite3.connect({str(file)!r}, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        print("locked", flush=True)
        time.sleep(60)
    """
    with script(source, folder) as other:
        other.wait_for_line("locked")
        yield


def stop(tantor: Tantor) -> None:
    tantor._begin_stop()
    assert tantor._wait_stopped(15)
