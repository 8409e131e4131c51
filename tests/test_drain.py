"""The end of a server: everybody is told when to come back, what waits is written, and all of it within bounds."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import (
    ClosedError,
    WebSocketClient,
    eventually,
    fill_socket,
    handshake_request,
    http_request,
    lose,
    waits_for,
)
from tantor import Tantor

pytestmark = pytest.mark.system_buffers

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]
Message = dict[str, Any]


def farewell(client: WebSocketClient) -> tuple[list[Message], int | None]:
    """All messages to the end, and the close code."""
    messages: list[Message] = []
    while True:
        try:
            messages.append(client.receive())
        except ClosedError as closed:
            return messages, closed.code


def stop(server: Tantor) -> None:
    server._begin_stop()
    assert server._wait_stopped(20), server.stats()


def test_each_client_is_told_to_come_back_at_a_time_of_its_own_within_the_window(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(reconnect_window=5)
    clients = [connect(server) for _ in range(60)]
    stop(server)
    times = []
    for client in clients:
        messages, code = farewell(client)
        assert code == 1001
        goodbye = messages[-1]
        assert (goodbye["event"], goodbye["channel"]) == ("server_shutdown", "system")
        assert [message["event"] for message in messages].count("server_shutdown") == 1
        times.append(goodbye["reconnect_after_ms"])
    assert all(isinstance(each, int) and 0 <= each <= 5000 for each in times)
    # 60 numbers of 5,001 that are chosen evenly: each third has some but once in 10^10 times, and most are different
    for third in range(3):
        assert any(third * 1667 <= each < (third + 1) * 1667 + 1 for each in times)
    assert len(set(times)) > 40


def test_without_a_window_all_may_come_back_at_once(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(reconnect_window=0)
    client = connect(server)
    stop(server)
    assert farewell(client)[0][-1]["reconnect_after_ms"] == 0


def test_what_waited_is_written_before_the_goodbye(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(drain_timeout=20)
    client = connect(server, receive_buffer=4096)
    fill_socket(server, client)
    for number in range(50):
        server.broadcast("jungle", "news", {"n": number}, priority="low" if number % 2 else "normal")
    server._begin_stop()
    messages, code = farewell(client)
    seen = [message["data"]["n"] for message in messages if "n" in message.get("data", {})]
    assert seen == [*range(0, 50, 2), *range(1, 50, 2)]
    assert (messages[-1]["event"], code) == ("server_shutdown", 1001)
    client.close()
    assert server._wait_stopped(20)


def test_a_stop_waits_for_a_client_that_does_not_read_no_longer_than_drain_timeout(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(drain_timeout=1)
    stalled = connect(server, receive_buffer=4096)
    fill_socket(server, stalled)
    reader = connect(server)
    begun = time.monotonic()
    server._begin_stop()
    messages, code = farewell(reader)
    assert (messages[-1]["event"], code) == ("server_shutdown", 1001)
    reader.close()
    assert server._wait_stopped(20)
    assert time.monotonic() - begun >= 1  # it was given its time
    assert not server.is_running


def test_while_draining_new_connections_get_503_and_are_told_when_to_come(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(drain_timeout=30, reconnect_window=7)
    port = server.port
    stalled = connect(server, receive_buffer=4096)
    fill_socket(server, stalled)
    server._begin_stop()

    def is_draining() -> bool:
        return http_request(port, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 503

    eventually(is_draining, "still well")
    for path in ("/", f"/?resume={stalled.welcome['resume']}"):
        status, headers, _ = http_request(port, handshake_request(port, path))
        assert (status, headers["retry-after"]) == (503, "7")
    assert server.is_running
    assert farewell(stalled)[1] == 1001  # it was still there
    stalled.close()
    assert server._wait_stopped(20)


def test_what_is_sent_while_a_server_drains_is_kept(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(drain_timeout=30)
    stalled = connect(server, receive_buffer=4096)
    client = connect(server)
    fill_socket(server, stalled)
    server._begin_stop()
    assert farewell(client)[1] == 1001
    client.close()
    message = server.send(client.client_id, {"name": "late"}).result()
    assert server.delivery(message) == {"handed_over": 0, "written": 0, "acknowledged": 0, "waiting": 1}
    server.broadcast("jungle", "news", {"n": 1})
    stalled.close()
    assert server._wait_stopped(20)
    # the same object, started again: who it was is still known
    server.start_background()
    returned = connect(server, f"/?resume={client.welcome['resume']}")
    assert returned.welcome["resumed"] is True
    assert returned.receive()["name"] == "late"


def test_publishers_do_not_hang_while_a_server_stops(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(drain_timeout=1)
    clients = [connect(server, receive_buffer=4096) for _ in range(3)]
    fill_socket(server, clients[0])
    done = threading.Event()
    count = 0

    def publish() -> None:
        nonlocal count
        while not done.is_set():
            server.broadcast("jungle", "news", {"fill": "x" * 1000})
            server.send("user-7", "hello")
            server.emergency("fire")
            count += 1

    publisher = threading.Thread(target=publish)
    publisher.start()
    eventually(lambda: count > 10, "it publishes")
    stop(server)
    before = count
    eventually(lambda: count > before + 10, "it publishes on")
    done.set()
    publisher.join(10)
    assert not publisher.is_alive()


def test_a_client_that_closes_while_the_server_drains_does_not_hold_it_up(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(drain_timeout=60)
    clients = [connect(server) for _ in range(5)]
    stalled = connect(server, receive_buffer=4096)
    fill_socket(server, stalled)
    server._begin_stop()
    for client in clients:
        assert farewell(client)[1] == 1001
        client.close()
    stalled.reset()
    assert server._wait_stopped(30)


def test_a_stop_tells_handlers_and_counts_the_ends(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    told: list[Message] = []
    server.on_event("server_shutdown", told.append)
    server.on_event("disconnect", told.append)
    clients = [connect(server) for _ in range(3)]
    stop(server)
    eventually(lambda: len(told) == 4, lambda: told)
    assert [each["event"] for each in told] == ["server_shutdown", *["disconnect"] * 3]
    assert {(each["reason"], each["code"]) for each in told[1:]} == {("shutdown", 1001)}
    assert {each["client_id"] for each in told[1:]} == {client.client_id for client in clients}
    assert server.stats()["disconnects"] == {"shutdown": 3}


def test_mail_is_still_handed_over_by_a_server_that_is_about_to_stop(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(drain_timeout=20)
    client = connect(server)
    path = lose(server, client)
    for number in range(100):
        server.send(client.client_id, {"n": number})
    returned = connect(server, path)
    server._begin_stop()
    messages, code = farewell(returned)
    assert [message["n"] for message in messages if "n" in message] == list(range(100))
    assert code == 1001


@pytest.mark.parametrize("setting", ["drain_timeout", "reconnect_window"])
@pytest.mark.parametrize("value", [-1, float("nan"), 3601, "soon"])
def test_a_time_that_cannot_be_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{setting} is .*; it takes a number of seconds from 0 to 3600"):
        Tantor(**{setting: value})


def test_an_idle_server_stops_at_once(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(drain_timeout=60)
    client = connect(server)
    server._begin_stop()
    assert farewell(client)[1] == 1001
    client.close()
    assert server._wait_stopped(30)
    assert waits_for(server, client) == 0
