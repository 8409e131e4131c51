"""A repeat with the same key publishes nothing and gets the first result."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import script
from stored import locked_by_another, stop
from stored import numbers as numbers_of
from support import WebSocketClient, eventually
from tantor import StorageError, Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]
Message = dict[str, Any]


def numbers(messages: list[Message]) -> list[int]:
    return [message["data"]["n"] for message in messages if "n" in message.get("data", {})]


def test_a_repeated_broadcast_publishes_nothing_and_gives_the_first_result(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    assert server.broadcast("jungle", "news", {"n": 1}, idempotency_key="order-1").result() == 1
    second = connect(server)
    assert server.broadcast("jungle", "news", {"n": 2}, idempotency_key="order-1").result() == 1
    assert server.broadcast("jungle", "news", {"n": 3}, idempotency_key="order-2").result() == 2
    assert server.broadcast("jungle", "news", {"n": 4}).result() == 2
    assert numbers(client.settle(server)) == [1, 3, 4]
    assert numbers(second.settle(server)) == [3, 4]
    assert server.history("jungle").result().offset == 3


def test_a_key_counts_for_its_channel_only(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.broadcast("jungle", "news", {"n": 1}, idempotency_key="key")
    server.broadcast("other", "news", {"n": 2}, idempotency_key="key")
    assert server.history("other").result().offset == 1
    server.send(client.client_id, {"data": {"n": 3}}, idempotency_key="key")
    assert numbers(client.settle(server)) == [1, 3]


def test_a_repeated_send_gives_the_first_id_and_sends_nothing(server: Tantor, connect: Connect) -> None:
    client, other = connect(server), connect(server)
    first = server.send(client.client_id, {"data": {"n": 1}}, idempotency_key="key").result()
    assert server.send(client.client_id, {"data": {"n": 2}}, idempotency_key="key").result() == first
    assert server.send(other.client_id, {"data": {"n": 3}}, idempotency_key="key").result() != first
    assert numbers(client.settle(server)) == [1]
    assert numbers(other.settle(server)) == [3]


def test_a_repeat_to_a_client_that_is_away_is_kept_once(server: Tantor, connect: Connect) -> None:
    ids = {server.send("user-7", "hello", idempotency_key="key").result() for _ in range(5)}
    assert len(ids) == 1
    assert server.stats()["mailbox_messages"] == 1


def test_a_client_that_repeats_is_told_so(server: Tantor, connect: Connect) -> None:
    client, listener = connect(server), connect(server)
    replies = []
    for number in (1, 2):
        client.action(
            "broadcast", channel="jungle", event="news", data={"n": number}, idempotency_key="key", ref=number
        )
        replies.append(client.receive_until(ref=number))
    first, repeat = replies
    assert repeat["duplicate"] is True
    assert "duplicate" not in first
    assert [repeat[name] for name in ("ok", "recipients", "epoch", "offset")] == [
        first[name] for name in ("ok", "recipients", "epoch", "offset")
    ]
    assert numbers(listener.settle(server)) == [1]


def test_a_key_counts_for_one_client_and_the_applications_are_apart(server: Tantor, connect: Connect) -> None:
    client, stranger = connect(server), connect(server)
    stranger.ask("broadcast", event="news", data={"n": 0}, idempotency_key="order-7")
    reply = client.ask("broadcast", event="news", data={"n": 1}, idempotency_key="order-7")
    assert "duplicate" not in reply
    assert client.ask("broadcast", event="news", data={"n": 2}, idempotency_key="order-7")["duplicate"] is True
    assert server.broadcast("jungle", "news", {"n": 3}, idempotency_key="order-7").result() == 2
    assert numbers(stranger.settle(server)) == [1, 3]


def test_a_client_has_only_its_own_keys_forgotten(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_client_keys=100, max_idempotency_keys=1000)
    client, flood = connect(server), connect(server)
    client.ask("broadcast", channel="jungle", event="news", data={"n": 1}, idempotency_key="order-7")
    for number in range(5000):
        flood.action("broadcast", channel="other", event="flood", idempotency_key=f"{number}")
    flood.ask("ping")
    repeat = client.ask("broadcast", channel="jungle", event="news", data={"n": 2}, idempotency_key="order-7")
    assert repeat["duplicate"] is True
    assert flood.ask("broadcast", channel="other", event="flood", idempotency_key="4999")["duplicate"] is True
    assert "duplicate" not in flood.ask("broadcast", channel="other", event="flood", idempotency_key="0")
    stats = server.stats()
    assert (stats["idempotency_keys"], stats["idempotency_keys_displaced"]) == (101, 4901)


def test_the_keys_of_a_client_end_with_it(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.ask("broadcast", event="news", idempotency_key="key")
    assert server.stats()["idempotency_keys"] == 1
    client.say_goodbye()
    eventually(lambda: server.stats()["idempotency_keys"] == 0, server.stats)


def test_clients_cannot_have_the_applications_keys_forgotten(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_idempotency_keys=3)
    client = connect(server)
    server.broadcast("jungle", "news", {"n": 1}, idempotency_key="order")
    for number in range(10):
        client.action("broadcast", channel="other", idempotency_key=f"{number}", ref=number)
        client.receive_until(ref=number)
    server.broadcast("jungle", "news", {"n": 2}, idempotency_key="order")
    assert server.history("jungle").result().offset == 1


def test_of_eight_threads_with_one_key_one_publishes(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    rounds = 200
    results: list[list[int]] = [[] for _ in range(rounds)]
    begin = threading.Barrier(8)

    def publish(thread: int) -> None:
        for number in range(rounds):
            begin.wait(20)
            published = server.broadcast("jungle", "news", {"n": number}, idempotency_key=f"round {number}")
            sent = server.send(client.client_id, {"sent": number}, idempotency_key=f"round {number}")
            results[number].append(published.result())
            ids[number].add(sent.result())

    ids: list[set[str]] = [set() for _ in range(rounds)]
    threads = [threading.Thread(target=publish, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    messages = client.settle(server)
    assert numbers(messages) == list(range(rounds))
    assert [message["sent"] for message in messages if "sent" in message] == list(range(rounds))
    assert results == [[1] * 8] * rounds
    assert [len(each) for each in ids] == [1] * rounds


def test_a_key_is_known_for_idempotency_ttl(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(idempotency_ttl=0.3)
    client = connect(server)
    seen: list[int] = []

    def publishes_again() -> bool:
        server.broadcast("jungle", "news", {"n": len(seen)}, idempotency_key="key")
        seen.extend(numbers(client.settle(server)))
        return len(seen) == 2

    assert not publishes_again()
    eventually(publishes_again, lambda: seen)
    assert seen == [0, 1]


@pytest.mark.parametrize("settings", [{"idempotency_ttl": 0}, {"max_idempotency_keys": 0}])
def test_without_room_or_time_no_key_is_known(
    make_server: MakeServer, connect: Connect, settings: dict[str, int]
) -> None:
    server = make_server(**settings)
    client = connect(server)
    for number in range(3):
        server.broadcast("jungle", "news", {"n": number}, idempotency_key="key")
    assert numbers(client.settle(server)) == [0, 1, 2]


def test_beyond_max_idempotency_keys_the_oldest_are_forgotten(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_idempotency_keys=3)
    for key in ("a", "b", "c", "a", "c", "d", "b", "a"):
        server.broadcast("jungle", "news", {"key": key}, idempotency_key=key)
    history = server.history("jungle").result()
    assert [publication["data"]["key"] for publication in history.publications] == ["a", "b", "c", "d", "a"]


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "idempotency_key is empty; it takes 1 to 255 bytes"),
        ("x" * 256, "idempotency_key is 256 bytes long; it takes 1 to 255 bytes"),
        ("é" * 128, "idempotency_key is 256 bytes long; it takes 1 to 255 bytes"),
        ("a\nb", r"idempotency_key has the control character U\+000A"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_and_nothing_is_published(
    server: Tantor, connect: Connect, key: str, says: str
) -> None:
    client = connect(server)
    with pytest.raises(ValueError, match=says):
        server.broadcast("jungle", "news", {"n": 1}, idempotency_key=key)
    with pytest.raises(ValueError, match=says):
        server.send(client.client_id, {"data": {"n": 1}}, idempotency_key=key)
    client.action("broadcast", event="news", data={"n": 1}, idempotency_key=key, ref=1)
    messages = client.receive_all_until(ref=1)
    assert (messages[-1]["event"], messages[-1]["code"]) == ("error", 103)
    assert messages[-1]["message"].startswith("idempotency_key ")
    assert numbers(messages + client.settle(server)) == []


@pytest.mark.parametrize("key", [7, None, ["a"], {}])
def test_a_key_on_the_wire_is_a_string(server: Tantor, connect: Connect, key: object) -> None:
    client = connect(server)
    client.action("broadcast", event="news", data={"n": 1}, idempotency_key=key, ref=1)
    error = client.receive_until(ref=1)
    assert (error["event"], error["code"]) == ("error", 103)
    assert "idempotency_key" in error["message"]


def test_a_refused_message_leaves_its_key_free(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_message_size=1000)
    client = connect(server)
    with pytest.raises(ValueError, match="max_message_size"):
        server.broadcast("jungle", "news", {"fill": "x" * 2000}, idempotency_key="key")
    with pytest.raises(ValueError, match="takes a database"):
        server.broadcast("jungle", "news", {"n": 0}, idempotency_key="key", durable=True)
    server.broadcast("jungle", "news", {"n": 1}, idempotency_key="key")
    assert numbers(client.settle(server)) == [1]


def test_durable_takes_a_database(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    says = r'durable=True takes a database: Tantor\(database="sqlite:///tantor.db"\)'
    with pytest.raises(ValueError, match=says):
        server.broadcast("jungle", "news", {"n": 1}, durable=True)
    with pytest.raises(ValueError, match=says):
        server.send(client.client_id, "hello", durable=True)
    assert numbers(client.settle(server)) == []


# With a database


def test_keys_of_what_is_saved_outlive_a_stop(make_server: MakeServer, database: str, connect: Connect) -> None:
    first = make_server(database=database)
    client = connect(first)
    sent = first.send("user-7", "hello", idempotency_key="key").result()
    first.broadcast("jungle", "news", {"n": 1}, idempotency_key="key")
    reply = client.ask("broadcast", channel="jungle", event="news", data={"n": 2}, idempotency_key="key")
    assert (reply["recipients"], reply["offset"]) == (1, 2)
    token = client.welcome["resume"]
    stop(first)
    second = make_server(database=database)
    assert second.broadcast("jungle", "news", {"n": 3}, idempotency_key="key").result() == 1
    assert second.send("user-7", "hello", idempotency_key="key").result() == sent
    returned = connect(second, path=f"/?resume={token}")
    again = returned.ask("broadcast", channel="jungle", event="news", data={"n": 4}, idempotency_key="key")
    assert {field: again[field] for field in ("recipients", "epoch", "offset")} == {
        field: reply[field] for field in ("recipients", "epoch", "offset")
    }
    assert numbers_of(second, "jungle") == [1, 2]
    assert second.stats()["mailbox_messages"] == 1


def test_a_key_grows_no_younger_by_a_stop(make_server: MakeServer, database: str) -> None:
    for number in range(2):
        server = make_server(database=database, idempotency_ttl=1.5)
        server.broadcast("jungle", "news", {"n": number}, idempotency_key="key")
        stop(server)
    server = make_server(database=database, idempotency_ttl=1.5)
    assert numbers_of(server, "jungle") == [0]

    def is_published() -> bool:
        server.broadcast("jungle", "news", {"n": 2}, idempotency_key="key")
        return numbers_of(server, "jungle") == [0, 2]

    eventually(is_published, "the key is forgotten")


def test_a_key_of_what_is_not_kept_is_not_saved(make_server: MakeServer, database: str, connect: Connect) -> None:
    """A repeat after a restart finds no key, because the first publication was not saved."""
    settings = {"database": database, "channel_settings": {"cursor": {"history_size": 0}}}
    first = make_server(**settings)
    client = connect(first)
    sent = first.send(client.client_id, {"data": {"n": 0}}, idempotency_key="key").result()
    client.action("join_channel", channel="cursor", ref=1)
    client.receive_until(ref=1)
    assert first.broadcast("cursor", "moved", {"n": 1}, idempotency_key="key").result() == 1
    stop(first)
    second = make_server(**settings)
    assert second.send(client.client_id, {"data": {"n": 0}}, idempotency_key="key").result() != sent
    assert second.broadcast("cursor", "moved", {"n": 1}, idempotency_key="key").result() == 0


def test_a_key_is_there_after_a_kill_if_its_publication_is(
    make_server: MakeServer, database: str, tmp_path: Path
) -> None:
    source = f"""
import itertools
from tantor import StorageError, Tantor
tantor = Tantor(port=0, database={database!r})
for number in itertools.count():
    durable = number % 10 == 9
    published = tantor.broadcast("jungle", "news", {{"n": number}}, durable=durable, idempotency_key=f"key {{number}}")
    if durable:
        published.result()
        print("saved", number, flush=True)
"""
    with script(source, tmp_path) as publisher:
        publisher.wait_for_line("saved 99")
        publisher.process.kill()
        publisher.process.wait(10)
    server = make_server(database=database, history_size=1_000_000)
    before = numbers_of(server, "jungle")
    # all that was tried, and some more
    for number in range(before[-1] + 20):
        server.broadcast("jungle", "news", {"n": number}, idempotency_key=f"key {number}")
    assert before[-1] >= 99
    assert numbers_of(server, "jungle")[len(before) :] == list(range(before[-1] + 1, before[-1] + 20))


def test_a_key_whose_publication_could_not_be_saved_is_free(make_server: MakeServer, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path / 'small.db'}"
    server = make_server(database=database, database_bytes=1 << 20, max_message_size=4 << 20)
    big = server.broadcast("jungle", "news", {"n": 0, "text": "x" * (2 << 20)}, durable=True, idempotency_key="key")
    with pytest.raises(StorageError):
        big.result()
    server.broadcast("jungle", "news", {"n": 1}, durable=True, idempotency_key="key").result()
    stop(server)
    again = make_server(database=database)
    assert again.broadcast("jungle", "news", {"n": 2}, idempotency_key="key").result() == 0
    assert numbers_of(again, "jungle") == [1]


def test_a_durable_repeat_of_what_nobody_waited_for_is_told_what_is_true(
    make_server: MakeServer, tmp_path: Path
) -> None:
    file = tmp_path / "tantor.db"
    server = make_server(database=f"sqlite:///{file}")
    server.broadcast("jungle", "news", {"n": 0}, durable=True).result()
    with locked_by_another(file, tmp_path):
        server.broadcast("jungle", "news", {"n": 1}, idempotency_key="key")
        repeat = server.broadcast("jungle", "news", {"n": 1}, durable=True, idempotency_key="key")
        with pytest.raises(StorageError, match="locked"):
            repeat.result()
    eventually(lambda: not server.stats()["storage"]["degraded"], "the file can be written again")
    server.broadcast("jungle", "news", {"n": 1}, durable=True, idempotency_key="key").result()
    stop(server)
    assert numbers_of(make_server(database=f"sqlite:///{file}"), "jungle") == [0, 1]


def test_keys_leave_room_in_the_file_for_what_it_is_for(make_server: MakeServer, database: str) -> None:
    server = make_server(database=database, database_bytes=1 << 20, history_size=10)
    for number in range(20_000):
        waits = number % 200 == 0
        published = server.broadcast(
            "jungle", "news", {"n": number}, durable=waits, idempotency_key=f"{number} {'x' * 200}"
        )
        if waits:
            published.result()
    storage = server.stats()["storage"]
    assert (storage["degraded"], storage["changes_lost"]) == (False, 0)
    assert server.broadcast("jungle", "news", {"n": 0}, idempotency_key=f"19999 {'x' * 200}").result() == 0
    assert server.history("jungle").result().offset == 20_000


def test_a_durable_repeat_of_what_was_lost_is_told_so(make_server: MakeServer, tmp_path: Path) -> None:
    file = tmp_path / "tantor.db"
    server = make_server(database=f"sqlite:///{file}", database_queue_bytes=1 << 20)
    server.broadcast("jungle", "news", {"n": 0}, durable=True).result()
    with locked_by_another(file, tmp_path):
        while not server.stats()["storage"]["changes_lost"]:
            server.broadcast("other", "filler", "x" * 30_000)
        server.broadcast("jungle", "news", {"n": 1, "text": "x" * 30_000}, idempotency_key="key")
    eventually(lambda: not server.stats()["storage"]["queued_changes"], "the rest is saved")
    repeat = server.broadcast("jungle", "news", {"n": 1}, durable=True, idempotency_key="key")
    with pytest.raises(StorageError, match="lost"):
        repeat.result()
    # who does not ask for more than that it was published is told that it was
    assert server.broadcast("jungle", "news", {"n": 1}, idempotency_key="key").result() == 0
    assert server.broadcast("jungle", "news", {"n": 2}, durable=True, idempotency_key="another").result() == 0
