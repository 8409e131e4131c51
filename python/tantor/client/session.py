"""A client's session over all its connections: frames in, messages and frames out. No I/O, no clock.

`receive` takes what a connection brought, `next_frame` gives what is to be sent, `take` what the application gets, and
`events` what it is told.
"""

import logging
import re
import secrets
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tantor.client.commands import Command, encode_command
from tantor.client.errors import CommandError, CommandLostError
from tantor.client.recent import Recent
from tantor.client.settings import ClientSettings
from tantor.client.stream import Gap, Message, Question, Stream, offset_of
from tantor.json_messages import UnreadableMessage, read_message


@dataclass(frozen=True)
class Welcomed:
    """A connection stands."""


@dataclass(frozen=True)
class ShuttingDown:
    """The server stops, and asks to come back after so many seconds."""

    reconnect_after: float


@dataclass(frozen=True)
class Answered:
    """A command was carried out."""

    ref: str
    reply: Message


@dataclass(frozen=True)
class Failed:
    """A command was refused, or it is not known what became of it."""

    ref: str
    error: CommandError | CommandLostError


Event = Welcomed | ShuttingDown | Answered | Failed | Gap


class NotTantorError(Exception):
    """The other side does not speak as a Tantor does."""


SYSTEM = "system"

# with these a server says that something sent to it was wrong, or too much for it
_COMPLAINTS = frozenset({1002, 1003, 1007, 1008, 1009, 1010, 1011})
_MAX_COMPLAINTS = 2

_ACKS_TOGETHER = 1000

# messages to this client alone come again only when it resumes, but then all that were not acknowledged
_MAIL_WINDOWS = 4


class Session:
    """What the client knows. Never more than `2 * max_buffered` messages wait for the application, and an answer's."""

    def __init__(self, settings: ClientSettings, resume: str | None = None) -> None:
        self.messages: deque[Message] = deque()
        """What waits for the application; `take` takes it."""
        self.events: deque[Event] = deque()
        self.client_id: str | None = None
        self.heartbeat_interval = 0.0
        self.is_welcome = False
        """A connection stands, and has been welcomed."""
        self.max_held = settings.max_buffered
        self._max_buffered = settings.max_buffered
        self._window = settings.dedup_window
        self._token = resume
        self._streams: dict[str, Stream] = {}
        # channels whose messages are shown as they come
        self._passing: set[str] = set()
        # channels to which the server takes every new client, and those that the application has left
        self._given: set[str] = set()
        self._left: set[str] = set()
        self._prefix = secrets.token_hex(4) + "-"
        self._next_ref = 0
        self._outgoing: deque[Command] = deque()
        self._commands: dict[str, Command] = {}
        self._questions: dict[str, tuple[Stream, Question]] = {}
        # by the ref that the application waits for: the channel whose stream asks
        self._joiners: dict[str, str] = {}
        self._mail = Recent(_MAIL_WINDOWS * settings.dedup_window)
        # mail that waits for the application, to be acknowledged when that has it
        self._untaken: set[str] = set()
        self._acks: dict[str, None] = {}
        self._was_full = False

    # Connections

    @property
    def query(self) -> dict[str, str]:
        """What the next connection's URL has to say."""
        return {"ack": "1"} | ({"resume": self._token} if self._token else {})

    def receive(self, text: str) -> None:
        """A text frame has come. Errors: `NotTantorError`.

        Once the connection is welcomed, a frame that cannot be read is told as a `Gap`, and the next frame is read.
        """
        try:
            message = read_message(text)
        except (ValueError, RecursionError) as error:
            if not self.is_welcome:
                raise NotTantorError(f"a frame was no JSON: {error}") from None
            self._pass_over(text, error)
            return
        if not isinstance(message, dict):
            raise NotTantorError(f"a frame was no JSON object: {text[:80]!r}")
        try:
            self._dispatch(message)
        except (KeyError, TypeError, AttributeError) as error:
            raise NotTantorError(f"a message lacks what it has to have ({error!r}): {text[:200]!r}") from error

    def disconnected(self, code: int | None = None) -> None:
        """The connection has ended, with a close code if there was one."""
        self.is_welcome = False
        self._outgoing.clear()
        self._questions.clear()
        self._passing.clear()
        # what was not acknowledged comes again
        self._acks.clear()
        for stream in self._streams.values():
            stream.disconnected()
        for command in list(self._commands.values()):
            if command.is_sent:
                self._break_off(command, code)

    def next_frame(self) -> str | None:
        """The next frame to be sent on the connection; None while there is none."""
        if not self.is_welcome or not self._outgoing:
            return None
        command = self._outgoing.popleft()
        command.is_sent = command.was_sent = True
        return command.text

    # The application

    def position(self, channel: str) -> tuple[str, int] | None:
        """Epoch and offset up to which a channel was shown; None while it is not followed, or they are not known."""
        stream = self._streams.get(channel)
        return stream.position if stream is not None else None

    @property
    def has_room(self) -> bool:
        """Whether fewer messages wait for the application than may."""
        return len(self.messages) < self._max_buffered

    @property
    def is_overfull(self) -> bool:
        """Whether nothing more may be received, whatever is waited for."""
        return len(self.messages) >= 2 * self._max_buffered

    def take(self) -> Message:
        """The oldest message that waits. Errors: `IndexError` when none does."""
        message = self.messages.popleft()
        message_id = message.get("id")
        if isinstance(message_id, str) and message_id in self._untaken:
            self._untaken.remove(message_id)
            self._acks[message_id] = None
        if self._was_full and len(self.messages) <= self._max_buffered // 2:
            self._was_full = False
            for stream in self._streams.values():
                stream.catch_up()
        return message

    @property
    def has_acks(self) -> bool:
        """Whether `flush_acks` has something to do."""
        return bool(self._acks)

    def flush_acks(self) -> None:
        """Acknowledge what was taken."""
        while self.is_welcome and self._acks:
            ids = list(islice(self._acks, _ACKS_TOGETHER))
            for message_id in ids:
                del self._acks[message_id]
            self._outgoing.append(self._encode("ack", {"ids": ids}))

    def join(self, channel: str) -> str:
        """Be on a channel from now on; returns the ref of the answer."""
        self._passing.discard(channel)
        self._left.discard(channel)
        stream = self._streams.get(channel)
        if stream is not None:
            stream.is_wanted = True
            return self.command("join_channel", {"channel": channel})
        stream = self._follow(channel)
        stream.is_wanted = True
        ref = self._make_ref()
        self._joiners[ref] = channel
        if self.is_welcome:
            stream.connected(is_member=False)
        return ref

    def leave(self, channel: str) -> str:
        """Be off a channel; returns the ref of the answer."""
        self._streams.pop(channel, None)
        self._passing.add(channel)
        self._left.add(channel)
        for ref in [ref for ref, joining in self._joiners.items() if joining == channel]:
            self._fail(ref, CommandLostError(f"the channel {channel!r} was left before it was joined"))
        return self.command("leave_channel", {"channel": channel})

    def command(self, action: str, fields: dict[str, Any], *, is_repeatable: bool = True) -> str:
        """Send a command, and again on another connection if it may be and was not answered; returns its ref.

        Errors: `DataError` for what JSON cannot hold.
        """
        command = self._encode(action, fields, is_repeatable=is_repeatable)
        self._commands[command.ref] = command
        if self.is_welcome:
            self._outgoing.append(command)
        return command.ref

    def forget(self, ref: str) -> None:
        """Nobody waits for this answer any more. What was not sent yet is not sent, but for joins and leaves."""
        self._joiners.pop(ref, None)
        command = self._commands.pop(ref, None)
        if command is not None and command.action != "leave_channel" and command in self._outgoing:
            self._outgoing.remove(command)

    @property
    def is_waiting(self) -> bool:
        """Whether the application waits for an answer."""
        return bool(self._commands or self._joiners)

    # For streams

    def show(self, message: Message) -> None:
        """Give a message to the application, but for one to this client alone that it has had.

        Of a message that cannot be read, the application is told by a `Gap`.
        """
        message_id = message.get("id")
        is_unreadable = isinstance(message, UnreadableMessage)
        if message.get("ack") is True and isinstance(message_id, str):
            if not self._mail.add(message_id, 0.0):
                if message_id not in self._untaken:
                    self._acks[message_id] = None
                return
            if is_unreadable:
                # a repeat could not be read either
                self._acks[message_id] = None
            else:
                self._untaken.add(message_id)
        if is_unreadable:
            self._tell_unreadable(message)
            return
        self.messages.append(message)
        self._was_full = self._was_full or not self.has_room

    def tell(self, gap: Gap) -> None:
        """Tell the application of a loss."""
        self.events.append(gap)

    def ask(self, stream: Stream, question: Question, fields: dict[str, Any]) -> None:
        """Send a stream's question."""
        is_join = question in (Question.JOIN, Question.RECOVER)
        action = "join_channel" if is_join else "history"
        command = self._encode(action, {"channel": stream.channel, **fields})
        self._questions[command.ref] = (stream, question)
        self._outgoing.append(command)

    def _tell_unreadable(self, message: Message) -> None:
        channel, offset = message.get("channel"), offset_of(message)
        logging.getLogger("tantor.client").warning(
            "a message on %r cannot be read: an integer has more digits than Python reads", channel
        )
        if not _is_published(message) or not isinstance(channel, str):
            self.tell(Gap(None, None, None, None, 1, "unreadable"))
            return
        position = self.position(channel)
        epoch = position[0] if position is not None else None
        self.tell(Gap(channel, epoch, offset, offset, 1, "unreadable"))

    def _pass_over(self, text: str, error: Exception) -> None:
        """Tell of a frame that is not JSON, or that nests too deep. What waits for its answer is refused."""
        logging.getLogger("tantor.client").warning("a frame cannot be read (%r): %.80s", error, text)
        self.tell(Gap(None, None, None, None, 1, "unreadable"))
        if found := re.search(rf'"ref":\s*"({self._prefix}\d+)"', text):
            problem = "the answer cannot be read"
            self._answered(found[1], {"event": "error", "ref": found[1], "code": 0, "message": problem})

    def _dispatch(self, message: Message) -> None:
        if not self.is_welcome:
            if message.get("event") != "welcome":
                raise NotTantorError(f"the first message was no welcome: {str(message)[:200]}")
            self._welcome(message)
            return
        event, channel, ref = message.get("event"), message.get("channel"), message.get("ref")
        if event in ("reply", "error") and isinstance(ref, str) and ref.startswith(self._prefix):
            self._answered(ref, message)
        elif channel == SYSTEM and self._is_of_the_system(message):
            pass
        elif event == "gap" and isinstance(channel, str) and "recover" in message:
            stream = self._streams.get(channel)
            if stream is not None:
                stream.gap(message)
        elif message.get("ack") is True:
            self._receive_mail(message)
        elif isinstance(channel, str) and _is_published(message):
            self._receive_published(channel, message)
        else:
            self.show(message)

    def _welcome(self, message: Message) -> None:
        previous, self.client_id = self.client_id, message["client_id"]
        self.heartbeat_interval = float(message.get("heartbeat_interval", 0.0))
        self._token = message.get("resume")
        self.is_welcome = True
        if message.get("resumed") is False or previous not in (None, self.client_id):
            logging.getLogger("tantor.client").info(
                "connected as a new client, %s: %s", self.client_id, message.get("reason")
            )
            # nothing waits for the new one's acknowledgement
            self._untaken.clear()
            self._give_up_uncertain()
            self.tell(Gap(None, None, None, None, None, "new_client"))
        elif message.get("dropped"):
            self.tell(Gap(None, None, None, None, message["dropped"], "mailbox"))
        channels = message.get("channels", [])
        if not message.get("resumed"):
            self._given.update(channels)
        leaves = [command for command in self._commands.values() if command.action == "leave_channel"]
        # what was left before it was joined again
        self._outgoing.extend(leaves)
        for channel in self._left.difference(command.channel for command in leaves):
            self._passing.add(channel)
            self._outgoing.append(self._encode("leave_channel", {"channel": channel}))
        for stream in list(self._streams.values()):
            if stream.is_wanted or stream.channel in channels:
                stream.connected(is_member=stream.channel in channels)
            else:
                stream.ended("unsubscribed")
                del self._streams[stream.channel]
        for channel in channels:
            if channel not in self._streams and channel not in self._left:
                self._follow(channel).connected(is_member=True)
        self._outgoing.extend(command for command in self._commands.values() if command not in leaves)
        self.events.append(Welcomed())

    def _is_of_the_system(self, message: Message) -> bool:
        event = message.get("event")
        if event == "server_shutdown":
            self.events.append(ShuttingDown(message.get("reconnect_after_ms", 0) / 1000))
        elif event == "error":
            logging.getLogger("tantor.client").warning(
                "the server complains: %s (%s)", message.get("message"), message.get("code")
            )
        else:
            return message.get("ping") is True or message.get("pong") is True
        return True

    def _receive_mail(self, message: Message) -> None:
        self.show(message)
        channel, offset = message.get("channel"), offset_of(message)
        # an emergency, which has its place in a stream too
        if isinstance(channel, str) and offset is not None and channel in self._streams:
            self._streams[channel].pass_by(offset)

    def _receive_published(self, channel: str, message: Message) -> None:
        stream = self._streams.get(channel)
        if stream is None:
            if channel in self._passing:
                self.show(message)
                return
            # the server has put us there
            stream = self._follow(channel)
            stream.connected(is_member=True)
        stream.receive(message)

    def _answered(self, ref: str, message: Message) -> None:
        is_refused = message["event"] == "error"
        asked = self._questions.pop(ref, None)
        if asked is not None:
            stream, question = asked
            if self._streams.get(stream.channel) is not stream:
                return
            if is_refused:
                self._refused(stream, question, message)
            else:
                stream.answer(question, message)
                self._settle_joiners(stream, message)
            return
        command = self._commands.pop(ref, None)
        if command is None:
            return
        if command.action == "leave_channel" and command.channel not in self._given:
            self._left.discard(str(command.channel))
        if is_refused:
            self.events.append(Failed(ref, _command_error(message)))
            return
        publications = message.get("publications", [])
        for publication in publications:
            if isinstance(publication, UnreadableMessage):
                self._tell_unreadable(publication)
        if publications:
            kept = [publication for publication in publications if not isinstance(publication, UnreadableMessage)]
            message["publications"] = kept
        self.events.append(Answered(ref, message))

    def _settle_joiners(self, stream: Stream, reply: Message) -> None:
        if stream.position is None or not stream.is_wanted:
            return
        for ref in [ref for ref, channel in self._joiners.items() if channel == stream.channel]:
            del self._joiners[ref]
            self.events.append(Answered(ref, reply))

    def _refused(self, stream: Stream, question: Question, message: Message) -> None:
        stream.refused(question)
        if question is Question.PAGE:
            return
        del self._streams[stream.channel]
        self._passing.add(stream.channel)
        joiners = [ref for ref, channel in self._joiners.items() if channel == stream.channel]
        for ref in joiners:
            self._fail(ref, _command_error(message))
        if not joiners:
            logging.getLogger("tantor.client").warning(
                "%r is followed no longer: %s", stream.channel, message.get("message")
            )
        if question is Question.JOIN and not joiners:
            self.tell(Gap(stream.channel, None, None, None, None, "refused"))

    def _break_off(self, command: Command, code: int | None) -> None:
        if code in _COMPLAINTS:
            command.complaints += 1
        problem = ""
        if not command.is_repeatable:
            problem = "the connection broke before it was answered, and it must not be repeated"
        elif command.complaints >= _MAX_COMPLAINTS:
            problem = f"the server closed the connection with {code} after it, {command.complaints} times"
        if problem:
            del self._commands[command.ref]
            self._fail(command.ref, CommandLostError(f"{command.action}: {problem}"))
        command.is_sent = False

    def _give_up_uncertain(self) -> None:
        """Fail the broadcasts that the client sent under its former identity.

        The server scopes idempotency keys by client: it would publish a repeat a second time.
        """
        for command in list(self._commands.values()):
            if command.action == "broadcast" and command.was_sent:
                del self._commands[command.ref]
                problem = "uncertain: the server took this client for a new one, so a repeat could publish it twice"
                self._fail(command.ref, CommandLostError(f"broadcast: {problem}"))

    def _fail(self, ref: str, error: CommandError | CommandLostError) -> None:
        self._joiners.pop(ref, None)
        self.events.append(Failed(ref, error))

    def _follow(self, channel: str) -> Stream:
        stream = self._streams[channel] = Stream(channel, self, self._window)
        return stream

    def _make_ref(self) -> str:
        self._next_ref += 1
        return f"{self._prefix}{self._next_ref}"

    def _encode(self, action: str, fields: dict[str, Any], *, is_repeatable: bool = False) -> Command:
        ref = self._make_ref()
        return Command(ref, action, fields.get("channel"), encode_command(action, ref, fields), is_repeatable)


def _is_published(message: Message) -> bool:
    """Whether it is a publication or a notice; what is sent to one client may look like much."""
    return (
        message.get("trumpeted_by") == "tantor"
        and isinstance(message.get("id"), str)
        and isinstance(message.get("timestamp"), int | float)
    )


def _command_error(message: Message) -> CommandError:
    code, text = message.get("code", 0), message.get("message", "")
    return CommandError(f"{text} (code {code})", code, message)
