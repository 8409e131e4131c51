"""What is saved, and outlives a stop: `database="sqlite:///..."`."""

import asyncio
import contextlib
import json
import logging
import sqlite3
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask
from stored import history_of, locked_by_another, numbers, rows, stop
from support import QUIET_FORK, WebSocketClient, eventually, http_request, lose, run_python, script
from tantor import Pending, StorageError, Tantor, init_tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


# What outlives a stop


def test_history_goes_on_where_it_was(make_server: MakeServer, database: str) -> None:
    first = make_server(database=database)
    for number in range(5):
        first.broadcast("chat", "message", {"n": number})
    before = history_of(first, "chat")
    stop(first)
    second = make_server(database=database)
    assert history_of(second, "chat") == before
    second.broadcast("chat", "message", {"n": 5})
    after = history_of(second, "chat")
    assert (after.epoch, after.offset) == (before.epoch, 6)
    assert numbers(second, "chat") == [0, 1, 2, 3, 4, 5]


def test_the_same_server_goes_on_after_a_stop(make_server: MakeServer, database: str, connect: Connect) -> None:
    server = make_server(database=database)
    server.broadcast("chat", "message", {"n": 0})
    before = history_of(server, "chat")
    stop(server)
    # without a server, too
    server.broadcast("chat", "message", {"n": 1})
    server.start_background()
    server.broadcast("chat", "message", {"n": 2})
    after = history_of(server, "chat")
    assert (after.epoch, after.offset, numbers(server, "chat")) == (before.epoch, 3, [0, 1, 2])
    client = connect(server)
    client.action("join_channel", channel="chat", ref=1, recover={"epoch": before.epoch, "offset": before.offset})
    reply = client.receive_until(event="reply")
    assert reply["recovered"]
    assert [publication["data"]["n"] for publication in reply["publications"]] == [1, 2]


def test_mail_subscriptions_and_user_data_wait_for_the_client(
    make_server: MakeServer, database: str, connect: Connect
) -> None:
    first = make_server(database=database)
    client = connect(first)
    client.action("join_channel", channel="chat", ref=1)
    client.receive_until(event="reply")
    first.connections[client.client_id].user_data["name"] = "Terk"
    client.close()
    eventually(lambda: not first.connections, "the client is gone")
    first.send(client.client_id, {"n": 1})
    first.send(client.client_id, {"n": 2})
    stop(first)
    second = make_server(database=database)
    second.send(client.client_id, {"n": 3})
    back = connect(second, f"/?resume={client.welcome['resume']}")
    assert (back.client_id, back.welcome["resumed"]) == (client.client_id, True)
    assert sorted(back.welcome["channels"]) == ["chat", "jungle"]
    assert back.welcome["waiting"] == 3
    assert [back.receive()["n"] for _ in range(3)] == [1, 2, 3]
    assert second.connections[back.client_id].user_data["name"] == "Terk"
    second.broadcast("chat", "message", {"n": 4})
    assert back.receive_until(event="message")["data"] == {"n": 4}


def test_what_a_client_has_had_is_not_kept(make_server: MakeServer, database: str, connect: Connect) -> None:
    first = make_server(database=database)
    token = first.resume_token("client_known")
    first.send("client_known", {"n": 1})
    client = connect(first, f"/?resume={token}")
    assert client.receive()["n"] == 1
    client.settle(first)
    token = client.welcome["resume"]
    client.close()
    eventually(lambda: not first.connections, "the client is gone")
    stop(first)
    second = make_server(database=database)
    back = connect(second, f"/?resume={token}")
    assert (back.welcome["resumed"], back.welcome["waiting"]) == (True, 0)


def test_a_client_that_did_not_get_its_new_token_is_known_after_a_restart(
    make_server: MakeServer, database: str, connect: Connect
) -> None:
    first = make_server(database=database)
    known = connect(first)
    path = lose(first, known)
    # the connection breaks before its welcome is read
    lost = connect(first, path)
    lose(first, lost)
    first.send(known.client_id, {"n": 1})
    stop(first)
    second = make_server(database=database)
    back = connect(second, path)
    assert (back.client_id, back.welcome["resumed"]) == (known.client_id, True), back.welcome
    assert back.receive()["n"] == 1


def test_a_token_that_was_used_is_of_no_use_after_a_restart(
    make_server: MakeServer, database: str, connect: Connect
) -> None:
    first = make_server(database=database)
    known = connect(first)
    path = lose(first, known)
    back = connect(first, path)
    back.ask("ping")
    stop(first)
    second = make_server(database=database)
    assert connect(second, path).welcome["resumed"] is False
    assert connect(second, f"/?resume={back.welcome['resume']}").welcome["resumed"] is True


def test_emergencies_wait_for_those_that_are_away(make_server: MakeServer, database: str, connect: Connect) -> None:
    first = make_server(database=database)
    client = connect(first)
    client.close()
    eventually(lambda: not first.connections, "the client is gone")
    first.emergency("fire")
    stop(first)
    second = make_server(database=database)
    back = connect(second, f"/?resume={client.welcome['resume']}")
    assert back.receive_until(event="emergency_alert")["data"]["message"] == "fire"


def test_a_process_that_ends_without_a_stop_has_saved_everything(make_server: MakeServer, database: str) -> None:
    source = """
        import sys
        from tantor import Tantor
        tantor = Tantor(database=sys.argv[1])
        for number in range(2000):
            tantor.broadcast("chat", "message", {"n": number})
        print(tantor.history("chat").result().epoch)
    """
    ended = run_python(textwrap.dedent(source), database)
    assert ended.returncode == 0, ended.stderr
    server = make_server(database=database)
    assert history_of(server, "chat").epoch == ended.stdout.strip(), "the end was clean"
    assert numbers(server, "chat") == list(range(1900, 2000))


# What is asked to be durable


@pytest.mark.asyncio
async def test_durable_calls_are_done_when_they_are_saved(database: str, tmp_path: Path) -> None:
    tantor = Tantor(database=database)
    await tantor.broadcast("chat", "message", {"n": 0}, durable=True)
    assert len(rows(tmp_path / "tantor.db", "SELECT id FROM tantor_messages")) == 1
    assert await asyncio.create_task(tantor.broadcast("chat", "message", {"n": 1}, durable=True)) == 0
    results = await asyncio.gather(*(tantor.send("client_away", {"n": n}, durable=True) for n in range(10)))
    assert len(set(results)) == 10
    pending = tantor.broadcast("chat", "message", {"n": 2}, durable=True)
    assert pending.result(10) == 0
    assert pending.done()
    assert await pending == 0, "it may be awaited again"
    assert len(rows(tmp_path / "tantor.db", "SELECT id FROM tantor_messages")) == 13


@pytest.mark.asyncio
async def test_many_awaits_at_once_all_come_to_their_end(database: str) -> None:
    """A bell that was rung while it was being heard once stayed silent for good."""
    tantor = Tantor(database=database, durable=True, history_size=100_000)

    async def publish(publisher: int) -> None:
        for number in range(200):
            await tantor.broadcast("chat", "message", {"n": publisher * 200 + number})

    await asyncio.wait_for(asyncio.gather(*(publish(publisher) for publisher in range(64))), 100)
    assert sorted(numbers(tantor, "chat")) == list(range(64 * 200))
    assert history_of(tantor, "chat").offset == 64 * 200


def test_durable_publishing_from_threads_and_loops_of_their_own(database: str) -> None:
    tantor = Tantor(database=database)
    failures: list[BaseException] = []

    def publish() -> None:
        try:
            for number in range(20):
                asyncio.run(tantor.broadcast("chat", "message", {"n": number}, durable=True))
                tantor.broadcast("chat", "message", {"n": number}, durable=True).result(30)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert history_of(tantor, "chat").offset == 320


@pytest.mark.asyncio
async def test_what_is_published_stays_published_when_the_wait_is_cancelled(database: str) -> None:
    tantor = Tantor(database=database, durable=True)
    tasks = [asyncio.create_task(tantor.broadcast("chat", "message", {"n": number})) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await tantor.broadcast("chat", "message", {"n": 20})
    assert numbers(tantor, "chat") == list(range(21))


def test_a_durable_publication_that_finds_no_room_is_refused_and_the_next_one_is_not(database: str) -> None:
    source = """
        import sys
        from tantor import StorageError, Tantor
        tantor = Tantor(port=0, database=sys.argv[1], durable=True, database_queue_bytes=65536)
        try:
            tantor.broadcast("jungle", "event", "x" * 100_000).result(20)
        except StorageError as error:
            assert "database_queue_bytes" in str(error), error
        else:
            raise SystemExit("it was taken")
        assert tantor.stats()["not_saved"] == 1
        tantor.broadcast("jungle", "event", "x").result(20)
        assert [kept["data"] for kept in tantor.history("jungle").result().publications] == ["x"]
    """
    ended = run_python(textwrap.dedent(source), database)
    assert ended.returncode == 0, ended.stderr


def test_durable_publishing_goes_on_through_stops(database: str) -> None:
    source = """
        import asyncio, sys, threading
        from tantor import StorageError, Tantor
        tantor = Tantor(port=0, host="127.0.0.1", database=sys.argv[1], durable=True)
        is_over = threading.Event()
        saved = [0, 0]
        def publish(place):
            while not is_over.is_set():
                try:
                    tantor.broadcast("jungle", "event").result(20)
                    saved[place] += 1
                except StorageError:  # closed, or being closed
                    pass
        publishers = [threading.Thread(target=publish, args=(place,)) for place in range(2)]
        for publisher in publishers:
            publisher.start()
        for _ in range(30):
            tantor.start_background()
            asyncio.run(tantor.stop())
        is_over.set()
        for publisher in publishers:
            publisher.join()
        assert all(saved), saved
    """
    ended = run_python(textwrap.dedent(source), database)
    assert ended.returncode == 0, ended.stderr


def test_a_durable_channel_hands_over_what_is_saved(make_server: MakeServer, database: str, connect: Connect) -> None:
    server = make_server(database=database, channel_settings={"orders": {"durable": True}})
    client = connect(server)
    client.action("join_channel", channel="orders", ref=1)
    client.receive_until(event="reply")
    client.action("broadcast", channel="orders", event="order", data={"n": 1}, ref=2)
    seen = client.receive_all_until(event="reply", ref=2)
    placed = [(message["event"], message["offset"]) for message in seen if "offset" in message]
    assert placed == [("order", 1), ("reply", 1)], "the publication, then its reply"
    assert server.broadcast("orders", "order", {"n": 2}).result(10) == 1
    assert client.receive()["data"] == {"n": 2}


def test_where_everything_is_durable_sends_and_emergencies_are_too(
    make_server: MakeServer, database: str, connect: Connect, tmp_path: Path
) -> None:
    server = make_server(database=database, durable=True)
    client = connect(server)
    client.close()
    eventually(lambda: not server.connections, "the client is gone")
    sent = server.send(client.client_id, {"n": 1})
    alarm = server.emergency("fire")
    assert isinstance(sent, Pending)
    assert isinstance(alarm, Pending)
    assert (sent.result(10), alarm.result(10)) == (sent.value, 0)
    assert alarm.message_id
    report = server.delivery(alarm.message_id)
    assert report is not None
    assert report["waiting"] == 1
    found = rows(tmp_path / "tantor.db", "SELECT id, message_type FROM tantor_messages ORDER BY timestamp")
    assert [(row["id"], row["message_type"]) for row in found] == [
        (sent.value, "chat"),
        (alarm.message_id, "emergency_alert"),
        (alarm.message_id, "emergency_alert"),
    ], "of the channel's history, and for the client"


def test_an_emergency_waits_for_no_disk(
    make_server: MakeServer, database: str, connect: Connect, tmp_path: Path
) -> None:
    server = make_server(database=database, durable=True)
    client = connect(server)
    server.broadcast("jungle", "message", {"n": 0}).result(10)
    client.receive_until(event="message")
    with locked_by_another(tmp_path / "tantor.db", tmp_path):
        server.broadcast("jungle", "message", {"n": 1})
        alarm = server.emergency("fire")
        assert client.receive_until(event="emergency_alert")["data"]["message"] == "fire"
        with pytest.raises(StorageError, match="locked"):
            alarm.result(10)


def test_durable_takes_a_database() -> None:
    tantor = Tantor()
    with pytest.raises(ValueError, match="durable=True takes a database"):
        tantor.broadcast("chat", "message", durable=True)
    with pytest.raises(ValueError, match="durable is true; that takes a database"):
        Tantor(durable=True)


# Who reads it


def test_flask_tsk_reads_its_own_columns(
    make_server: MakeServer, database: str, tmp_path: Path, connect: Connect
) -> None:
    server = make_server(database=database)
    client = connect(server)
    client.action("broadcast", channel="jungle", event="chat_message", data={"message": "hi"})
    client.receive_until(event="chat_message")
    server.send("client_away", "hello")
    server.broadcast("jungle", "last", durable=True).result(10)
    messages = rows(tmp_path / "tantor.db", "SELECT * FROM tantor_messages ORDER BY timestamp")
    people = rows(tmp_path / "tantor.db", "SELECT * FROM tantor_connections")
    assert list(messages[0]) == ["id", "channel", "message", "sender", "timestamp", "message_type", "data"]
    assert [(row["channel"], row["message"], row["sender"], row["message_type"]) for row in messages] == [
        ("jungle", "hi", client.client_id, "chat_message"),
        ("jungle", "hello", "tantor", "chat"),
        ("jungle", "{}", "tantor", "last"),
    ]
    assert json.loads(messages[0]["data"]) == {"message": "hi"}
    (person,) = people
    assert list(person) == ["client_id", "handshake_complete", "last_ping", "joined_at", "channels", "user_data"]
    assert (person["client_id"], person["handshake_complete"]) == (client.client_id, 1)
    assert json.loads(person["channels"]) == ["jungle"]


def test_a_second_copy_of_sqlite_in_this_process_costs_nothing_that_was_acknowledged(
    make_server: MakeServer, database: str, tmp_path: Path
) -> None:
    """Python's `sqlite3` does not see locks of the process, and removes the log when it closes the file."""
    server = make_server(database=database, history_size=1000)
    for number in range(50):
        server.broadcast("chat", "message", {"n": number}, durable=True).result(10)
        with contextlib.closing(sqlite3.connect(tmp_path / "tantor.db")) as connection:
            connection.execute("SELECT count(*) FROM tantor_messages").fetchone()
    server.broadcast("chat", "message", {"n": 50}, durable=True).result(10)
    assert len(rows(tmp_path / "tantor.db", "SELECT id FROM tantor_messages")) == 51
    assert not server.stats()["storage"]["degraded"]


def test_a_file_that_was_deleted_under_it_is_told(make_server: MakeServer, database: str, tmp_path: Path) -> None:
    server = make_server(database=database)
    server.broadcast("chat", "message", durable=True).result(10)
    for file in tmp_path.glob("tantor.db*"):
        file.unlink()
    with pytest.raises(StorageError, match="moved or deleted while it was in use"):
        server.broadcast("chat", "message", durable=True).result(10)


# Settings and processes


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
