"""Replies, and joins with recovery: all missed publications or none, without gaps, while threads publish."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from recovering import data, position, publish
from support import WebSocketClient, eventually
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


# Replies

COMMANDS: list[tuple[dict[str, Any], set[str]]] = [
    ({"action": "join_channel", "channel": "den"}, {"epoch", "offset", "subscribers"}),
    (
        {"action": "join_channel", "channel": "den", "recover": {"epoch": "0" * 16, "offset": 0}},
        {"epoch", "offset", "subscribers", "recovered", "reason", "publications"},
    ),
    ({"action": "leave_channel", "channel": "jungle"}, set()),
    ({"action": "leave_channel", "channel": "never joined"}, set()),
    ({"action": "broadcast", "channel": "den"}, {"recipients", "epoch", "offset"}),
    ({"action": "ping"}, {"pong"}),
    ({"action": "presence"}, {"online", "users"}),
    ({"action": "history"}, {"epoch", "offset", "publications"}),
    ({"action": "ack", "ids": []}, {"acknowledged"}),
    ({"action": "of the application's own"}, set()),
    ({"message": "without an action"}, set()),
]

REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"action": "join_channel", "channel": ""}, 107),
    ({"action": "join_channel", "channel": 5}, 103),
    ({"action": "join_channel", "channel": "system"}, 109),
    ({"action": "leave_channel", "channel": "x" * 256}, 107),
    ({"action": "broadcast", "event": "user_left"}, 108),
    ({"action": "broadcast", "channel": "emergency"}, 109),
    ({"action": "broadcast", "idempotency_key": ""}, 103),
    ({"action": "presence", "channel": None}, 103),
    ({"action": "history", "limit": 0}, 112),
    ({"action": "ack"}, 103),
    ({"action": "ack", "id": "msg_0123456789abcdef"}, 113),
    ({"action": "broadcast", "data": json.loads("[" * 200 + "]" * 200)}, 106),
]


def all_with_ref(seen: list[dict[str, Any]], ref: Any) -> list[dict[str, Any]]:
    return [message for message in seen if "ref" in message and message["ref"] == ref]


@pytest.mark.parametrize("ref", ["a", "", "🐘", "x" * 64, 0, -1, 7, 2**63], ids=repr)
@pytest.mark.parametrize(("command", "fields"), COMMANDS, ids=[str(command)[:60] for command, _ in COMMANDS])
def test_every_command_with_a_ref_gets_exactly_one_reply(
    server: Tantor, connect: Connect, command: dict[str, Any], fields: set[str], ref: Any
) -> None:
    client = connect(server)
    client.send_json(command | {"ref": ref})
    seen = client.settle(server)
    (reply,) = all_with_ref(seen, ref)
    assert set(reply) == {"id", "channel", "timestamp", "sender", "event", "ref", "ok"} | fields
    assert (reply["event"], reply["ok"]) == ("reply", True)
    assert not [message for message in seen if message.get("event") == "error"]


@pytest.mark.parametrize(("command", "code"), REFUSED, ids=lambda value: str(value)[:60])
def test_every_refused_command_with_a_ref_gets_exactly_one_error(
    server: Tantor, connect: Connect, command: dict[str, Any], code: int
) -> None:
    client = connect(server)
    client.send_json(command | {"ref": "mine"})
    seen = client.settle(server)
    (error,) = all_with_ref(seen, "mine")
    assert (error["event"], error["channel"], error["code"]) == ("error", "system", code), error
    assert error["message"]
    assert client.ask("ping")["pong"] is True


def test_without_a_ref_nothing_new_is_sent(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    before = client.settle(server)
    for command, _ in COMMANDS:
        if "recover" not in command and command.get("action") not in ("presence", "history"):
            client.send_json(command)
    seen = before + client.settle(server)
    assert not [message for message in seen if message.get("event") in ("reply", "error")]


@pytest.mark.parametrize("ref", [None, 1.5, [], {}, True, "x" * 65, 2**64], ids=repr)
def test_a_ref_that_cannot_be_is_refused_and_the_command_not_carried_out(
    server: Tantor, connect: Connect, ref: Any
) -> None:
    client = connect(server)
    client.action("join_channel", channel="den", ref=ref)
    error = client.receive_until(event="error")
    assert error["code"] == 103
    assert "ref is" in error["message"]
    assert "it takes a string of at most 64 bytes or a whole number" in error["message"]
    assert "ref" not in error
    assert server.get_presence("den")["online"] == 0
    assert client.ask("ping")["pong"] is True


def test_a_ref_of_the_applications_own_is_left_to_it(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    received: list[dict[str, Any]] = []
    server.on_event("message", received.append)
    client.action("chat", ref={"mine": 1})
    client.settle(server)
    eventually(lambda: received, "the message")
    assert received[0]["ref"] == {"mine": 1}
    assert server.stats()["errors_sent"] == 0


def test_a_thousand_pending_refs_are_answered_each_once_and_in_order(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    commands = [command for command, _ in COMMANDS] + [command for command, _ in REFUSED]
    frames = []
    for number, command in zip(range(1000), itertools.cycle(commands), strict=False):
        frames.append(command | {"ref": number})
    for frame in frames:
        client.send_json(frame)
    seen = client.settle(server)
    assert [message["ref"] for message in seen if "ref" in message] == list(range(1000))


def test_the_reply_to_a_broadcast_comes_behind_the_broadcast(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    reply = client.ask("broadcast", event="n", data=1)
    assert [message["offset"] for message in client.heard if message.get("event") == "n"] == [reply["offset"]]
    assert reply["recipients"] == 1
    assert reply["epoch"] == position(server, "jungle")["epoch"]


def test_presence_as_a_command(server: Tantor, connect: Connect) -> None:
    client, other = connect(server), connect(server)
    reply = client.ask("presence")
    assert (reply["channel"], reply["online"]) == ("jungle", 2)
    assert sorted(reply["users"]) == sorted([client.client_id, other.client_id])
    reply = client.ask("presence", channel="nowhere")
    assert (reply["channel"], reply["online"], reply["users"]) == ("nowhere", 0, [])
    assert "nowhere" not in server.channels


def test_presence_names_at_most_a_thousand_and_counts_all(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    for number in range(1005):
        server.subscribe(f"guest_{number}", "stadium")
    reply = client.ask("presence", channel="stadium")
    assert (reply["online"], len(reply["users"])) == (1005, 1000)


# Joining with a position


def test_a_join_says_where_the_channel_is(server: Tantor, connect: Connect) -> None:
    publish(server, "den", 3)
    server.subscribe("client_away", "den")
    client = connect(server)
    reply = client.ask("join_channel", channel="den")
    assert {"epoch": reply["epoch"], "offset": reply["offset"]} == position(server, "den")
    assert (reply["channel"], reply["offset"], reply["subscribers"]) == ("den", 3, 2)
    publish(server, "den", 1, start=4)
    assert client.receive_until(event="n")["offset"] == 4


@pytest.mark.parametrize("seen", range(6))
def test_what_was_missed_comes_with_the_join(server: Tantor, connect: Connect, seen: int) -> None:
    publish(server, "den", 5)
    client = connect(server)
    recover = position(server, "den") | {"offset": seen}
    reply = client.ask("join_channel", channel="den", recover=recover)
    assert reply["recovered"] is True
    assert "reason" not in reply
    assert data(reply["publications"]) == list(range(seen + 1, 6))
    assert reply["publications"] == server.history("den", after=seen).result().publications
    publish(server, "den", 1, start=6)
    assert client.receive_until(event="n")["offset"] == 6


def test_recovery_without_a_ref_is_answered_too(server: Tantor, connect: Connect) -> None:
    publish(server, "den", 2)
    client = connect(server)
    client.action("join_channel", channel="den", recover=position(server, "den") | {"offset": 1})
    reply = client.receive_until(event="reply")
    assert "ref" not in reply
    assert data(reply["publications"]) == [2]


def recover_refused(client: WebSocketClient, reason: str, **recover: Any) -> dict[str, Any]:
    reply = client.ask("join_channel", channel="den", recover=recover)
    assert (reply["recovered"], reply["reason"], reply["publications"]) == (False, reason, [])
    return reply


@pytest.mark.parametrize("epoch", ["0" * 16, "f" * 16, "", "no epoch", "+fffffffffffffff", "é" * 8, "x" * 64])
def test_an_unknown_epoch_recovers_nothing_and_joins_all_the_same(server: Tantor, connect: Connect, epoch: str) -> None:
    publish(server, "den", 3)
    client = connect(server)
    reply = recover_refused(client, "epoch", epoch=epoch, offset=1)
    assert {"epoch": reply["epoch"], "offset": reply["offset"]} == position(server, "den")
    publish(server, "den", 1, start=4)
    assert client.receive_until(event="n")["data"] == 4


@pytest.mark.parametrize("offset", [4, 1000, 2**53, 2**63 - 1])
def test_an_offset_from_the_future_recovers_nothing(server: Tantor, connect: Connect, offset: int) -> None:
    publish(server, "den", 3)
    recover_refused(connect(server), "offset_ahead", epoch=position(server, "den")["epoch"], offset=offset)


def test_what_is_kept_no_longer_recovers_nothing(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(history_size=3)
    publish(server, "den", 5)
    client = connect(server)
    epoch = position(server, "den")["epoch"]
    recover_refused(client, "expired", epoch=epoch, offset=1)
    reply = client.ask("join_channel", channel="den", recover={"epoch": epoch, "offset": 2})
    assert data(reply["publications"]) == [3, 4, 5]


def test_what_has_expired_recovers_nothing(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(message_ttl=0.3)
    publish(server, "den", 2)
    eventually(lambda: not server.history("den").result().publications, "the messages expire")
    where = position(server, "den")
    recover_refused(connect(server), "expired", **(where | {"offset": 1}))
    reply = connect(server).ask("join_channel", channel="den", recover=where)
    assert reply["recovered"] is True, "nothing was missed"


def test_what_went_for_want_of_room_recovers_nothing(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(history_bytes=50_000)
    publish(server, "den", 2)
    for _ in range(10):
        server.broadcast("den", "n", "x" * 10_000)
    recover_refused(connect(server), "expired", **(position(server, "den") | {"offset": 0}))


def test_more_than_goes_into_one_reply_recovers_nothing_and_is_read_in_pages(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_pending_bytes=200_000)
    for _ in range(5):
        server.broadcast("den", "n", "x" * 40_000)
    client = connect(server)
    reply = recover_refused(client, "too_large", epoch=position(server, "den")["epoch"], offset=0)
    seen = 0
    while seen < reply["offset"]:
        page = client.ask("history", channel="den", after=seen)["publications"]
        assert [publication["offset"] for publication in page] == list(range(seen + 1, seen + len(page) + 1))
        seen = page[-1]["offset"]
    assert seen == 5


def test_a_channel_without_history_recovers_only_those_who_missed_nothing(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(history_size=0)
    client = connect(server)
    where = client.ask("join_channel", channel="den")
    recover = {"epoch": where["epoch"], "offset": where["offset"]}
    assert connect(server).ask("join_channel", channel="den", recover=recover)["recovered"] is True
    publish(server, "den", 1)
    recover_refused(connect(server), "expired", **recover)


@pytest.mark.parametrize(
    ("recover", "message"),
    [
        (None, "recover is null; it takes an object like"),
        (5, "recover is 5; it takes an object like"),
        ([1, 2], "recover is [1,2]; it takes an object like"),
        ({}, "recover is {}; it takes an object like"),
        ({"epoch": "0" * 16}, "it takes an object like"),
        ({"offset": 1}, "it takes an object like"),
        ({"epoch": 5, "offset": 1}, "recover.epoch must be a string, not a number"),
        ({"epoch": "x" * 65, "offset": 1}, "recover.epoch is 65 bytes long; an epoch has at most 64"),
        ({"epoch": "x", "offset": -1}, f"recover.offset is -1; an offset is a whole number from 0 to {2**63 - 1}"),
        ({"epoch": "x", "offset": 2**63}, f"recover.offset is {2**63}; an offset is a whole number"),
        ({"epoch": "x", "offset": 10**99}, "recover.offset is 1000"),
        ({"epoch": "x", "offset": 1.5}, "recover.offset is 1.5; an offset is a whole number"),
        ({"epoch": "x", "offset": "1"}, 'recover.offset is "1"; an offset is a whole number'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_position_that_cannot_be_is_refused_with_the_value_and_nothing_is_joined(
    server: Tantor, connect: Connect, recover: Any, message: str
) -> None:
    client = connect(server)
    client.send_text(
        json.dumps({"action": "join_channel", "channel": "den", "ref": 1, "recover": recover}, separators=(",", ":"))
    )
    error = client.receive_until(ref=1)
    assert (error["event"], error["code"]) == ("error", 103)
    assert message in error["message"]
    assert server.get_presence("den")["online"] == 0
    publish(server, "jungle", 1)
    assert client.receive_until(event="n")["data"] == 1, "it is on its other channels still"


# Joining again


def test_a_client_that_is_on_the_channel_gets_what_it_asks_for_and_is_told_once(
    server: Tantor, connect: Connect
) -> None:
    client = connect(server)
    first = client.ask("join_channel", channel="den")
    publish(server, "den", 3)
    again = client.ask("join_channel", channel="den", recover={"epoch": first["epoch"], "offset": 1})
    assert again["recovered"] is True
    assert data(again["publications"]) == [2, 3]
    assert (again["offset"], again["subscribers"]) == (3, 1)
    seen = client.heard + client.settle(server)
    assert (
        len([message for message in seen if message.get("event") == "user_joined" and message["channel"] == "den"]) == 1
    )
    publish(server, "den", 1, start=4)
    live = [message["data"] for message in seen + client.settle(server) if message.get("event") == "n"]
    assert live == [1, 2, 3, 4], "and nothing came twice because of it"


def test_a_client_that_the_server_took_off_joins_again_where_it_was(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    reply = client.ask("join_channel", channel="den")
    publish(server, "den", 2)
    server.unsubscribe(client.client_id, "den")
    publish(server, "den", 2, start=3)
    seen = data([message for message in client.settle(server) if message.get("event") == "n"])
    assert seen == [1, 2]
    reply = client.ask("join_channel", channel="den", recover={"epoch": reply["epoch"], "offset": 2})
    assert (reply["recovered"], data(reply["publications"])) == (True, [3, 4])
    publish(server, "den", 1, start=5)
    assert client.receive_until(event="n")["data"] == 5


def test_a_channel_that_was_deleted_meanwhile_is_another_epoch(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    before = client.ask("join_channel", channel="den")
    publish(server, "den", 5)
    client.settle(server)
    del server.channels["den"]
    publish(server, "den", 2, start=6)
    assert not [message for message in client.settle(server) if message.get("event") == "n"], "it is on it no longer"
    reply = recover_refused(client, "epoch", epoch=before["epoch"], offset=5)
    assert reply["offset"] == 2
    assert data(client.ask("history", channel="den")["publications"]) == [6, 7]
    publish(server, "den", 1, start=8)
    assert client.receive_until(event="n")["data"] == 8


def test_a_refused_join_leaves_the_others_as_they_are(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_channels_per_client=2)
    client = connect(server)
    den = client.ask("join_channel", channel="den")
    error = client.ask("join_channel", channel="hut", recover={"epoch": "x", "offset": 0})
    assert (error["event"], error["code"]) == ("error", 110)
    publish(server, "den", 1)
    again = client.ask("join_channel", channel="den", recover={"epoch": den["epoch"], "offset": 0})
    assert data(again["publications"]) == [1], "one that it is on is not one more"
