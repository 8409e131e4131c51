"""Clients that take less than they are sent: what is dropped, what is told, and that nobody else notices."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support import WebSocketClient, eventually, fill_socket, lose, waits_for
from tantor import Tantor

pytestmark = pytest.mark.system_buffers

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]
Message = dict[str, Any]

BOUND = 256 << 10


def numbers(messages: Iterable[Message], channel: str) -> list[int]:
    of_channel = (message for message in messages if message.get("channel") == channel)
    return [message["data"]["n"] for message in of_channel if "n" in message.get("data", {})]


def publish(server: Tantor, channel: str, wanted: Iterable[int], size: int = 8 << 10, **options: Any) -> None:
    for number in wanted:
        server.broadcast(channel, "news", {"n": number, "fill": "x" * size}, **options)


def dropped(server: Tantor, reason: str) -> dict[str, int]:
    counts = server.stats()["dropped"].get(reason, {})
    assert isinstance(counts, dict)
    return counts


def stalled(server: Tantor, connect: Connect, *channels: str, path: str = "/") -> WebSocketClient:
    """A client on these channels whose socket takes nothing more, though little waits for it."""
    client = connect(server, path, receive_buffer=4096)
    for channel in channels:
        client.action("join_channel", channel=channel, ref=channel)
        client.receive_until(ref=channel)
    fill_socket(server, client)
    return client


def recover(client: WebSocketClient, channel: str, epoch: str, offset: int, top: int) -> list[Message]:
    """What is behind an offset: in one reply, or page by page if it is more than goes into one."""
    client.action("join_channel", channel=channel, ref="join", recover={"epoch": epoch, "offset": offset})
    reply = client.receive_until(ref="join")
    if reply["recovered"]:
        return list(reply["publications"])
    assert reply["reason"] == "too_large"
    missed: list[Message] = []
    while offset < top:
        client.action("history", channel=channel, after=offset, ref=offset)
        missed += client.receive_until(ref=offset)["publications"]
        offset = missed[-1]["offset"]
    return missed


# disconnect


def test_a_slow_consumer_is_disconnected_with_3008_and_recovers_all(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=BOUND)
    ended: list[Message] = []
    server.on_event("disconnect", ended.append)
    client = connect(server, receive_buffer=4096)
    client.action("join_channel", channel="news", ref=1)
    position = client.receive_until(ref=1)
    fill_socket(server, client)
    publish(server, "news", range(60))
    eventually(lambda: client.client_id not in server.connections, server.stats)
    eventually(lambda: ended, "the disconnect event")
    assert (ended[0]["client_id"], ended[0]["reason"], ended[0]["code"]) == (client.client_id, "slow_consumer", 3008)
    counts = dropped(server, "slow_consumer")
    assert 0 < counts["news"] <= 60
    assert sum(counts.values()) == server.stats()["dropped_slow_consumer"]
    assert server.stats()["disconnects"] == {"slow_consumer": 1}
    assert client.wait_closed() == 3008

    returned = connect(server, f"/?resume={client.welcome['resume']}")
    assert returned.welcome["resumed"] is True
    missed = recover(returned, "news", position["epoch"], position["offset"], top=60)
    assert numbers(missed, "news") == list(range(60))
    eventually(lambda: server.stats()["queued_messages"] == 0, server.stats)


def test_a_message_larger_than_the_bound_makes_no_slow_consumer_of_a_client_that_reads(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_pending_bytes=64 << 10, max_message_size=64 << 20)
    client = connect(server, receive_buffer=4096)
    huge = server.send(client.client_id, {"fill": "x" * (32 << 20)}).result()
    eventually(lambda: waits_for(server, client), server.stats)
    for number in range(5):
        server.broadcast("jungle", "news", {"n": number})
    messages = client.receive_all_until(lambda message: message.get("data", {}).get("n") == 4, timeout=60)
    assert huge in [message["id"] for message in messages]
    assert numbers(messages, "jungle")[-5:] == [0, 1, 2, 3, 4]
    assert server.stats()["disconnects"] == {}


def test_a_huge_message_behind_others_makes_a_slow_consumer(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=BOUND, max_message_size=8 << 20)
    client = stalled(server, connect)
    server.send(client.client_id, "x" * (4 << 20))
    eventually(lambda: client.client_id not in server.connections, server.stats)
    assert client.wait_closed() == 3008
    assert dropped(server, "slow_consumer") == {"*": 2}  # with the one that waited whole before it


# drop_oldest


def test_drop_oldest_keeps_the_connection_and_the_newest_and_tells_of_the_gap(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_pending_bytes=BOUND, slow_consumer="drop_oldest", history_size=1000)
    client = stalled(server, connect, "news")
    publish(server, "news", range(100))
    eventually(lambda: dropped(server, "drop_oldest").get("news", 0), server.stats)
    eventually(lambda: server.stats()["queued_bytes"] < BOUND + (64 << 10), server.stats)
    assert waits_for(server, client) <= BOUND + (64 << 10)
    messages = client.receive_all_until(lambda message: message.get("data", {}).get("n") == 99)
    # the last publication has arrived, so nothing more is dropped
    count = dropped(server, "drop_oldest")["news"]
    seen = numbers(messages, "news")
    assert seen == list(range(100 - len(seen), 100))
    assert len(seen) == 100 - count
    gaps = [message for message in messages if message.get("event") == "gap"]
    assert sum(gap["dropped"] for gap in gaps) == count
    history = server.history("news", limit=1).result()
    assert [(gap["channel"], gap["epoch"], gap["reason"], gap["recover"]) for gap in gaps] == [
        ("news", history.epoch, "drop_oldest", False)
    ] * len(gaps)
    assert gaps[-1]["offset"] == count  # the offset of the last that was dropped
    assert messages.index(gaps[-1]) < messages.index(next(each for each in messages if each.get("event") == "news"))
    assert server.stats()["disconnects"] == {}
    assert server.stats()["queued_messages"] == 0


def test_what_drop_oldest_dropped_can_be_recovered_from_the_history(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=BOUND, slow_consumer="drop_oldest", history_size=1000)
    client = connect(server, receive_buffer=4096)
    client.action("join_channel", channel="news", ref=1)
    position = client.receive_until(ref=1)
    publish(server, "news", range(5), size=10)
    client.receive_until(lambda message: message.get("data", {}).get("n") == 4)
    fill_socket(server, client)
    publish(server, "news", range(5, 40), size=16 << 10)
    eventually(lambda: dropped(server, "drop_oldest").get("news"), server.stats)
    gap = client.receive_until(event="gap")
    missed = numbers(recover(client, "news", gap["epoch"], 5, top=40), "news")
    assert missed == list(range(5, 40))
    assert position["epoch"] == gap["epoch"]
    publish(server, "news", [40], size=10)
    assert numbers(client.settle(server), "news")[-1] == 40


def test_a_client_that_did_not_ask_is_told_of_no_gap(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=BOUND, slow_consumer="drop_oldest")
    client = stalled(server, connect)
    publish(server, "jungle", range(100))
    eventually(lambda: dropped(server, "drop_oldest").get("jungle"), server.stats)
    messages = client.receive_all_until(lambda message: message.get("data", {}).get("n") == 99)
    assert [message for message in messages if message.get("event") == "gap"] == []


def test_drop_oldest_drops_the_lower_lane_first(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=BOUND, slow_consumer="drop_oldest")
    client = stalled(server, connect, "news")
    publish(server, "news", range(5), priority="high")
    publish(server, "news", range(100, 200), priority="low")
    publish(server, "news", range(300, 305))
    eventually(lambda: dropped(server, "drop_oldest").get("news"), server.stats)
    seen = numbers(client.settle(server), "news")
    assert seen[:10] == [*range(5), *range(300, 305)]
    assert seen[10:] == list(range(200 - len(seen[10:]), 200))


def test_messages_that_no_policy_lets_go_still_make_a_slow_consumer(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=BOUND, slow_consumer="drop_oldest")
    client = stalled(server, connect, "news")
    for _ in range(60):
        server.send(client.client_id, "x" * (8 << 10))
    eventually(lambda: client.client_id not in server.connections, server.stats)
    assert client.wait_closed() == 3008


# latest


def test_latest_keeps_only_the_newest_of_each_channel(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(channel_settings={"ticker:*": {"slow_consumer": "latest"}})
    client = stalled(server, connect, "ticker:a", "ticker:b", "chat")
    for number in range(50):
        publish(server, "ticker:a", [number], size=100)
        publish(server, "ticker:b", [number], size=100)
        publish(server, "chat", [number], size=100)
    messages = client.settle(server)
    assert numbers(messages, "chat") == list(range(50))
    for channel in ("ticker:a", "ticker:b"):
        assert numbers(messages, channel) == [49]
        gaps = [message for message in messages if message.get("event") == "gap" and message["channel"] == channel]
        assert [(gap["dropped"], gap["offset"], gap["reason"], gap["recover"]) for gap in gaps] == [
            (49, 49, "latest", False)
        ]
    assert dropped(server, "latest") == {"ticker:a": 49, "ticker:b": 49}
    assert server.stats()["queued_messages"] == 0


def test_a_client_that_keeps_up_gets_all_of_a_channel_that_is_conflated(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(slow_consumer="latest")
    client = connect(server)
    client.action("join_channel", channel="ticker", ref=1)
    client.receive_until(ref=1)
    for number in range(200):
        publish(server, "ticker", [number], size=10)
        assert client.receive_until(event="news")["data"]["n"] == number


def test_conflation_leaves_a_frame_that_is_half_written_whole(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(slow_consumer="latest")
    client = connect(server, receive_buffer=4096)
    client.action("join_channel", channel="ticker", ref=1)
    client.receive_until(ref=1)
    rounds = 300
    # each is larger than the socket takes at once, and the client reads a little in between
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set() or not seen or seen[-1] != rounds - 1:
            message = client.receive(timeout=30)
            if message["channel"] == "ticker" and message.get("event") == "news":
                assert message["data"]["fill"] == "x" * (200 << 10)
                seen.append(message["data"]["n"])

    reader = threading.Thread(target=read)
    reader.start()
    publish(server, "ticker", range(rounds), size=200 << 10)
    stop.set()
    reader.join(60)
    assert not reader.is_alive()
    assert seen[-1] == rounds - 1
    assert seen == sorted(set(seen))
    assert len(seen) + dropped(server, "latest").get("ticker", 0) == rounds


def test_who_comes_and_goes_displaces_nothing_that_a_channel_has_to_say(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(slow_consumer="latest", leave_delay=0)
    client = stalled(server, connect, "ticker")
    publish(server, "ticker", range(3), size=10)
    for _ in range(3):
        server.subscribe("user-7", "ticker")
        server.unsubscribe("user-7", "ticker")
    messages = client.settle(server)
    assert [message["data"]["n"] for message in messages if message.get("event") == "news"] == [2]
    events = [message["event"] for message in messages if message["channel"] == "ticker" and "trumpeted_by" in message]
    assert events == ["user_joined", "news", *["user_joined", "user_left"] * 3]


# By channel, and by process


def test_the_policy_is_that_of_the_channel_or_of_its_pattern(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(
        max_pending_bytes=BOUND,
        channel_settings={
            "drop:*": {"slow_consumer": "drop_oldest"},
            "drop:not": {"slow_consumer": "disconnect"},
            "drop:latest:*": {"slow_consumer": "latest"},
        },
    )
    dropping = stalled(server, connect, "drop:a", "drop:latest:b")
    closing = stalled(server, connect, "drop:not")
    publish(server, "drop:a", range(60))
    publish(server, "drop:latest:b", range(60))
    publish(server, "drop:not", range(60))
    eventually(lambda: closing.client_id not in server.connections, server.stats)
    assert closing.wait_closed() == 3008
    messages = dropping.settle(server)
    assert numbers(messages, "drop:latest:b") == [59]
    assert numbers(messages, "drop:a")[-1] == 59
    stats = server.stats()["dropped"]
    assert set(stats["slow_consumer"]) <= {"drop:not", "*"}
    assert set(stats["drop_oldest"]) == {"drop:a"}
    assert stats["latest"] == {"drop:latest:b": 59}
    assert server.stats()["disconnects"] == {"slow_consumer": 1}


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest"])
def test_beyond_max_queued_bytes_whoever_has_most_waiting_lets_go_on_whatever_shard(
    make_server: MakeServer, connect: Connect, policy: str
) -> None:
    server = make_server(
        shards=2,
        max_pending_bytes=4 << 20,
        max_queued_bytes=4 << 20,
        mailbox_bytes=1 << 20,
        channel_settings={"c*": {"slow_consumer": policy}},
    )
    with_channels = {f"c{number}": stalled(server, connect, f"c{number}") for number in range(4)}
    reader = connect(server)
    # the first has most, whichever shard it is on
    publish(server, "c0", range(100), size=16 << 10)
    for channel in ("c1", "c2", "c3"):
        publish(server, channel, range(60), size=16 << 10)
    eventually(lambda: server.stats()["dropped"], server.stats)
    eventually(lambda: server.stats()["queued_bytes"] <= 4 << 20, server.stats)
    stats = server.stats()
    reason = "slow_consumer" if policy == "disconnect" else "drop_oldest"
    assert stats["dropped"][reason].get("c0", 0) > 0
    assert set(stats["dropped"][reason]) & {"c1", "c2", "c3"} == set()
    gone = [channel for channel, client in with_channels.items() if client.client_id not in server.connections]
    assert gone == (["c0"] if policy == "disconnect" else [])
    for channel in ("c1", "c2", "c3"):
        assert numbers(with_channels[channel].settle(server), channel) == list(range(60))
    assert reader.settle(server) is not None


def test_the_worst_connections_are_named_with_their_bytes(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_pending_bytes=64 << 20, max_message_size=32 << 20)
    clients = [stalled(server, connect) for _ in range(10)]
    more = [connect(server, receive_buffer=4096) for _ in range(3)]
    for client in more:
        server.send(client.client_id, "x" * (31 << 20))
    connect(server)
    worst = server.stats()["worst_connections"]

    def all_are_named() -> bool:
        nonlocal worst
        worst = server.stats()["worst_connections"]
        return {client_id for client_id, _ in worst[:3]} == {client.client_id for client in more}

    eventually(all_are_named, server.stats)
    assert len(worst) == 10
    assert {client_id for client_id, _ in worst[3:]} < {client.client_id for client in clients}
    assert [waiting for _, waiting in worst] == sorted((waiting for _, waiting in worst), reverse=True)
    assert sum(waiting for _, waiting in worst) <= server.stats()["queued_bytes"]
    for client in clients + more:
        client.close()
    eventually(lambda: server.stats()["worst_connections"] == [], server.stats)
    eventually(lambda: server.stats()["queued_bytes"] == 0, server.stats)


@pytest.mark.parametrize("policy", ["disconnect", "drop_oldest", "latest"])
def test_stalled_clients_harm_nobody_else(make_server: MakeServer, connect: Connect, policy: str) -> None:
    server = make_server(max_pending_bytes=BOUND, shards=1, channel_settings={"news": {"slow_consumer": policy}})
    readers = [connect(server) for _ in range(3)]
    for client in readers:
        client.action("join_channel", channel="news", ref=1)
        client.receive_until(ref=1)
    for _ in range(5):
        stalled(server, connect, "news")
    for number in range(300):
        publish(server, "news", [number], size=4 << 10)
        for client in readers:
            assert client.receive_until(event="news")["data"]["n"] == number
    assert sum(server.stats()["dropped"][{"disconnect": "slow_consumer"}.get(policy, policy)].values()) > 0


def test_a_client_that_was_told_of_a_gap_is_written_to_from_then_on(make_server: MakeServer, connect: Connect) -> None:
    # it reads in little steps, so that it is told of gaps at every point of the server's turns
    server = make_server(slow_consumer="latest", heartbeat_interval=60)
    client = connect(server, receive_buffer=4096)
    client.action("join_channel", channel="ticker", ref=1)
    client.receive_until(ref=1)
    for round_number in range(30):
        publish(server, "ticker", range(200), size=64 << 10)
        messages = client.receive_all_until(lambda message: message.get("data", {}).get("n") == 199, timeout=20)
        server.send(client.client_id, {"round": round_number})
        client.receive_until(round=round_number, timeout=10)
        assert numbers(messages, "ticker")[-1] == 199
    assert dropped(server, "latest")["ticker"] > 0


def test_the_gauges_return_to_zero_when_half_written_runs_were_overtaken(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_pending_bytes=64 << 20)
    client = connect(server, receive_buffer=4096)
    for number in range(100):
        # in a row, so that they are joined into runs, which then leave bit by bit
        publish(server, "jungle", range(200), size=600)
        server.send(client.client_id, {"n": number}, priority="high")
        server.broadcast("jungle", "news", {"n": -1}, priority="high")
        server.emergency("fire")
        if number > 50:
            client.receive()
    assert server.stats()["queued_messages"] > 0
    client.settle(server)
    stats = server.stats()
    assert (stats["queued_messages"], stats["queued_bytes"]) == (0, 0)


def test_a_slow_consumer_that_is_closed_gets_emergencies_when_it_returns(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_pending_bytes=BOUND)
    client = stalled(server, connect, "news")
    assert server.emergency("fire").result() == 1
    publish(server, "news", range(60))
    eventually(lambda: client.client_id not in server.connections, server.stats)
    returned = connect(server, f"/?resume={client.welcome['resume']}")
    assert returned.receive_until(event="emergency_alert")["data"]["message"] == "fire"
    client.close()


def test_a_lost_client_gets_the_emergencies_that_its_connection_had_not_taken(server: Tantor, connect: Connect) -> None:
    client = stalled(server, connect)
    emergency = server.emergency("fire")
    message = emergency.message_id
    assert message is not None
    eventually(lambda: server.stats()["queued_messages"] > 1, server.stats)
    path = lose(server, client)
    assert server.delivery(message) == {"handed_over": 1, "written": 0, "acknowledged": 0, "waiting": 1}
    returned = connect(server, path)
    assert returned.welcome["waiting"] == 1
    assert returned.receive()["id"] == message
