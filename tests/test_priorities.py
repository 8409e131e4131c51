"""Lanes, emergencies, and delivery reports."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import WebSocketClient, eventually, fill_socket, lose, wait_for_delivery, waits_for
from tantor import Tantor

pytestmark = pytest.mark.system_buffers

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]
Message = dict[str, Any]


def names(messages: list[Message]) -> list[str]:
    """Return the names of messages in their order on the wire."""
    return [name for message in messages if (name := message.get("name") or message.get("data", {}).get("name"))]


def stalled(server: Tantor, connect: Connect, path: str = "/") -> WebSocketClient:
    client = connect(server, path, receive_buffer=4096)
    fill_socket(server, client)
    return client


def report(server: Tantor, message: str | None) -> dict[str, int]:
    found = server.delivery(str(message))
    assert found is not None
    return found


def alerts(messages: list[Message]) -> list[str]:
    return [message["data"]["message"] for message in messages if message.get("event") == "emergency_alert"]


# Lanes


def test_a_client_that_is_behind_gets_higher_lanes_first_and_each_in_its_order(
    server: Tantor, connect: Connect
) -> None:
    client = stalled(server, connect)
    for number in range(3):
        for priority in ("low", "normal", "high", "emergency"):
            server.send(client.client_id, {"name": f"{priority} {number} sent"}, priority=priority)
            server.broadcast("jungle", "news", {"name": f"{priority} {number}"}, priority=priority)
    wanted = [
        f"{priority} {number}{how}"
        for priority in ("emergency", "high", "normal", "low")
        for number in range(3)
        for how in (" sent", "")
    ]
    seen = names(client.receive_all_until(lambda message: message.get("data", {}).get("name") == "low 2"))
    assert seen == wanted


def test_a_client_that_keeps_up_gets_all_in_the_order_of_sending(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    wanted = []
    for number in range(50):
        name = f"{number}"
        server.send(client.client_id, {"name": name}, priority=("low", "normal", "high", "emergency")[number % 4])
        wanted.append(name)
        assert client.receive_until(name=name)


def test_an_emergency_overtakes_all_that_waits_and_is_dropped_by_no_policy(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(max_pending_bytes=128 << 10, slow_consumer="drop_oldest")
    client = stalled(server, connect)
    server.emergency("fire")
    server.broadcast("jungle", "news", {"name": "urgent"}, priority="emergency")
    for number in range(100):
        server.broadcast("jungle", "news", {"name": f"high {number}", "fill": "x" * 4096}, priority="high")
    eventually(lambda: server.stats()["dropped"], server.stats)
    messages = client.settle(server)
    assert alerts(messages) == ["fire"]
    seen = names(messages)
    assert seen[0] == "urgent"
    assert messages.index(next(each for each in messages if alerts([each]))) < messages.index(
        next(each for each in messages if names([each]))
    )
    assert len(seen) < 101


@pytest.mark.parametrize("priority", ["urgent", "", "HIGH"])
def test_a_priority_that_there_is_not_is_a_value_error_that_names_those_there_are(
    server: Tantor, connect: Connect, priority: str
) -> None:
    client = connect(server)
    says = f'priority is "{priority}"; it takes "low", "normal", "high" or "emergency"'
    with pytest.raises(ValueError, match=says):
        server.send(client.client_id, {"name": "lost"}, priority=priority)
    with pytest.raises(ValueError, match=says):
        server.broadcast("jungle", "news", {"name": "lost"}, priority=priority)
    with pytest.raises(TypeError):
        server.broadcast("jungle", "news", priority=3)  # type: ignore[arg-type]
    assert names(client.settle(server)) == []


# Emergencies


def test_an_emergency_reaches_each_connected_client_once_and_tells_its_id(server: Tantor, connect: Connect) -> None:
    events: list[Message] = []
    server.on_event("emergency_alert", events.append)
    clients = [connect(server) for _ in range(3)]
    clients[0].action("join_channel", channel="emergency", ref=1)
    clients[0].receive_until(ref=1)
    sent = server.emergency("fire")
    assert sent.result() == 3
    assert sent.message_id is not None
    for client in clients:
        messages = client.settle(server)
        assert alerts(messages) == ["fire"]
        assert [message["id"] for message in messages if alerts([message])] == [sent.message_id]
    eventually(lambda: events, "the event")
    assert (events[0]["id"], events[0]["recipients"]) == (sent.message_id, 3)
    wait_for_delivery(server, sent.message_id, handed_over=3, written=3)
    assert server.broadcast("jungle", "news").message_id is None


def test_an_emergency_is_kept_for_clients_that_are_away(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    path = lose(server, client)
    server.send(client.client_id, {"name": "before"})
    sent = server.emergency("fire")
    server.send(client.client_id, {"name": "after"})
    assert sent.result() == 0
    assert report(server, sent.message_id)["waiting"] == 1
    returned = connect(server, path)
    assert returned.welcome["waiting"] == 3
    messages = returned.settle(server)
    assert alerts(messages) == ["fire"]
    assert names(messages) == ["before", "after"]
    wait_for_delivery(server, sent.message_id, handed_over=1, written=1)


def test_an_emergency_is_kept_for_emergency_ttl_though_messages_are_not(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(message_ttl=0.2, emergency_ttl=60)
    client = connect(server)
    path = lose(server, client)
    server.emergency("fire")
    server.send(client.client_id, {"name": "also"}, priority="emergency")
    server.send(client.client_id, {"name": "gone"})
    eventually(lambda: server.stats()["dropped"].get("mail_expired"), server.stats)
    messages = connect(server, path).settle(server)
    assert (alerts(messages), names(messages)) == (["fire"], ["also"])


def test_an_emergency_is_not_kept_when_emergency_ttl_is_over(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(emergency_ttl=0.2)
    client = connect(server)
    path = lose(server, client)
    sent = server.emergency("fire")
    eventually(lambda: report(server, sent.message_id)["waiting"] == 0, server.stats)
    returned = connect(server, path)
    assert (returned.welcome["waiting"], returned.welcome["dropped"]) == (0, 1)
    assert alerts(returned.settle(server)) == []


def test_an_emergency_comes_again_until_it_is_acknowledged(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(ack_timeout=0.1)
    client, plain = connect(server, "/?ack=1"), connect(server)
    sent = server.emergency("fire")
    urgent = server.send(client.client_id, {"name": "urgent"}, priority="emergency").result()
    for _ in range(3):
        assert client.receive_until(event="emergency_alert")["id"] == sent.message_id
    again = report(server, sent.message_id)
    assert again["handed_over"] >= 4  # to both, and to one of them again
    assert (again["acknowledged"], again["waiting"]) == (0, 1)
    client.action("ack", ids=[sent.message_id, urgent], ref="done")
    assert client.receive_until(ref="done")["acknowledged"] == 2
    once = report(server, sent.message_id)
    assert (once["acknowledged"], once["waiting"]) == (1, 0)
    rounds = server.send(client.client_id, {"name": "urgent too"}, priority="emergency").result()
    for _ in range(3):  # that comes again, and nothing else does
        messages = client.receive_all_until(name="urgent too")
        assert alerts(messages) == []
        assert names(messages) == ["urgent too"]
    assert report(server, sent.message_id)["handed_over"] == once["handed_over"]
    client.action("ack", id=rounds)
    assert alerts(plain.settle(server)) == ["fire"]


def test_an_emergency_that_waits_comes_again_after_a_return(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(ack_timeout=60)
    client = connect(server, "/?ack=1")
    sent = server.emergency("fire")
    client.receive_until(event="emergency_alert")
    returned = connect(server, lose(server, client) + "&ack=1")
    assert returned.receive()["id"] == sent.message_id
    returned.action("ack", id=sent.message_id, ref=1)
    returned.receive_until(ref=1)
    again = connect(server, lose(server, returned) + "&ack=1")
    assert again.welcome["waiting"] == 0


def test_an_emergency_is_acknowledged_once_by_each_client(server: Tantor, connect: Connect) -> None:
    clients = [connect(server) for _ in range(3)]
    sent = server.emergency("fire")
    for client in clients[:2]:
        for attempt, code in enumerate((None, 113, 113)):
            client.action("ack", id=sent.message_id, ref=attempt)
            assert client.receive_until(ref=attempt).get("code") == code
    eventually(lambda: report(server, sent.message_id)["acknowledged"] == 2, server.stats)
    assert report(server, sent.message_id)["waiting"] == 0


def test_each_emergency_reaches_a_client_that_comes_and_goes_meanwhile_once(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(mailbox_size=10_000, mailbox_bytes=4 << 20, max_pending_bytes=16 << 20)
    stop = threading.Event()
    sent: list[str] = []

    def send() -> None:
        while not stop.is_set() and len(sent) < 5000:
            sent.append(str(server.emergency(f"{len(sent)}").message_id))

    sender = threading.Thread(target=send)
    client = connect(server, "/?ack=1")
    sender.start()
    seen: set[str] = set()
    acknowledged: set[str] = set()

    def take(messages: list[Message]) -> list[str]:
        ids = [message["id"] for message in messages if alerts([message])]
        assert len(ids) == len(set(ids)), "a connection got one twice"
        assert acknowledged.isdisjoint(ids), "one came again though it was acknowledged"
        seen.update(ids)
        return ids

    try:
        for _ in range(25):
            client.action("ping", ref="here")
            ids = take(client.receive_all_until(ref="here"))
            client.action("ack", ids=ids, ref="ack")
            messages = client.receive_all_until(ref="ack")
            assert messages[-1].get("acknowledged") == len(ids), messages[-1]
            take(messages)
            acknowledged.update(ids)
            client = connect(server, lose(server, client) + "&ack=1")
    finally:
        stop.set()
        sender.join(10)
    take(client.settle(server))
    assert set(sent) <= seen


def test_a_client_that_is_new_gets_no_emergency_from_before(server: Tantor, connect: Connect) -> None:
    for round_number in range(50):
        threads = [threading.Thread(target=server.emergency, args=(f"{round_number}",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        client = connect(server)
        for thread in threads:
            thread.join(10)
        total = len(alerts(client.settle(server)))
        assert total <= 2
        client.close()
    # once none is under way, nobody who comes gets one
    assert alerts(connect(server).settle(server)) == []


# Delivery reports


def test_delivery_tells_handed_over_from_written(server: Tantor, connect: Connect) -> None:
    client = stalled(server, connect)
    message = server.send(client.client_id, {"name": "late"}).result()
    assert server.delivery(message) == {"handed_over": 1, "written": 0, "acknowledged": 0, "waiting": 0}
    client.receive_until(name="late")
    wait_for_delivery(server, message, handed_over=1, written=1)
    assert waits_for(server, client) == 0


def test_delivery_knows_nothing_of_what_was_not_sent(server: Tantor) -> None:
    for unknown in ("msg_0123456789abcdef", "msg_1", "", "elephant"):
        assert server.delivery(unknown) is None


def test_delivery_tells_of_messages_that_wait(server: Tantor, connect: Connect) -> None:
    message = server.send("user-7", {"name": "kept"}).result()
    assert server.delivery(message) == {"handed_over": 0, "written": 0, "acknowledged": 0, "waiting": 1}
    client = connect(server, f"/?resume={server.resume_token('user-7')}&ack=1")
    client.receive_until(name="kept")
    wait_for_delivery(server, message, handed_over=1, written=1, waiting=1)
    client.action("ack", id=message, ref=1)
    client.receive_until(ref=1)
    wait_for_delivery(server, message, handed_over=1, written=1, acknowledged=1)
