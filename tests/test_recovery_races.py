"""Joins and recovery while eight threads publish: nothing is lost, and nothing comes twice."""

import contextlib
import random
from collections.abc import Callable
from typing import Any

from recovering import data, position, publish
from storms import publishing
from support import ClosedError, WebSocketClient, eventually
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


def check_each_once(seen: list[dict[str, Any]], last: int) -> None:
    """Every publication once and in order, from the first that was seen to the last of all."""
    offsets = [message["offset"] for message in seen]
    assert offsets == list(range(offsets[0], last + 1))
    latest: dict[int, int] = {}
    for message in seen:
        thread, number = message["data"]
        assert number == latest.get(thread, number - 1) + 1, message
        latest[thread] = number


def test_joins_in_a_loop_miss_nothing_and_see_nothing_twice_under_eight_publishers(
    make_server: MakeServer, connect: Connect
) -> None:
    """The reply's publications and what comes behind it, and nothing else, make up the stream."""
    server = make_server(history_size=10_000, max_pending_bytes=1 << 24, max_queued_bytes=1 << 28)
    clients = [connect(server) for _ in range(4)]
    with publishing(server, "den") as end:
        seen: list[list[dict[str, Any]]] = [[] for _ in clients]
        epoch = position(server, "den")["epoch"]
        for _ in range(150):
            for client, mine in zip(clients, seen, strict=True):
                offset = mine[-1]["offset"] if mine else 0
                client.heard.clear()
                reply = client.ask("join_channel", channel="den", recover={"epoch": epoch, "offset": offset})
                assert reply["recovered"] is True, reply
                assert not [message for message in client.heard if message.get("event") == "n"], "before the reply"
                mine += reply["publications"]
                assert (mine[-1]["offset"] if mine else 0) == reply["offset"]
                for _ in range(random.randrange(20)):
                    message = client.receive()
                    mine += [message] if message.get("event") == "n" else []
                client.heard.clear()
                client.ask("leave_channel", channel="den")
                mine += [message for message in client.heard if message.get("event") == "n"]
        published = end()
    for client, mine in zip(clients, seen, strict=True):
        offset = mine[-1]["offset"]
        mine += client.ask("join_channel", channel="den", recover={"epoch": epoch, "offset": offset})["publications"]
        check_each_once(mine, published)
        assert mine[0]["offset"] == 1


def test_a_new_connection_each_time_misses_nothing_under_eight_publishers(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(history_size=10_000, max_pending_bytes=1 << 24, max_queued_bytes=1 << 28)
    seen: list[dict[str, Any]] = []
    with publishing(server, "jungle") as end:
        epoch = position(server, "jungle")["epoch"]
        for _ in range(30):
            with WebSocketClient(server.port).greet() as client:
                client.ask("leave_channel", channel="jungle")
                offset = seen[-1]["offset"] if seen else 0
                client.heard.clear()
                reply = client.ask("join_channel", channel="jungle", recover={"epoch": epoch, "offset": offset})
                assert reply["recovered"] is True, reply
                seen += reply["publications"]
                for _ in range(random.randrange(10)):
                    message = client.receive()
                    seen += [message] if message.get("event") == "n" else []
                client.reset()
        published = end()
    seen += server.history("jungle", limit=10_000, after=seen[-1]["offset"]).result().publications
    check_each_once(seen, published)


def test_recovery_against_a_small_history_is_all_or_nothing_under_eight_publishers(
    make_server: MakeServer, connect: Connect
) -> None:
    """Whoever was away too long is told so; whoever was not has everything."""
    server = make_server(history_size=500, max_pending_bytes=1 << 24, max_queued_bytes=1 << 28)
    client = connect(server)
    client.ask("leave_channel", channel="jungle")
    outcomes: list[bool] = []
    with publishing(server, "den"):
        where = client.ask("join_channel", channel="den")
        offset, epoch = where["offset"], where["epoch"]
        while len(outcomes) < 30:
            client.heard.clear()
            client.ask("leave_channel", channel="den")
            live = [message["offset"] for message in client.heard if message.get("event") == "n"]
            assert live == list(range(offset + 1, offset + len(live) + 1))
            offset += len(live)
            # sometimes for longer than what is kept reaches
            beyond = offset + (0, 50, 1500)[len(outcomes) % 3]
            eventually(lambda: position(server, "den")["offset"] >= beyond, "publications", timeout=30)  # noqa: B023
            client.heard.clear()
            reply = client.ask("join_channel", channel="den", recover={"epoch": epoch, "offset": offset})
            outcomes.append(reply["recovered"])
            recovered = [publication["offset"] for publication in reply["publications"]]
            if reply["recovered"]:
                assert recovered == list(range(offset + 1, reply["offset"] + 1))
            else:
                assert (reply["reason"], recovered) == ("expired", [])
            offset = reply["offset"]
    assert set(outcomes[2::3]) == {False}, "three times as much was published as is kept"
    assert True in outcomes, "it was away for a moment only"


def test_three_hundred_messages_are_recovered_in_one_reply(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(history_size=1000)
    publish(server, "den", 400)
    client = connect(server)
    reply = client.ask("join_channel", channel="den", recover=position(server, "den") | {"offset": 100})
    assert data(reply["publications"]) == list(range(101, 401))


def test_a_client_that_recovers_more_than_its_socket_takes_is_told_and_comes_back(
    make_server: MakeServer, connect: Connect
) -> None:
    """A reply that waits, and publications behind it over the bound: closed as slow, and it has lost nothing."""
    server = make_server(max_pending_bytes=1 << 18, history_size=1000)
    for number in range(3):
        server.broadcast("den", "n", [number, "x" * 30_000])
    epoch = position(server, "den")["epoch"]
    client = connect(server, receive_buffer=4096)
    client.action("join_channel", channel="den", ref=1, recover={"epoch": epoch, "offset": 0})
    eventually(lambda: server.get_presence("den")["online"], "the client joins")
    number = 3
    while client.client_id in server.connections:
        server.broadcast("den", "n", [number, "x" * 30_000])
        number += 1
        assert number < 1000
    last = 0
    with contextlib.suppress(ClosedError):
        while True:
            message = client.receive()
            for publication in message.get("publications", [message]):
                if publication.get("event") == "n":
                    assert publication["offset"] == last + 1
                    last = publication["offset"]
    while last < number:
        page = connect(server).ask("history", channel="den", after=last)["publications"]
        assert page[0]["offset"] == last + 1
        last = page[-1]["offset"]
    assert last == number
