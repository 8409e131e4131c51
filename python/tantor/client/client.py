"""The asyncio layer: one WebSocket after the other under a session."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from ssl import SSLContext
from typing import Any, Literal, Self

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tantor.client.commands import check_text
from tantor.client.connecting import Proxy, RetryError, Target
from tantor.client.errors import (
    ClientError,
    ClosedError,
    CommandTimeoutError,
    ConnectTimeoutError,
    DisconnectedError,
)
from tantor.client.notifier import Notifier
from tantor.client.reconnect import STABLE_AFTER, Backoff, is_final
from tantor.client.session import Answered, Failed, NotTantorError, Session, ShuttingDown, Welcomed
from tantor.client.settings import ClientSettings
from tantor.client.stream import Gap, Message

State = Literal["connecting", "connected", "reconnecting", "closed"]
OnState = Callable[[State], Awaitable[None] | None]
OnGap = Callable[[Gap], Awaitable[None] | None]


class _Default:
    """The setting `command_timeout`."""

    def __repr__(self) -> str:
        return "command_timeout"


_DEFAULT = _Default()
Timeout = float | None | _Default


class Client:
    """A client of a Tantor, made by `tantor.client.connect`: async context manager, and async iterator of messages.

    Belongs to the event loop that it was opened in. Every call may be cancelled; what it asked for may have happened.
    """

    def __init__(
        self,
        url: str,
        settings: ClientSettings,
        *,
        resume: str | None = None,
        on_state: OnState | None = None,
        on_gap: OnGap | None = None,
        headers: Mapping[str, str] | None = None,
        ssl: SSLContext | None = None,
        proxy: Proxy = True,
    ) -> None:
        self._settings = settings
        self._target = Target(url, settings, headers, ssl, proxy)
        self._session = Session(settings, resume or self._target.resume)
        self._on_state = on_state
        self._on_gap = on_gap
        self._state: State = "connecting"
        self._is_closing = False
        # why it has ended
        self._error: ClientError | None = None
        # the last reason why there was no connection
        self._problem: Exception | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._connection: ClientConnection | None = None
        self._notifier = Notifier()
        self._futures: dict[str, asyncio.Future[Message]] = {}
        self._slots = asyncio.Semaphore(settings.max_pending_commands)
        self._welcomed = asyncio.Event()
        # for whoever waits for a message
        self._arrived = asyncio.Event()
        # for the reader: there may be room
        self._readable = asyncio.Event()
        # for the writer: there may be something to send; and from it: there was nothing
        self._sendable = asyncio.Event()
        self._sent = asyncio.Event()
        self._is_paused = False
        self._seen = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._acking: asyncio.TimerHandle | None = None
        self._reconnect_after: float | None = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except ClosedError:
            raise StopAsyncIteration from None

    def __repr__(self) -> str:
        return f"<tantor.client.Client {self._target} {self.client_id or ''} {self._state}>"

    @property
    def state(self) -> State:
        """`connecting` until the first connection stands, then `connected` or `reconnecting`, at last `closed`."""
        return self._state

    @property
    def client_id(self) -> str | None:
        """The id that the server knows this client by; None before the first connection. Another one after a time away
        that was too long for the server."""
        return self._session.client_id

    async def open(self) -> None:
        """Connect; returns when the server has said welcome. `async with` does it.

        Errors: `ConnectTimeoutError` after `connect_timeout`; `ConnectError` at once where another attempt makes no
        sense; `ClosedError` if it was opened before.
        """
        if self._supervisor is not None:
            raise ClosedError("a client can be opened once; connect anew")
        self._notifier.call(self._on_state, self._state)
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="tantor-client")
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                await self._welcomed.wait()
        except BaseException as error:
            await self.close()
            if not isinstance(error, TimeoutError):
                raise
            problem = f": {self._problem}" if self._problem else ""
            limit = self._settings.connect_timeout
            raise ConnectTimeoutError(f"no connection to {self._target} within {limit:g} s{problem}") from self._problem
        if self._error is not None:
            await self.close()
            raise self._error

    async def close(self) -> None:
        """Acknowledge what was taken, say goodbye and end; within `close_timeout`, also when nothing answers.

        The server forgets this client: what is still sent to it waits for nobody. Messages that were not taken from
        the iterator are gone.
        """
        self._is_closing = True
        self._fail_futures(ClosedError("the client was closed"))
        self._wake_all()
        try:
            if self._connection is not None and self._session.is_welcome:
                await self._say_goodbye(self._connection)
        finally:
            if self._supervisor is not None:
                self._supervisor.cancel()
                await asyncio.wait([self._supervisor])
            self._set_state("closed")
            await self._notifier.finish(self._settings.close_timeout)

    async def receive(self, timeout: float | None = None) -> Message:
        """The next message, as it was on the wire: of a channel, or to this client. The iterator gives the same.

        A message that the server wants acknowledged is acknowledged from here on.
        Errors: `TimeoutError` after `timeout` seconds; `ClosedError` once the application has closed the client;
        `DisconnectedError` when the connection has ended for good and nothing is left to take.
        """
        async with asyncio.timeout(timeout):
            while True:
                if self._is_closing:
                    raise ClosedError("the client was closed")
                if self._session.messages:
                    break
                self._check_usable()
                self._arrived.clear()
                await self._arrived.wait()
        message = self._session.take()
        self._readable.set()
        self._sendable.set()
        if self._session.has_acks and self._acking is None:
            loop = asyncio.get_running_loop()
            self._acking = loop.call_later(self._settings.ack_delay, self._acknowledge)
        return message

    async def join(self, channel: str, *, timeout: Timeout = _DEFAULT) -> Message:
        """Be on a channel, now and after each reconnect; what is missed meanwhile is recovered. Returns the reply.

        Errors, here and below: `CommandError` when the server refuses; `CommandTimeoutError` without an answer within
        `timeout` (by default `command_timeout`) seconds, reconnects included; `ClosedError`, `DisconnectedError`.
        """
        check_text("channel", channel)
        return await self._perform("join", lambda: self._session.join(channel), timeout)

    async def leave(self, channel: str, *, timeout: Timeout = _DEFAULT) -> Message:
        """Be off a channel. Messages of it that have arrived can still be taken."""
        check_text("channel", channel)
        return await self._perform("leave", lambda: self._session.leave(channel), timeout)

    async def broadcast(
        self,
        channel: str,
        event: str,
        data: Any = None,
        *,
        idempotency_key: str | None = None,
        timeout: Timeout = _DEFAULT,
    ) -> Message:
        """Publish on a channel, to everyone on it; `data` is what JSON can hold, `{}` by default.

        Returns the reply: `recipients`, and `epoch` and `offset` if it is kept. A broadcast that is under way when the
        connection breaks is repeated with the same key, so that it is published once, if the server is back within
        its `idempotency_ttl`. Errors: `DataError` too.
        """
        check_text("channel", channel)
        check_text("event", event)
        key = secrets.token_hex(16) if idempotency_key is None else idempotency_key
        fields = {
            "channel": channel,
            "event": event,
            "data": {} if data is None else data,
            "idempotency_key": key,
        }
        return await self._perform("broadcast", lambda: self._session.command("broadcast", fields), timeout)

    async def history(
        self,
        channel: str,
        *,
        limit: int = 100,
        after: int | None = None,
        before: int | None = None,
        timeout: Timeout = _DEFAULT,
    ) -> Message:
        """What is kept of a channel: the reply with `epoch`, `offset` (the top) and `publications`, oldest first.

        At most `limit` (to 1000); with `after` the oldest behind that offset, else the newest (before `before`).
        """
        check_text("channel", channel)
        given = {"limit": limit, "after": after, "before": before}
        fields = {"channel": channel} | {name: value for name, value in given.items() if value is not None}
        return await self._perform("history", lambda: self._session.command("history", fields), timeout)

    async def presence(self, channel: str, *, timeout: Timeout = _DEFAULT) -> Message:
        """Who is on a channel: the reply with `online` and `users`, at most 1000 of them."""
        check_text("channel", channel)
        return await self._perform("presence", lambda: self._session.command("presence", {"channel": channel}), timeout)

    async def ping(self, *, timeout: Timeout = _DEFAULT) -> Message:
        """Ask for a sign of life."""
        return await self._perform("ping", lambda: self._session.command("ping", {}), timeout)

    async def command(self, action: str, /, *, timeout: Timeout = _DEFAULT, **fields: Any) -> Message:
        """Send an action of the application's own, and await the server's word that it has it.

        It is not repeated: errors: `CommandLostError` when the connection broke before the answer came; `ValueError`
        for the actions that are methods here, and for the fields `action` and `ref`.
        """
        check_text("action", action)
        if action in ("join_channel", "leave_channel"):
            raise ValueError(f"action is {action!r}; use join() and leave(), which know where the channel is")
        if taken := fields.keys() & {"action", "ref"}:
            raise ValueError(f"a field is named {taken.pop()!r}, which every command has")
        return await self._perform(action, lambda: self._session.command(action, fields, is_repeatable=False), timeout)

    # Commands

    async def _perform(self, what: str, start: Callable[[], str], timeout: Timeout) -> Message:
        limit = self._settings.command_timeout if isinstance(timeout, _Default) else timeout
        try:
            async with asyncio.timeout(limit) as scope, self._slots:
                self._check_usable()
                ref = start()
                future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
                self._futures[ref] = future
                try:
                    self._settle()
                    self._readable.set()
                    return await future
                finally:
                    del self._futures[ref]
                    self._session.forget(ref)
        except TimeoutError:
            if not scope.expired():
                raise
            raise CommandTimeoutError(f"{what}: no answer within {limit:g} s") from None

    def _check_usable(self) -> None:
        if self._error is not None:
            raise self._error
        if self._supervisor is None:
            raise ClosedError("the client is not open; use `async with connect(...) as t:`")
        if self._is_closing:
            raise ClosedError("the client was closed")

    def _fail_futures(self, error: ClientError) -> None:
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)

    # The connection

    async def _supervise(self) -> None:
        error: ClientError = ClosedError("the client's task was cancelled")
        try:
            await self._keep_connected()
        except ClientError as problem:
            error = problem
        except Exception as problem:
            logging.getLogger("tantor.client").exception("the client of %s failed", self._target)
            error = ClientError(f"the client of {self._target} failed: {problem!r}")
        finally:
            if not self._is_closing:
                self._error = error
                self._fail_futures(error)
                self._set_state("closed")
            self._wake_all()

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._settings.reconnect_base, self._settings.reconnect_cap)
        while not self._is_closing:
            delay: float | None = None
            try:
                connection = await self._target.open(self._session.query)
            except RetryError as problem:
                if backoff.is_first:
                    logging.getLogger("tantor.client").warning("%s; the client tries again", problem)
                self._problem = problem
                delay = backoff.next_delay(problem.after)
            else:
                began = loop.time()
                await self._serve(connection)
                if loop.time() - began >= min(STABLE_AFTER, self._settings.reconnect_cap):
                    backoff.reset()
                if self._welcomed.is_set() and not self._is_closing:
                    self._set_state("reconnecting")
                # the server spreads its clients itself
                delay = backoff.next_delay() if self._reconnect_after is None else self._reconnect_after
            await asyncio.sleep(delay)

    async def _serve(self, connection: ClientConnection) -> None:
        """Until the connection has ended. Errors: `DisconnectedError` when the client is not to come back."""
        self._connection = connection
        self._reconnect_after = None
        self._watch_over(connection)
        writer = asyncio.get_running_loop().create_task(self._write(connection), name="tantor-client-writer")
        code: int | None = None
        try:
            await self._read(connection)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            self._problem = closed
            logging.getLogger("tantor.client").info("%s: the connection ended: %s", self._target, closed)
            if not self._is_closing:
                self._check_final(closed)
        except NotTantorError as problem:
            description = f"{self._target} does not speak as a Tantor does: {problem}"
            if not self._welcomed.is_set():
                raise DisconnectedError(description) from None
            # a proxy may answer in the server's place for a while
            self._problem = problem
            logging.getLogger("tantor.client").warning("%s; the client connects again", description)
        finally:
            self._connection = None
            self._stop_watching()
            connection.transport.abort()
            writer.cancel()
            await asyncio.wait([writer])
            self._session.disconnected(code)
            self._settle()

    def _check_final(self, closed: ConnectionClosed) -> None:
        if closed.rcvd is not None and is_final(closed.rcvd.code):
            code, reason = closed.rcvd.code, closed.rcvd.reason
            raise DisconnectedError(f"{self._target} closed the connection for good: {code} {reason}", code, reason)
        if closed.sent is not None and closed.sent.code == 1009 and not closed.rcvd_then_sent:
            limit = self._settings.max_message_bytes
            raise DisconnectedError(f"a message was larger than max_message_bytes ({limit})", 1009, closed.sent.reason)

    async def _read(self, connection: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        session = self._session
        while True:
            # answers come behind the messages that wait in the socket
            while not (self._is_closing or session.has_room or (session.is_waiting and not session.is_overfull)):
                self._is_paused = True
                self._readable.clear()
                await self._readable.wait()
            self._is_paused = False
            self._seen = loop.time()
            frame = await connection.recv()
            if self._is_closing:
                continue
            if isinstance(frame, bytes):
                raise NotTantorError("a frame was binary")
            session.receive(frame)
            self._settle()

    async def _write(self, connection: ClientConnection) -> None:
        while True:
            frame = self._session.next_frame()
            if frame is None:
                self._sent.set()
                self._sendable.clear()
                await self._sendable.wait()
                continue
            try:
                await connection.send(frame)
            except ConnectionClosed:
                # the reader comes to the end too, behind what has arrived
                return

    def _watch_over(self, connection: ClientConnection) -> None:
        """Abort a connection that is silent for too long."""
        self._stop_watching()
        loop = asyncio.get_running_loop()
        self._seen = loop.time()
        limit = self._settings.open_timeout
        if self._session.is_welcome:
            if self._session.heartbeat_interval <= 0:
                return
            limit = self._session.heartbeat_interval + self._settings.heartbeat_slack

        def look() -> None:
            # what is not read is not heard
            silent = 0.0 if self._is_paused else loop.time() - self._seen
            if silent < limit:
                self._watch = loop.call_later(limit - silent, look)
                return
            logging.getLogger("tantor.client").info("%s was silent for %g s", self._target, silent)
            connection.transport.abort()

        self._watch = loop.call_later(limit, look)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _say_goodbye(self, connection: ClientConnection) -> None:
        self._session.flush_acks()
        self._sent.clear()
        self._sendable.set()
        try:
            async with asyncio.timeout(self._settings.close_timeout):
                await self._sent.wait()
                await connection.close()
        except TimeoutError:
            logging.getLogger("tantor.client").info(
                "%s did not take the goodbye within %g s", self._target, self._settings.close_timeout
            )

    # What the session says

    def _settle(self) -> None:
        """Pass on what the session has for others."""
        events = self._session.events
        while events:
            event = events.popleft()
            match event:
                case Welcomed():
                    if self._connection is not None:
                        self._watch_over(self._connection)
                    self._set_state("connected")
                    self._welcomed.set()
                case ShuttingDown(seconds):
                    self._reconnect_after = seconds
                case Answered(ref, reply):
                    if (future := self._futures.get(ref)) is not None and not future.done():
                        future.set_result(reply)
                case Failed(ref, error):
                    if (future := self._futures.get(ref)) is not None and not future.done():
                        future.set_exception(error)
                case Gap():
                    if self._on_gap is None:
                        logging.getLogger("tantor.client").warning(
                            "messages are missing, and there is no on_gap to be told: %s", event
                        )
                    self._notifier.call(self._on_gap, event)
        if self._session.messages:
            self._arrived.set()
        self._sendable.set()

    def _acknowledge(self) -> None:
        self._acking = None
        self._session.flush_acks()
        self._sendable.set()

    def _set_state(self, state: State) -> None:
        if self._state not in (state, "closed"):
            self._state = state
            self._notifier.call(self._on_state, state)

    def _wake_all(self) -> None:
        for event in (self._arrived, self._readable, self._sendable, self._welcomed):
            event.set()
