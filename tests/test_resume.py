"""Clients that are lost and come back: their token, what they come back to, and what others are told meanwhile."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
from support import CLOSE, PING, TEXT, ClosedError, WebSocketClient, encode_frame, eventually, handshake_request
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]

EXPIRED = "the resume token is of nobody who is expected back: it has expired, or the client has left"
USED = "the resume token is not the client's latest: it was used before, or made up"
MALFORMED = "the resume token is malformed"


def is_gone(server: Tantor, client: WebSocketClient) -> None:
    eventually(lambda: client.client_id not in server.connections, lambda: server.stats())


def lost(server: Tantor, client: WebSocketClient) -> str:
    """Breaks a connection; the token with which the client can come back."""
    client.reset()
    is_gone(server, client)
    return str(client.welcome["resume"])


def path(token: str) -> str:
    return f"/?resume={token}"


def resume(server: Tantor, connect: Connect, client: WebSocketClient) -> WebSocketClient:
    """The client again, lost and back."""
    return connect(server, path(lost(server, client)))


def named(messages: list[dict[str, Any]], *events: str) -> list[dict[str, Any]]:
    return [message for message in messages if message.get("event") in events]


def refused(client: WebSocketClient, reason: str) -> None:
    assert (client.welcome["resumed"], client.welcome["reason"]) == (False, reason)
    assert "channels" not in client.welcome


# The same client


def test_the_welcome_carries_a_token_and_how_long_it_is_good(make_server: MakeServer, connect: Connect) -> None:
    welcome = connect(make_server(resume_ttl=90)).welcome
    assert welcome["resume_ttl"] == 90
    assert len(welcome["resume"]) >= 32
    assert welcome["resume"].isalnum()
    assert "resumed" not in welcome


def test_tokens_are_all_different(server: Tantor, connect: Connect) -> None:
    tokens = [connect(server).welcome["resume"] for _ in range(50)]
    assert len({token[:32] for token in tokens}) == 50


def test_a_client_that_comes_back_is_the_same(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.ask("join_channel", channel="den")
    joined_at = server.connections[client.client_id].joined_at
    server.connections[client.client_id].user_data["name"] = "Ada"
    token = lost(server, client)
    server.send(client.client_id, "while you were away")
    again = connect(server, path(token))
    assert again.client_id == client.client_id
    assert again.welcome["resumed"] is True
    assert sorted(again.welcome["channels"]) == ["den", "jungle"]
    assert again.welcome["waiting"] == 1
    assert "dropped" not in again.welcome
    assert again.welcome["resume"] != token
    assert again.receive()["message"] == "while you were away", "before anything newer"
    connection = server.connections[client.client_id]
    assert sorted(connection.channels) == ["den", "jungle"]
    assert connection.user_data == {"name": "Ada"}
    assert connection.joined_at == joined_at
    info = server.get_client_info(client.client_id)
    assert info is not None
    assert info["user_data"] == {"name": "Ada"}
    server.broadcast("den", "n", 1)
    assert again.receive_until(event="n")["data"] == 1
    stats = server.stats()
    assert (stats["resumes"], stats["resumes_refused"], stats["away"]) == (1, 0, 0)
    assert (stats["total_connections"], stats["connections_total"]) == (1, 2)


def test_what_was_missed_is_recovered_by_position(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    where = client.ask("join_channel", channel="den")
    server.broadcast("den", "n", 1)
    assert client.receive_until(event="n")["offset"] == 1
    token = lost(server, client)
    server.broadcast("den", "n", 2)
    server.broadcast("den", "n", 3)
    again = connect(server, path(token))
    server.broadcast("den", "n", 4)
    assert again.receive_until(event="n")["data"] == 4, "it is live at once"
    reply = again.ask("join_channel", channel="den", recover={"epoch": where["epoch"], "offset": 1})
    assert reply["recovered"] is True
    assert [publication["data"] for publication in reply["publications"]] == [2, 3], "what came live is not repeated"
    assert reply["subscribers"] == 1


def test_it_can_be_lost_and_come_back_again_and_again(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    for number in range(1, 20):
        again = resume(server, connect, client)
        assert (again.client_id, again.welcome["resumed"]) == (client.client_id, True), number
        assert again.ask("ping")["pong"] is True
        client = again
    assert server.stats()["resumes"] == 19


@pytest.mark.parametrize("how", ["reset", "end of stream", "close 4900", "violation of the protocol"])
def test_what_ends_without_a_goodbye_can_come_back(server: Tantor, connect: Connect, how: str) -> None:
    client = connect(server)
    if how == "reset":
        client.reset()
    elif how == "end of stream":
        client.close()
    elif how == "close 4900":
        client.say_goodbye(4900)
    else:
        client.send_frame(0x3, b"reserved opcode")
        assert client.wait_closed() == 1002
    is_gone(server, client)
    again = connect(server, path(client.welcome["resume"]))
    if how == "violation of the protocol":
        # it would only break it again
        refused(again, EXPIRED)
    else:
        assert (again.client_id, again.welcome["resumed"]) == (client.client_id, True)


@pytest.mark.parametrize("code", [1000, 1001, 3999, 4000, 4899, 4901])
def test_a_client_that_closes_has_left_for_good(server: Tantor, connect: Connect, code: int) -> None:
    watcher, client = connect(server), connect(server)
    client.say_goodbye(code)
    left = watcher.receive_until(event="user_left")
    assert left["data"] == {"client_id": client.client_id, "total_users": 1}
    again = connect(server, path(client.welcome["resume"]))
    refused(again, EXPIRED)
    assert again.client_id != client.client_id
    assert server.stats()["away"] == 0


def test_a_client_that_was_silent_for_too_long_can_come_back(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(heartbeat_interval=0.2, heartbeat_timeout=0.6)
    client = connect(server, answers=False)
    assert client.wait_closed() == 3012
    assert connect(server, path(client.welcome["resume"])).client_id == client.client_id


def test_a_client_that_the_end_of_the_server_cut_off_can_come_back(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    client = connect(server)
    client.ask("join_channel", channel="den")
    server.begin_stop()
    assert client.wait_closed() == 1001
    client.close()
    assert server.wait_stopped(15)
    assert server.get_presence("den")["online"] == 0
    server.start_background()
    again = connect(server, path(client.welcome["resume"]))
    assert (again.client_id, again.welcome["resumed"]) == (client.client_id, True)
    assert sorted(again.welcome["channels"]) == ["den", "jungle"]
    assert server.get_presence("den")["users"] == [client.client_id]


def test_without_resume_ttl_there_are_no_tokens(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=0)
    watcher, client = connect(server), connect(server)
    assert "resume" not in client.welcome
    assert "resume_ttl" not in client.welcome
    client.reset()
    watcher.receive_until(event="user_left")
    with pytest.raises(ValueError, match="there are no resume tokens: resume_ttl is 0"):
        server.resume_token("ada")
    refused(connect(server, path("0" * 32 + client.client_id.encode().hex())), EXPIRED)


# Tokens that cannot be used

BAD_TOKENS = {
    "": MALFORMED,
    "x": MALFORMED,
    "0" * 31: MALFORMED,
    "0" * 32: MALFORMED,
    "zz" * 24: MALFORMED,
    "%C3%A9" * 24: MALFORMED,
    "+f" * 24: MALFORMED,
    "0" * 32 + "ff": MALFORMED,
    "0" * 32 + "0a": MALFORMED,
    "0" * 32 + b"nobody".hex(): EXPIRED,
    "00" * 3000: MALFORMED,
}


@pytest.mark.parametrize("token", list(BAD_TOKENS), ids=lambda token: token[:40] or "empty")
def test_a_token_that_is_none_gives_a_new_client_and_the_reason(server: Tantor, connect: Connect, token: str) -> None:
    client = connect(server, path(token))
    refused(client, BAD_TOKENS[token])
    assert client.welcome["resume"]
    assert server.get_presence("jungle")["users"] == [client.client_id]
    assert server.stats()["resumes_refused"] == 1


def test_a_forged_token_harms_nobody(server: Tantor, connect: Connect) -> None:
    victim, away = connect(server), connect(server)
    tokens = [victim.welcome["resume"], lost(server, away)]
    for token in tokens:
        for at in (0, 15, 31):
            digit = "0" if token[at] != "0" else "1"
            refused(connect(server, path(token[:at] + digit + token[at + 1 :])), USED)
    assert victim.ask("ping")["pong"] is True
    again = connect(server, path(tokens[1]))
    assert again.client_id == away.client_id, "nor one that is away"


def test_a_token_expires(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=2, leave_delay=0.2)
    watcher, client = connect(server), connect(server)
    token = lost(server, client)
    assert server.stats()["away"] == 1
    watcher.receive_until(event="user_left")
    eventually(lambda: server.stats()["away"] == 0, lambda: server.stats())
    again = connect(server, path(token))
    refused(again, EXPIRED)
    assert named(watcher.settle(server), "user_left") == [], "it is told once"


def test_the_time_to_come_back_begins_at_each_loss(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=3)
    client = connect(server)
    deadline = time.monotonic() + 4
    while time.monotonic() < deadline:
        client = resume(server, connect, client)
        assert client.welcome["resumed"] is True
        client.ask("ping")
        connect(server).settle(server)
        time.sleep(0.3)  # the time passes: nothing is waited for


def test_a_token_that_was_used_is_good_until_the_newer_one_has_arrived(server: Tantor, connect: Connect) -> None:
    """The welcome may have been lost with its connection."""
    client = connect(server)
    token = lost(server, client)
    unheard = connect(server, path(token))
    unheard.reset()
    is_gone(server, unheard)
    again = connect(server, path(token))
    assert again.client_id == client.client_id
    again.ask("ping")
    newer = lost(server, again)
    replayed = connect(server, path(token))
    refused(replayed, USED)
    assert connect(server, path(unheard.welcome["resume"])).welcome["reason"] == USED
    assert connect(server, path(newer)).client_id == client.client_id, "and nothing was lost by it"


def test_a_frame_of_the_older_connection_does_not_end_the_token_that_the_newer_one_came_with(
    server: Tantor, connect: Connect
) -> None:
    client = connect(server)
    token = client.welcome["resume"]
    newer = connect(server, path(token))
    with contextlib.suppress(OSError):  # it may have been closed by now
        client.action("ping")
        client.wait_closed()
    newer.reset()
    is_gone(server, newer)
    assert connect(server, path(token)).client_id == client.client_id


def test_a_stolen_token_displaces_its_owner_who_is_told(server: Tantor, connect: Connect) -> None:
    ended: list[dict[str, Any]] = []
    server.on_event("disconnect", ended.append)
    watcher, owner = connect(server), connect(server)
    watcher.settle(server)
    thief = connect(server, path(owner.welcome["resume"]))
    assert thief.client_id == owner.client_id
    assert owner.wait_closed() == 3503
    eventually(lambda: ended, "the disconnect event")
    assert [(event["client_id"], event["reason"], event["code"]) for event in ended] == [
        (owner.client_id, "displaced", 3503)
    ]
    assert server.stats()["disconnects"]["displaced"] == 1
    assert named(watcher.settle(server), "user_left", "user_joined") == []
    assert server.connections[owner.client_id].channels == ["jungle"]
    assert server.stats()["total_connections"] == 2
    again = connect(server, path(owner.welcome["resume"]))
    assert again.client_id == owner.client_id, "the thief has not shown that it has the newer token"
    assert thief.wait_closed() == 3503


# Displaced connections


def test_a_half_dead_connection_is_displaced(server: Tantor, connect: Connect) -> None:
    """A socket that no longer carries anything, of which the server cannot know it yet."""
    client = connect(server, receive_buffer=4096)
    where = client.ask("join_channel", channel="den")
    blackholed = client  # nothing is read from it any more, and nothing is sent
    for number in range(20):
        server.broadcast("den", "n", [number, "x" * 10_000])
    again = connect(server, path(client.welcome["resume"]))
    assert again.client_id == client.client_id
    reply = again.ask("join_channel", channel="den", recover={"epoch": where["epoch"], "offset": 0})
    assert reply["recovered"] is True
    assert [publication["data"][0] for publication in reply["publications"]] == list(range(20))
    server.send(again.client_id, {"to": "the newer one"})
    assert again.receive_until(to="the newer one")
    assert server.stats()["total_connections"] == 1
    # the server lets go of it though its peer never answers
    eventually(lambda: server.stats()["disconnects"].get("displaced") == 1, lambda: server.stats())
    assert blackholed.wait_closed() in (3503, None)


def test_what_a_displaced_connection_still_sends_is_not_carried_out(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(shards=2)
    for _ in range(20):
        client = connect(server)
        newer: list[WebSocketClient] = []
        frames = b"".join(
            encode_frame(TEXT, f'{{"action":"join_channel","channel":"old {n}","ref":{n}}}'.encode()) for n in range(50)
        )
        thread = threading.Thread(target=lambda: newer.append(connect(server, path(client.welcome["resume"]))))  # noqa: B023
        thread.start()
        with contextlib.suppress(OSError):
            client.send_raw(frames)
        thread.join()
        answered = []
        with contextlib.suppress(ClosedError):
            while True:
                message = client.receive()
                answered += [message["ref"]] if "ref" in message else []
        assert answered == list(range(len(answered)))
        heard = newer[0].settle(server)
        assert not [message for message in heard if "ref" in message], "answers go where the questions came from"
        # what was carried out was carried out before, in order
        channels = server.connections[client.client_id].channels
        assert channels == ["jungle", *(f"old {n}" for n in range(len(channels) - 1))]
        assert set(channels) == set(newer[0].welcome["channels"])
        newer[0].say_goodbye()


def test_two_that_resume_with_one_token_at_once_leave_one_connection(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(shards=2)
    for _ in range(30):
        client = connect(server)
        client.ask("join_channel", channel="den")
        token = lost(server, client)
        rivals: list[WebSocketClient] = []
        threads = [
            threading.Thread(target=lambda: rivals.append(connect(server, path(token))))  # noqa: B023
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # nobody has sent a frame, so the token was good for each
        assert [rival.client_id for rival in rivals] == [client.client_id] * 4
        eventually(lambda: server.stats()["total_connections"] == 1, lambda: server.stats())
        server.send(client.client_id, {"for": "one"})
        reached = 0
        for rival in rivals:
            try:
                while rival.receive(timeout=10).get("for") != "one":
                    pass
                reached += 1
                survivor = rival
            except ClosedError as closed:
                assert closed.code == 3503  # noqa: PT017
        assert reached == 1
        assert sorted(server.connections[client.client_id].channels) == ["den", "jungle"]
        server.broadcast("den", "n", 1)
        assert survivor.receive_until(event="n")["data"] == 1
        assert [m for m in survivor.settle(server) if m.get("event") == "n"] == [], "once"
        survivor.say_goodbye()


def test_a_full_server_lets_a_client_take_the_place_of_its_own_connection(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_connections=2)
    client, _other = connect(server), connect(server)
    again = connect(server, path(client.welcome["resume"]))
    assert (again.client_id, again.welcome["resumed"]) == (client.client_id, True)
    assert client.wait_closed() == 3503
    token = lost(server, again)
    third = connect(server)
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(handshake_request(server.port, path(token)))
        assert b"HTTP/1.1 503 " in connection.recv(4096)
    third.say_goodbye()
    assert connect(server, path(token)).client_id == client.client_id, "a full server has not used the token up"
    assert server.stats()["total_connections"] == 2


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
    eventually(lambda: server.user_data(client.client_id) is None, "it is forgotten")


# Tokens that the application gives


def test_the_application_gives_a_client_its_id(server: Tantor, connect: Connect) -> None:
    token = server.resume_token("ada")
    assert server.resume_token("ada") == token
    server.subscribe("ada", "den")
    server.send("ada", "hello")
    client = connect(server, path(token))
    assert (client.client_id, client.welcome["resumed"]) == ("ada", True)
    assert sorted(client.welcome["channels"]) == ["den", "jungle"], "as every client, it begins on the default channel"
    assert client.receive()["message"] == "hello"
    assert sorted(server.connections["ada"].channels) == ["den", "jungle"]
    assert resume(server, connect, client).client_id == "ada"


def test_a_given_token_is_for_one_client_and_expires(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=2, leave_delay=0)
    token = server.resume_token("ada")
    assert server.stats()["away"] == 1
    assert server.get_presence("jungle")["online"] == 0, "it is not there yet"
    eventually(lambda: server.stats()["away"] == 0, lambda: server.stats())
    refused(connect(server, path(token)), EXPIRED)
    newer = server.resume_token("ada")
    assert newer != token
    assert connect(server, path(newer)).client_id == "ada"


def test_a_token_for_a_client_that_is_connected_displaces_it(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    token = server.resume_token(client.client_id)
    assert connect(server, path(token)).client_id == client.client_id
    assert client.wait_closed() == 3503


@pytest.mark.parametrize("client_id", ["", "x" * 256, "a\nb"])
def test_a_token_for_an_id_that_cannot_be_raises(server: Tantor, client_id: str) -> None:
    with pytest.raises(ValueError, match="client_id"):
        server.resume_token(client_id)
    assert server.stats()["away"] == 0


# Bounds


def test_so_many_clients_may_be_away_and_the_oldest_are_forgotten(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_away_clients=3)
    watcher = connect(server)
    tokens = [lost(server, connect(server)) for _ in range(5)]
    stats = server.stats()
    assert (stats["away"], stats["away_forgotten"]) == (3, 2)
    assert server.get_presence("jungle")["online"] == 4
    left = named(watcher.settle(server), "user_left")
    assert len(left) == 2, "those that are forgotten have left"
    outcomes = [connect(server, path(token)).welcome["resumed"] for token in tokens]
    assert outcomes == [False, False, True, True, True]


def test_nobody_may_be_away(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_away_clients=0)
    watcher, client = connect(server), connect(server)
    token = lost(server, client)
    watcher.receive_until(event="user_left")
    refused(connect(server, path(token)), EXPIRED)


def test_clients_that_come_and_go_take_no_memory(make_server: MakeServer) -> None:
    """Nothing is left of those who are back, or who are forgotten."""
    server = make_server(resume_ttl=3600, leave_delay=0, max_away_clients=100)
    process = psutil.Process()
    client = WebSocketClient(server.port).greet()

    def come_and_go(times: int) -> None:
        nonlocal client
        for _ in range(times):
            again = WebSocketClient(server.port, path(client.welcome["resume"])).greet()
            assert again.welcome["resumed"] is True
            again.action("ping")
            client.close()
            client = again
            WebSocketClient(server.port).close()

    come_and_go(500)
    before = process.memory_info().rss
    come_and_go(3000)
    client.close()
    eventually(lambda: server.stats()["total_connections"] == 0, lambda: server.stats())
    assert server.stats()["away"] <= 100
    assert process.memory_info().rss - before < 8 << 20


# Storms


@contextlib.contextmanager
def publishing(server: Tantor, channel: str, threads: int) -> Iterator[Callable[[], None]]:
    done = threading.Event()

    def work(thread: int) -> None:
        number = 0
        while not done.is_set():
            server.broadcast(channel, "n", [thread, number])
            number += 1
            done.wait(0.002)

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()

    def end() -> None:
        done.set()
        for worker in workers:
            worker.join(30)

    try:
        yield end
    finally:
        end()


class Returning:
    """A client that holds live messages back until it has recovered, and drops by offset what comes twice."""

    def __init__(self, server: Tantor) -> None:
        self.server = server
        self.client = WebSocketClient(server.port).greet()
        self.id = self.client.client_id
        reply = self.client.ask("join_channel", channel="den")
        self.epoch, self.first, self.last = reply["epoch"], reply["offset"], reply["offset"]
        self._take(self.client.heard)
        self.repeated = 0

    def listen(self, count: int) -> None:
        for _ in range(count):
            self._take([self.client.receive()])

    def cut(self, how: str) -> None:
        if how == "reset":
            self.client.reset()
        elif how == "close":
            self.client.close()
        older = self.client
        self.client = WebSocketClient(self.server.port, path(older.welcome["resume"])).greet()
        older.close()
        assert (self.client.client_id, self.client.welcome["resumed"]) == (self.id, True), self.client.welcome
        self.catch_up()

    def catch_up(self) -> None:
        self.client.heard.clear()
        recover = {"epoch": self.epoch, "offset": self.last}
        reply = self.client.ask("join_channel", channel="den", recover=recover)
        assert reply["recovered"] is True, reply
        for publication in reply["publications"]:
            assert publication["offset"] > self.last
            assert publication["offset"] == self.last + 1, "the reply has a gap"
            self.last += 1
        self._take(self.client.heard)

    def _take(self, messages: list[dict[str, Any]]) -> None:
        for message in messages:
            if message.get("event") == "n":
                if message["offset"] <= self.last:
                    self.repeated += 1
                    continue
                assert message["offset"] == self.last + 1, "a gap"
                self.last += 1


def test_clients_that_are_cut_at_random_miss_nothing_under_publishing_threads(make_server: MakeServer) -> None:
    server = make_server(history_size=100_000, shards=2, max_pending_bytes=1 << 22)
    errors: list[BaseException] = []
    clients = [Returning(server) for _ in range(8)]

    def live(client: Returning, seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(25):
                client.listen(chance.randrange(30))
                # the last: it comes back while the older connection still stands
                client.cut(chance.choice(["reset", "close", "displace"]))
        except BaseException as error:
            errors.append(error)
            raise

    watcher = WebSocketClient(server.port).greet()
    watcher.ask("join_channel", channel="den")
    watcher.settle(server)
    with publishing(server, "den", threads=4) as end:
        threads = [threading.Thread(target=live, args=(client, seed)) for seed, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        end()
    assert not errors, errors
    top = server.history("den", limit=1).result().offset
    for client in clients:
        client.catch_up()
        assert client.last == top
        client.client.close()
    assert named(watcher.settle(server), "user_left", "user_joined") == [], "nobody has left in between"
    watcher.close()


def test_a_storm_of_clients_that_come_back_at_once(make_server: MakeServer) -> None:
    server = make_server(shards=2)
    crowd = 300
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(WebSocketClient(server.port)).greet() for _ in range(crowd)]
        where = clients[0].ask("join_channel", channel="den")
        for client in clients[1:]:
            client.ask("join_channel", channel="den")
        for client in clients:
            client.reset()
        eventually(lambda: server.stats()["total_connections"] == 0, lambda: server.stats())
        assert server.stats()["away"] == crowd
        for number in range(10):
            server.broadcast("den", "n", number)
        returned: list[WebSocketClient] = []

        def come_back(some: list[WebSocketClient]) -> None:
            for client in some:
                again = stack.enter_context(WebSocketClient(server.port, path(client.welcome["resume"]))).greet()
                assert again.client_id == client.client_id
                recover = {"epoch": where["epoch"], "offset": 0}
                reply = again.ask("join_channel", channel="den", recover=recover)
                assert [publication["data"] for publication in reply["publications"]] == list(range(10))
                returned.append(again)

        threads = [threading.Thread(target=come_back, args=(clients[n::6],)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(returned) == crowd
        stats = server.stats()
        assert (stats["resumes"], stats["away"], stats["total_connections"]) == (crowd, 0, crowd)
        assert server.get_presence("den")["online"] == crowd
        assert server.broadcast("den", "n", "all").result() == crowd


def test_pings_and_closes_of_a_connection_that_is_displaced_harm_nothing(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    again = connect(server, path(client.welcome["resume"]))
    with contextlib.suppress(OSError):
        client.send_frame(PING, b"x")
        client.send_frame(CLOSE, (1000).to_bytes(2))
        client.wait_closed()
    client.close()
    assert again.ask("ping")["pong"] is True
    token = lost(server, again)
    assert connect(server, path(token)).client_id == client.client_id, "its close was not the client's goodbye"
