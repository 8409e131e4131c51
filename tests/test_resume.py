"""Clients that are lost and come back: their token, what they come back to, and the bounds on both."""

import contextlib
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import script
from resuming import EXPIRED, MALFORMED, USED, Connect, MakeServer, is_gone, lost, named, path, refused, resume
from support import WebSocketClient, eventually
from tantor import Tantor

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


@pytest.mark.parametrize("returns", [True, False])
def test_a_page_that_goes_may_have_said_before_that_it_may_return(
    server: Tantor, connect: Connect, returns: bool
) -> None:
    """Firefox closes with 1001 before a page can say 4900."""
    client = connect(server, "/?return=1" if returns else "/")
    client.say_goodbye(1001)
    is_gone(server, client)
    again = connect(server, path(client.welcome["resume"]))
    assert again.welcome["resumed"] is returns


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
    server._begin_stop()
    assert client.wait_closed() == 1001
    client.close()
    assert server._wait_stopped(15)
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


def test_clients_that_come_and_go_take_no_memory(tmp_path: Path) -> None:
    """Nothing is left of those who are back, or who are forgotten."""
    source = """
        import time
        from tantor import Tantor

        settings = {"resume_ttl": 3600, "leave_delay": 0, "max_away_clients": 100, "drain_timeout": 1}
        with Tantor(0, "127.0.0.1", **settings) as tantor:
            print("port", tantor.port)
            while "stop" not in tantor.channels:
                time.sleep(0.01)
            print("away", tantor.stats()["away"])
    """
    with script(source, tmp_path) as process:
        port = int(process.wait_for_line("port "))
        memory = psutil.Process(process.process.pid).memory_info
        client = WebSocketClient(port).greet()

        def come_and_go(times: int) -> None:
            nonlocal client
            for _ in range(times):
                again = WebSocketClient(port, path(client.welcome["resume"])).greet()
                assert again.welcome["resumed"] is True
                again.action("ping")
                client.close()
                client = again
                WebSocketClient(port).close()

        come_and_go(500)
        before = memory().rss
        come_and_go(3000)
        assert memory().rss - before < 4 << 20, "some 400 bytes for each that came and went"
        client.action("join_channel", channel="stop")
        assert int(process.wait_for_line("away ")) <= 100
        client.close()


def test_clients_that_never_sent_a_frame_make_room_for_those_that_did(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_away_clients=20)
    honest = connect(server)
    honest.ask("ping")
    token = lost(server, honest)
    for _ in range(100):
        connect(server).reset()
    eventually(lambda: server.stats()["away_forgotten"] >= 81, server.stats)
    eventually(lambda: server.stats()["away"] <= 20, server.stats)
    returned = connect(server, path(token))
    assert returned.welcome["resumed"] is True
    assert returned.client_id == honest.client_id


def test_clients_of_before_a_restart_make_room_last(make_server: MakeServer, connect: Connect, database: str) -> None:
    first = make_server(database=database, max_away_clients=20)
    honest = connect(first)
    honest.ask("ping")
    token = honest.welcome["resume"]
    first.stop().result()
    second = make_server(database=database, max_away_clients=20)
    for _ in range(40):
        with connect(second) as flood:
            flood.ask("ping")
            flood.reset()
    eventually(lambda: second.stats()["away_forgotten"] >= 21, second.stats)
    assert connect(second, path(token)).welcome["resumed"] is True
