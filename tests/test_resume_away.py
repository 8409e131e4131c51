"""Clients that are away: what others are told meanwhile, and what happens to them until they are back."""

import threading
import time
from typing import Any

import pytest
from resuming import Connect, MakeServer, lost, named, path, resume
from support import eventually
from tantor import Tantor

# What others are told


def test_a_resume_within_the_delay_is_nobodys_business(server: Tantor, connect: Connect) -> None:
    left: list[dict[str, Any]] = []
    server.on_event("user_left", left.append)
    watcher, client = connect(server), connect(server)
    client.ask("join_channel", channel="den")
    watcher.ask("join_channel", channel="den")
    watcher.settle(server)
    for _ in range(3):
        token = lost(server, client)
        assert sorted(server.get_presence("den")["users"]) == sorted([watcher.client_id, client.client_id])
        assert server.stats()["channels"]["den"] == 2
        assert client.client_id not in server.connections
        client = connect(server, path(token))
    assert named(watcher.settle(server), "user_left", "user_joined") == []
    assert left == []


def test_a_loss_is_told_after_the_delay_and_the_return_too(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(leave_delay=0.3)
    watcher, client = connect(server), connect(server)
    client.ask("join_channel", channel="den")
    watcher.ask("join_channel", channel="den")
    watcher.settle(server)
    began = time.monotonic()
    token = lost(server, client)
    left = watcher.receive_until(event="user_left", channel="den")
    assert time.monotonic() - began >= 0.3
    assert left["data"] == {"client_id": client.client_id, "total_users": 1}
    eventually(lambda: server.get_presence("jungle")["users"] == [watcher.client_id], "off the default channel too")
    again = connect(server, path(token))
    assert sorted(again.welcome["channels"]) == ["den", "jungle"]
    joined = watcher.receive_until(event="user_joined", channel="den")
    assert joined["data"] == {"client_id": client.client_id, "total_users": 2}
    assert server.get_presence("den")["users"] == [watcher.client_id, client.client_id]
    server.broadcast("den", "n", 1)
    assert again.receive_until(event="n")["data"] == 1


def test_without_a_delay_a_loss_is_told_at_once(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(leave_delay=0)
    watcher, client = connect(server), connect(server)
    watcher.settle(server)
    token = lost(server, client)
    left = watcher.receive_until(event="user_left")
    assert left["data"] == {"client_id": client.client_id, "total_users": 1}
    assert server.get_presence("jungle")["users"] == [watcher.client_id]
    again = connect(server, path(token))
    assert again.client_id == client.client_id
    assert watcher.receive_until(event="user_joined")["data"]["total_users"] == 2


def test_the_delay_is_fifteen_seconds_and_never_more_than_there_is_to_come_back() -> None:
    assert Tantor().setting("leave_delay") == 15
    assert Tantor(resume_ttl=5).setting("leave_delay") == 5
    assert Tantor(resume_ttl=0).setting("leave_delay") == 0


# What happens to a client while it is away


def test_a_client_may_be_put_on_and_taken_off_channels_while_it_is_away(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(leave_delay=0)
    client = connect(server)
    for channel in ("kept", "taken"):
        client.ask("join_channel", channel=channel)
    token = lost(server, client)
    server.unsubscribe(client.client_id, "taken")
    server.subscribe(client.client_id, "given")
    server.subscribe(client.client_id, "kept")
    assert server.get_presence("given")["users"] == [client.client_id]
    again = connect(server, path(token))
    assert sorted(again.welcome["channels"]) == ["given", "jungle", "kept"]
    assert sorted(server.connections[client.client_id].channels) == ["given", "jungle", "kept"]
    for channel in ("given", "kept", "taken"):
        server.broadcast(channel, "n", channel)
    assert [message["data"] for message in named(again.settle(server), "n")] == ["given", "kept"]


@pytest.mark.parametrize("leave_delay", [0, 15])
def test_a_channel_that_was_deleted_meanwhile_is_not_come_back_to(
    make_server: MakeServer, connect: Connect, leave_delay: float
) -> None:
    server = make_server(leave_delay=leave_delay)
    client = connect(server)
    client.ask("join_channel", channel="den")
    token = lost(server, client)
    if leave_delay == 0:
        eventually(lambda: server.get_presence("den")["online"] == 0, "it has left")
    del server.channels["den"]
    again = connect(server, path(token))
    assert again.welcome["channels"] == ["jungle"]
    assert "den" not in server.channels


def test_the_application_can_take_a_client_off_while_it_comes_back(make_server: MakeServer, connect: Connect) -> None:
    """Whichever comes first, what was taken away stays away."""
    server = make_server(leave_delay=0, shards=2)
    client = connect(server)
    for _ in range(60):
        client.ask("join_channel", channel="den")
        token = lost(server, client)
        thread = threading.Thread(target=server.unsubscribe, args=(client.client_id, "den"))
        thread.start()
        client = connect(server, path(token))
        thread.join()
        assert server.connections[client.client_id].channels == ["jungle"]
        assert server.get_presence("den")["online"] == 0
        client.ask("ping")


def test_user_data_outlives_the_connection_and_ends_with_the_client(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=0.5)
    client = connect(server)
    server.connections[client.client_id].user_data.update(authenticated=True, roles=["a", "b"])
    client = resume(server, connect, client)
    assert server.connections[client.client_id].user_data == {"authenticated": True, "roles": ["a", "b"]}
    client.ask("ping")
    lost(server, client)
    eventually(lambda: server._user_data(client.client_id) is None, "it is forgotten")


def test_a_client_that_came_back_is_told_of_gaps_though_it_has_joined_nothing_yet(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(slow_consumer="latest", max_pending_bytes=1 << 17)
    token = lost(server, connect(server))
    again = connect(server, path(token), receive_buffer=4096)
    published = 0
    while not server.stats()["dropped"].get("latest"):
        server.broadcast("jungle", "n", "x" * 10_000)
        published += 1
        assert published < 5000
    gap = again.receive_until(event="gap")
    assert (gap["channel"], gap["reason"]) == ("jungle", "latest")
    assert gap["offset"] <= published
