"""What becomes of what is saved when the process is killed, the disk full, the file damaged or in use."""

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Script, run_python
from stored import history_of, locked_by_another, rows
from support import WebSocketClient, eventually, lose
from tantor import StorageError, Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


# A kill

PUBLISH_UNTIL_KILLED = """
    import sys
    from tantor import Tantor

    tantor = Tantor(port=0, host="127.0.0.1", database=sys.argv[1], channel_settings={"durable": {"durable": True}},
        history_size=1_000_000).start_background()
    first = int(sys.argv[2])
    position = tantor.history("plain").result()
    print("epoch", position.epoch, position.offset, flush=True)
    for number in range(first, 10_000_000):
        tantor.broadcast("plain", "message", {"n": number})
        tantor.send("client_away", {"n": number})
        tantor.broadcast("durable", "message", {"n": number}).result()
        tantor.broadcast("called", "message", {"n": number}, durable=True).result()
        print("saved", number, flush=True)
"""


def test_what_was_acknowledged_is_there_after_twenty_kills(tmp_path: Path, database: str) -> None:
    file = tmp_path / "publish.py"
    file.write_text(textwrap.dedent(PUBLISH_UNTIL_KILLED))
    saved: set[int] = set()
    first = 0
    epochs: dict[str, int] = {}
    for kill in range(20):
        with script_with(file, tmp_path / f"log {kill}", database, first) as publisher:
            epoch, offset = publisher.wait_for_line("epoch").split()
            assert epoch not in epochs, "a kill may have lost publications of this channel"
            epochs[epoch] = int(offset)
            publisher.wait_for_line(f"saved {first + 5 + kill * 3}")
            publisher.process.kill()
            publisher.process.wait(30)
            lines = [line for line in publisher.output.splitlines(keepends=True) if line.endswith("\n")]
        saved |= {int(line.split()[1]) for line in lines if line.startswith("saved")}
        first = max(saved) + 2  # the one after the last may be saved or not
        assert rows(tmp_path / "tantor.db", "PRAGMA integrity_check") == [{"integrity_check": "ok"}]
    tantor = Tantor(database=database, history_size=1_000_000)
    for channel in ("durable", "called"):
        kept = history_of(tantor, channel, limit=1_000_000)
        offsets = [publication["offset"] for publication in kept.publications]
        assert offsets == sorted(set(offsets)), "no offset comes twice"
        found = [publication["data"]["n"] for publication in kept.publications]
        assert len(found) == len(set(found))
        assert saved <= set(found), f"lost: {sorted(saved - set(found))}"
    token = tantor.resume_token("client_away")
    with tantor, WebSocketClient(tantor.port, f"/?resume={token}") as client:
        client.greet()
        mail = [client.receive()["n"] for _ in range(client.welcome["waiting"])]
        assert mail == sorted(set(mail)), "in order, none twice"
        assert set(mail) >= saved - set(range(first - 1000)), "what was sent before a durable call is saved with it"


def script_with(file: Path, log: Path, *arguments: object) -> Any:
    return Script([sys.executable, str(file), *map(str, arguments)], log=log)


FILL_UNTIL_KILLED = """
    import sys
    from tantor import StorageError, Tantor

    tantor = Tantor(port=0, host="127.0.0.1", database=sys.argv[1], database_bytes=1 << 20, history_bytes=1 << 20,
        durable_bytes=1 << 18, mailboxes_bytes=1 << 18, history_size=1_000_000,
        channel_settings={"durable": {"durable": True}}).start_background()
    for number in range(int(sys.argv[2]), 10_000_000):
        tantor.broadcast(f"plain {number % 100}", "message", {"n": number, "x": "x" * 3000})
        tantor.send(f"client_{number % 100}", {"n": number, "x": "x" * 3000})
        try:
            tantor.broadcast("durable", "message", {"n": number, "x": "x" * 300}).result(20)
        except StorageError:
            print("refused", number, flush=True)
        else:
            print("saved", number, flush=True)
"""


def test_what_was_acknowledged_is_there_after_ten_kills_with_every_budget_exhausted(
    tmp_path: Path, database: str
) -> None:
    file = tmp_path / "fill.py"
    file.write_text(textwrap.dedent(FILL_UNTIL_KILLED))
    saved: set[int] = set()
    refused: set[int] = set()
    first = 0
    for kill in range(10):
        with script_with(file, tmp_path / f"log {kill}", database, first) as publisher:
            last = first + 100 + kill * 3
            eventually(lambda last=last, output=publisher: f" {last}\n" in output.output, "it has published", 60)
            publisher.process.kill()
            publisher.process.wait(30)
            lines = [line.split() for line in publisher.output.splitlines(keepends=True) if line.endswith("\n")]
        numbers = {word: {int(line[1]) for line in lines if line[0] == word} for word in ("saved", "refused")}
        saved |= numbers["saved"]
        refused |= numbers["refused"]
        first = max(saved | refused) + 2
    assert saved
    assert refused, "the budgets were exhausted"
    tantor = Tantor(database=database, history_size=1_000_000, durable_bytes=1 << 20)
    kept = {publication["data"]["n"] for publication in history_of(tantor, "durable", limit=1_000_000).publications}
    assert saved <= kept, f"lost: {sorted(saved - kept)}"


# Files that cannot be used


def test_a_file_that_is_no_database_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "tantor.db").write_text("not a database " * 100)
    tantor = Tantor(port=0, database=f"sqlite:///{tmp_path / 'tantor.db'}")
    for call in (tantor.start_background, lambda: tantor.broadcast("chat", "message")):
        with pytest.raises(StorageError, match=r"tantor\.db: .*not a database; move the file away"):
            call()
    assert isinstance(StorageError(), OSError)
    assert not tantor.is_running


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("tantor.db", "it has no scheme"),
        ("postgresql://localhost/x", "no database that is known"),
        ("sqlite:///", "it names no file"),
        ("sqlite://host/x", "sqlite has no host"),
    ],
)
def test_an_address_that_is_none_is_told_at_once(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"database is .*{problem}"):
        Tantor(database=url)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    tantor = Tantor(database=f"sqlite:///{tmp_path / 'missing' / 'tantor.db'}")
    with pytest.raises(StorageError, match=f"there is no folder {tmp_path / 'missing'}"):
        tantor.start_background()


def test_a_file_in_use_names_its_user(make_server: MakeServer, database: str) -> None:
    make_server(database=database)
    second = Tantor(port=0, database=database)
    with pytest.raises(StorageError, match=f"process {os.getpid()} uses it; one Tantor at a time can"):
        second.start_background()


READ_ONLY = """
    import os, sys
    import tantor
    from tantor import StorageError, Tantor
    folder = sys.argv[1]
    first = Tantor(database=f"sqlite:///{folder}/tantor.db")
    first.broadcast("chat", "message")
    first._close_storage(10)
    for name in os.listdir(folder):
        os.chmod(os.path.join(folder, name), 0o444)
    os.chmod(folder, 0o555)
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        first.broadcast("chat", "message")
    except StorageError as error:
        print(error)
    os._exit(0)
"""


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    # whoever this runs as has to come to it
    for parent in [folder, *folder.parents]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    ended = run_python(textwrap.dedent(READ_ONLY), folder)
    folder.chmod(0o755)
    assert "cannot open the database" in ended.stdout, (ended.stdout, ended.stderr)
    assert "denied" in ended.stdout


FULL_DISK = """
    import logging, resource, signal, sys, time
    from support import WebSocketClient, eventually
    from tantor import StorageError, Tantor

    logged = []
    logging.getLogger("tantor.storage").addFilter(lambda record: logged.append(record.levelname) or True)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    tantor = Tantor(port=0, host="127.0.0.1", database=sys.argv[1]).start_background()
    client = WebSocketClient(tantor.port).greet()
    tantor.broadcast("jungle", "message", {"n": 0}, durable=True).result(10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
    for number in range(1, 100):
        try:
            tantor.broadcast("jungle", "message", {"n": number, "x": "x" * 100_000}, durable=True).result(10)
        except StorageError as error:
            print("failed", error)
            break
    storage = tantor.stats()["storage"]
    print("degraded", storage["degraded"], "lost", storage["changes_lost"] > 0, "error", storage["error"])
    # live delivery goes on
    tantor.broadcast("jungle", "message", {"n": "after", "x": "x" * 100_000})
    client.receive_until(lambda message: message.get("data", {}).get("n") == "after")
    print("delivered")
    eventually(lambda: "ERROR" in logged, "it is logged")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    eventually(lambda: not tantor.stats()["storage"]["degraded"], "it recovers")
    tantor.broadcast("jungle", "message", {"n": "saved"}, durable=True).result(10)
    eventually(lambda: "INFO" in logged or "WARNING" in logged, "that is logged, too")
    print("recovered")
"""


def test_a_full_disk_degrades_and_live_delivery_goes_on(database: str) -> None:
    ended = run_python(textwrap.dedent(FULL_DISK), database)
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    lines = ended.stdout.splitlines()
    assert any(line.startswith("failed the database") for line in lines), lines
    assert any(line.startswith("degraded True lost True error the database") for line in lines), lines
    assert "delivered" in lines
    assert "recovered" in lines


def test_a_file_that_has_its_fill_is_a_full_disk(make_server: MakeServer, database: str) -> None:
    server = make_server(database=database, database_bytes=1 << 20, history_size=100_000)
    # nobody waits for these
    for _ in range(100):
        server.broadcast("chat", "message", "x" * 50_000)
    with pytest.raises(StorageError, match="full"):
        server.broadcast("chat", "message", "x" * 50_000, durable=True).result(10)
    assert server.stats()["storage"]["file_bytes"] < 64 << 20


def test_a_small_file_recovers_by_itself(make_server: MakeServer, database: str) -> None:
    """More than fits passes through the file: what goes out of the history makes room, and nothing is left to do."""
    server = make_server(database=database, database_bytes=4 << 20)
    for number in range(20_000):
        server.broadcast("chat", "message", {"n": number, "x": "x" * 400})
    eventually(lambda: server.stats()["storage"]["queued_changes"] == 0, "everything is saved")
    eventually(lambda: not server.stats()["storage"]["degraded"], "it is not degraded")
    server.broadcast("chat", "message", {"n": 20_000}, durable=True).result(10)
    assert server.stats()["storage"]["changes_lost"] == 0


def test_a_full_file_names_its_setting_and_recovers_when_its_history_goes(
    make_server: MakeServer, database: str
) -> None:
    server = make_server(database=database, database_bytes=1 << 20, history_size=100_000)

    def fill() -> None:
        for number in range(100):
            server.broadcast(f"chat {number % 10}", "message", "x" * 20_000, durable=True).result(10)

    with pytest.raises(StorageError, match="full; database_bytes is 1048576"):
        fill()
    for number in range(10):
        del server.channels[f"chat {number}"]
    eventually(lambda: not server.stats()["storage"]["degraded"], "it has room again")
    server.broadcast("chat", "message", "x" * 20_000, durable=True).result(10)


def test_a_lock_of_another_program_is_waited_out(make_server: MakeServer, database: str, tmp_path: Path) -> None:
    server = make_server(database=database)
    server.broadcast("chat", "message", {"n": 0}, durable=True).result(10)
    with locked_by_another(tmp_path / "tantor.db", tmp_path):
        server.broadcast("chat", "message", {"n": 1})
        with pytest.raises(StorageError, match="locked"):
            server.broadcast("chat", "message", {"n": 2}, durable=True).result(10)
    eventually(lambda: not server.stats()["storage"]["degraded"], "it is written again")
    server.broadcast("chat", "message", {"n": 3}, durable=True).result(10)


def test_what_joins_cause_to_be_saved_is_as_much_as_was_sent(
    make_server: MakeServer, database: str, tmp_path: Path, connect: Connect
) -> None:
    """Each join once saved the client's whole list of channels: 127 joins, 2 MB."""
    server = make_server(database=database, max_channels_per_client=200)
    server.broadcast("jungle", "message", durable=True).result(10)
    names = [f"{number:0>250}" for number in range(127)]
    clients = 3
    with locked_by_another(tmp_path / "tantor.db", tmp_path):
        for _ in range(clients):
            client = connect(server)
            for name in names:
                client.action("join_channel", channel=name)
            client.ask("ping")
            client.close()
        eventually(lambda: server.stats()["away"] == clients, "they are gone")
        storage = server.stats()["storage"]
        assert storage["queued_bytes"] < 3 * clients * sum(map(len, names)), storage
    eventually(lambda: server.stats()["storage"]["queued_changes"] == 0, "all is saved")
    assert len(rows(tmp_path / "tantor.db", "SELECT * FROM memberships")) == clients * (len(names) + 1)
    assert server.stats()["storage"]["changes_lost"] == 0


def test_clients_that_are_away_are_bounded_by_bytes(make_server: MakeServer, connect: Connect) -> None:
    bound = 100_000
    server = make_server(away_bytes=bound)
    gone = []
    for number in range(10):
        client = connect(server)
        for channel in range(20):
            client.action("join_channel", channel=f"{number}-{channel:0>240}")
        client.ask("ping")
        gone.append(lose(server, client))
        # a client counts as away just before others make room for it
        eventually(lambda: server.stats()["away_bytes"] <= bound, server.stats)
    stats = server.stats()
    assert 0 < stats["away"] < len(gone)
    assert stats["away"] + stats["away_forgotten"] == len(gone)
    assert connect(server, gone[0]).welcome["resumed"] is False, "away longest"
    assert connect(server, gone[-1]).welcome["resumed"] is True
    back = server.stats()
    assert back["away_bytes"] < stats["away_bytes"]
