"""`tantor.client` against a real server: its calls, errors, callbacks, and ends."""

import asyncio
import inspect
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from client_support import DEADLINE, Watched, is_idle, publish, soon
from tantor import DataError, SettingError, Tantor
from tantor.client import (
    ClosedError,
    CommandError,
    connect,
)
from tantor.client.settings import ClientSettings

pytestmark = pytest.mark.asyncio


# Calls


async def test_every_message_of_a_joined_channel_comes_as_it_was_on_the_wire(server: Tantor) -> None:
    async with connect(f"ws://127.0.0.1:{server.port}") as t:
        reply = await t.join("news")
        assert (reply["event"], reply["channel"], reply["offset"], reply["subscribers"]) == ("reply", "news", 0, 1)
        await server.broadcast("news", "hello", {"to": "all"})
        async for message in t:
            if message["event"] == "hello":
                break
        assert message["data"] == {"to": "all"}
        assert (message["channel"], message["offset"], message["sender"]) == ("news", 1, "tantor")
        assert t.client_id in server.get_presence("news")["users"]


async def test_each_call_gives_the_servers_reply(server: Tantor) -> None:
    async with Watched(server.port) as one:
        t = one.client
        await t.join("news")
        reply = await t.broadcast("news", "number", 5)
        assert (reply["recipients"], reply["offset"]) == (1, 1)
        assert (await t.broadcast("news", "empty"))["offset"] == 2
        history = await t.history("news", limit=1, after=0)
        assert [publication["data"] for publication in history["publications"]] == [5]
        assert [one["offset"] for one in (await t.history("news", before=2))["publications"]] == [1]
        presence = await t.presence("news")
        assert (presence["online"], presence["users"]) == (1, [t.client_id])
        assert (await t.ping())["pong"] is True
        assert (await t.leave("news"))["ok"] is True
        assert server.get_presence("news")["online"] == 0
        assert is_idle(t)


async def test_an_action_of_the_applications_own_reaches_its_handler(server: Tantor) -> None:
    seen: list[dict[str, Any]] = []
    server.on_event("message", seen.append)
    async with Watched(server.port) as one:
        assert (await one.client.command("chat", text="hello", channel="news"))["ok"] is True
        await soon(lambda: seen, "the handler is called")
        assert (seen[0]["action"], seen[0]["text"], seen[0]["client_id"]) == ("chat", "hello", one.client.client_id)


async def test_a_refused_command_is_an_error_with_its_code(server: Tantor) -> None:
    async with Watched(server.port) as one:
        for asking, code in [
            (one.client.broadcast("news", "welcome"), 108),
            (one.client.join("system"), 109),
            (one.client.join(""), 107),
            (one.client.history("news", limit=0), 112),
            (one.client.broadcast("news", "x", idempotency_key=""), 103),
        ]:
            with pytest.raises(CommandError, match=rf"\(code {code}\)") as caught:
                await asking
            assert caught.value.code == code
            assert caught.value.answer["event"] == "error"
        await one.client.ping()
        assert is_idle(one.client)


async def test_a_repeated_key_publishes_once(server: Tantor) -> None:
    async with Watched(server.port) as one:
        first = await one.client.broadcast("news", "number", 1, idempotency_key="a key")
        second = await one.client.broadcast("news", "number", 1, idempotency_key="a key")
        assert (second["offset"], second.get("duplicate")) == (first["offset"], True)
        assert (await one.client.broadcast("news", "number", 1))["offset"] == 2


async def test_wrong_arguments_raise_before_anything_is_sent(server: Tantor) -> None:
    async with Watched(server.port) as one:
        t = one.client
        before = server.stats()["frames_received"]
        with pytest.raises(TypeError, match="channel is 5; it takes a str"):
            await t.join(5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="event is None; it takes a str"):
            await t.broadcast("news", None)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=r"broadcast: .*not JSON serializable"):
            await t.broadcast("news", "x", {1, 2})
        with pytest.raises(ValueError, match=r"action is 'join_channel'; use join\(\)"):
            await t.command("join_channel", channel="news")
        with pytest.raises(ValueError, match="a field is named 'ref'"):
            await t.command("chat", ref=1)
        assert server.stats()["frames_received"] == before
        assert is_idle(t)


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("max_buffered", 0, "a whole number from 1 on"),
        ("max_buffered", 1.5, "a whole number from 1 on"),
        ("dedup_window", True, "a whole number from 1 on"),
        ("connect_timeout", -1, "a number of seconds from 0 on, or None"),
        ("open_timeout", None, "a number of seconds from 0.001 on"),
        ("heartbeat_slack", float("nan"), "a number of seconds from 0 on"),
        ("reconnect_base", 31.0, r"at most reconnect_cap \(30.0\)"),
    ],
)
async def test_a_bad_setting_is_named_with_what_it_takes(name: str, value: object, takes: str) -> None:
    with pytest.raises(SettingError, match=rf"{name} is {value!r}; it takes {takes}"):
        connect("ws://localhost", **{name: value})  # type: ignore[arg-type]


async def test_the_settings_of_connect_have_the_defaults_of_their_table() -> None:
    parameters = inspect.signature(connect).parameters
    for name, field in ClientSettings.__dataclass_fields__.items():
        assert parameters[name].default == field.default, name
        assert f"`{name}`" in (connect.__doc__ or ""), name


# Waiting and cancelling


async def test_a_cancelled_call_leaves_nothing_behind(server: Tantor) -> None:
    async with Watched(server.port, max_pending_commands=2) as one:
        for make in (
            lambda: one.client.join("news"),
            lambda: one.client.broadcast("news", "number", 1),
            lambda: one.client.leave("news"),
            lambda: one.client.ping(),
        ):
            for yields in range(3):
                task = asyncio.create_task(make())
                for _ in range(yields):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert is_idle(one.client)
        await one.client.ping()


async def test_more_commands_than_may_be_under_way_wait_for_their_turn(server: Tantor) -> None:
    async with Watched(server.port, max_pending_commands=3) as one:
        replies = await asyncio.gather(*(one.client.broadcast("news", "number", n) for n in range(200)))
        assert [reply["offset"] for reply in replies] == list(range(1, 201))


async def test_receive_waits_as_long_as_it_is_told_and_loses_nothing(server: Tantor) -> None:
    async with Watched(server.port) as one:
        await one.client.join("news")
        while (await one.client.receive(DEADLINE))["channel"] != "news":
            pass
        with pytest.raises(TimeoutError):
            await one.client.receive(0.05)
        waiting = asyncio.create_task(one.client.receive())
        await asyncio.sleep(0)
        waiting.cancel()
        publish(server, range(3))
        assert await one.numbers(3) == [0, 1, 2]


async def test_messages_are_shared_by_those_who_take_them(server: Tantor) -> None:
    async with Watched(server.port) as one:
        await one.client.join("news")
        taking = [asyncio.create_task(one.numbers(10)) for _ in range(3)]
        publish(server, range(30))
        taken = await asyncio.gather(*taking)
        assert sorted(number for numbers in taken for number in numbers) == list(range(30))
        assert all(numbers == sorted(numbers) for numbers in taken)


# Channels that the server gives


async def test_channels_on_which_the_server_puts_a_client_are_followed_too(server: Tantor) -> None:
    async with Watched(server.port) as one:
        await server.subscribe(one.client.client_id, "vip")
        publish(server, range(3), "vip")
        publish(server, range(3), "jungle")
        assert await one.numbers(3, "vip") == [0, 1, 2]
        await soon(lambda: one.client._session.position("jungle"), "the position on the default channel")
        await soon(lambda: one.client._session.position("vip"), "the position")
        assert one.client._session.position("vip") == ((await server.history("vip")).epoch, 3)


async def test_the_default_channel_can_be_left(server: Tantor) -> None:
    async with Watched(server.port) as one:
        await one.client.leave("jungle")
        assert server.get_presence("jungle")["online"] == 0
        await one.client.join("news")
        publish(server, range(1), "jungle")
        publish(server, range(1))
        assert await one.numbers(1) == [0]
        assert not one.client._session.messages


# Callbacks


async def test_callbacks_may_be_coroutines_and_are_called_in_order(server: Tantor) -> None:
    states: list[str] = []

    async def on_state(state: str) -> None:
        await asyncio.sleep(0.01 if state == "connecting" else 0)
        states.append(state)

    async with connect(f"ws://127.0.0.1:{server.port}", on_state=on_state):
        pass
    assert states == ["connecting", "connected", "closed"]


async def test_a_callback_that_raises_is_logged_and_harms_nothing(
    server: Tantor, caplog: pytest.LogCaptureFixture
) -> None:
    def on_state(state: str) -> None:
        raise RuntimeError(f"no {state}")

    async with connect(f"ws://127.0.0.1:{server.port}", on_state=on_state) as t:
        await t.ping()
    raised = [record for record in caplog.records if record.name == "tantor.client" and record.exc_info]
    assert [str(record.exc_info[1]) for record in raised] == ["no connecting", "no connected", "no closed"]  # type: ignore[index]


async def test_a_callback_that_never_ends_is_cancelled_at_the_end(server: Tantor) -> None:
    async def on_state(state: str) -> None:
        await asyncio.get_running_loop().create_future()

    async with connect(f"ws://127.0.0.1:{server.port}", on_state=on_state, close_timeout=0.1) as t:
        await t.ping()


async def test_a_callback_may_use_the_client_and_even_close_it(server: Tantor) -> None:
    closed = asyncio.Event()

    async def on_state(state: str) -> None:
        if state == "connected":
            await t.join("news")
            await t.close()
            closed.set()

    t = connect(f"ws://127.0.0.1:{server.port}", on_state=on_state)
    await t.open()
    async with asyncio.timeout(DEADLINE):
        await closed.wait()
    assert t.state == "closed"


async def test_a_gap_that_nobody_wants_to_hear_of_is_logged(
    make_server: Callable[..., Tantor], caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server(resume_ttl=0)
    t = connect(f"ws://127.0.0.1:{server.port}", reconnect_base=0.01, reconnect_cap=0.01)
    async with t:
        with caplog.at_level(logging.WARNING, "tantor.client"):
            assert t._connection is not None
            t._connection.transport.abort()
            await soon(lambda: "there is no on_gap" in caplog.text, lambda: caplog.text)
        assert "new_client" in caplog.text


# Ends


async def test_leaving_the_block_ends_the_client_and_its_loop(server: Tantor) -> None:
    async with Watched(server.port) as one:
        await one.client.join("news")
        publish(server, range(3))
        assert await one.numbers(1) == [0]
    assert one.client.state == "closed"
    assert [message async for message in one.client] == []
    for asking in (one.client.ping(), one.client.receive(), one.client.open()):
        with pytest.raises(ClosedError):
            await asking
    await one.client.close()
    await soon(lambda: server.stats()["total_connections"] == 0, "the server knows")
    # a clean goodbye: nobody is expected back
    assert server.stats()["away"] == 0


async def test_leaving_the_block_under_traffic_is_quick_and_clean(server: Tantor) -> None:
    is_over = threading.Event()

    def flood() -> None:
        number = 0
        while not is_over.is_set():
            publish(server, range(number, number + 50))
            number += 50

    publisher = threading.Thread(target=flood)
    publisher.start()
    try:
        for taken in (0, 1, 500):
            async with asyncio.timeout(DEADLINE):
                async with Watched(server.port, max_buffered=50) as one:
                    await one.client.join("news")
                    await one.numbers(taken)
                assert one.client.state == "closed"
    finally:
        is_over.set()
        publisher.join()


async def test_whoever_waits_is_told_of_the_end(server: Tantor) -> None:
    one = Watched(server.port)
    await one.client.open()

    async def iterate() -> str:
        async for _ in one.client:
            pass
        return "ended"

    iterating = asyncio.create_task(iterate())
    # an answer cannot come in the same turn of the loop
    pinging = asyncio.create_task(one.client.ping())
    await asyncio.sleep(0)
    await one.client.close()
    assert await iterating == "ended"
    with pytest.raises(ClosedError, match="the client was closed"):
        await pinging


async def test_an_error_in_the_block_comes_out_as_it_was(server: Tantor) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Watched(server.port) as one:
            raise ZeroDivisionError
    assert one.client.state == "closed"


async def test_a_cancelled_block_ends_the_client(server: Tantor) -> None:
    clients: list[Watched] = []

    async def use() -> None:
        async with Watched(server.port) as one:
            clients.append(one)
            await one.client.join("news")
            await asyncio.get_running_loop().create_future()

    using = asyncio.create_task(use())
    await soon(lambda: server.get_presence("news")["online"], "it has joined")
    using.cancel()
    await asyncio.wait([using])
    assert using.cancelled()
    assert clients[0].client.state == "closed"
    await soon(lambda: server.stats()["total_connections"] == 0, "the server knows")


async def test_a_client_that_is_not_open_says_so() -> None:
    t = connect("ws://localhost:1")
    with pytest.raises(ClosedError, match=r"not open; use `async with connect"):
        await t.ping()
    with pytest.raises(ClosedError):
        await t.receive()
    await t.close()
