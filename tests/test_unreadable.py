"""Messages that Python's JSON parser cannot hold: each is told as lost, and nothing else is."""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client_support import DEADLINE, Watched, publish, soon
from support import WebSocketClient
from tantor import Tantor
from tantor.client import Gap, send
from tantor.client.session import Answered, Failed, Session
from tantor.client.settings import ClientSettings
from tantor.json_messages import UnreadableMessage, read_message
from websockets.asyncio.server import ServerConnection, serve

HUGE = "7" * 5000


@contextlib.contextmanager
def any_number_of_digits() -> Iterator[None]:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(limit)


def publish_huge(server: Tantor, channel: str = "news") -> None:
    with any_number_of_digits():
        server.broadcast(channel, "number", {"value": [int(HUGE)]})


def publication(offset: int, data: str = "1", channel: str = "c") -> str:
    return (
        f'{{"id":"msg_{offset}","channel":"{channel}","timestamp":{offset}.0,"sender":"tantor","event":"number",'
        f'"data":{data},"trumpeted_by":"tantor","offset":{offset}}}'
    )


def welcomed(*channels: str) -> Session:
    session = Session(ClientSettings())
    welcome = {"event": "welcome", "client_id": "client_1", "channels": list(channels), "channel": "system"}
    session.receive(json.dumps(welcome))
    session.events.clear()
    return session


def question(session: Session) -> str:
    frame = session.next_frame()
    assert frame is not None
    return str(json.loads(frame)["ref"])


def answer(session: Session, publications: list[str], **fields: Any) -> None:
    reply = {"event": "reply", "ref": question(session), "epoch": "e", "timestamp": 0.0, "channel": "c", **fields}
    session.receive(json.dumps(reply)[:-1] + f', "publications": [{",".join(publications)}]}}')


def shown(session: Session) -> list[int]:
    return [message["offset"] for message in session.messages]


def test_only_what_cannot_be_read_is_left_out() -> None:
    assert read_message('{"a": [1]}') == {"a": [1]}
    message = read_message(publication(3, f'{{"deep": [[{HUGE}]]}}'))
    assert isinstance(message, UnreadableMessage)
    assert (message["data"], message["offset"], message["event"]) == (None, 3, "number")
    reply = read_message(f'{{"event": "reply", "publications": [{publication(1)}, {publication(2, HUGE)}]}}')
    assert not isinstance(reply, UnreadableMessage)
    assert [isinstance(one, UnreadableMessage) for one in reply["publications"]] == [False, True]
    for text in ("no json", HUGE, f"[{HUGE}]"):
        with pytest.raises(ValueError, match=r"Expecting|digits"):
            read_message(text)


def test_a_publication_that_cannot_be_read_is_a_gap_and_the_next_is_shown() -> None:
    session = welcomed("c")
    answer(session, [], offset=0)
    session.receive(publication(1))
    session.receive(publication(2, HUGE))
    session.receive(publication(3))
    assert shown(session) == [1, 3]
    assert list(session.events) == [Gap("c", "e", 2, 2, 1, "unreadable")]
    assert session.position("c") == ("e", 3)
    assert session.next_frame() is None, "it is not asked for again"


def test_a_publication_of_a_recovery_that_cannot_be_read_is_a_gap() -> None:
    session = welcomed("c")
    answer(session, [], offset=0)
    session.disconnected()
    welcome = {"event": "welcome", "client_id": "client_1", "channels": ["c"], "channel": "system", "resumed": True}
    session.receive(json.dumps(welcome))
    session.events.clear()
    answer(session, [publication(1), publication(2, HUGE), publication(3)], offset=3, recovered=True, through=3)
    assert shown(session) == [1, 3]
    assert list(session.events) == [Gap("c", "e", 2, 2, 1, "unreadable")]
    assert session.position("c") == ("e", 3)


def test_a_page_of_history_lacks_what_cannot_be_read_and_a_gap_tells() -> None:
    session = welcomed()
    ref = session.command("history", {"channel": "c"})
    answer(session, [publication(1), publication(2, HUGE)], offset=2)
    gap, answered = session.events
    assert gap == Gap("c", None, 2, 2, 1, "unreadable")
    assert isinstance(answered, Answered)
    assert answered.ref == ref
    assert [one["offset"] for one in answered.reply["publications"]] == [1]


def test_mail_that_cannot_be_read_is_acknowledged_and_told() -> None:
    session = welcomed()
    mail = f'{{"id": "msg_a", "channel": "jungle", "timestamp": 1.0, "sender": "tantor", "n": {HUGE}, "ack": true}}'
    session.receive(mail)
    session.receive(mail)
    assert list(session.events) == [Gap(None, None, None, None, 1, "unreadable")]
    assert not session.messages
    session.flush_acks()
    frame = session.next_frame()
    assert frame is not None
    assert json.loads(frame)["ids"] == ["msg_a"]


@pytest.mark.parametrize("text", ["no json", '{"event": ', '{"data": ' + "[" * 100_000])
def test_a_frame_that_cannot_be_read_at_all_ends_nothing(text: str) -> None:
    session = welcomed()
    session.receive(text)
    assert list(session.events) == [Gap(None, None, None, None, 1, "unreadable")]
    session.receive(publication(1, channel="d"))
    assert session.is_welcome


def test_who_waits_for_an_answer_that_cannot_be_read_is_told() -> None:
    session = welcomed()
    ref = session.command("chat", {}, is_repeatable=False)
    session.receive(f'{{"event": "reply", "ref": "{question(session)}", "ok": true, "data": {"[" * 100_000}')
    failed = session.events[-1]
    assert isinstance(failed, Failed)
    assert failed.ref == ref
    assert "cannot be read" in str(failed.error)


@pytest.mark.asyncio
async def test_a_client_lives_on_through_live_recovered_and_kept_messages(make_server: Callable[..., Tantor]) -> None:
    server = make_server()
    async with Watched(server.port) as one:
        await one.client.join("news")
        publish(server, range(1))
        publish_huge(server)
        publish(server, range(1, 3))
        assert await one.numbers(3) == [0, 1, 2]
        await soon(lambda: one.gaps, lambda: one.gaps)
        assert [(gap.channel, gap.from_offset, gap.to_offset, gap.reason) for gap in one.gaps] == [
            ("news", 2, 2, "unreadable")
        ]
        page = await one.client.history("news")
        assert [kept["data"] for kept in page["publications"]] == [0, 1, 2]
        assert one.client.state == "connected"
    async with Watched(server.port) as later:
        await later.client.join("news")
        publish(server, range(3, 4))
        assert await later.numbers(1) == [3]


def test_the_history_of_the_server_lacks_what_cannot_be_read(
    make_server: Callable[..., Tantor], caplog: pytest.LogCaptureFixture
) -> None:
    server = make_server()
    publish(server, range(1))
    publish_huge(server)
    publish(server, range(1, 2))
    with caplog.at_level(logging.WARNING, logger="tantor"):
        history = server.history("news").result()
    assert [kept["data"] for kept in history.publications] == [0, 1]
    assert history.offset == 3
    assert "publication 2 of channel 'news' cannot be read" in caplog.text


def test_a_refused_number_reaches_nobody(server: Tantor, connect: Callable[..., WebSocketClient]) -> None:
    client = connect(server)
    client.settle(server)
    client.send_text(f'{{"action":"broadcast","channel":"orders","event":"e","ref":"r","data":{HUGE}}}')
    error = client.receive_until(event="error")
    assert (error["code"], error["ref"]) == (115, "r")
    assert server.history("orders").result().publications == []


@pytest.mark.asyncio
async def test_a_first_frame_that_is_no_json_is_tried_again_on_a_reconnect() -> None:
    connections = 0

    async def behave(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        if connections == 2:
            await connection.send("<html>maintenance</html>")
            await connection.wait_closed()
            return
        welcome = {"event": "welcome", "channel": "system", "client_id": "client_1", "channels": []}
        await connection.send(json.dumps(welcome))
        if connections > 2:
            await connection.wait_closed()

    async with serve(behave, "127.0.0.1", 0) as other:
        port = next(iter(other.sockets)).getsockname()[1]
        async with Watched(port) as one:
            await one.reconnected()
            assert connections == 3
            assert one.client.state == "connected"


@pytest.mark.asyncio
async def test_a_script_gets_its_answer_behind_what_cannot_be_read() -> None:
    async def behave(connection: ServerConnection) -> None:
        await connection.send('{"event": "welcome", "channel": "system", "client_id": "client_1"}')
        ref = json.loads(await connection.recv())["ref"]
        await connection.send(publication(1, HUGE))
        await connection.send("no json")
        await connection.send(json.dumps({"event": "reply", "ref": ref, "ok": True, "recipients": 1}))
        await connection.wait_closed()

    async with serve(behave, "127.0.0.1", 0) as other:
        port = next(iter(other.sockets)).getsockname()[1]
        reply = await asyncio.to_thread(send, f"ws://127.0.0.1:{port}", "news", "number", timeout=DEADLINE)
        assert reply["recipients"] == 1
