"""Events that handlers get: which, with what in them, on which loop, and what a bad handler can and cannot do."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import TEXT, WebSocketClient, encode_frame, eventually
from tantor import Tantor

Connect = Callable[..., WebSocketClient]
MakeServer = Callable[..., Tantor]
Data = dict[str, Any]


@pytest.fixture
def heard(server: Tantor) -> Callable[[str], list[Data]]:
    """`heard(event)`: a list that grows by what a handler of that event gets."""

    def listen(event: str) -> list[Data]:
        received: list[Data] = []
        server.on_event(event, received.append)
        return received

    return listen


def first(received: list[Data], **fields: Any) -> Data:
    """Wait for an event with these fields."""

    def found() -> Data | None:
        return next((data for data in received if fields.items() <= data.items()), None)

    return eventually(found, lambda: f"an event with {fields} in {received}") or {}


def check_common_fields(data: Data, event: str) -> None:
    assert data["event"] == event
    assert isinstance(data["timestamp"], float)
    assert abs(data["timestamp"] - time.time()) < 60


# What is told


@pytest.mark.parametrize("event", ["welcome", "connect"])
def test_a_connect_is_told(heard: Callable[[str], list[Data]], server: Tantor, connect: Connect, event: str) -> None:
    received = heard(event)
    client = connect(server)
    data = first(received, client_id=client.client_id)
    check_common_fields(data, event)
    client.settle(server)
    assert len(received) == 1


def test_joins_and_leaves_are_told(heard: Callable[[str], list[Data]], server: Tantor, connect: Connect) -> None:
    joined, left = heard("user_joined"), heard("user_left")
    client = connect(server)
    data = first(joined, client_id=client.client_id, channel="jungle")
    check_common_fields(data, "user_joined")
    assert data["total_users"] == 1
    client.action("join_channel", channel="den")
    first(joined, client_id=client.client_id, channel="den", total_users=1)
    server.subscribe("client_away", "den")
    first(joined, client_id="client_away", channel="den", total_users=2)
    client.action("leave_channel", channel="den")
    data = first(left, client_id=client.client_id, channel="den", total_users=1)
    check_common_fields(data, "user_left")
    client.say_goodbye()
    first(left, client_id=client.client_id, channel="jungle", total_users=0)


def test_an_emergency_is_told(heard: Callable[[str], list[Data]], server: Tantor) -> None:
    received = heard("emergency_alert")
    server.emergency("lions")
    data = first(received, message="lions")
    check_common_fields(data, "emergency_alert")
    assert data["channel"] == "emergency"


def test_pings_and_pongs_are_told(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(heartbeat_interval=0.2, heartbeat_timeout=5)
    pings: list[Data] = []
    pongs: list[Data] = []
    server.on_event("ping", pings.append)
    server.on_event("pong", pongs.append)
    client = connect(server)
    client.action("ping")
    check_common_fields(first(pings, client_id=client.client_id), "ping")
    client.receive_until(ping=True)
    client.receive_until(ping=True)  # by then the ping frame beside the first is answered
    check_common_fields(first(pongs, client_id=client.client_id), "pong")


def test_a_shutdown_is_told_before_the_end() -> None:
    server = Tantor(port=0, host="127.0.0.1")
    received: list[Data] = []
    server.on_event("server_shutdown", received.append)
    with server:
        pass
    assert len(received) == 1, "handlers have been called at the end of the context"
    check_common_fields(received[0], "server_shutdown")


def test_a_shutdown_is_told_after_a_stop_from_elsewhere(make_server: MakeServer) -> None:
    server = make_server()
    received: list[Data] = []
    server.on_event("server_shutdown", received.append)
    asyncio.run(server.stop())
    check_common_fields(first(received), "server_shutdown")


def test_what_a_client_broadcasts_is_told(heard: Callable[[str], list[Data]], server: Tantor, connect: Connect) -> None:
    received = heard("chat_message")
    client = connect(server)
    payload = {"message": "hello", "n": [1, 2.5, None, True], "big": 10**30, "🐘": "\u0000"}
    client.action("broadcast", channel="den", event="chat_message", data=payload)
    data = first(received, client_id=client.client_id)
    check_common_fields(data, "chat_message")
    assert (data["channel"], data["data"]) == ("den", payload)


def test_what_the_server_broadcasts_is_not_told(
    heard: Callable[[str], list[Data]], server: Tantor, connect: Connect
) -> None:
    received = heard("news")
    server.broadcast("jungle", "news", {"n": 1})
    connect(server).action("broadcast", event="news", data={"n": 2})
    first(received, data={"n": 2})
    assert len(received) == 1


def test_a_frame_of_the_applications_own_is_told(
    heard: Callable[[str], list[Data]], server: Tantor, connect: Connect
) -> None:
    received = heard("message")
    client = connect(server)
    client.send_json({"action": "draw", "shape": {"sides": 3}})
    data = first(received, client_id=client.client_id)
    check_common_fields(data, "message")
    assert data["action"] == "draw" or data["data"]["action"] == "draw", data
    assert {"sides": 3} in (data.get("shape"), data.get("data", {}).get("shape")), data


@pytest.mark.parametrize(
    ("ending", "reason", "code"),
    [
        (lambda client: client.say_goodbye(), "closed", 1000),
        (lambda client: client.say_goodbye(4001), "closed", 4001),
        (lambda client: client.close(), "lost", 1006),
        (lambda client: client.reset(), "lost", 1006),
        (lambda client: client.send_raw(b"\x81\x00"), "protocol_error", 1002),
    ],
    ids=["goodbye", "goodbye with a code of its own", "end of stream", "reset", "unmasked frame"],
)
def test_an_end_is_told_with_its_reason(
    heard: Callable[[str], list[Data]],
    server: Tantor,
    connect: Connect,
    ending: Callable[[WebSocketClient], None],
    reason: str,
    code: int,
) -> None:
    received = heard("disconnect")
    client = connect(server)
    ending(client)
    data = first(received, client_id=client.client_id)
    check_common_fields(data, "disconnect")
    assert (data["reason"], data["code"]) == (reason, code)
    assert client.client_id not in server.connections


def test_a_shutdown_ends_each_connection_with_that_reason(make_server: MakeServer, connect: Connect) -> None:
    server = make_server()
    received: list[Data] = []
    server.on_event("disconnect", received.append)
    clients = [connect(server) for _ in range(3)]
    asyncio.run(server.stop())
    eventually(lambda: len(received) == 3, lambda: received)
    assert sorted(data["client_id"] for data in received) == sorted(client.client_id for client in clients)
    assert {(data["reason"], data["code"]) for data in received} == {("shutdown", 1001)}


# Registering


def test_handlers_are_called_in_the_order_of_their_registration(server: Tantor, connect: Connect) -> None:
    calls: list[str] = []
    server.on_event("news", lambda data: calls.append("first"))
    server.on_event("news", lambda data: calls.append("second"))
    connect(server).action("broadcast", event="news")
    eventually(lambda: len(calls) == 2, lambda: calls)
    assert calls == ["first", "second"]


def test_the_decorator_returns_the_function(server: Tantor, connect: Connect) -> None:
    received: list[Data] = []

    @server.on("news")
    def handler(data: Data) -> None:
        received.append(data)

    connect(server).action("broadcast", event="news", data=1)
    first(received, data=1)
    handler({"data": 2})
    assert received[-1] == {"data": 2}


def test_a_handler_can_be_taken_off(server: Tantor, connect: Connect) -> None:
    gone: list[Data] = []
    kept: list[Data] = []
    server.on_event("news", gone.append)
    server.on_event("news", kept.append)
    client = connect(server)
    client.action("broadcast", event="news", data=1)
    first(kept, data=1)
    server.off_event("news", gone.append)
    client.action("broadcast", event="news", data=2)
    first(kept, data=2)
    assert [data["data"] for data in gone] == [1]


def test_a_handler_registered_while_the_server_runs_is_called(server: Tantor, connect: Connect) -> None:
    client = connect(server)
    client.settle(server)
    received: list[Data] = []
    server.on_event("late", received.append)
    client.action("broadcast", event="late", data=1)
    first(received, data=1)


def test_handlers_outlive_a_restart(connect: Connect) -> None:
    server = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
    received: list[Data] = []
    server.on_event("connect", received.append)
    for _ in range(2):
        with server:
            client = connect(server)
            first(received, client_id=client.client_id)
    assert len(received) == 2


@pytest.mark.parametrize("handler", [None, "handler", 7])
def test_what_cannot_be_called_is_refused(handler: Any) -> None:
    with pytest.raises(TypeError, match="handler"):
        Tantor().on_event("news", handler)


# Order, loops


def test_events_of_one_connection_arrive_in_order(
    heard: Callable[[str], list[Data]], server: Tantor, connect: Connect
) -> None:
    received: list[Data] = []
    for event in ("connect", "user_joined", "news", "message", "user_left", "disconnect"):
        server.on_event(event, received.append)
    client = connect(server)
    for number in range(2000):
        if number % 2:
            client.action("broadcast", event="news", data=number)
        else:
            client.send_json({"number": number})
    client.say_goodbye()
    first(received, event="disconnect")
    ours = [data for data in received if data["client_id"] == client.client_id]
    assert ours[0]["event"] == "connect"
    assert [data["event"] for data in ours].index("user_joined") == 1
    assert [data["event"] for data in ours[2:-2]] == ["message", "news"] * 1000
    assert [data["data"] for data in ours if data["event"] == "news"] == list(range(1, 2000, 2))
    assert {ours[-1]["event"], ours[-2]["event"]} == {"user_left", "disconnect"}


def test_async_handlers_of_one_connection_start_in_order(server: Tantor, connect: Connect) -> None:
    started: list[int] = []

    async def handler(data: Data) -> None:
        started.append(data["data"])

    server.on_event("news", handler)
    client = connect(server)
    for number in range(500):
        client.action("broadcast", event="news", data=number)
    eventually(lambda: len(started) == 500, lambda: len(started))
    assert started == list(range(500))


def test_async_handlers_run_on_the_loop_that_runs_start(connect: Connect) -> None:
    async def serve() -> None:
        server = Tantor(port=0, host="127.0.0.1", drain_timeout=1)
        called: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def handler(data: Data) -> None:
            called.set_result(asyncio.get_running_loop())

        server.on_event("connect", handler)
        task = asyncio.create_task(server.start())
        while not server.is_running:
            await asyncio.wait({task}, timeout=0.005)
        await asyncio.to_thread(connect, server)
        assert await asyncio.wait_for(called, 10) is asyncio.get_running_loop()
        await server.stop()
        await asyncio.wait_for(task, 10)

    asyncio.run(serve())


def test_async_handlers_of_a_background_server_run_on_a_loop_of_its_own(server: Tantor, connect: Connect) -> None:
    loops: list[tuple[asyncio.AbstractEventLoop, threading.Thread]] = []

    async def handler(data: Data) -> None:
        await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(lambda: None))])
        loops.append((asyncio.get_running_loop(), threading.current_thread()))

    server.on_event("connect", handler)
    connect(server)
    connect(server)
    eventually(lambda: len(loops) == 2, "two calls of the handler")
    assert loops[0] == loops[1]
    assert loops[0][1] is not threading.current_thread()


def test_handlers_may_call_back(server: Tantor, connect: Connect) -> None:
    async def answer(data: Data) -> None:
        await server.send(data["client_id"], {"answer": data["data"]})

    server.on_event("news", lambda data: server.broadcast("jungle", "heard", data["data"]) and None)
    server.on_event("question", answer)
    client = connect(server)
    client.action("broadcast", event="news", data=1)
    assert client.receive_until(event="heard")["data"] == 1
    client.action("broadcast", event="question", data=2)
    assert client.receive_until(answer=2)


# Bad handlers


def test_a_handler_that_raises_is_logged_and_harms_nothing(
    server: Tantor, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Data] = []

    def bad(data: Data) -> None:
        raise LookupError("the banana is gone")

    async def bad_async(data: Data) -> None:
        raise LookupError("the mango is gone")

    for handler in (bad, bad_async, received.append):
        server.on_event("news", handler)
    with caplog.at_level(logging.ERROR, "tantor"):
        client = connect(server)
        for number in range(3):
            client.action("broadcast", event="news", data=number)
        eventually(lambda: len(caplog.records) >= 6, lambda: caplog.text)
    assert [data["data"] for data in received] == [0, 1, 2]
    for text, function in (("the banana is gone", "in bad\n"), ("the mango is gone", "in bad_async\n")):
        records = [record for record in caplog.records if record.exc_info and text in str(record.exc_info[1])]
        assert len(records) == 3, caplog.text
        assert {record.levelno for record in records} == {logging.ERROR}
        assert all(record.name.startswith("tantor") for record in records)
        assert "news" in records[0].getMessage()
        assert function in caplog.text, "the traceback shows where"
    client.settle(server)


def test_even_a_system_exit_of_a_handler_harms_nothing(
    server: Tantor, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    received: list[Data] = []

    def leave(data: Data) -> None:
        raise SystemExit(3)

    server.on_event("news", leave)
    server.on_event("news", received.append)
    with caplog.at_level(logging.ERROR, "tantor"):
        client = connect(server)
        client.action("broadcast", event="news", data=1)
        client.action("broadcast", event="news", data=2)
        first(received, data=2)
    client.settle(server)


def test_a_slow_handler_delays_no_socket(server: Tantor, connect: Connect) -> None:
    release = threading.Event()
    called = threading.Event()

    def slow(data: Data) -> None:
        called.set()
        release.wait(60)

    server.on_event("news", slow)
    try:
        one, two = connect(server), connect(server)
        one.action("broadcast", event="news", data=1)
        assert called.wait(10), "the handler's call"
        for client in (one, two):
            started = time.monotonic()
            client.action("ping")
            client.receive_until(pong=True)
            assert time.monotonic() - started < 5
        server.broadcast("jungle", "other")
        two.receive_until(event="other")
    finally:
        release.set()


def test_a_full_queue_pauses_its_clients_and_loses_nothing(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(event_queue_bytes=64 << 10)
    release = threading.Event()
    received: list[int] = []

    def slow(data: Data) -> None:
        release.wait(60)
        received.append(data["data"]["n"])

    server.on_event("news", slow)
    count, fill = 3000, "x" * 4000
    sender, other = connect(server), connect(server)
    other.action("leave_channel", channel="jungle")
    other.settle(server)

    def flood() -> None:
        for number in range(count):
            sender.action("broadcast", channel="nowhere", event="news", data={"n": number, "fill": fill})

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        eventually(lambda: server.stats()["event_pauses"] >= 1, lambda: server.stats())
        assert other.settle(server) == [], "another client is served meanwhile"
        assert thread.is_alive(), "twelve megabytes were read though nobody took the events"
    finally:
        release.set()
        thread.join(60)
    eventually(lambda: len(received) == count, lambda: (len(received), server.stats()), timeout=60)
    assert received == list(range(count))
    assert server.stats()["events_dropped"] == 0
    assert json.dumps(server.stats())


def test_a_full_queue_holds_back_nobody_whose_frames_make_no_events(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(event_queue_bytes=1024)
    release = threading.Event()
    server.on_event("message", lambda data: release.wait(60) and None)
    try:
        flooding, one, two = connect(server), connect(server), connect(server)
        for _ in range(100):
            flooding.action("chat")
        eventually(lambda: server.stats()["event_pauses"] >= 1, lambda: server.stats())
        for number in range(5):
            one.action("broadcast", event="news", data=number)
            one.action("join_channel", channel=f"den {number}")
        for number in range(5):
            two.receive_until(event="news", data=number)
        one.action("ping")
        one.receive_until(pong=True)
    finally:
        release.set()
    eventually(lambda: server.stats()["messages_received"] == 100, lambda: server.stats())


def test_many_events_are_fast_enough_to_keep_up(server: Tantor, connect: Connect) -> None:
    count = 20_000
    received = 0

    def handler(data: Data) -> None:
        nonlocal received
        received += 1

    server.on_event("message", handler)
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        frame = json.dumps({"action": "chat"}).encode()
        client.send_raw(b"".join(encode_frame(TEXT, frame) for _ in range(count // 4)))
    eventually(lambda: received == count, lambda: received, timeout=30)
