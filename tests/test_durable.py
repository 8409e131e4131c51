"""Durable publications: nothing but their channel's own settings removes them, and what has no room is refused."""

import contextlib
from collections.abc import Callable

import pytest
from stored import history_of, numbers, stop
from support import WebSocketClient, eventually
from tantor import StorageError, Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]

DURABLE = {"orders:*": {"durable": True, "history_size": 1000}}
PATIENCE = 60


def publish_durably(server: Tantor, channels: list[str]) -> None:
    """One on each, numbered; returns when all are saved."""
    pending = [server.broadcast(channel, "order", {"n": number}) for number, channel in enumerate(channels)]
    for done in pending:
        done.result(PATIENCE)


def channels_with_history(server: Tantor, names: list[str]) -> int:
    return sum(len(history_of(server, name).publications) for name in names)


def test_one_publication_on_each_of_many_channels_stays_also_after_a_restart(
    make_server: MakeServer, database: str
) -> None:
    names = [f"orders:{number}" for number in range(12_000)]
    server = make_server(database=database, channel_settings=DURABLE)
    publish_durably(server, names)
    assert channels_with_history(server, names) == len(names)
    stats = server.stats()
    assert (stats["dropped"], stats["not_saved"], stats["storage"]["changes_lost"]) == ({}, 0, 0)
    assert stats["history_messages"] == len(names)
    stop(server)
    again = make_server(database=database, channel_settings=DURABLE)
    assert channels_with_history(again, names) == len(names)
    assert len(again.channels) >= len(names)


def test_asking_for_the_history_of_invented_channels_removes_nothing(
    make_server: MakeServer, connect: Connect, database: str
) -> None:
    server = make_server(database=database, channel_settings=DURABLE)
    publish_durably(server, ["orders:1"])
    before = history_of(server, "orders:1")
    channels = list(server.channels)
    client = connect(server)
    for number in range(10_001):
        client.action("history", channel=f"invented {number}", limit=1)
        if number % 500 == 499:
            client.settle(server)
    client.settle(server)
    assert history_of(server, "orders:1") == before
    assert list(server.channels) == channels
    stop(server)
    assert history_of(make_server(database=database, channel_settings=DURABLE), "orders:1") == before


@pytest.mark.parametrize("channel", ["orders:1", "ordinary"])
def test_a_flood_on_other_channels_removes_nothing_durable(
    make_server: MakeServer, connect: Connect, database: str, channel: str
) -> None:
    server = make_server(database=database, channel_settings=DURABLE, history_size=1000)
    subscriber = connect(server)
    subscriber.action("join_channel", channel=channel)
    pending = [server.broadcast(channel, "order", {"n": number}, durable=True) for number in range(500)]
    for done in pending:
        done.result(PATIENCE)
    flooder = connect(server)
    for number in range(120):
        flooder.action("broadcast", channel=f"own {number}", event="n", data="x" * 1_000_000)
        flooder.settle(server)
    assert numbers(server, channel) == list(range(500))
    stats = server.stats()
    assert stats["history_bytes"] <= 64 << 20
    evicted = stats["dropped"].pop("history_bytes")
    assert set(evicted) <= {f"own {number}" for number in range(120)}
    assert sum(evicted.values()) + stats["history_messages"] == 120 + 500
    stop(server)
    again = make_server(database=database, channel_settings=DURABLE, history_size=1000, history_bytes=10_000)
    assert numbers(again, channel) == list(range(500))


def test_what_durable_bytes_has_no_room_for_is_refused_and_the_rest_stays(
    make_server: MakeServer, connect: Connect, database: str
) -> None:
    server = make_server(database=database, channel_settings=DURABLE, durable_bytes=1 << 16)
    client = connect(server)
    saved = 0
    with contextlib.suppress(StorageError):
        for saved in range(100):
            server.broadcast("orders:1", "order", {"n": saved, "x": "x" * 1000}).result(PATIENCE)
    assert 40 < saved < 60
    with pytest.raises(StorageError, match="durable_bytes is 65536, of which"):
        server.broadcast("orders:1", "order", {"x": "x" * 1000}).result(PATIENCE)
    reply = client.ask("broadcast", channel="orders:2", event="order", data="x" * 2000)
    assert (reply["event"], reply["code"]) == ("error", 114)
    assert "was not published: durable_bytes is 65536" in reply["message"]
    client.ask("join_channel", channel="ordinary")
    with pytest.raises(StorageError, match="durable_bytes is 65536"):
        server.broadcast("ordinary", "order", "x" * 2000, durable=True, idempotency_key="key").result(PATIENCE)
    assert server.broadcast("ordinary", "order", "y" * 2000).result() == 1
    assert client.receive_until(event="order")["data"] == "y" * 2000, "a refused publication is not handed over"
    assert numbers(server, "orders:1") == list(range(saved))
    assert server.stats()["not_saved"] == 4
    stop(server)
    again = make_server(database=database, channel_settings=DURABLE, durable_bytes=1 << 16)
    assert numbers(again, "orders:1") == list(range(saved))
    del again.channels["orders:1"]
    again.broadcast("orders:2", "order", {"n": 0}).result(PATIENCE)


def test_a_durable_publication_that_was_refused_is_handed_over_once_when_it_is_repeated(
    make_server: MakeServer, connect: Connect, database: str
) -> None:
    server = make_server(database=database, channel_settings=DURABLE, durable_bytes=1 << 16)
    client = connect(server)
    client.ask("join_channel", channel="ordinary")

    def publish() -> int:
        pending = server.broadcast("ordinary", "order", "x" * 10_000, durable=True, idempotency_key="key")
        return pending.result(PATIENCE)

    server.broadcast("orders:1", "order", "x" * 60_000).result(PATIENCE)
    with pytest.raises(StorageError, match="durable_bytes is 65536"):
        publish()
    del server.channels["orders:1"]
    assert [publish(), publish()] == [1, 1]
    orders = [message for message in client.settle(server) if message.get("event") == "order"]
    assert len(orders) == 1
    assert server.stats()["not_saved"] == 1


def test_a_channel_that_is_full_makes_its_own_room(make_server: MakeServer, database: str) -> None:
    rules = {"orders:*": {"durable": True, "history_size": 20}}
    server = make_server(database=database, channel_settings=rules, durable_bytes=1 << 16)
    for number in range(100):
        server.broadcast("orders:1", "order", {"n": number, "x": "x" * 2900}).result(PATIENCE)
    assert numbers(server, "orders:1") == list(range(80, 100))
    assert server.stats()["durable_bytes"] > (1 << 16) - 3500, "there was no room for one more"


def test_room_comes_back_when_durable_publications_expire(make_server: MakeServer, database: str) -> None:
    rules = {"orders:*": {"durable": True, "message_ttl": 0.3}}
    server = make_server(database=database, channel_settings=rules, durable_bytes=1 << 16, empty_channel_ttl=0.5)
    server.broadcast("orders:1", "order", "x" * 60_000).result(PATIENCE)
    eventually(lambda: server.stats()["durable_bytes"] == 0, lambda: server.stats()["durable_bytes"], timeout=30)
    server.broadcast("orders:2", "order", "x" * 60_000).result(PATIENCE)
    eventually(lambda: not {"orders:1", "orders:2"} & set(server.channels), "channels end", timeout=30)


def test_durable_history_behind_the_window_is_paged_and_recovered_also_after_a_restart(
    make_server: MakeServer, connect: Connect, database: str
) -> None:
    settings = {"orders:*": {"durable": True, "history_size": 3000}}
    count = 2500
    server = make_server(database=database, channel_settings=settings)
    publish_durably(server, ["orders:1"] * count)
    epoch = history_of(server, "orders:1", limit=1).epoch
    for _ in range(2):
        assert numbers(server, "orders:1") == list(range(count))
        client = connect(server)
        reply = client.ask("join_channel", channel="orders:1", recover={"epoch": epoch, "offset": 0})
        assert (reply["recovered"], reply["offset"]) == (True, count)
        assert [publication["data"]["n"] for publication in reply["publications"]] == list(range(count))
        reply = client.ask("history", channel="orders:1", after=100, limit=50)
        assert [publication["offset"] for publication in reply["publications"]] == list(range(101, 151))
        server.broadcast("orders:1", "order", {"n": count}).result(PATIENCE)
        client.receive_until(event="order", data={"n": count})
        count += 1
        stop(server)
        server = make_server(database=database, channel_settings=settings)
