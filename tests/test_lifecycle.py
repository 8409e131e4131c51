"""Starting, stopping and starting again, in one process: threads, loops, ports.

This page, `test_processes.py` and `test_hosts.py` run on every Python version that is supported.
"""

import asyncio
import concurrent.futures
import inspect
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
from processes import run_python
from servers import quick, serves
from support import WebSocketClient, accepts_connections, eventually, handshake_request, http_request
from tantor import Tantor, get_tantor

MakeServer = Callable[..., Tantor]
Connect = Callable[..., WebSocketClient]


@pytest.fixture
def thread_pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool


# start() on a loop


def test_start_is_a_coroutine() -> None:
    coroutine = Tantor().start()
    assert inspect.iscoroutine(coroutine)
    coroutine.close()


def test_start_in_a_thread_and_stop_from_another(thread_pool: concurrent.futures.ThreadPoolExecutor) -> None:
    server = quick()
    serving = thread_pool.submit(lambda: asyncio.run(server.start()))
    eventually(lambda: server.is_running, "a running server")
    assert serves(server)
    assert not serving.done()
    thread_pool.submit(lambda: asyncio.run(server.stop())).result(15)
    assert serving.result(15) is None
    assert not server.is_running
    assert not accepts_connections(server.port)


async def start_task(server: Tantor) -> "asyncio.Task[None]":
    """Starts a server as a task; returns the task once the server runs."""
    task = asyncio.create_task(server.start())
    while not server.is_running:
        await asyncio.wait({task}, timeout=0.005)
    return task


def test_start_as_a_task_on_the_applications_loop() -> None:
    async def run() -> None:
        server = quick()
        task = await start_task(server)
        assert await asyncio.to_thread(serves, server)
        await server.stop()
        await asyncio.wait_for(task, 10)
        assert not accepts_connections(server.port)

    asyncio.run(run())


def test_cancelling_start_stops_the_server() -> None:
    async def run() -> None:
        server = quick()
        task = await start_task(server)
        port = server.port
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not server.is_running
        assert not accepts_connections(port)

    asyncio.run(run())


def test_a_time_limit_on_start_stops_the_server() -> None:
    server = quick()
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(server.start(), 0.3))
    assert not server.is_running
    assert not accepts_connections(server.port)


def test_a_start_that_ran_out_of_time_leaves_the_next_one_alone() -> None:
    server = quick()
    for _ in range(100):  # sometimes the start is in time nevertheless
        try:
            server.start_background(timeout=0)
        except TimeoutError as error:
            assert "not listening after 0" in str(error)  # noqa: PT017 - it may not be raised
            break
        server._begin_stop()
        assert server._wait_stopped(15)
    assert not server.is_running
    with server:
        # a stop signal left over from the first start would end the shards of the second
        assert all(serves(server) for _ in range(5))


def test_start_beside_a_background_server_waits_for_its_end(
    thread_pool: concurrent.futures.ThreadPoolExecutor,
) -> None:
    server = quick()
    server.start_background()
    serving = thread_pool.submit(lambda: asyncio.run(server.start()))
    assert serves(server)
    assert not serving.done()
    asyncio.run(server.stop())
    serving.result(15)


@pytest.mark.alone
def test_a_loop_stays_free_while_it_serves() -> None:
    async def run() -> None:
        server = quick()
        task = await start_task(server)
        turns = 0
        flood = asyncio.create_task(asyncio.to_thread(publish_for, server, 0.5))
        while not flood.done():
            await asyncio.wait({flood}, timeout=0.001)
            turns += 1
        assert turns > 20, f"the loop turned {turns} times in half a second"
        await server.stop()
        await task

    asyncio.run(run())


def publish_for(server: Tantor, seconds: float) -> None:
    with WebSocketClient(server.port).greet():
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            server.broadcast("den", "news", {"n": 1})


# In the background, and as a context


def test_start_background_returns_when_it_listens_and_is_idempotent(
    thread_pool: concurrent.futures.ThreadPoolExecutor,
) -> None:
    server = quick()
    try:
        server.start_background()
        port = server.port
        assert port != 0
        assert accepts_connections(port)
        server.start_background(timeout=1)
        for started in [thread_pool.submit(server.start_background) for _ in range(8)]:
            started.result(10)
        assert server.port == port
        assert serves(server)
    finally:
        asyncio.run(server.stop())


def test_as_a_context() -> None:
    server = quick()
    with server as entered:
        assert entered is server
        assert serves(server)
    assert not server.is_running
    with pytest.raises(ZeroDivisionError), server:
        print(1 / 0)
    assert not server.is_running


def test_as_an_asynchronous_context() -> None:
    async def run() -> None:
        server = quick()
        async with server as entered:
            assert entered is server
            assert await asyncio.to_thread(serves, server)
            assert await server.broadcast("jungle", "news") == 0
        assert not server.is_running

    asyncio.run(run())


# stop()


def test_stop_without_a_start_and_twice() -> None:
    server = quick()
    asyncio.run(server.stop())
    with server:
        pass
    asyncio.run(server.stop())
    asyncio.run(server.stop())


def test_every_stop_returns() -> None:
    server = quick()
    for _ in range(200):
        server.start_background()
        assert http_request(server.port, "GET /healthz HTTP/1.1\r\n\r\n")[0] == 200
        asyncio.run(asyncio.wait_for(server.stop(), 15))
        assert not server.is_running


def test_stop_from_many_threads_at_once(thread_pool: concurrent.futures.ThreadPoolExecutor) -> None:
    server = quick()
    server.start_background()
    with WebSocketClient(server.port).greet() as client:
        stopped = [thread_pool.submit(lambda: asyncio.run(server.stop())) for _ in range(4)]
        assert client.wait_closed() == 1001
        for each in stopped:
            each.result(15)
    assert not server.is_running


def test_stop_from_a_handler() -> None:
    server = quick()

    @server.on("enough")
    async def stop(data: dict[str, object]) -> None:
        await server.stop()

    server.start_background()
    with WebSocketClient(server.port).greet() as client:
        client.action("broadcast", event="enough")
        assert client.wait_closed() == 1001
    assert server._wait_stopped(10)


def test_the_port_is_free_when_stop_returns(connect: Connect) -> None:
    server = quick()
    server.start_background()
    port = server.port
    clients = [WebSocketClient(port).greet() for _ in range(5)]
    asyncio.run(server.stop())
    assert not accepts_connections(port)
    with quick(port) as again:
        assert again.port == port
        assert serves(again)
    for client in clients:
        client.close()


def test_a_stop_is_bounded_though_a_client_does_not_read() -> None:
    server = quick(drain_timeout=0.5, max_pending_bytes=64 << 20)
    server.start_background()
    with WebSocketClient(server.port, receive_buffer=4096).greet():
        while server.stats()["queued_messages"] < 50:
            server.broadcast("jungle", "news", "x" * 60_000)
        started = time.monotonic()
        asyncio.run(server.stop())
        assert time.monotonic() - started < 5
    assert server.stats()["queued_messages"] == 0


def test_while_it_drains_it_says_so() -> None:
    server = quick(drain_timeout=30, max_pending_bytes=64 << 20)
    server.start_background()
    with WebSocketClient(server.port, receive_buffer=4096).greet() as client:
        while server.stats()["queued_messages"] < 50:
            server.broadcast("jungle", "news", "x" * 60_000)
        server._begin_stop()
        status, _, body = http_request(server.port, "GET /healthz HTTP/1.1\r\n\r\n")
        assert status == 503, body
        assert http_request(server.port, handshake_request(server.port))[0] == 503
        assert client.receive_until(event="server_shutdown", timeout=30)["channel"] == "system"
        assert client.wait_closed() == 1001
    assert server._wait_stopped(15)


# Again, and beside each other


def test_start_after_stop_on_the_same_port(free_port: int) -> None:
    server = quick(free_port)
    for _ in range(3):
        with server:
            assert server.port == free_port
            assert serves(server)
        assert server.stats()["status"] == "sleeping"
        assert server.stats()["total_connections"] == 0
    assert server.stats()["connections_total"] == 3


def test_subscriptions_of_clients_that_are_away_outlive_a_restart() -> None:
    server = quick()
    with server:
        server.subscribe("client_away", "den")
    with server:
        assert server.get_presence("den")["users"] == ["client_away"]


def test_a_restart_leaves_no_threads_and_no_descriptors_behind() -> None:
    server = quick()
    process = psutil.Process()

    def counts() -> tuple[int, int]:
        return process.num_threads(), process.num_fds()

    for round_number in range(6):
        with server:
            assert serves(server)
        if round_number == 0:
            before = counts()
    eventually(lambda: all(now <= then for now, then in zip(counts(), before, strict=True)), lambda: (before, counts()))


def test_two_servers_in_one_process(make_server: MakeServer, connect: Connect) -> None:
    one, two = make_server(), make_server(default_channel="plaza")
    assert one.port != two.port
    of_one, of_two = connect(one), connect(two)
    assert list(one.connections) == [of_one.client_id]
    assert list(two.connections) == [of_two.client_id]
    assert one.emergency("fire").result() == 1
    assert [message for message in of_two.settle(two) if message.get("event") == "emergency_alert"] == []
    asyncio.run(one.stop())
    assert of_one.wait_closed() == 1001
    assert serves_on(two, "plaza")


def serves_on(server: Tantor, channel: str) -> bool:
    with WebSocketClient(server.port).greet() as client:
        server.broadcast(channel, "news")
        return bool(client.receive_until(event="news"))


# Many threads


def test_everything_at_once_from_every_thread(make_server: MakeServer) -> None:
    server = make_server()
    stop = threading.Event()
    failures: list[BaseException] = []

    def keep_doing(action: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                action()
        except BaseException as error:
            failures.append(error)

    def come_and_go() -> None:
        with WebSocketClient(server.port).greet() as client:
            client.action("join_channel", channel="den")
            client.settle(server)

    def look() -> None:
        for channel in server.channels.values():
            list(channel.subscribers)
        for client_id in list(server.connections):
            server.get_client_info(client_id)
        server.get_presence("den")
        server.stats()

    def change() -> None:
        server.subscribe("client_away", "den")
        server.broadcast("den", "news", {"n": 1})
        server.unsubscribe("client_away", "den")
        server.emergency("fire")
        if "den" in server.channels:
            server.delete_channel("den")

    actions = [come_and_go, come_and_go, look, look, change, change]
    threads = [threading.Thread(target=keep_doing, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        eventually(lambda: server.stats()["connections_total"] > 100 or failures, server.stats, timeout=30)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert failures == []
    eventually(lambda: server.stats()["total_connections"] == 0, server.stats)
    assert serves(server)


# Where nothing listens

WARNINGS = {"WITH_WARNINGS": "1"}


def test_the_first_message_of_a_process_that_serves_nobody_is_warned_of() -> None:
    for call in ('broadcast("jungle", "news")', 'send("client_1", "hello")', 'emergency("fire")'):
        done = run_python(
            f"""if True:
            from tantor import Tantor
            tantor = Tantor(port=0, host="127.0.0.1")
            for _ in range(3):
                tantor.{call}
        """,
            environment=WARNINGS,
        )
        assert done.returncode == 0
        assert done.stderr.count("is not started, so nobody is connected to it") == 1, done.stderr
        assert "start_background()" in done.stderr
    done = run_python(
        """if True:
        from tantor import Tantor
        with Tantor(port=0, host="127.0.0.1") as tantor:
            tantor.broadcast("jungle", "news")
    """,
        environment=WARNINGS,
    )
    assert "is not started" not in done.stderr


def test_a_port_that_this_process_has_is_told_with_its_holder() -> None:
    with quick() as first:
        second = Tantor(first.port, "127.0.0.1")
        with pytest.raises(OSError, match=rf"{first.port}, listening> of this process has the port: get_tantor\(\)"):
            second.start_background()
        assert get_tantor() is first
