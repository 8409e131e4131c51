"""A model of a server with one channel, as docs/protocol.md describes it, for tests of client sessions without sockets.

It knows what was published when, so that it can say what a client has to have been shown or told. Frames to the client
wait in `wire`, in lanes, until `deliver`.
"""

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tantor.client.session import Answered, Session, Welcomed
from tantor.client.settings import ClientSettings
from tantor.client.stream import Gap

CHANNEL = "c"
HIGH, NORMAL, LOW = 2, 1, 0

Message = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """A publication: its number among all publications, and its position."""

    number: int
    epoch: str
    offset: int


@dataclass
class Told:
    """A gap, and the number of publications when the client was told of the gap."""

    gap: Gap
    published: int


@dataclass
class ModelServer:
    """`history_size` publications are kept (none: they have no offset), `reply_limit` of them go into one reply."""

    history_size: int
    reply_limit: int
    published: list[Published] = field(default_factory=list)
    wire: deque[tuple[int, Message]] = field(default_factory=deque)
    # mail of the present client: messages that wait for an acknowledgement, and all messages
    mailbox: dict[str, Message] = field(default_factory=dict)
    mailed: list[str] = field(default_factory=list)
    is_connected: bool = False
    is_member: bool = False
    is_known: bool = False
    # the number of publications when the client was first subscribed
    joined_at: int | None = None

    def __post_init__(self) -> None:
        self._clock = 0
        self._clients = 0
        self._epochs = 0
        self._history: list[tuple[int, Message]] = []
        self._live_from = 0
        self._begin_epoch()

    # What happens

    def publish(self, lane: int = NORMAL) -> None:
        self.top += 1
        number = len(self.published)
        self.published.append(Published(number, self.epoch, self.top))
        message = self._message(channel=CHANNEL, event="news", data=number, trumpeted_by="tantor")
        if self.history_size:
            message["offset"] = self.top
            self._history.append((self.top, message))
            while len(self._history) > self.history_size:
                self.gone = self._history.pop(0)[0]
        else:
            self.gone = self.top
        if self.is_connected and self.is_member:
            self._push(message, lane)

    def skip(self) -> None:
        """Fail to save a publication: nobody gets it, and its offset is used."""
        self.top += 1

    def notice(self) -> None:
        if self.is_connected and self.is_member:
            self._push(self._message(channel=CHANNEL, event="user_joined", data={}, trumpeted_by="tantor"))

    def send(self) -> None:
        """Send a message to the client alone, which is kept until the client acknowledges it."""
        message = self._message(channel="jungle", message="mail", ack=True)
        self.mailbox[message["id"]] = message
        self.mailed.append(message["id"])
        if self.is_connected:
            self._push(message)

    def shed(self, count: int) -> None:
        """Drop the oldest waiting publications, because the client is slow, and send a gap."""
        waiting = [(lane, message) for lane, message in self.wire if message.get("event") == "news"][:count]
        for entry in waiting:
            self.wire.remove(entry)
        if waiting:
            last = max(message.get("offset", 0) for _, message in waiting)
            fields = {"epoch": self.epoch, "offset": last, "dropped": len(waiting), "reason": "drop_oldest"}
            self._push(self._message(channel=CHANNEL, event="gap", recover=False, **fields), HIGH)

    def cut(self) -> None:
        self.is_connected = False
        self.wire.clear()

    def restart(self, lost: int | None) -> None:
        """Kill the server: without a store (`lost` None) everything is lost, else the last `lost` publications."""
        self.cut()
        if lost is None:
            self.is_member = self.is_known = False
        if lost is None:
            self._history.clear()
            self._begin_epoch()
            self.mailbox.clear()
        elif lost:
            del self._history[-lost:]
            top = self._history[-1][0] if self._history else self.gone
            gone = self.gone
            self._begin_epoch()
            self.top, self.gone = top, gone

    def begin_anew(self) -> None:
        """The channel was deleted, made again, and the client is put back on it without a word.

        Not while publications are under way: they do not say of which epoch they are, and could be of either.
        """
        if any(message.get("event") == "news" for _, message in self.wire):
            return
        self._history.clear()
        self._begin_epoch()
        self._live_from = 0

    # The connection

    def connect(self, query: dict[str, str]) -> None:
        assert not self.is_connected
        self.is_connected = True
        is_resumed = "resume" in query and self.is_known
        if not is_resumed:
            self._clients += 1
            self.is_member = False
            self.mailbox.clear()
            self.mailed.clear()
        self.is_known = True
        fields: Message = {"client_id": f"client_{self._clients}", "resume": "token", "heartbeat_interval": 30.0}
        fields["channels"] = [CHANNEL] if self.is_member else []
        if "resume" in query:
            fields["resumed"] = is_resumed
        self.wire.append((HIGH, self._message(channel="system", event="welcome", **fields)))
        for message in self.mailbox.values():
            self._push(message)
        self._live_from = self.top

    def take(self, text: str) -> None:
        """Handle a frame of the client."""
        command = json.loads(text)
        ref = command["ref"]
        match command["action"]:
            case "join_channel":
                self._push(self._join(command))
            case "history":
                kept = [item for item in self._history if item[0] > command.get("after", 0)]
                page = kept[: min(command["limit"], self.reply_limit)]
                messages = [message for _, message in page]
                more = {"more": True} if len(page) < len(kept) else {}
                self._push(self._reply(ref, publications=messages, **more))
            case "ack":
                unknown = [self.mailbox.pop(message_id, None) for message_id in command["ids"]].count(None)
                self._push(
                    self._message(channel="system", event="error", ref=ref, code=113) if unknown else self._reply(ref)
                )
            case _:
                self._push(self._reply(ref))

    def _join(self, command: Message) -> Message:
        was_member, self.is_member = self.is_member, True
        recover = command.get("recover")
        ref = command["ref"]
        if self.joined_at is None:
            self.joined_at = len(self.published)
        if not was_member:
            self._live_from = self.top
        if recover is None:
            return self._reply(ref)
        offset = recover["offset"]
        # publications after the subscription come live
        is_resuming = was_member and offset < self._live_from
        through = self._live_from if is_resuming else self.top
        missed = [message for at, message in self._history if offset < at <= through]
        if recover["epoch"] != self.epoch:
            reason = "epoch"
        elif offset > self.top:
            reason = "offset_ahead"
        elif offset < self.gone:
            reason = "expired"
        elif len(missed) > self.reply_limit:
            reason = "too_large"
        else:
            return self._reply(ref, recovered=True, through=through, publications=missed)
        return self._reply(ref, recovered=False, reason=reason, publications=[])

    def _begin_epoch(self) -> None:
        self._epochs += 1
        self.epoch = f"{self._epochs:016x}"
        self.top = self.gone = 0

    def _reply(self, ref: str, **fields: Any) -> Message:
        position = {"epoch": self.epoch, "offset": self.top, "published": len(self.published)}
        return self._message(channel=CHANNEL, event="reply", ref=ref, ok=True, **position, **fields)

    def _message(self, **fields: Any) -> Message:
        self._clock += 1
        return {"id": f"msg_{self._clock:016x}", "timestamp": float(self._clock), "sender": "tantor", **fields}

    def _push(self, message: Message, lane: int = NORMAL) -> None:
        """Queue a message behind those of its lane and of higher lanes."""
        at = next((at for at, (other, _) in enumerate(self.wire) if other < lane), len(self.wire))
        # but never before the welcome
        if self.wire and self.wire[0][1].get("event") == "welcome":
            at = max(at, 1)
        self.wire.insert(at, (lane, message))


class ModelClient:
    """A session with the model server: moves frames, takes messages, records events."""

    def __init__(self, server: ModelServer, max_buffered: int) -> None:
        self.server = server
        self.session = Session(ClientSettings(max_buffered=max_buffered, dedup_window=4096))
        self.shown: list[int] = []
        self.mail: list[str] = []
        self.told: list[Told] = []
        # the number of publications when the session knew that it is subscribed
        self.joined_at: int | None = None
        self.answered: set[str] = set()
        self.asked: set[str] = {self.session.join(CHANNEL)}

    def connect(self) -> None:
        if not self.server.is_connected:
            self.server.connect(self.session.query)

    def cut(self) -> None:
        if self.server.is_connected:
            self.session.disconnected()
            self.server.cut()
            self._note()

    def restart(self, lost: int | None) -> None:
        self.cut()
        self.server.restart(lost)

    def command(self) -> None:
        self.asked.add(self.session.command("presence", {"channel": CHANNEL}))

    def deliver(self, count: int) -> None:
        """Move frames to the session as its reader does: answers always, other messages while there is room."""
        session = self.session
        while count and self.server.wire and (session.has_room or (session.is_waiting and not session.is_overfull)):
            _, message = self.server.wire.popleft()
            session.receive(json.dumps(message))
            if self.joined_at is None and session.position(CHANNEL):
                self.joined_at = message["published"]
            self._note()
            count -= 1

    def send(self, count: int) -> None:
        while count and self.server.is_connected and (frame := self.session.next_frame()) is not None:
            self.server.take(frame)
            count -= 1

    def take(self, count: int) -> None:
        while count and self.session.messages:
            message = self.session.take()
            if message.get("event") == "news":
                self.shown.append(message["data"])
            elif message.get("message") == "mail":
                self.mail.append(message["id"])
            count -= 1
        self.session.flush_acks()

    def settle(self) -> None:
        """Move frames until none is under way."""
        self.connect()
        for _ in range(10_000):
            before = (len(self.server.wire), len(self.shown), len(self.mail), self.server._clock)
            self.deliver(100)
            self.take(100)
            self.send(100)
            if before == (len(self.server.wire), len(self.shown), len(self.mail), self.server._clock):
                return
        raise AssertionError("the client and the server do not come to rest")

    def _note(self) -> None:
        while self.session.events:
            event = self.session.events.popleft()
            if isinstance(event, Gap):
                self.told.append(Told(event, len(self.server.published)))
            elif not isinstance(event, Welcomed):
                assert isinstance(event, Answered), event
                self.answered.add(event.ref)
