"""The wire, name by name: what clients send, and what they get for it (docs/protocol.md)."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import WebSocketClient, eventually, handshake_request, http_request
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]


def named(messages: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [message for message in messages if message.get("event") == event]


# The envelope and the welcome


def check_envelope(message: dict[str, Any]) -> None:
    assert re.fullmatch(r"msg_[0-9a-f]+", message["id"]), message
    assert isinstance(message["channel"], str), message
    assert isinstance(message["timestamp"], float), message
    assert abs(message["timestamp"] - time.time()) < 60, message
    assert message["sender"] == "tantor", message


def test_the_welcome_is_the_first_message_of_all(server: Tantor) -> None:
    for _ in range(20):
        with WebSocketClient(server.port) as client:
            welcome = client.receive()
            check_envelope(welcome)
            assert (welcome["event"], welcome["channel"]) == ("welcome", "system")
            assert welcome["message"] == "Welcome to Tantor's jungle! 🐘"
            assert re.fullmatch(r"client_[0-9a-f]{8,}", welcome["client_id"])
            joined = client.receive_until(event="user_joined")
            assert (joined["channel"], joined["data"]["client_id"]) == ("jungle", welcome["client_id"])


def test_client_ids_differ(server: Tantor, connect: Connect) -> None:
    assert len({connect(server).client_id for _ in range(50)}) == 50


@pytest.mark.parametrize("path", ["/", "/ws", "/a/b/c?token=1&x=%20", "/healthz", "/socket.io/?EIO=4"])
def test_a_client_may_connect_on_any_path(server: Tantor, connect: Connect, path: str) -> None:
    assert connect(server, path).client_id


def test_no_extension_is_negotiated(server: Tantor, connect: Connect) -> None:
    client = connect(server, headers=["Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"])
    assert "sec-websocket-extensions" not in client.response.lower()


def test_every_message_has_the_envelope(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.subscribe("client_away", "jungle")
    server.unsubscribe("client_away", "jungle")
    client.action("broadcast", channel="jungle", event="chat_message", data={"n": 1})
    client.send_text("no JSON")
    server.send(client.client_id, "hello")
    server.send(client.client_id, {"own": 1})
    server.broadcast("jungle", "news")
    server.emergency("fire")
    messages = [client.welcome, *client.settle(server)]
    client.action("ping")
    messages.append(client.receive())
    for message in messages:
        check_envelope(message)
    assert len({message["id"] for message in messages}) == len(messages)
    events = {message.get("event") for message in messages}
    assert events >= {"welcome", "user_joined", "user_left", "chat_message", "error", "news", "emergency_alert"}
    carriers = [message for message in messages if "client_id" in message]
    assert carriers == [client.welcome], "existing pages take a top-level client_id as their own"


def test_the_fields_of_a_dict_win_over_the_envelopes(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.send(client.client_id, {"id": "mine", "timestamp": 1, "sender": "me", "channel": "other"})
    message = client.receive_until(id="mine")
    assert message == {"id": "mine", "timestamp": 1, "sender": "me", "channel": "other"}


# Broadcasts


def test_a_broadcast_of_the_server(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.broadcast("jungle", "news", {"n": 1})
    message = client.receive_until(event="news")
    assert set(message) == {"id", "channel", "timestamp", "sender", "event", "data", "trumpeted_by", "offset"}
    assert (message["channel"], message["data"], message["trumpeted_by"]) == ("jungle", {"n": 1}, "tantor")


def test_a_broadcast_of_a_client_says_who_published_it(server: Tantor, connect: Connect) -> None:
    sender, other = connect(server), connect(server)
    sender.action("broadcast", channel="jungle", event="chat_message", data={"message": "hello"})
    for client in (sender, other):
        message = client.receive_until(event="chat_message")
        assert message["from"] == sender.client_id
        assert (message["data"], message["trumpeted_by"]) == ({"message": "hello"}, "tantor")


def test_a_broadcast_of_a_client_has_defaults(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.action("broadcast")
    message = client.receive_until(event="message")
    assert (message["channel"], message["data"]) == ("jungle", {})


def test_a_broadcast_of_a_client_reaches_channels_that_it_is_not_on(server: Tantor, connect: Connect) -> None:
    sender, other = connect(server), connect(server)
    other.action("join_channel", channel="den")
    other.settle(server)
    sender.action("broadcast", channel="den", event="knock", data="who is there")
    assert other.receive_until(event="knock")["data"] == "who is there"
    assert named(sender.settle(server), "knock") == []


@pytest.mark.parametrize(
    "data", [None, True, 0, -1.5e300, "text", [], [1, [2]], {"a": {"b": [None]}}, '🐘 \u0000 " \\']
)
def test_what_a_client_broadcasts_arrives_as_it_was(server: Tantor, connect: Connect, data: Any) -> None:
    client = connect(server)
    client.action("broadcast", event="chat_message", data=data)
    assert client.receive_until(event="chat_message")["data"] == data


def test_numbers_pass_through_without_loss(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.send_text('{"action":"broadcast","event":"digits","data":[123456789012345678901234567890, 1.10]}')
    while b'"digits"' not in (payload := client.read_frame().payload):
        pass
    assert b"[123456789012345678901234567890, 1.10]" in payload


@pytest.mark.parametrize(
    "event", ["welcome", "user_joined", "user_left", "emergency_alert", "server_shutdown", "ping", "pong", "error"]
)
def test_clients_cannot_publish_built_in_events(server: Tantor, connect: Connect, event: str) -> None:
    client, other = connect(server), connect(server)
    client.action("broadcast", event=event, data={"client_id": "client_false"})
    error = client.receive_until(event="error")
    assert error["code"] == 108, error
    assert event in error["message"]
    assert [message for message in named(other.settle(server), event) if message.get("from")] == []


@pytest.mark.parametrize("channel", ["emergency", "system"])
def test_clients_cannot_publish_on_the_servers_channels(server: Tantor, connect: Connect, channel: str) -> None:
    client, other = connect(server), connect(server)
    server.subscribe(other.client_id, "emergency")
    client.action("broadcast", channel=channel, event="news", data={})
    error = client.receive_until(event="error")
    assert error["code"] == 109, error
    assert channel in error["message"]
    assert named(other.settle(server), "news") == []


# Joining and leaving


def test_a_client_is_in_the_default_channel_from_the_start(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(default_channel="plaza")
    client = connect(server)
    assert server.get_presence("plaza")["users"] == [client.client_id]
    assert server.get_presence("jungle")["online"] == 0
    client.action("broadcast", event="news")
    assert client.receive_until(event="news")["channel"] == "plaza"


def test_join_and_leave_are_told_to_the_channel(server: Tantor, connect: Connect) -> None:
    watcher, client = connect(server), connect(server)
    joined = watcher.receive_until(
        lambda message: message["data"]["client_id"] == client.client_id, event="user_joined"
    )
    assert set(joined["data"]) == {"client_id", "total_users"}
    assert (joined["channel"], joined["data"]["total_users"], joined["trumpeted_by"]) == ("jungle", 2, "tantor")

    watcher.action("join_channel", channel="den")
    client.action("join_channel", channel="den")
    joined = client.receive_until(event="user_joined", channel="den")
    assert joined["data"]["client_id"] == client.client_id
    watcher.receive_until(lambda message: message["data"]["total_users"] == 2, event="user_joined", channel="den")
    assert sorted(server.get_presence("den")["users"]) == sorted([watcher.client_id, client.client_id])

    client.action("leave_channel", channel="den")
    left = watcher.receive_until(event="user_left", channel="den")
    assert left["data"] == {"client_id": client.client_id, "total_users": 1}
    assert named(client.settle(server), "user_left") == []

    client.say_goodbye()
    left = watcher.receive_until(event="user_left", channel="jungle")
    assert left["data"] == {"client_id": client.client_id, "total_users": 1}


def test_join_and_leave_default_to_the_default_channel(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.action("leave_channel")
    client.settle(server)
    assert server.get_presence("jungle")["online"] == 0
    client.action("join_channel")
    client.receive_until(event="user_joined", channel="jungle")
    assert server.get_presence("jungle")["online"] == 1


def test_joining_twice_is_told_once(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    for _ in range(3):
        client.action("join_channel", channel="den")
    joined = [message for message in named(client.settle(server), "user_joined") if message["channel"] == "den"]
    assert len(joined) == 1
    assert server.get_presence("den")["online"] == 1


@pytest.mark.parametrize("channel", ["x" * 255, "é" * 127, "🐘", "a b/c:d#e", "emergency", "treehouse"])
def test_a_channel_may_have_any_name_within_the_limit(server: Tantor, connect: Connect, channel: str) -> None:
    client = connect(server)
    client.action("join_channel", channel=channel)
    assert client.receive_until(event="user_joined", channel=channel)["data"]["total_users"] == 1


def test_a_client_may_be_on_so_many_channels(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_channels_per_client=3)
    client = connect(server)
    for number in range(3):
        client.action("join_channel", channel=f"den {number}")
    error = client.receive_until(event="error")
    assert error["code"] == 110, error
    assert "3" in error["message"]
    assert server.connections[client.client_id].channels == ["jungle", "den 0", "den 1"]
    client.action("leave_channel", channel="den 0")
    client.action("join_channel", channel="den 2")
    client.receive_until(event="user_joined", channel="den 2")


def test_a_storm_of_joins_and_leaves_is_told_in_short(make_server: MakeServer, connect: Connect) -> None:
    limit, crowd = 5, 60
    server = make_server(notice_limit=limit, leave_delay=0)
    watcher = connect(server)
    watcher.receive_until(event="user_joined")
    with contextlib.ExitStack() as stack:
        started = time.monotonic()
        clients = [stack.enter_context(WebSocketClient(server.port)).greet() for _ in range(crowd)]
        joins = notices_for(watcher, "user_joined", crowd)
        assert len(joins) <= limit + time.monotonic() - started + 2, joins
        assert [join["total_users"] for join in joins[: limit - 1]] == [2, 3, 4, 5]
        assert joins[-1]["client_id"] == clients[-1].client_id, "the latest client's name is on it"
        assert joins[-1]["total_users"] == crowd + 1
        started = time.monotonic()
    leaves = notices_for(watcher, "user_left", crowd)
    assert len(leaves) <= limit + time.monotonic() - started + 2, leaves
    assert leaves[-1]["total_users"] == 1


def notices_for(watcher: WebSocketClient, event: str, count: int) -> list[dict[str, Any]]:
    """The notices that stand for so many joins or leaves."""
    notices: list[dict[str, Any]] = []
    while (told := sum(notice.get("count", 1) for notice in notices)) < count:
        notices.append(watcher.receive_until(event=event, timeout=15)["data"])
    assert told == count, notices
    return notices


def test_channels_that_clients_invent_disappear(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(empty_channel_ttl=0.1, channel_settings={"nowhere": {"message_ttl": 1}})
    client = connect(server)
    client.action("join_channel", channel="den")
    client.action("join_channel", channel="hut")
    client.action("broadcast", channel="nowhere", event="news")
    client.action("leave_channel", channel="den")
    client.settle(server)
    started = {"jungle", "treehouse", "emergency"}
    eventually(lambda: set(server.channels) == started | {"hut"}, lambda: set(server.channels))
    client.say_goodbye()
    eventually(lambda: set(server.channels) == started, lambda: set(server.channels))


def test_a_channel_stays_as_long_as_something_of_it_is_kept(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(empty_channel_ttl=0.1)
    client = connect(server)
    client.action("broadcast", channel="kept", event="news")
    client.action("join_channel", channel="den")
    client.action("leave_channel", channel="den")
    client.settle(server)
    eventually(lambda: "den" not in server.channels, lambda: set(server.channels))
    assert "kept" in server.channels
    assert [message["event"] for message in server.history("kept").result().publications] == ["news"]


@pytest.mark.parametrize(("settings", "with_history"), [({"history_size": 0}, 0), ({"history_bytes": 200_000}, 200)])
def test_invented_channel_names_are_bounded(
    make_server: MakeServer, connect: Connect, settings: dict[str, int], with_history: int
) -> None:
    server = make_server(max_empty_channels=100, **settings)
    client = connect(server)
    for number in range(2000):
        client.action("broadcast", channel=f"invented {number}", event="news")
    client.settle(server)
    assert len(server.channels) <= 3 + 100 + 1 + with_history, len(server.channels)
    assert set(server.channels) >= {"jungle", "treehouse", "emergency", "invented 1999"}


# ping, emergency, shutdown


def test_ping_is_answered_and_refreshes_last_ping(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    before = server.connections[client.client_id].last_ping
    client.action("ping")
    pong = client.receive_until(pong=True)
    assert set(pong) == {"id", "channel", "timestamp", "sender", "pong"}
    assert pong["channel"] == "system"
    assert server.connections[client.client_id].last_ping >= before
    client.action("ping")
    client.receive_until(pong=True)
    eventually(lambda: server.connections[client.client_id].last_ping > before, "a later last_ping")


def test_an_emergency_on_the_wire(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    server.emergency("lions")
    alert = client.receive_until(event="emergency_alert")
    assert alert["channel"] == "emergency"
    assert alert["data"] == {"message": "lions", "severity": "critical", "source": "tantor_emergency_system"}


def test_a_shutdown_on_the_wire(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(drain_timeout=5)
    client = connect(server)
    for number in range(100):
        server.broadcast("jungle", "news", {"n": number})
    server._begin_stop()
    seen = client.receive_all_until(event="server_shutdown")
    assert seen[-1]["channel"] == "system"
    assert seen[-1]["message"] == "Tantor is going to sleep. Goodbye! 🐘💤"
    assert [message["data"]["n"] for message in named(seen, "news")] == list(range(100)), "queues are flushed before"
    assert client.wait_closed() == 1001


# Other actions


def test_a_frame_of_the_applications_own_is_counted_and_gets_no_answer(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.settle(server)
    before = server.stats()["messages_received"]
    for frame in ({"action": "chat", "text": "hi"}, {}, {"action": "JOIN_CHANNEL"}, {"event": "x"}, {"action": ""}):
        client.send_json(frame)
    assert client.settle(server) == []
    assert server.stats()["messages_received"] == before + 5


def test_json_may_be_written_in_any_way(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.send_text(' \n{ "data" : 1 ,\t"\\u0065vent":"n\\u0065ws", "action":"broadcast","extra":[{"x":null}] }\r\n')
    assert client.receive_until(event="news")["data"] == 1


# Heartbeats


def test_a_heartbeat_is_a_message_and_a_ping_frame(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(heartbeat_interval=0.2, heartbeat_timeout=5)
    client = connect(server)
    for _ in range(3):
        beat = client.receive_until(ping=True)
        assert set(beat) == {"id", "channel", "timestamp", "sender", "ping"}
        assert beat["channel"] == "system"
    assert client.pings >= 2, "a WebSocket ping goes with each"


def test_a_silent_client_is_closed_for_real(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(heartbeat_interval=0.2, heartbeat_timeout=2, leave_delay=0)
    ended: list[dict[str, Any]] = []
    server.on_event("disconnect", ended.append)
    watcher, silent = connect(server), connect(server, answers=False)
    watcher.receive_until(lambda message: message["data"]["total_users"] == 2, event="user_joined")
    left = watcher.receive_until(event="user_left")
    assert left["data"] == {"client_id": silent.client_id, "total_users": 1}
    assert silent.wait_closed() == 3012
    eventually(lambda: ended, "the disconnect event")
    assert (ended[0]["client_id"], ended[0]["reason"], ended[0]["code"]) == (
        silent.client_id,
        "heartbeat_timeout",
        3012,
    )
    assert silent.client_id not in server.connections


def test_any_frame_is_life(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(heartbeat_interval=0.2, heartbeat_timeout=2)
    watcher = connect(server)
    chatty = connect(server, answers=False)
    deadline = time.monotonic() + 4  # longer than the timeout
    while time.monotonic() < deadline:
        chatty.action("chat")
        watcher.receive()
    assert set(server.connections) == {watcher.client_id, chatty.client_id}


def test_a_client_that_stopped_reading_and_answering_is_found(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(heartbeat_interval=0.2, heartbeat_timeout=1, drain_timeout=1)
    deaf = connect(server, receive_buffer=4096)
    fill = "x" * 60_000
    while server.stats()["queued_messages"] == 0 and deaf.client_id in server.connections:
        server.broadcast("jungle", "news", fill)
    eventually(lambda: deaf.client_id not in server.connections, lambda: server.stats(), timeout=10)


# Plain HTTP on the same port


def get(port: int, target: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    return http_request(port, f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n")


def test_healthz(server: Tantor, connect: Connect) -> None:
    connect(server)
    status, headers, body = get(server.port, "/healthz")
    assert (status, headers["content-type"].split(";")[0]) == (200, "application/json")
    assert isinstance(json.loads(body), dict)
    assert int(headers["content-length"]) == len(body)
    assert get(server.port, "/healthz?verbose=1")[0] == 200


def test_the_page_at_the_root_says_how_to_connect(server: Tantor) -> None:
    status, headers, body = get(server.port, "/")
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/html")
    assert b"Tantor" in body
    assert b"new WebSocket(" in body
    assert int(headers["content-length"]) == len(body)


@pytest.mark.parametrize("target", ["/nothing", "/healthz/", "/rt/healthz", "/index.html"])
def test_anything_else_is_not_found(server: Tantor, target: str) -> None:
    assert get(server.port, target)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_other_methods_are_refused(server: Tantor, method: str) -> None:
    assert get(server.port, "/healthz", method)[0] in (404, 405)


def test_a_load_balancers_options_are_answered(server: Tantor) -> None:
    for target in ("/", "*", "/healthz"):
        status, headers, body = get(server.port, target, "OPTIONS")
        assert (status, headers["allow"], body) == (204, "GET, HEAD, OPTIONS", b"")


def test_a_target_in_absolute_form_is_the_same_page(server: Tantor) -> None:
    assert get(server.port, f"http://127.0.0.1:{server.port}/healthz")[0] == 200
    assert get(server.port, "http://other.example/nothing")[0] == 404


def test_a_prefix_that_a_proxy_keeps(make_server: MakeServer) -> None:
    server = make_server(http_prefix="/rt/")
    for path in ("/rt/healthz", "/healthz", "/rt/tantor.js", "/rt", "/rt/"):
        assert get(server.port, path)[0] == 200, path
    assert get(server.port, "/rtx/healthz")[0] == 404


def test_the_icon_is_a_picture(server: Tantor) -> None:
    status, headers, body = get(server.port, "/favicon.ico")
    assert (status, headers["content-type"]) == (200, "image/svg+xml")
    assert body.startswith(b"<svg ")


def test_beyond_max_connections_a_client_is_asked_to_come_back(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(max_connections=2)
    first, _ = connect(server), connect(server)
    status, headers, _ = http_request(server.port, handshake_request(server.port))
    assert status == 503
    assert int(headers["retry-after"]) > 0
    assert get(server.port, "/healthz")[0] == 200
    first.close()
    eventually(lambda: len(server.connections) == 1, lambda: list(server.connections))
    connect(server)


@pytest.mark.alone
def test_small_messages_are_not_held_back(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.settle(server)
    started = time.monotonic()
    for _ in range(50):
        client.action("ping")
        client.receive_until(pong=True)
    assert time.monotonic() - started < 1.5, "50 round trips took as long as delayed acknowledgements take"
