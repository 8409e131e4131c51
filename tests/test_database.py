"""What is saved, and outlives a stop: `database="sqlite:///..."`."""

import asyncio
import contextlib
import json
import sqlite3
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import run_python
from stored import history_of, locked_by_another, numbers, rows, stop
from support import WebSocketClient, eventually, lose
from tantor import Pending, StorageError, Tantor

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
