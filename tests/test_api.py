"""The Python API, name by name (docs/protocol.md has the wire)."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import importlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tantor as package
from support import WebSocketClient, eventually
from tantor import Channel, ChannelType, Message, MessageType, Tantor

Connect = Callable[..., WebSocketClient]

NAMES = [
    "Tantor",
    "init_tantor",
    "get_tantor",
    "run_tantor",
    "run_tantor_sync",
    "Message",
    "Connection",
    "Channel",
    "MessageType",
    "ChannelType",
]


@pytest.mark.parametrize("module", ["tantor", "elephants.py_ele.tantor"])
def test_every_name_is_at_both_import_paths(module: str) -> None:
    found = importlib.import_module(module)
    assert {name: getattr(found, name, None) for name in NAMES} == {name: getattr(package, name) for name in NAMES}


# send, broadcast, subscribe, unsubscribe, emergency


def test_send_of_a_text_and_of_a_dict(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    message_id = server.send(client.client_id, "hello").result()
    assert re.fullmatch(r"msg_[0-9a-f]{8,}", message_id)
    message = client.receive_until(id=message_id)
    assert (message["message"], message["channel"]) == ("hello", "jungle")

    message_id = server.send(client.client_id, {"event": "note", "n": [1, 2]}, "den").result()
    message = client.receive_until(id=message_id)
    assert (message["event"], message["n"], message["channel"]) == ("note", [1, 2], "den")
    assert "message" not in message


def test_send_to_a_client_that_is_not_there_is_accepted(server: Tantor, connect: Connect) -> None:
    assert server.send("client_nobody", "hello").result().startswith("msg_")
    client = connect(server)
    client.close()
    eventually(lambda: client.client_id not in server.connections, "the client's end")
    assert server.send(client.client_id, "hello").result().startswith("msg_")


def test_message_ids_differ(server: Tantor) -> None:
    ids = {server.send("client_nobody", "hello").result() for _ in range(1000)}
    assert len(ids) == 1000


def test_broadcast_reaches_subscribers_only_and_counts_them(server: Tantor, connect: Connect) -> None:
    one, two, three = (connect(server) for _ in range(3))
    server.subscribe(one.client_id, "den")
    server.subscribe(two.client_id, "den")
    server.subscribe("client_nobody", "den")
    assert server.broadcast("den", "news", {"n": 1}).result() == 2
    for client in (one, two):
        assert client.receive_until(event="news")["data"] == {"n": 1}
    assert [message for message in three.settle(server) if message.get("event") == "news"] == []


def test_broadcast_creates_its_channel(server: Tantor) -> None:
    assert "fresh" not in server.channels
    assert server.broadcast("fresh", "news").result() == 0
    assert "fresh" in server.channels


def test_broadcast_without_data_sends_an_empty_object(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    assert server.broadcast("jungle", "news").result() == 1
    assert client.receive_until(event="news")["data"] == {}


def test_subscribe_and_unsubscribe_are_true_and_repeatable(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    for _ in range(2):
        assert server.subscribe(client.client_id, "den").result() is True
    assert server.get_presence("den") == {"channel": "den", "online": 1, "users": [client.client_id]}
    for _ in range(2):
        assert server.unsubscribe(client.client_id, "den").result() is True
    assert server.get_presence("den")["online"] == 0
    assert server.unsubscribe("client_nobody", "no such channel").result() is True
    seen = [message["event"] for message in client.settle(server) if message["channel"] == "den"]
    assert seen == ["user_joined"], "joins and leaves that changed nothing are told to nobody"


def test_a_client_that_is_not_connected_counts_in_presence(server: Tantor) -> None:
    server.subscribe("client_away", "den")
    assert server.get_presence("den") == {"channel": "den", "online": 1, "users": ["client_away"]}
    assert server.get_presence()["den"] == 1
    assert server.broadcast("den", "news").result() == 0


def test_an_emergency_reaches_each_client_once(server: Tantor, connect: Connect) -> None:
    clients = [connect(server) for _ in range(3)]
    server.subscribe(clients[0].client_id, "emergency")
    server.subscribe(clients[0].client_id, "den")
    server.unsubscribe(clients[1].client_id, "jungle")
    assert server.emergency("fire").result() == 3
    for client in clients:
        alerts = [message for message in client.settle(server) if message.get("event") == "emergency_alert"]
        assert len(alerts) == 1, alerts
        assert alerts[0]["channel"] == "emergency"


def test_an_emergency_overtakes_all_that_waits(make_server: Callable[..., Tantor], connect: Connect) -> None:
    server = make_server(max_pending_bytes=64 << 20)
    client = connect(server, receive_buffer=4096)
    count = 0
    while server.stats()["queued_messages"] < 50:
        count += server.broadcast("jungle", "news", {"n": count, "fill": "x" * 50_000}).result()
        assert count < 2000, server.stats()
    waiting = server.stats()["queued_messages"]
    assert server.emergency("fire").result() == 1
    before = client.receive_all_until(event="emergency_alert", timeout=30)
    after = client.receive_all_until(lambda message: message.get("data", {}).get("n") == count - 1, timeout=30)
    # the first of those that waited had been begun
    assert len(after) >= waiting - 1, f"{waiting} waited, {len(before)} came before and {len(after)} after"
    numbers = [message["data"]["n"] for message in before + after if message.get("event") == "news"]
    assert numbers == list(range(count)), "the others keep their order, and none is lost"


WRONG_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("send", (7, "hello")),
    ("send", ("client_1", 7)),
    ("send", ("client_1", ["hello"])),
    ("send", ("client_1", None)),
    ("send", ("client_1", "hello", 7)),
    ("broadcast", (None, "news")),
    ("broadcast", ("jungle", None)),
    ("broadcast", ("jungle", 7, {})),
    ("broadcast", ()),
    ("subscribe", ("client_1", None)),
    ("subscribe", (None, "den")),
    ("unsubscribe", ("client_1",)),
    ("emergency", (7,)),
    ("emergency", (None,)),
    ("get_presence", (7,)),
]


@pytest.mark.parametrize(("method", "arguments"), WRONG_CALLS)
def test_wrong_types_raise_type_errors(method: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        getattr(Tantor(), method)(*arguments)


@pytest.mark.parametrize("channel", ["", "x" * 256, "a\nb", "é" * 128, "\x00"])
def test_wrong_channel_names_raise_value_errors(channel: str) -> None:
    tantor = Tantor()
    for call in (
        lambda: tantor.broadcast(channel, "news"),
        lambda: tantor.subscribe("client_1", channel),
        lambda: tantor.send("client_1", "hello", channel),
    ):
        with pytest.raises(ValueError, match="channel"):
            call()


def test_a_message_over_the_limit_raises(make_server: Callable[..., Tantor], connect: Connect) -> None:
    server = make_server(max_message_size=1000)
    client = connect(server)
    for call in (
        lambda: server.broadcast("jungle", "news", "x" * 1001),
        lambda: server.send(client.client_id, "x" * 1001),
        lambda: server.emergency("x" * 1001),
    ):
        with pytest.raises(ValueError, match="1000"):
            call()
    server.broadcast("jungle", "news", "x" * 500)
    assert [message["event"] for message in client.settle(server) if "event" in message][-1] == "news"


# From where they can be called


def test_calls_from_many_threads(server: Tantor, connect: Connect) -> None:
    client = connect(server)

    def publish(thread: int) -> list[int]:
        return [server.broadcast("jungle", "news", {"thread": thread, "n": n}).result() for n in range(200)]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(publish, range(8)))
    assert results == [[1] * 200] * 8
    news = [message["data"] for message in client.settle(server) if message.get("event") == "news"]
    for thread in range(8):
        assert [data["n"] for data in news if data["thread"] == thread] == list(range(200))


def test_every_call_works_without_a_running_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tantor = Tantor()
    assert tantor.send("client_1", "hello").result().startswith("msg_")
    assert tantor.subscribe("client_1", "den").result() is True
    assert tantor.broadcast("den", "news").result() == 0
    assert tantor.emergency("fire").result() == 0
    assert tantor.get_presence("den")["users"] == ["client_1"]
    assert tantor.get_client_info("client_1") is None
    assert len(tantor.connections) == 0
    assert tantor.stats()["total_connections"] == 0
    assert Path(tantor.create_test_client_html()).exists()
    asyncio.run(tantor.stop())


# get_presence, stats, get_client_info


def test_presence(server: Tantor, connect: Connect) -> None:
    one, two = connect(server), connect(server)
    presence = server.get_presence("jungle")
    assert set(presence) == {"channel", "online", "users"}
    assert (presence["channel"], presence["online"]) == ("jungle", 2)
    assert sorted(presence["users"]) == sorted([one.client_id, two.client_id])
    assert server.get_presence("no such channel") == {"channel": "no such channel", "online": 0, "users": []}
    assert "no such channel" not in server.channels
    assert server.get_presence() == {"jungle": 2, "treehouse": 0, "emergency": 0}
    assert server.get_presence(None) == server.get_presence()
    one.say_goodbye()
    eventually(lambda: server.get_presence("jungle")["users"] == [two.client_id], lambda: server.get_presence("jungle"))


def test_stats(make_server: Callable[..., Tantor], connect: Connect) -> None:
    server = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
    assert server.stats()["status"] == "sleeping"
    with server:
        stats = server.stats()
        assert stats["status"] == "listening"
        assert stats["mood"] == "calm"
        assert stats["channels"] == {"jungle": 0, "treehouse": 0, "emergency": 0}
        assert stats["queued_messages"] == 0
        assert 0 <= stats["uptime"] < 60
        before = stats["messages_sent"]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(WebSocketClient(server.port)).greet() for _ in range(10)]
            stats = server.stats()
            assert (stats["total_connections"], stats["connections_total"], stats["mood"]) == (10, 10, "calm")
            stack.enter_context(WebSocketClient(server.port)).greet()
            assert server.stats()["mood"] == "anxious", "from 11 connections on"

            server.send(clients[0].client_id, "hello")
            eventually(lambda: server.stats()["messages_sent"] > before, server.stats)
            received = server.stats()["messages_received"]
            clients[0].action("chat", text="hello")
            clients[0].send_json({"no": "action"})
            clients[0].settle(server)
            assert server.stats()["messages_received"] == received + 2
        eventually(lambda: server.stats()["total_connections"] == 0, server.stats)
        assert server.stats()["connections_total"] == 11
    assert server.stats()["status"] == "sleeping"


def test_client_info(server: Tantor, connect: Connect) -> None:
    before = time.time()
    client = connect(server)
    info = server.get_client_info(client.client_id)
    assert info is not None
    assert set(info) == {"client_id", "connected_at", "last_ping", "channels", "uptime", "user_data"}
    assert info["client_id"] == client.client_id
    assert before - 1 <= info["connected_at"] <= time.time() + 1
    assert before - 1 <= info["last_ping"] <= time.time() + 1
    assert 0 <= info["uptime"] < 60
    assert (info["channels"], info["user_data"]) == (["jungle"], {})
    info["user_data"]["mine"] = info["channels"].append("mine")
    again = server.get_client_info(client.client_id)
    assert again is not None
    assert (again["channels"], again["user_data"]) == (["jungle"], {}), "a copy is handed out"
    assert server.get_client_info("client_nobody") is None


# The data classes and enumerations of the original


def test_message() -> None:
    message = Message("msg_1", "jungle", "hello", "tantor", 1.5)
    assert dataclasses.asdict(message) == {
        "id": "msg_1",
        "channel": "jungle",
        "message": "hello",
        "sender": "tantor",
        "timestamp": 1.5,
        "message_type": "chat",
        "data": {},
    }
    assert Message("msg_2", "jungle", "hello", "tantor", 1.5).data is not message.data


def test_enumerations() -> None:
    assert {kind.name: kind.value for kind in MessageType} == {
        "CHAT": "chat",
        "SYSTEM": "system",
        "EMERGENCY": "emergency",
        "PRESENCE": "presence",
        "HEARTBEAT": "heartbeat",
    }
    assert {kind.name: kind.value for kind in ChannelType} == {
        "PUBLIC": "public",
        "PRIVATE": "private",
        "EMERGENCY": "emergency",
    }


def test_a_channel_of_ones_own() -> None:
    channel = Channel("den", "public")
    assert (channel.subscribers, channel.settings) == ([], {})
    assert abs(channel.created_at - time.time()) < 60


# The test page


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_test_page_is_written_and_its_path_returned(elsewhere: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = Tantor().create_test_client_html(port=8123)
    assert (elsewhere / path).resolve() == elsewhere.resolve() / "tantor-test-client.html"
    page = (elsewhere / path).read_text(encoding="utf-8")
    assert "8123" in page
    for channel in ("jungle", "treehouse", "emergency"):
        assert channel in page
    Tantor().create_test_client_html()
    assert "8080" in (elsewhere / path).read_text(encoding="utf-8")
    assert capfd.readouterr() == ("", "")
