"""One channel as a client follows it: its position, what was missed, what comes twice. No I/O, no clock."""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from tantor.client.recent import Recent

Message = dict[str, Any]
"""A message as it was on the wire (docs/protocol.md, "Server to client")."""


@dataclass(frozen=True)
class Gap:
    """Messages that this client did not get, and does not get any more; or that it cannot know that it got them all."""

    channel: str | None
    """None for messages to this client alone."""
    epoch: str | None
    """The incarnation of the channel's stream that the offsets are of, if it is known."""
    from_offset: int | None
    """The first that is missing; None where offsets are not known."""
    to_offset: int | None
    """The last that is missing; None where it is not known."""
    dropped: int | None
    """How many are missing, if that is known. Some of the offsets of a range may never have been published."""
    reason: str
    """`epoch`, `offset_ahead`: the channel's stream began anew or lost its end; `expired`: they are kept no longer;
    `drop_oldest`, `latest`: the channel's policy for slow consumers dropped them; `overflow`: too many came at once
    of a channel that keeps none; `refused`, `unsubscribed`: the channel could not be joined again; `unreadable`:
    Python's JSON parser cannot read the message; `new_client`, `mailbox`: of this client's own messages. Others as the
    server gives them."""


class Question(enum.Enum):
    """What a stream asks the server."""

    JOIN = "join"
    """To be on the channel."""
    LOCATE = "locate"
    """Where the stream of a channel is that the server put us on."""
    RECOVER = "recover"
    """For all behind the position."""
    PAGE = "page"
    """For what is left behind the position."""


class Port(Protocol):
    """What a stream is attached to."""

    max_held: int

    @property
    def has_room(self) -> bool:
        """Whether more may be shown to the application."""

    def show(self, message: Message) -> None:
        """Give a message to the application."""

    def tell(self, gap: Gap) -> None:
        """Tell the application of a loss."""

    def ask(self, stream: "Stream", question: Question, fields: dict[str, Any]) -> None:
        """Send a question; `Stream.answer` or `Stream.refused` is called with what comes back, in order."""


PAGE_SIZE = 1000
"""Publications that are asked for at once where they are more than go into one answer to `recover`."""

_RESET = ("epoch", "offset_ahead")
_NOTICES = ("user_joined", "user_left")


class Stream:
    """Shows every publication of a channel once and in the order of offsets, or tells that it did not.

    What comes live while an answer is awaited is held back, and merged with what the answer brings. A publication that
    does not follow the last one is asked about, not taken for a loss: offsets may have holes.
    """

    def __init__(self, channel: str, port: Port, window: int) -> None:
        self.channel = channel
        self.is_wanted = False
        """The application has joined; else the server put us on the channel."""
        self._port = port
        self._epoch: str | None = None
        # all up to this offset was shown, told as lost, or is before our time
        self._offset: int | None = None
        # what was published up to this offset, or time, is before our time
        self._base = 0
        self._since = float("-inf")
        self._recent = Recent(window)
        self._asking: Question | None = None
        self._is_member = False
        self._held: list[Message] = []
        # live publications were passed over: they are to be asked for
        self._is_behind = False
        # the stream has begun anew, and may repeat what was shown
        self._is_reset = False
        # held back before that was known, oldest first: of either incarnation
        self._stale: list[Message] = []
        self._page: Message | None = None
        # where we were when we asked to recover, if that was the last question
        self._asked_from: int | None = None
        # publications up to this offset were dropped on their way to us
        self._reach = 0
        # the publication that does not follow, and that the server has nothing before
        self._jump: int | None = None
        self._accepted: int | None = None
        # publications without offset that were dropped before the first answer
        self._passed = 0

    @property
    def position(self) -> tuple[str, int] | None:
        """Epoch and offset, once they are known."""
        if self._epoch is None or self._offset is None:
            return None
        return self._epoch, self._offset

    @property
    def is_behind(self) -> bool:
        """Whether `catch_up` has something to do."""
        return self._is_behind and self._asking is None

    def connected(self, *, is_member: bool) -> None:
        """A new connection is there: find out what was missed. `is_member`: the server has us on the channel."""
        self._is_member = is_member
        if self.position is not None:
            self._recover()
        elif self.is_wanted:
            self._ask(Question.JOIN, {})
        else:
            self._ask(Question.LOCATE, {"limit": 1})

    def disconnected(self) -> None:
        """The connection is gone, with the questions that were asked on it."""
        self._asking = self._page = self._jump = self._accepted = None
        self._is_behind = self._is_reset = False
        self._reach = self._passed = 0
        self._held.clear()
        self._stale.clear()

    def catch_up(self) -> None:
        """There is room again."""
        if self.is_behind:
            self._is_behind = False
            self._recover()

    def receive(self, message: Message) -> None:
        """A publication or notice came live."""
        offset = offset_of(message)
        if self._asking is not None:
            self._hold(message, offset)
        elif offset is None:
            self._receive_unkept(message)
        elif self._is_behind or not self._port.has_room:
            self._is_behind = True
        else:
            self._receive_kept(message, offset)

    def pass_by(self, offset: int) -> None:
        """A publication was shown without us, because it overtakes."""
        if self._asking is None and self._offset is not None and offset == self._offset + 1:
            self._offset = offset

    def gap(self, message: Message) -> None:
        """The server has dropped publications on their way to us."""
        offset, dropped, reason = message.get("offset"), message.get("dropped"), str(message.get("reason"))
        if not isinstance(offset, int) or offset <= 0:
            # they are not kept
            count = dropped if isinstance(dropped, int) else None
            self._tell(None, None, reason, count)
            self._count_lost(count or 0)
        elif self._asking is not None or self._offset is None:
            self._reach = max(self._reach, offset)
        elif offset > self._offset and reason == "latest" and message.get("epoch") == self._epoch:
            # only the newest counts on this channel
            self._tell(self._offset + 1, offset, reason, dropped)
            self._offset = offset
        elif offset > self._offset or message.get("epoch") != self._epoch:
            self._reach = offset
            self._recover()

    def answer(self, question: Question, reply: Message) -> None:
        """The server's answer to a question."""
        if question is Question.PAGE:
            self._page = reply
            return
        self._asking = None
        if question is Question.RECOVER:
            self._recovered(reply)
            return
        self._epoch = reply["epoch"]
        self._since = reply["timestamp"]
        # those that are not kept have no offset, but take one; to a member they come before the answer, else behind
        passed = -self._count_unkept() if self._is_member else self._passed
        self._base = self._offset = max(0, reply["offset"] + passed)
        self._release()

    def refused(self, question: Question) -> None:
        """A question was refused. But for a page, this is the end of the stream: held messages are shown."""
        if question is Question.PAGE:
            self._page = {"publications": []}
            return
        if question is Question.RECOVER:
            self.ended("refused")
        self._show_stale()
        held, self._held = self._held, []
        for message in held:
            self._show(message)

    def ended(self, reason: str) -> None:
        """The channel is followed no longer, though the application may think so."""
        if self._offset is not None:
            self._tell(self._offset + 1, None, reason)

    def _receive_unkept(self, message: Message) -> None:
        if self._offset is not None and message.get("event") not in _NOTICES:
            self._offset += 1
        self._port.show(message)

    def _receive_kept(self, message: Message, offset: int) -> None:
        last = self._offset or 0
        if offset == last + 1 or offset == self._accepted:
            self._offset = offset
            self._show(message)
        elif offset > last:
            self._jump = offset
            self._hold(message, offset)
            self._recover()
        elif offset <= self._base:
            # of a lower priority, and late
            self._show(message)
        elif message["id"] not in self._recent:
            # late too, or of a stream that has begun anew
            self._hold(message, offset)
            self._recover()

    def _recovered(self, reply: Message) -> None:
        reason = reply.get("reason")
        page, self._page = self._page, None
        if reply["recovered"]:
            self._take(reply["publications"])
            self._offset = max(self._offset or 0, reply.get("through", 0))
            if self._offset == self._asked_from:
                self._accepted = self._jump
            self._release()
        elif reason in _RESET:
            self._tell((self._offset or 0) + 1, None, str(reason))
            self._epoch = reply["epoch"]
            self._offset = self._base = self._reach = 0
            self._is_reset = True
            self._stale = sorted(self._stale + self._held, key=lambda held: held["timestamp"])
            self._held.clear()
            self._recover()
        elif page is None:
            # in this order: if the answer to the second is that nothing has expired, the page has no hole
            self._ask(Question.PAGE, {"after": self._offset, "limit": PAGE_SIZE})
            self._recover()
        elif reason == "too_large" and page["publications"]:
            self._take(page["publications"])
            self._recover()
        else:
            self._take_rest(page, reply, str(reason))

    def _take_rest(self, page: Message, reply: Message, reason: str) -> None:
        """Some of what was missed is kept no longer: takes what is, and what was held back, and tells the rest."""
        kept = {offset: message for message in page["publications"] if (offset := offset_of(message)) is not None}
        is_complete = not page.get("more") and len(kept) < PAGE_SIZE
        # up to there is told which there are
        through = max(kept) if kept and not is_complete else max(reply["offset"], page.get("offset", 0))
        lost_through = min(kept) - 1 if kept else through - self._count_unkept()
        for message in self._held:
            offset = offset_of(message)
            if offset is not None and offset <= through:
                kept.setdefault(offset, message)
        expected = (self._offset or 0) + 1
        for offset in [*sorted(kept), lost_through + 1]:
            if expected < offset and expected <= lost_through and not self._is_reset:
                self._tell(expected, min(offset - 1, lost_through), reason)
            expected = max(expected, offset + 1)
        self._take(kept.values())
        self._offset = max(self._offset or 0, lost_through)
        if is_complete:
            self._release()
        else:
            self._recover()

    def _take(self, publications: Iterable[Message]) -> None:
        """Show publications that are behind the position, and move it there."""
        numbered = [(offset, message) for message in publications if (offset := offset_of(message)) is not None]
        floor = max(self._since, self._recent.floor)
        for offset, message in sorted(numbered, key=lambda item: item[0]):
            if offset > (self._offset or 0):
                self._offset = offset
                self._show_stale(before=message["timestamp"])
                if not (self._is_reset and message["timestamp"] <= floor):
                    self._show(message)

    def _release(self) -> None:
        """All up to the position is dealt with: go on with what was held back."""
        self._show_stale()
        held, self._held = self._held, []
        self._is_reset = False
        self._jump = None
        if self._port.has_room:
            self.catch_up()
        for message in _in_order(held):
            offset = offset_of(message)
            if self._asking is not None or offset is None or offset > (self._offset or 0):
                self.receive(message)
            elif offset <= self._base:
                self._show(message)
        self._accepted = None
        if self._asking is None and self._reach > (self._offset or 0):
            self._go_to(self._reach)

    def _go_to(self, reach: int) -> None:
        """What was dropped on its way was not in the answer: ask again, but not for ever."""
        if self._offset is not None and self._offset == self._asked_from:
            self._tell(self._offset + 1, reach, "dropped")
            self._offset = reach
        else:
            self._recover()

    def _recover(self) -> None:
        recover = {"epoch": self._epoch, "offset": self._offset}
        self._ask(Question.RECOVER, {"recover": recover})

    def _ask(self, question: Question, fields: dict[str, Any]) -> None:
        self._asking = question
        self._asked_from = self._offset if question is Question.RECOVER else None
        self._port.ask(self, question, fields)

    def _hold(self, message: Message, offset: int | None) -> None:
        if self._is_behind and offset is not None:
            return
        self._held.append(message)
        if len(self._held) > self._port.max_held:
            count = self._count_unkept()
            if count:
                self._tell(None, None, "overflow", count)
                self._count_lost(count)
            self._held.clear()
            self._is_behind = True

    def _count_lost(self, count: int) -> None:
        """Publications without offset were lost; they have taken their place in the stream."""
        if self._offset is None:
            self._passed += count
        else:
            self._offset += count

    def _count_unkept(self) -> int:
        return sum(offset_of(held) is None and held.get("event") not in _NOTICES for held in self._held)

    def _show_stale(self, before: float = float("inf")) -> None:
        while self._stale and self._stale[0]["timestamp"] < before:
            self._show(self._stale.pop(0))

    def _show(self, message: Message) -> None:
        if self._recent.add(message["id"], message["timestamp"]):
            self._port.show(message)

    def _tell(self, first: int | None, last: int | None, reason: str, dropped: int | None = None) -> None:
        if dropped is None and first is not None and last is not None:
            dropped = last - first + 1
        self._port.tell(Gap(self.channel, self._epoch, first, last, dropped, reason))


def offset_of(message: Message) -> int | None:
    """The offset of a publication; None if it is not kept."""
    offset = message.get("offset")
    return offset if isinstance(offset, int) else None


def _in_order(held: list[Message]) -> list[Message]:
    """By offset; what has none stays behind what it came behind."""
    keys: list[int] = []
    for message in held:
        offset = offset_of(message)
        keys.append(keys[-1] if offset is None and keys else offset or 0)
    return [held[at] for at in sorted(range(len(held)), key=keys.__getitem__)]
