"""The client's session, without sockets: what it shows and tells, against a model of the server."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from client_model import CHANNEL, HIGH, LOW, NORMAL, ModelClient, ModelServer
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tantor.client import CommandError, CommandLostError
from tantor.client.session import Failed, NotTantorError, Session, ShuttingDown, Welcomed
from tantor.client.settings import ClientSettings
from tantor.errors import DataError

FEW = st.integers(1, 4)
LANES = st.sampled_from([NORMAL, NORMAL, NORMAL, HIGH, LOW])

TRAFFIC = [
    st.tuples(st.just("publish"), LANES),
    st.tuples(st.just("publish"), LANES),
    st.tuples(st.just("publish"), LANES),
    st.tuples(st.just("deliver"), FEW),
    st.tuples(st.just("deliver"), FEW),
    st.tuples(st.just("send_frames"), FEW),
    st.tuples(st.just("send_frames"), FEW),
    st.tuples(st.just("take"), FEW),
    st.tuples(st.just("connect")),
    st.tuples(st.just("connect")),
    st.tuples(st.just("cut")),
    st.tuples(st.just("notice")),
    st.tuples(st.just("mail")),
    st.tuples(st.just("command")),
    st.tuples(st.just("shed"), FEW),
    st.tuples(st.just("settle")),
]
HOLES = [st.tuples(st.just("skip"))]
LOSSES = [
    st.tuples(st.just("restart"), st.one_of(st.none(), st.integers(0, 3))),
    st.tuples(st.just("begin_anew")),
]


def steps(*kinds: Any) -> Any:
    return st.lists(st.one_of([one for kind in kinds for one in kind]), min_size=1, max_size=60)


def carry_out(client: ModelClient, name: str, *arguments: Any) -> None:
    server = client.server
    actions: dict[str, Callable[..., None]] = {
        "publish": server.publish,
        "skip": server.skip,
        "notice": server.notice,
        "mail": server.send,
        "shed": server.shed,
        "begin_anew": server.begin_anew,
        "deliver": client.deliver,
        "send_frames": client.send,
        "take": client.take,
        "connect": client.connect,
        "cut": client.cut,
        "restart": client.restart,
        "command": client.command,
        "settle": client.settle,
    }
    actions[name](*arguments)


def run(client: ModelClient, plan: list[tuple[Any, ...]]) -> None:
    for name, *arguments in plan:
        carry_out(client, name, *arguments)
    client.settle()
    # the last ones may have been lost without a trace: what follows shows it
    client.server.publish()
    client.settle()
    client.cut()
    client.settle()


def check_shown_or_told(client: ModelClient) -> None:
    """Every publication since the join was shown once and in order, or lies in a gap that was told."""
    server = client.server
    assert client.shown == sorted(set(client.shown)), "twice, or out of order"
    assert client.joined_at is not None
    assert server.joined_at is not None
    assert min(client.shown) >= server.joined_at, "from before the join"
    due = server.published[client.joined_at :]
    shown = set(client.shown)
    for publication in due:
        told = [known for known in client.told if covers(known.gap, known.published, publication)]
        assert publication.number in shown or told, f"{publication} was neither shown nor told: {client.told}"
        ranges = [known.gap for known in told if known.gap.to_offset is not None]
        assert not (publication.number in shown and ranges), f"{publication} was shown and told as lost: {ranges}"
    assert client.session.position(CHANNEL) == (server.epoch, server.top)


def covers(gap: Any, published_then: int, publication: Any) -> bool:
    if gap.channel != CHANNEL:
        return False
    if gap.to_offset is None:
        return bool(publication.number < published_then)
    return bool(publication.epoch == gap.epoch and gap.from_offset <= publication.offset <= gap.to_offset)


def check_mail(client: ModelClient) -> None:
    assert client.mail == client.server.mailed, "each was shown once, in order"
    assert client.server.mailbox == {}, "each was acknowledged"


@settings(max_examples=400, deadline=None)
@given(steps(TRAFFIC, HOLES), st.integers(1, 8), st.integers(2, 10))
def test_while_the_server_keeps_enough_nothing_is_lost_whatever_happens_on_the_way(
    plan: list[tuple[Any, ...]], reply_limit: int, max_buffered: int
) -> None:
    server = ModelServer(history_size=1000, reply_limit=reply_limit)
    client = ModelClient(server, max_buffered)
    run(client, plan)
    assert client.told == []
    assert client.shown[-len(server.published) + client.joined_at :] == list(
        range(client.joined_at, len(server.published))
    )
    assert client.asked == client.answered
    check_shown_or_told(client)
    check_mail(client)


@settings(max_examples=400, deadline=None)
@given(steps(TRAFFIC, HOLES, LOSSES), st.integers(1, 6), st.integers(1, 8), st.integers(2, 10))
def test_every_publication_is_shown_once_in_order_or_told(
    plan: list[tuple[Any, ...]], history_size: int, reply_limit: int, max_buffered: int
) -> None:
    if ("begin_anew",) in plan:
        # what overtakes the first of a new stream could be the next of the old one
        plan = [("publish", NORMAL) if name == "publish" else (name, *rest) for name, *rest in plan]
    client = ModelClient(ModelServer(history_size, reply_limit), max_buffered)
    run(client, plan)
    event(f"gaps: {min(len(client.told), 3)}")
    check_shown_or_told(client)
    assert len(client.mail) == len(set(client.mail))
    assert client.asked == client.answered


@settings(max_examples=300, deadline=None)
@given(steps(TRAFFIC), st.integers(2, 10))
def test_of_a_channel_that_keeps_nothing_the_number_of_the_lost_is_told(
    plan: list[tuple[Any, ...]], max_buffered: int
) -> None:
    plan = [("publish", NORMAL) if name == "publish" else (name, *rest) for name, *rest in plan]
    server = ModelServer(history_size=0, reply_limit=8)
    client = ModelClient(server, max_buffered)
    run(client, plan)
    assert client.shown == sorted(set(client.shown))
    assert client.joined_at is not None
    lost = sum(told.gap.dropped for told in client.told if told.gap.dropped is not None)
    due = [number for number in client.shown if number >= client.joined_at]
    assert len(due) + lost == len(server.published) - client.joined_at


# Commands, acknowledgements, frames: told one by one


class Wire:
    """A session whose frames the test reads and answers itself."""

    def __init__(self, **changed: Any) -> None:
        self.session = Session(ClientSettings(**changed))
        self._count = 0

    def welcome(self, **fields: Any) -> None:
        given = {"client_id": "client_1", "resume": "token", "heartbeat_interval": 30.0, "channels": []}
        self.receive(channel="system", event="welcome", **given | fields)

    def receive(self, **fields: Any) -> None:
        self._count += 1
        self.session.receive(json.dumps({"id": f"msg_{self._count}", "timestamp": float(self._count), **fields}))

    def publish(self, channel: str, offset: int) -> None:
        self.receive(channel=channel, event="news", data={}, trumpeted_by="tantor", offset=offset)

    def reply(self, frame: dict[str, Any], **fields: Any) -> None:
        self.receive(channel="system", event="reply", ref=frame["ref"], ok=True, **fields)

    def refuse(self, frame: dict[str, Any], code: int) -> None:
        self.receive(channel="system", event="error", ref=frame["ref"], code=code, message="no")

    def sent(self) -> list[dict[str, Any]]:
        frames = []
        while (text := self.session.next_frame()) is not None:
            frames.append(json.loads(text))
        return frames

    def events(self) -> list[Any]:
        events = [event for event in self.session.events if not isinstance(event, Welcomed)]
        self.session.events.clear()
        return events


def actions(frames: list[dict[str, Any]]) -> list[str]:
    return [frame["action"] for frame in frames]


def test_a_broadcast_under_way_is_repeated_as_it_was_and_a_command_is_not() -> None:
    wire = Wire()
    wire.welcome()
    ref = wire.session.command("broadcast", {"channel": "c", "idempotency_key": "k"})
    own = wire.session.command("chat", {}, is_repeatable=False)
    first = wire.sent()
    unsent = wire.session.command("chat", {}, is_repeatable=False)
    wire.session.disconnected(1006)
    (failed,) = wire.events()
    assert isinstance(failed, Failed)
    assert failed.ref == own
    assert isinstance(failed.error, CommandLostError)
    wire.welcome(resumed=True)
    again = wire.sent()
    assert again[0] == first[0]
    assert [frame["ref"] for frame in again] == [ref, unsent]
    wire.reply(again[0], recipients=1)
    assert [event.ref for event in wire.events()] == [ref]


def test_a_broadcast_under_way_is_uncertain_once_the_server_has_forgotten_the_client() -> None:
    wire = Wire()
    wire.welcome()
    sent = wire.session.command("broadcast", {"channel": "c", "idempotency_key": "sent"})
    history = wire.session.command("history", {"channel": "c"})
    wire.sent()
    wire.session.disconnected(1006)
    unsent = wire.session.command("broadcast", {"channel": "c", "idempotency_key": "unsent"})
    wire.welcome(resumed=False, client_id="client_2", reason="expired")
    failed = [event for event in wire.events() if isinstance(event, Failed)]
    assert [event.ref for event in failed] == [sent]
    assert isinstance(failed[0].error, CommandLostError)
    assert "uncertain" in str(failed[0].error)
    assert [frame["ref"] for frame in wire.sent()] == [history, unsent]


def test_a_command_with_which_connections_end_in_complaints_is_given_up() -> None:
    wire = Wire()
    wire.welcome()
    wire.session.command("broadcast", {"channel": "c"})
    wire.sent()
    wire.session.disconnected(1009)
    assert wire.events() == []
    wire.welcome()
    wire.sent()
    wire.session.disconnected(1009)
    (failed,) = wire.events()
    assert isinstance(failed, Failed)
    assert "1009" in str(failed.error)
    assert not wire.session.is_waiting


def test_a_forgotten_command_is_not_sent_and_its_late_answer_is_nobodys() -> None:
    wire = Wire()
    wire.welcome()
    sent = wire.session.command("ping", {})
    (frame,) = wire.sent()
    unsent = wire.session.command("ping", {})
    wire.session.forget(sent)
    wire.session.forget(unsent)
    assert wire.sent() == []
    wire.reply(frame, pong=True)
    wire.session.disconnected()
    wire.welcome(resumed=True)
    assert wire.sent() == []
    assert wire.events() == []


def test_a_channel_that_was_left_while_away_is_left_on_return() -> None:
    wire = Wire()
    wire.session.join("c")
    wire.welcome()
    (join,) = wire.sent()
    wire.reply(join, epoch="e", offset=0, subscribers=1)
    wire.session.disconnected()
    wire.session.forget(wire.session.leave("c"))
    wire.welcome(resumed=True, channels=["c"])
    assert actions(wire.sent()) == ["leave_channel"]


def test_a_channel_that_was_left_and_joined_again_is_left_before_it_is_joined() -> None:
    wire = Wire()
    wire.session.join("c")
    wire.session.leave("c")
    wire.session.join("c")
    wire.welcome(channels=["c"])
    assert actions(wire.sent()) == ["leave_channel", "join_channel"]


def test_the_default_channel_stays_left_for_a_new_client() -> None:
    wire = Wire()
    wire.welcome(channels=["jungle"])
    (locate,) = wire.sent()
    assert locate["action"] == "history"
    wire.reply(locate, epoch="e", offset=0, publications=[])
    wire.session.leave("jungle")
    (leave,) = wire.sent()
    wire.reply(leave)
    wire.session.disconnected()
    wire.welcome(client_id="client_2", channels=["jungle"])
    assert actions(wire.sent()) == ["leave_channel"]


def test_a_channel_that_only_the_server_knows_of_is_followed_and_lost_with_a_word() -> None:
    wire = Wire()
    wire.welcome()
    wire.publish("vip", 7)
    (locate,) = wire.sent()
    wire.reply(locate, epoch="e", offset=7, publications=[])
    wire.publish("vip", 8)
    assert [message["offset"] for message in wire.session.messages] == [7, 8]
    wire.session.disconnected()
    wire.welcome(resumed=True, channels=["vip"])
    (recover,) = wire.sent()
    assert recover["recover"] == {"epoch": "e", "offset": 8}
    wire.session.disconnected()
    wire.welcome(client_id="client_2", resumed=False, reason="expired", channels=[])
    gaps = [(event.channel, event.from_offset, event.reason) for event in wire.events()]
    assert gaps == [(None, None, "new_client"), ("vip", 9, "unsubscribed")]


def test_a_join_that_is_refused_is_an_error_and_a_rejoin_that_is_refused_a_gap() -> None:
    wire = Wire()
    wire.welcome()
    ref = wire.session.join("c")
    wire.refuse(wire.sent()[0], 110)
    (failed,) = wire.events()
    assert failed.ref == ref
    assert isinstance(failed.error, CommandError)
    assert failed.error.code == 110
    wire.session.join("d")
    wire.reply(wire.sent()[0], epoch="e", offset=3, subscribers=1)
    wire.session.disconnected()
    wire.welcome(resumed=True)
    wire.publish("d", 5)
    wire.events()
    wire.refuse(wire.sent()[0], 110)
    (gap,) = wire.events()
    assert (gap.channel, gap.from_offset, gap.to_offset, gap.reason) == ("d", 4, None, "refused")
    assert [message["offset"] for message in wire.session.messages] == [5]


def test_mail_is_acknowledged_once_it_is_taken_and_again_when_it_comes_again() -> None:
    wire = Wire()
    wire.welcome()
    mail = {"id": "msg_m", "channel": "jungle", "message": "hello", "ack": True}
    wire.receive(**mail)
    wire.session.flush_acks()
    assert wire.sent() == []
    assert wire.session.take()["message"] == "hello"
    wire.session.flush_acks()
    assert wire.sent()[0]["ids"] == ["msg_m"]
    wire.session.disconnected()
    wire.welcome(resumed=True)
    wire.receive(**mail)
    assert not wire.session.messages
    wire.session.flush_acks()
    assert wire.sent()[0]["ids"] == ["msg_m"]


def test_a_new_client_acknowledges_nothing_of_the_old_one() -> None:
    wire = Wire()
    wire.welcome()
    wire.receive(id="msg_m", channel="jungle", message="hello", ack=True)
    wire.session.disconnected()
    wire.welcome(client_id="client_2", resumed=False, reason="unknown")
    assert wire.session.take()["message"] == "hello"
    assert not wire.session.has_acks


def test_messages_to_one_client_may_look_like_anything() -> None:
    wire = Wire()
    wire.welcome()
    strange: list[dict[str, Any]] = [
        {"event": "reply", "ref": 1},
        {"event": "error", "ref": "mine", "code": 5},
        {"event": "gap", "channel": "c"},
        {"channel": ["no", "name"], "offset": "far"},
        {"trumpeted_by": "tantor", "channel": "c", "timestamp": "now"},
        {"id": 5, "ack": True},
        {"ping": True, "channel": "c"},
        {"event": "welcome", "channel": "system"},
    ]
    for fields in strange:
        wire.receive(**fields)
        assert fields.items() <= wire.session.take().items()


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        ("no json", "no JSON"),
        ("[1]", "no JSON object"),
        ('{"event": "hello"}', "no welcome"),
        ('{"event": "welcome"}', "client_id"),
    ],
)
def test_another_server_is_named(frame: str, problem: str) -> None:
    session = Session(ClientSettings())
    with pytest.raises(NotTantorError, match=problem):
        session.receive(frame)


def test_what_json_cannot_hold_is_refused_before_it_is_sent() -> None:
    wire = Wire()
    wire.welcome()
    for bad in ({1, 2}, float("nan"), "\ud800", b"bytes"):
        with pytest.raises(DataError, match="broadcast: "):
            wire.session.command("broadcast", {"data": bad})
    assert not wire.session.is_waiting
    assert wire.sent() == []


def test_the_server_says_when_to_come_back() -> None:
    wire = Wire()
    wire.welcome()
    wire.events()
    wire.receive(channel="system", event="server_shutdown", message="bye", reconnect_after_ms=1500)
    assert wire.events() == [ShuttingDown(1.5)]
    assert wire.session.query == {"ack": "1", "resume": "token"}
