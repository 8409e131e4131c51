"""`tantor.client` on bad networks: a real server behind a proxy that cuts, stalls, delays, swallows."""

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from client_support import DEADLINE, Refusing, Watched, is_idle, publish, soon
from fault_proxy import BOTH, FIN, RESET, TO_CLIENT, TO_SERVER, FaultProxy
from tantor import Tantor
from tantor.client import (
    Client,
    CommandLostError,
    CommandTimeoutError,
    ConnectError,
    ConnectTimeoutError,
    DisconnectedError,
    connect,
    send,
)

pytestmark = pytest.mark.asyncio

# the server is silent for no longer than this
HEARTBEAT = 0.5


@pytest.fixture
def server(make_server: Callable[..., Tantor]) -> Tantor:
    return make_server(heartbeat_interval=HEARTBEAT, heartbeat_timeout=5, history_size=10_000)


@pytest.fixture
def proxy(server: Tantor) -> Iterator[FaultProxy]:
    with FaultProxy(server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("how", [RESET, FIN])
async def test_what_was_published_during_a_cut_is_recovered_for_the_same_client(
    server: Tantor, proxy: FaultProxy, how: str
) -> None:
    async with Watched(proxy.port) as one:
        await one.client.join("news")
        client_id = one.client.client_id
        publish(server, range(3))
        assert await one.numbers(3) == [0, 1, 2]
        proxy.refuse()
        proxy.cut(how)
        publish(server, range(3, 10))
        await soon(lambda: one.client.state == "reconnecting", lambda: one.states)
        proxy.accept()
        publish(server, range(10, 15))
        assert await one.numbers(12) == list(range(3, 15))
        assert one.client.client_id == client_id
        assert one.states == ["connecting", "connected", "reconnecting", "connected"]
    assert one.states[-1] == "closed"
    assert one.gaps == []


async def test_cuts_under_steady_publishing_lose_nothing(server: Tantor, proxy: FaultProxy) -> None:
    async with Watched(proxy.port) as one:
        await one.client.join("news")
        receiving = asyncio.create_task(one.numbers(2000))
        for number in range(2000):
            publish(server, range(number, number + 1))
            if number % 100 == 50:
                proxy.cut()
            if number % 10 == 0:
                await asyncio.sleep(0)
        assert await receiving == list(range(2000))
    assert one.gaps == []


@pytest.mark.parametrize("direction", [TO_CLIENT, TO_SERVER, BOTH])
async def test_a_stall_only_makes_late(server: Tantor, proxy: FaultProxy, direction: str) -> None:
    async with Watched(proxy.port, heartbeat_slack=DEADLINE) as one:
        await one.client.join("news")
        proxy.stall(direction)
        publish(server, range(50))
        pinging = asyncio.create_task(one.client.ping())
        await asyncio.sleep(2 * HEARTBEAT)
        assert not pinging.done()
        proxy.resume()
        assert await one.numbers(50) == list(range(50))
        await pinging
        assert one.states.count("connected") == 1


@pytest.mark.parametrize("direction", [TO_CLIENT, BOTH])
async def test_a_black_hole_is_noticed_by_its_silence(server: Tantor, proxy: FaultProxy, direction: str) -> None:
    async with Watched(proxy.port, heartbeat_slack=0.2) as one:
        await one.client.join("news")
        proxy.drop(direction)
        publish(server, range(20))
        await one.reconnected()
        assert await one.numbers(20) == list(range(20))
    assert one.gaps == []


async def misses_nothing_after(one: Watched, server: Tantor, harm: Callable[[], object]) -> None:
    """What harms the connection costs the client no publication: neither while it is away nor after."""
    await one.client.join("news")
    harm()
    publish(server, range(5))
    await one.reconnected()
    publish(server, range(5, 10))
    assert await one.numbers(10) == list(range(10))


async def test_a_server_that_hears_nothing_any_more_ends_the_connection(
    make_server: Callable[..., Tantor],
) -> None:
    server = make_server(heartbeat_interval=HEARTBEAT, heartbeat_timeout=1, history_size=10_000)
    with FaultProxy(server.port) as proxy:
        async with Watched(proxy.port) as one:
            await misses_nothing_after(one, server, lambda: proxy.drop(TO_SERVER))


@pytest.mark.parametrize("direction", [TO_CLIENT, TO_SERVER])
async def test_half_a_connection_is_none(server: Tantor, proxy: FaultProxy, direction: str) -> None:
    async with Watched(proxy.port, heartbeat_slack=0.2) as one:
        await misses_nothing_after(one, server, lambda: proxy.half_close(direction))
    assert one.gaps == []


async def test_a_slow_network_is_good_enough(server: Tantor, proxy: FaultProxy) -> None:
    proxy.delay(0.05)
    async with Watched(proxy.port) as one:
        await one.client.join("news")
        publish(server, range(100))
        proxy.cut()
        publish(server, range(100, 200))
        assert await one.numbers(200) == list(range(200))
    assert one.gaps == []


async def test_a_handshake_that_is_not_answered_is_tried_again(server: Tantor, proxy: FaultProxy) -> None:
    proxy.drop(TO_CLIENT, later=True)
    opening = Watched(proxy.port, open_timeout=0.2)
    task = asyncio.create_task(opening.client.open())
    await soon(lambda: proxy.accepted >= 2, "a second attempt")
    proxy.resume()
    await task
    assert opening.states == ["connecting", "connected"]
    await opening.client.close()


async def test_more_was_missed_than_goes_into_an_answer(make_server: Callable[..., Tantor]) -> None:
    server = make_server(max_pending_bytes=1 << 16, history_size=1000)
    with FaultProxy(server.port) as proxy:
        async with Watched(proxy.port) as one:
            await one.client.join("news")
            proxy.refuse()
            proxy.cut()
            for number in range(300):
                server.broadcast("news", "number", number)
                server.broadcast("news", "ballast", "x" * 1000)
            proxy.accept()
            assert await one.numbers(300) == list(range(300))
        assert one.gaps == []


async def test_what_is_kept_no_longer_is_told_and_the_rest_shown(make_server: Callable[..., Tantor]) -> None:
    server = make_server(history_size=10)
    with FaultProxy(server.port) as proxy:
        async with Watched(proxy.port) as one:
            epoch = (await one.client.join("news"))["epoch"]
            publish(server, range(2))
            assert await one.numbers(2) == [0, 1]
            proxy.refuse()
            proxy.cut()
            publish(server, range(2, 50))
            proxy.accept()
            assert await one.numbers(10) == list(range(40, 50))
            (gap,) = one.gaps
            assert (gap.channel, gap.epoch, gap.reason) == ("news", epoch, "expired")
            assert (gap.from_offset, gap.to_offset, gap.dropped) == (3, 40, 38)


async def test_of_a_channel_without_history_it_is_told_how_many_are_missing(
    make_server: Callable[..., Tantor],
) -> None:
    server = make_server(history_size=0)
    with FaultProxy(server.port) as proxy:
        async with Watched(proxy.port) as one:
            await one.client.join("news")
            publish(server, range(5))
            assert await one.numbers(5) == list(range(5))
            proxy.refuse()
            proxy.cut()
            publish(server, range(5, 8))
            proxy.accept()
            await soon(lambda: one.gaps, "the loss is told")
            publish(server, range(8, 10))
            assert await one.numbers(2) == [8, 9]
            proxy.cut()
            await one.reconnected(2)
            await one.client.ping()
            assert [gap.dropped for gap in one.gaps] == [3]


async def test_a_consumer_that_stops_reading_comes_back_and_has_all(make_server: Callable[..., Tantor]) -> None:
    server = make_server(max_pending_bytes=1 << 18, history_size=10_000)
    with FaultProxy(server.port) as proxy:
        async with Watched(proxy.port, max_buffered=10) as one:
            await one.client.join("news")
            await publish_with_ballast(server, 1500)
            await soon(lambda: ended_as_slow(server), lambda: server.stats()["disconnects"])
            assert len(one.client._session.messages) <= 20
            assert await one.numbers(1500) == list(range(1500))
        assert one.gaps == []


async def test_a_consumer_that_stops_reading_is_told_what_it_missed_for_good(
    make_server: Callable[..., Tantor],
) -> None:
    server = make_server(max_pending_bytes=1 << 18, history_size=100)
    async with Watched(server.port, max_buffered=10) as one:
        await one.client.join("news")
        await publish_with_ballast(server, 1500)
        await soon(lambda: ended_as_slow(server), lambda: server.stats()["disconnects"])
        seen: list[int] = []
        while not seen or seen[-1] != 1499:
            seen += await one.numbers(1)
        assert seen == sorted(set(seen))
        # of each two publications the first is a number
        offsets = {offset for gap in one.gaps for offset in range(gap.from_offset, gap.to_offset + 1)}
        lost = {(offset - 1) // 2 for offset in offsets if offset % 2}
        assert lost
        assert lost == set(range(1500)) - set(seen)


async def publish_with_ballast(server: Tantor, count: int) -> None:
    """More than sockets hold."""
    for number in range(count):
        server.broadcast("news", "number", number)
        server.broadcast("news", "ballast", "x" * 8000)
        await asyncio.sleep(0)


def ended_as_slow(server: Tantor) -> int:
    ended: int = server.stats()["disconnects"].get("slow_consumer", 0)
    return ended


async def end_of(client: Client) -> None:
    """Take messages until the client has ended."""
    while True:
        await client.receive(DEADLINE)


async def test_answers_come_though_the_application_takes_nothing(server: Tantor) -> None:
    async with Watched(server.port, max_buffered=10) as one:
        await one.client.join("news")
        publish(server, range(500))
        for _ in range(3):
            await one.client.ping()
        assert await one.numbers(500) == list(range(500))
    assert one.gaps == []


async def test_a_broadcast_under_way_during_a_cut_is_published_once(server: Tantor, proxy: FaultProxy) -> None:
    async with Watched(proxy.port) as one:
        await one.client.join("news")
        proxy.stall(TO_CLIENT)
        broadcasting = asyncio.create_task(one.client.broadcast("news", "number", 1))
        await soon(lambda: server.history("news").result().publications, "it is published")
        proxy.cut()
        reply = await broadcasting
        assert reply["duplicate"] is True
        assert (reply["offset"], len((await server.history("news")).publications)) == (1, 1)
        assert await one.numbers(1) == [1]


async def test_commands_of_the_application_are_not_repeated(server: Tantor, proxy: FaultProxy) -> None:
    async with Watched(proxy.port) as one:
        proxy.stall(TO_CLIENT)
        chatting = asyncio.create_task(one.client.command("chat", text="hello"))
        await soon(lambda: server.stats()["messages_received"] == 1, "it has arrived")
        proxy.cut()
        with pytest.raises(CommandLostError, match=r"chat: the connection broke before it was answered"):
            await chatting
        assert is_idle(one.client)


async def test_commands_wait_for_the_connection_but_not_for_ever(server: Tantor, proxy: FaultProxy) -> None:
    async with Watched(proxy.port) as one:
        proxy.refuse()
        proxy.cut()
        await soon(lambda: one.client.state == "reconnecting", lambda: one.states)
        with pytest.raises(CommandTimeoutError, match=r"ping: no answer within 0\.1 s"):
            await one.client.ping(timeout=0.1)
        assert is_idle(one.client)
        joining = asyncio.create_task(one.client.join("news"))
        broadcasting = asyncio.create_task(one.client.broadcast("news", "number", 7))
        await asyncio.sleep(0)
        proxy.accept()
        assert (await joining)["ok"]
        assert (await broadcasting)["recipients"] == 1
        assert await one.numbers(1) == [7]


async def test_mail_and_emergencies_come_once_and_are_acknowledged(server: Tantor, proxy: FaultProxy) -> None:
    async with Watched(proxy.port) as one:
        client_id = one.client.client_id
        first = await server.send(client_id, "one")
        assert await one.mail(1) == ["one"]
        await soon(lambda: server.delivery(first)["acknowledged"], lambda: server.delivery(first))
        proxy.stall(TO_SERVER)
        await server.send(client_id, "two")
        assert await one.mail(1) == ["two"]
        # the acknowledgement is lost with the connection
        proxy.refuse()
        proxy.cut()
        for text in ("three", "four"):
            await server.send(client_id, text)
        server.emergency("fire")
        proxy.accept()
        shown: list[str] = []
        while len(shown) < 3:
            message = await one.client.receive(DEADLINE)
            shown += [message["message"]] if "message" in message else []
            shown += [message["data"]["message"]] if message.get("event") == "emergency_alert" else []
        assert sorted(shown) == ["fire", "four", "three"]
        assert shown.index("three") < shown.index("four")
        await soon(lambda: server.stats()["mailbox_messages"] == 0, lambda: server.stats()["mailbox_messages"])
        assert one.client.client_id == client_id
    assert one.gaps == []


async def test_a_client_that_is_away_for_too_long_is_told_that_it_is_a_new_one(
    make_server: Callable[..., Tantor],
) -> None:
    server = make_server(resume_ttl=0.2, leave_delay=0)
    with FaultProxy(server.port) as proxy:
        async with Watched(proxy.port) as one:
            await one.client.join("news")
            client_id = one.client.client_id
            proxy.refuse()
            proxy.cut()
            publish(server, range(5))
            await soon(lambda: server.stats()["away"] == 0 and server.stats()["total_connections"] == 0, "it is gone")
            proxy.accept()
            assert await one.numbers(5) == list(range(5))
            assert one.client.client_id != client_id
            assert [(gap.channel, gap.reason) for gap in one.gaps] == [(None, "new_client")]


async def test_a_server_that_stops_says_when_to_come_back_and_another_takes_its_place(free_port: int) -> None:
    def start() -> Tantor:
        server = Tantor(port=free_port, host="127.0.0.1", drain_timeout=5, reconnect_window=1, history_size=100)
        server.start_background()
        return server

    server = start()
    async with Watched(free_port) as one:
        await one.client.join("news")
        publish(server, range(3))
        await server.stop()
        assert await one.numbers(3) == [0, 1, 2]
        server = start()
        try:
            await one.reconnected()
            await soon(lambda: len(one.gaps) >= 2, lambda: one.gaps)
            publish(server, range(3, 6))
            assert await one.numbers(3) == [3, 4, 5]
            gaps = {(gap.channel, gap.reason) for gap in one.gaps}
            assert {(None, "new_client"), ("news", "epoch")} <= gaps
            assert await one.client.broadcast("news", "number", 6)
        finally:
            await server.stop()


@pytest.fixture
def refusing() -> Iterator[Callable[[str], Refusing]]:
    servers: list[Refusing] = []

    def make(answer: str) -> Refusing:
        servers.append(Refusing(answer))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


async def test_retry_after_is_waited_for(refusing: Callable[[str], Refusing]) -> None:
    busy = refusing("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(ConnectTimeoutError, match=r"no connection to ws://127\.0\.0\.1:\d+/ within 1\.9 s.*503"):
        await Watched(busy.port, connect_timeout=1.9).client.open()
    assert len(busy.asked) == 2
    assert busy.asked[1] - busy.asked[0] >= 1


async def test_where_there_is_no_tantor_another_attempt_makes_no_sense(refusing: Callable[[str], Refusing]) -> None:
    other = refusing("HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot here\n")
    client = Watched(other.port).client
    with pytest.raises(ConnectError, match=r"answered 404 Not Found: not here"):
        await client.open()
    assert client.state == "closed"
    assert len(other.asked) == 1


async def test_a_first_connect_waits_for_the_server_as_long_as_it_may(server: Tantor, proxy: FaultProxy) -> None:
    proxy.refuse()
    with pytest.raises(ConnectTimeoutError, match=r"within 0\.2 s: .*(refused|Connect call failed)"):
        await Watched(proxy.port, connect_timeout=0.2).client.open()
    patient = Watched(proxy.port, connect_timeout=None)
    opening = asyncio.create_task(patient.client.open())
    await asyncio.sleep(0.1)
    assert patient.client.state == "connecting"
    proxy.accept()
    await opening
    await patient.client.close()


async def test_a_client_that_another_connection_has_resumed_does_not_come_back(server: Tantor) -> None:
    async with Watched(server.port) as one:
        token = server.resume_token(one.client.client_id)
        async with Watched(server.port, resume=token) as other:
            assert other.client.client_id == one.client.client_id
            with pytest.raises(DisconnectedError, match="3503 displaced") as caught:
                await end_of(one.client)
            assert (caught.value.code, caught.value.reason) == (3503, "displaced")
            assert one.client.state == "closed"
            with pytest.raises(DisconnectedError):
                await one.client.ping()
            await other.client.ping()
        assert one.states.count("connected") == 1


async def test_a_message_beyond_the_limit_ends_the_client_with_its_name(server: Tantor) -> None:
    async with Watched(server.port, max_message_bytes=2000) as one:
        await one.client.join("news")
        server.broadcast("news", "number", "x" * 3000)
        with pytest.raises(DisconnectedError, match=r"larger than max_message_bytes \(2000\)"):
            await end_of(one.client)


async def test_a_one_shot_through_a_stall_says_that_it_is_not_known(server: Tantor, proxy: FaultProxy) -> None:
    url = f"ws://127.0.0.1:{proxy.port}"
    proxy.drop(TO_SERVER, later=True)
    with pytest.raises(ConnectError, match=r"ws://127\.0\.0\.1:\d+: timed out"):
        await asyncio.to_thread(send, url, "news", "number", 1, timeout=0.3)
    proxy.resume()

    # the handshake gets through, the command does not
    def stall_once_open() -> None:
        while not any(link.forwarded[TO_CLIENT] for link in proxy.connections):
            time.sleep(0.001)
        proxy.stall(TO_CLIENT)

    proxy.delay(0.2, TO_SERVER)
    stalling = asyncio.create_task(asyncio.to_thread(stall_once_open))
    with pytest.raises(CommandTimeoutError, match=r"broadcast: no answer from ws://127\.0\.0\.1:\d+ within 2 s"):
        await asyncio.to_thread(send, url, "news", "number", 1, timeout=2)
    await stalling


async def test_clients_share_a_loop_and_each_has_its_own(server: Tantor, proxy: FaultProxy) -> None:
    clients = [Watched(proxy.port) for _ in range(20)]
    async with asyncio.TaskGroup() as group:
        for one in clients:
            group.create_task(one.client.open())
    await asyncio.gather(*(one.client.join(f"news{number}") for number, one in enumerate(clients)))
    proxy.cut()
    for number in range(20):
        publish(server, range(number, number + 5), f"news{number}")
    seen = await asyncio.gather(*(one.numbers(5, f"news{number}") for number, one in enumerate(clients)))
    assert seen == [list(range(number, number + 5)) for number in range(20)]
    await asyncio.gather(*(one.client.close() for one in clients))


async def test_an_address_is_needed() -> None:
    for url in ("http://localhost", "ws://", "localhost:8080", "ws://localhost:port/", "ws://localhost/#x", 5):
        with pytest.raises(ValueError, match=r"url is .*; it takes ws://host:port"):
            connect(url)  # type: ignore[arg-type]
