"""Mailboxes: messages to one client are kept until the client has them, within bounds."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support import WebSocketClient, eventually, fill_socket, lose, wait_for_delivery
from tantor import Tantor

pytestmark = pytest.mark.system_buffers

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]
Message = dict[str, Any]


def numbers(messages: Iterable[Message]) -> list[int]:
    return [message["n"] for message in messages if "n" in message]


def send_numbers(server: Tantor, client_id: str, wanted: Iterable[int], **options: Any) -> list[str]:
    return [server.send(client_id, {"n": number}, **options).result() for number in wanted]


# Away, and not there yet


def test_messages_to_a_client_that_is_away_come_first_and_in_order_when_it_returns(
    server: Tantor, connect: Connect
) -> None:
    client = connect(server)
    path = lose(server, client)
    send_numbers(server, client.client_id, range(50))
    assert server.stats()["mailbox_messages"] == 50
    returned = connect(server, path)
    assert (returned.welcome["resumed"], returned.welcome["waiting"]) == (True, 50)
    assert "dropped" not in returned.welcome
    send_numbers(server, client.client_id, range(50, 60))
    assert [returned.receive().get("n") for _ in range(50)] == list(range(50))
    assert numbers(returned.settle(server)) == list(range(50, 60))
    assert (server.stats()["mailbox_messages"], server.stats()["mailbox_bytes"]) == (0, 0)


def test_a_client_that_was_never_there_gets_what_was_sent_to_its_id(server: Tantor, connect: Connect) -> None:
    send_numbers(server, "user-7", range(3))
    token = server.resume_token("user-7")
    send_numbers(server, "user-7", range(3, 5))
    client = connect(server, f"/?resume={token}")
    assert (client.client_id, client.welcome["waiting"]) == ("user-7", 5)
    assert numbers(client.settle(server)) == list(range(5))


def test_mail_outlives_the_time_in_which_a_client_may_return(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=0.3)
    client = connect(server)
    path = lose(server, client)
    send_numbers(server, client.client_id, [1])
    eventually(lambda: server.stats()["away"] == 0, server.stats)
    assert connect(server, path).welcome["resumed"] is False
    assert server.stats()["mailbox_messages"] == 1
    again = connect(server, f"/?resume={server.resume_token(client.client_id)}")
    assert (again.client_id, numbers(again.settle(server))) == (client.client_id, [1])


def test_what_was_handed_over_is_not_handed_over_again_to_a_client_that_does_not_acknowledge(
    server: Tantor, connect: Connect
) -> None:
    client = connect(server)
    path = lose(server, client)
    send_numbers(server, client.client_id, [1])
    returned = connect(server, path)
    assert numbers(returned.settle(server)) == [1]
    again = connect(server, lose(server, returned))
    assert (again.welcome["waiting"], numbers(again.settle(server))) == (0, [])


def test_a_message_is_kept_for_message_ttl(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(message_ttl=0.2)
    client = connect(server)
    path = lose(server, client)
    (message,) = send_numbers(server, client.client_id, [1])
    assert server.delivery(message) == {"handed_over": 0, "written": 0, "acknowledged": 0, "waiting": 1}
    eventually(lambda: server.stats()["mailbox_messages"] == 0, server.stats)
    assert server.stats()["dropped"]["mail_expired"] == {"*": 1}
    assert server.delivery(message) == {"handed_over": 0, "written": 0, "acknowledged": 0, "waiting": 0}
    returned = connect(server, path)
    assert (returned.welcome["waiting"], returned.welcome["dropped"]) == (0, 1)
    assert numbers(returned.settle(server)) == []


def test_without_message_ttl_nothing_is_kept_and_that_is_counted_by_channel(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(message_ttl=0)
    assert server.send("nobody", "hello", channel="news").result().startswith("msg_")
    stats = server.stats()
    assert (stats["mailbox_messages"], stats["undelivered"], stats["dropped"]) == (
        0,
        1,
        {"not_connected": {"news": 1}},
    )


# Bounds


def test_the_oldest_go_beyond_mailbox_size_and_the_welcome_says_how_many(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(mailbox_size=3)
    client = connect(server)
    path = lose(server, client)
    send_numbers(server, client.client_id, range(5))
    assert server.stats()["mailbox_messages"] == 3
    assert server.stats()["dropped"] == {"mailbox_full": {"*": 2}}
    returned = connect(server, path)
    assert (returned.welcome["waiting"], returned.welcome["dropped"]) == (3, 2)
    assert numbers(returned.settle(server)) == [2, 3, 4]
    again = connect(server, lose(server, returned))
    assert "dropped" not in again.welcome


def test_what_was_dropped_is_told_until_the_client_has_shown_that_it_heard(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(mailbox_size=1)
    client = connect(server)
    path = lose(server, client)
    send_numbers(server, client.client_id, range(3))
    silent = connect(server, path)  # the server does not know whether the welcome has arrived
    assert silent.welcome["dropped"] == 2
    returned = connect(server, lose(server, silent))
    assert returned.welcome["dropped"] == 2
    returned.action("ping")
    returned.receive_until(pong=True)
    assert "dropped" not in connect(server, lose(server, returned)).welcome


def test_the_oldest_go_beyond_mailbox_bytes(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(mailbox_bytes=10_000)
    for number in range(20):
        server.send("user-7", {"n": number, "fill": "x" * 2000})
    stats = server.stats()
    assert 2 <= stats["mailbox_messages"] <= 5
    assert stats["mailbox_bytes"] <= 10_000 + 1024  # the memory of the mailbox itself
    kept = stats["mailbox_messages"]
    assert stats["dropped"] == {"mailbox_full": {"*": 20 - kept}}
    client = connect(server, f"/?resume={server.resume_token('user-7')}")
    assert client.welcome["dropped"] == 20 - kept
    assert numbers(client.settle(server)) == list(range(20 - kept, 20))


def test_a_message_that_no_mailbox_can_hold_pushes_nothing_else_out(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(mailbox_bytes=10_000)
    send_numbers(server, "user-7", range(3))
    message = server.send("user-7", "x" * 20_000).result()
    assert server.delivery(message) == {"handed_over": 0, "written": 0, "acknowledged": 0, "waiting": 0}
    assert server.stats()["dropped"] == {"mailbox_full": {"*": 1}}
    client = connect(server, f"/?resume={server.resume_token('user-7')}")
    assert (client.welcome["waiting"], client.welcome["dropped"]) == (3, 1)
    assert numbers(client.settle(server)) == [0, 1, 2]


def test_the_oldest_of_all_mailboxes_go_beyond_mailboxes_bytes(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(mailboxes_bytes=200_000)
    for number in range(1000):
        server.send(f"user-{number}", {"n": number, "fill": "x" * 500})
        assert server.stats()["mailbox_bytes"] <= 200_000
    stats = server.stats()
    assert stats["dropped"] == {"mailboxes_full": {"*": 1000 - stats["mailbox_messages"]}}
    oldest = connect(server, f"/?resume={server.resume_token('user-0')}")
    newest = connect(server, f"/?resume={server.resume_token('user-999')}")
    assert (oldest.welcome["waiting"], newest.welcome["waiting"]) == (0, 1)


def test_emergencies_are_the_last_to_go_from_any_mailbox(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(mailboxes_bytes=60_000)
    away = connect(server)
    path = lose(server, away)
    server.emergency("fire")
    for number in range(200):
        server.send(f"user-{number}", "x" * 1000)
    assert server.stats()["dropped"]["mailboxes_full"]["*"] > 100
    returned = connect(server, path)
    assert (returned.welcome["waiting"], returned.receive()["data"]["message"]) == (1, "fire")


def test_mail_to_ids_that_nobody_ever_uses_takes_no_more_memory_than_may(make_server: MakeServer) -> None:
    psutil = pytest.importorskip("psutil")
    server = make_server(mailboxes_bytes=8 << 20)
    process = psutil.Process()
    before = process.memory_info().rss

    def send(count: int, generation: str) -> int:
        for number in range(count):
            server.send(f"{generation}-{number}", "hello")
        return int(process.memory_info().rss)

    filled = send(60_000, "first")
    again = send(60_000, "second")
    stats = server.stats()
    assert stats["mailbox_bytes"] <= 8 << 20
    assert stats["dropped"]["mailboxes_full"]["*"] == 120_000 - stats["mailbox_messages"]
    assert again - filled < 16 << 20
    assert again - before < 64 << 20  # the last 100,000 messages' receipts are in it too


# Clients without mail are forgotten


def test_a_client_that_had_mail_and_has_left_is_forgotten(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    path = lose(server, client)
    send_numbers(server, client.client_id, [1])
    last = connect(server, path)
    assert numbers(last.settle(server)) == [1]
    server.connections[client.client_id].user_data["name"] = "Jane"
    assert server._user_data(client.client_id) is not None
    last.say_goodbye()
    eventually(lambda: server._user_data(client.client_id) is None, "it is still known")


def test_a_client_that_had_mail_and_does_not_return_is_forgotten(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(resume_ttl=1)
    client = connect(server, "/?ack=1")
    server.connections[client.client_id].user_data["name"] = "Jane"
    message = server.send(client.client_id, "hello").result()
    client.action("ack", id=message, ref=1)
    assert client.receive_until(ref=1)["acknowledged"] == 1
    lose(server, client)
    assert server._user_data(client.client_id) is not None
    eventually(lambda: server._user_data(client.client_id) is None, "it is still known")


# Acknowledging


def test_what_was_not_acknowledged_comes_again(server: Tantor, connect: Connect) -> None:
    client = connect(server, "/?ack=1")
    ids = send_numbers(server, client.client_id, range(4))
    messages = [client.receive_until(n=number) for number in range(4)]
    assert [message["id"] for message in messages] == ids
    assert all(message["ack"] is True for message in messages)
    client.action("ack", id=ids[0], ref="one")
    client.action("ack", ids=ids[2:], ref="more")
    assert client.receive_until(ref="one")["acknowledged"] == 1
    assert client.receive_until(ref="more")["acknowledged"] == 2
    returned = connect(server, lose(server, client) + "&ack=1")
    assert returned.welcome["waiting"] == 1
    assert numbers(returned.settle(server)) == [1]
    wait_for_delivery(server, ids[0], handed_over=1, written=1, acknowledged=1)
    wait_for_delivery(server, ids[1], handed_over=2, written=2, waiting=1)


def test_a_message_to_a_client_that_does_not_acknowledge_asks_for_no_acknowledgement(
    server: Tantor, connect: Connect
) -> None:
    client = connect(server)
    server.send(client.client_id, {"n": 1})
    assert "ack" not in client.receive_until(n=1)
    assert server.stats()["mailbox_messages"] == 0


def test_a_message_with_an_id_of_its_own_is_not_waited_for(server: Tantor, connect: Connect) -> None:
    client = connect(server, "/?ack=1")
    server.send(client.client_id, {"n": 1, "id": "mine"})
    server.send(client.client_id, {"n": 2, "ack": "mine"})
    assert client.receive_until(n=1)["id"] == "mine"
    assert client.receive_until(n=2)["ack"] == "mine"
    assert server.stats()["mailbox_messages"] == 0


def test_a_message_that_no_mailbox_can_hold_is_sent_without_asking_for_an_acknowledgement(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(mailbox_bytes=10_000)
    client = connect(server, "/?ack=1")
    server.send(client.client_id, {"n": 1, "fill": "x" * 20_000})
    assert "ack" not in client.receive_until(n=1)
    assert (server.stats()["mailbox_messages"], server.stats()["dropped"]) == (0, {})


def test_the_first_acknowledgement_makes_a_connection_one_that_acknowledges(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.action("ack", ids=[], ref=1)
    assert client.receive_until(ref=1)["acknowledged"] == 0
    send_numbers(server, client.client_id, [1])
    assert client.receive_until(n=1)["ack"] is True
    assert server.stats()["mailbox_messages"] == 1


@pytest.mark.parametrize("unknown", ["msg_0123456789abcdef", "seven", ""])
def test_an_id_that_nothing_waits_for_is_told_and_the_others_count(
    server: Tantor, connect: Connect, unknown: str
) -> None:
    client = connect(server, "/?ack=1")
    ids = send_numbers(server, client.client_id, range(2))
    client.action("ack", ids=[ids[0], unknown, ids[1]], ref=7)
    error = client.receive_until(event="error")
    assert (error["code"], error["ref"]) == (113, 7)
    assert unknown in error["message"]
    assert "2 of the ids were known" in error["message"]
    assert server.stats()["mailbox_messages"] == 0


def test_what_is_acknowledged_twice_counts_once(server: Tantor, connect: Connect) -> None:
    client = connect(server, "/?ack=1")
    (message,) = send_numbers(server, client.client_id, [1])
    client.action("ack", ids=[message, message])
    assert client.receive_until(event="error")["code"] == 113
    client.action("ack", id=message)
    assert client.receive_until(event="error")["code"] == 113
    wait_for_delivery(server, message, handed_over=1, written=1, acknowledged=1)


def test_nobody_acknowledges_for_another(server: Tantor, connect: Connect) -> None:
    client, other = connect(server, "/?ack=1"), connect(server, "/?ack=1")
    (message,) = send_numbers(server, client.client_id, [1])
    other.action("ack", id=message)
    assert other.receive_until(event="error")["code"] == 113
    report = server.delivery(message)
    assert report is not None
    assert (report["acknowledged"], report["waiting"]) == (0, 1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "ack takes id, or ids"),
        ({"id": 7}, "id"),
        ({"ids": "msg_0123456789abcdef"}, "takes a list of message ids"),
        ({"ids": [1]}, "takes a list of message ids"),
        ({"ids": ["msg_0123456789abcdef"] * 10_001}, "ids has 10001 ids; it takes at most 10000"),
    ],
)
def test_an_acknowledgement_that_cannot_be_is_refused_and_nothing_is_lost(
    server: Tantor, connect: Connect, fields: dict[str, Any], says: str
) -> None:
    client = connect(server, "/?ack=1")
    send_numbers(server, client.client_id, [1])
    client.action("ack", ref=1, **fields)
    error = client.receive_until(event="error")
    assert (error["code"], error["ref"]) == (103, 1)
    assert says in error["message"]
    assert server.stats()["mailbox_messages"] == 1


def test_ten_thousand_ids_may_be_acknowledged_at_once(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(mailbox_size=20_000, mailbox_bytes=8 << 20, max_pending_bytes=16 << 20)
    client = connect(server, "/?ack=1")
    ids = send_numbers(server, client.client_id, range(10_000))
    client.action("ack", ids=ids, ref=1)
    assert client.receive_until(ref=1)["acknowledged"] == 10_000
    assert server.stats()["mailbox_messages"] == 0


def test_a_client_that_acknowledged_and_returns_without_gets_what_waits_once(server: Tantor, connect: Connect) -> None:
    client = connect(server, "/?ack=1")
    send_numbers(server, client.client_id, range(3))
    client.receive_until(n=2)
    returned = connect(server, lose(server, client))
    assert returned.welcome["waiting"] == 3
    assert numbers(returned.settle(server)) == [0, 1, 2]
    assert server.stats()["mailbox_messages"] == 0
    send_numbers(server, client.client_id, [3])
    assert "ack" not in returned.receive_until(n=3)
    again = connect(server, lose(server, returned))
    assert (again.welcome["waiting"], numbers(again.settle(server))) == (0, [])


def test_a_mailbox_holds_also_for_a_client_that_acknowledges_too_little(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(mailbox_size=5)
    client = connect(server, "/?ack=1")
    ids = send_numbers(server, client.client_id, range(8))
    assert numbers(client.receive_all_until(n=7)) == list(range(8))
    assert server.stats()["mailbox_messages"] == 5
    client.action("ack", ids=ids)
    assert "5 of the ids were known" in client.receive_until(event="error")["message"]


# Many at once


def test_each_of_many_messages_sent_while_a_client_connects_arrives_once_and_in_order(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(mailbox_size=10_000, mailbox_bytes=4 << 20, max_pending_bytes=8 << 20)
    threads, each = 8, 300
    for round_number in range(5):
        client_id = f"user-{round_number}"
        token = server.resume_token(client_id)
        begin = threading.Barrier(threads + 1)

        def send(thread: int, client_id: str = client_id, begin: threading.Barrier = begin) -> None:
            begin.wait(10)
            for number in range(each):
                server.send(client_id, {"thread": thread, "n": number})

        workers = [threading.Thread(target=send, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        begin.wait(10)
        client = connect(server, f"/?resume={token}")
        for worker in workers:
            worker.join(30)
        messages = client.settle(server)
        by_thread: dict[int, list[int]] = {thread: [] for thread in range(threads)}
        for message in messages:
            if "thread" in message:
                by_thread[message["thread"]].append(message["n"])
        assert by_thread == {thread: list(range(each)) for thread in range(threads)}
        client.close()


def test_a_client_that_is_behind_gets_its_mail_before_newer_messages(server: Tantor, connect: Connect) -> None:
    client = connect(server, receive_buffer=4096)
    path = lose(server, client)
    for number in range(20):
        server.send(client.client_id, {"n": number, "fill": "x" * 5000})
    returned = connect(server, path, receive_buffer=4096)
    fill_socket(server, returned)
    send_numbers(server, client.client_id, range(20, 25))
    assert numbers(returned.receive_all_until(n=24)) == list(range(25))
