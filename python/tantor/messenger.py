"""`Tantor`: the messenger that applications make, start and talk to."""

import asyncio
import atexit
import contextlib
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from weakref import WeakSet

from tantor import _tantor
from tantor.coroutines import Handler
from tantor.dispatch import Dispatcher, Handlers, effective_log_level
from tantor.errors import ForkedError
from tantor.latest import remember_latest
from tantor.memory import Keeper, Memory, find_memory
from tantor.pending import Pending, Stopping, ended
from tantor.setting_types import Priority, Settings
from tantor.settings import resolve
from tantor.signals import exit_at_sigterm, stop_at_sigterm
from tantor.test_client import write_test_client
from tantor.views import Channels, Connections

if TYPE_CHECKING:
    from tantor.pending import EmergencyResult

_HandlerT = TypeVar("_HandlerT", bound=Handler)

# the prefix of hosts that are Unix sockets
_UNIX = "unix:"

# seconds that the end of a server waits for the handlers of its last events
_HANDLER_TIMEOUT = 2.0

# seconds that the end of the interpreter waits for changes to be saved
_STORAGE_TIMEOUT = 30.0

# seconds that the end of the interpreter waits for a slow Memory
_MEMORY_TIMEOUT = 2.0

# seconds that the end of the interpreter waits for threads that may still call into Python
_THREAD_TIMEOUT = 5.0


class Tantor(_tantor.Messenger):
    """A messaging server inside this process.

    The constructor starts nothing. Every method may be called from any thread and any event loop, also while the
    server does not run. `send`, `broadcast`, `subscribe`, `unsubscribe` and `emergency` do their work before they
    return. Their result may be awaited, and has `.result()` for synchronous code.

    Settings that are not given here come from the environment (`TANTOR_PORT`), or else have their defaults;
    `tantor serve --help` lists them. `default` converts data that JSON does not know, as in `json.dumps`.

    Errors: `SettingError` for a value that a setting does not take, `TypeError` for a setting that does not exist.
    """

    def __init__(
        self,
        port: int | None = None,
        host: str | Sequence[str] | None = None,
        *,
        default: Callable[[Any], Any] | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self._configure(resolve({"port": port, "host": host, **settings}), default)
        self._handlers = Handlers(self)
        self._dispatcher: Dispatcher | None = None
        self.channels = Channels(self)
        self.connections = Connections(self)
        self.memory: Memory | None = None
        self._keeper = Keeper()
        _keepers.add(self._keeper)
        self._has_sought_memory = False
        if self.setting("database"):
            _prepare_process()
            _stored.add(self)
        remember_latest(self)

    def __repr__(self) -> str:
        try:
            state = "listening" if self.is_running else "sleeping"
        except ForkedError:
            return "<Tantor of the process that this one was forked from>"
        return f"<Tantor on {', '.join(self._addresses())}, {state}>"

    async def start(self) -> None:
        """Serve until `stop()`, cancellation, Ctrl-C or SIGTERM; when it returns, the port is free.

        Async handlers run on the loop of this call. If the server runs already, this only waits for its end. If
        `handle_sigterm` is set and this is the main thread, SIGTERM stops the server and then calls the previous
        handler.
        Errors: `OSError` that names host and port, or the path of a Unix socket, when it cannot listen.
        """
        started = self._serve(asyncio.get_running_loop())
        restore_sigterm = stop_at_sigterm(self) if started and self.setting("handle_sigterm") else None
        try:
            await ended(self._stopped())
        except GeneratorExit:  # the loop was closed while this coroutine waited
            self._begin_stop()
            raise
        except asyncio.CancelledError:
            if started:
                self._begin_stop()
                await self._ended()
            raise
        finally:
            if restore_sigterm is not None:
                restore_sigterm()
        if started:
            await self._ended()

    def stop_on_sigterm(self) -> None:
        """Make SIGTERM stop this server, and then call the current handler. For the main thread.


        For an application that handles SIGTERM itself, or runs its own event loop: call this method after the
        application has set its handler. Without such a handler, a server in the background needs no call.
        """
        stop_at_sigterm(self)

    def start_background(self, timeout: float = 5) -> Self:
        """Serve on background threads; returns once the server listens. Does nothing if it listens already.

        Async handlers run on an event loop of Tantor's own. If `handle_sigterm` is set, the application has no handler
        of SIGTERM, and this is the main thread, SIGTERM then stops the server and ends the process as `sys.exit(143)`
        does. Errors: `OSError` as `start`; `TimeoutError` if it does not listen after `timeout` seconds.
        """
        if self._serve(None, timeout) and self.setting("handle_sigterm"):
            exit_at_sigterm(_running)
        return self

    def stop(self) -> Stopping:
        """Stop: tell every client, write the waiting messages (for up to `drain_timeout`), and end.

        The stop has begun when the call returns. The port is free once the returned awaitable is done, or its
        `.result()` has returned. May be called from any thread and event loop, also while the server does not run.
        """
        self._begin_stop()
        return Stopping(self._stopped())

    def __enter__(self) -> Self:
        return self.start_background()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._begin_stop()
        except ForkedError:  # a child does not stop the server of its parent
            return
        self._wait_stopped()
        if self._dispatcher is not None:
            self._dispatcher.wait_finished(_HANDLER_TIMEOUT)

    async def __aenter__(self) -> Self:
        self._serve(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._begin_stop()
        except ForkedError:  # as in __exit__
            return
        await self._ended()

    def on_event(self, event: str, handler: Handler) -> None:
        """Register a handler, sync or async. It is called with a dict for each event of this name.

        Built in: `welcome` (also as `connect`), `user_joined`, `user_left`, `emergency_alert`, `server_shutdown`,
        `ping`, `pong`, `disconnect`, `message` (a frame with an action of the application's own), and any
        event that a client broadcasts. A handler that raises is logged with its traceback.
        """
        self._handlers.add(event, handler)

    def off_event(self, event: str, handler: Handler) -> bool:
        """Remove a handler; False if it was not registered."""
        return self._handlers.remove(event, handler)

    def on(self, event: str) -> Callable[[_HandlerT], _HandlerT]:
        """`on_event` as a decorator: `@tantor.on("user_joined")`."""

        def register(handler: _HandlerT) -> _HandlerT:
            self._handlers.add(event, handler)
            return handler

        return register

    def send(
        self,
        client_id: str,
        message: Any,
        channel: str | None = None,
        *,
        default: Callable[[Any], Any] | None = None,
        priority: Priority | None = None,
        durable: bool = False,
        idempotency_key: str | None = None,
    ) -> "_tantor.Done[str] | Pending[str]":
        """Send to one client: a str goes under `message`, a dict's keys to the top level. The result is the message id.

        A client that is away, or not known yet, gets the message when it connects (within `message_ttl`). `priority`
        is "low", "normal" (the default), "high" or "emergency"; an emergency is kept and sent again until it is
        acknowledged. With `durable` the awaitable is done when the message is saved, if it is kept. A repeat with the
        same `idempotency_key` sends nothing, and returns the first id.
        Errors: `DataError` for data that JSON cannot hold; `ValueError` for an invalid id, channel or option;
        `StorageError` if the database cannot be used.
        """
        sent = super().send(
            client_id,
            message,
            channel,
            default=default,
            priority=priority,
            durable=durable,
            idempotency_key=idempotency_key,
        )
        self._warn_unless_running()
        if self.memory is not None:
            message_id = sent.value
            value = {
                "id": message_id,
                "channel": channel or self.setting("default_channel"),
                "timestamp": time.time(),
                "sender": "tantor",
            }
            value |= message if isinstance(message, dict) else {"message": message}
            self._remember(f"tantor_msg_{message_id}", value, self.setting("message_ttl"))
        return sent

    def emergency(self, message: str) -> "EmergencyResult":
        """Send to every connected client, once, before all other waiting messages. The result is the number of clients.

        The message is kept for clients that are away (within `emergency_ttl`). Clients that acknowledge messages get
        it again every `ack_timeout` until they acknowledge it. The result also has the `message_id`, for `delivery`.
        Where all channels, or the channel `emergency`, are durable, the awaitable is done when the message is saved.
        """
        recipients = super().emergency(message)
        self._warn_unless_running()
        if self.memory is not None:
            now = time.time()
            value = {"message": message, "timestamp": now, "recipients": recipients.value}
            self._remember(f"tantor_emergency_{int(now)}", value, self.setting("emergency_ttl"))
        return recipients

    def get_client_info(self, client_id: str) -> dict[str, Any] | None:
        """`{"client_id", "connected_at", "last_ping", "channels", "uptime", "user_data"}`; None if not connected.

        Times are Unix seconds, `uptime` is seconds.
        """
        connection = self.connections.get(client_id)
        if connection is None:
            return None
        return {
            "client_id": client_id,
            "connected_at": connection.joined_at,
            "last_ping": connection.last_ping,
            "channels": list(connection.channels),
            "uptime": time.time() - connection.joined_at,
            "user_data": dict(connection.user_data),
        }

    def create_test_client_html(self, port: int | None = None) -> str:
        """Write `tantor-test-client.html`, a page for manual tests of a server, and return its path.

        The page connects to `port`, by default the port of this server (8080 while the port is still 0).
        Errors: `ValueError` without a `port` if this server has Unix sockets only, because no browser can use them.
        """
        if port is None:
            if not self._has_tcp():
                raise ValueError(
                    f"{self!r} has no TCP port; create_test_client_html(port=...) takes the port of the proxy before it"
                )
            port = self.port or 8080
        return write_test_client(port)

    def _addresses(self) -> list[str]:
        """Each host; TCP hosts with the port."""
        hosts = [host.strip() for host in self.host.split(",")]
        return [host if host.startswith(_UNIX) else f"{host}:{self.port}" for host in hosts]

    def _has_tcp(self) -> bool:
        return any(not address.startswith(_UNIX) for address in self._addresses())

    def _warn_unless_running(self) -> None:
        """Log a warning, once a process, if the server does not run: then messages reach no client."""
        global _has_warned
        if not _has_warned and not self._reaches_server:
            _has_warned = True
            _prepare_process()  # then the end of the interpreter waits for the warning
            logging.getLogger("tantor.server").warning(
                "%r is not started, so nobody is connected to it: what this process sends reaches no client. "
                "Start it with start_background(), or send from the process that serves",
                self,
            )

    def _remember(self, key: str, value: dict[str, Any], ttl: float) -> None:
        _prepare_process()  # then the end of the interpreter waits for the Memory
        if self.memory is not None:
            self._keeper.keep(self.memory, key, value, math.ceil(ttl))

    async def _ended(self) -> None:
        """Wait until the server has ended, and for a while until its last events are handled."""
        await ended(self._stopped())
        if self._dispatcher is not None:
            await self._dispatcher.finished(_HANDLER_TIMEOUT)

    def _serve(self, loop: asyncio.AbstractEventLoop | None, timeout: float | None = None) -> bool:
        """Listen, and dispatch events; False if the server runs already."""
        _prepare_process()
        if self.memory is None and not self._has_sought_memory:
            self._has_sought_memory = True
            self.memory = find_memory()
        if self.is_running:
            return False
        self._set_log_level(effective_log_level())
        dispatcher = Dispatcher(self, self._handlers, loop, self._dispatcher, self._dispatched)
        is_new = False
        _running.add(self)
        try:
            is_new = self._listen(timeout)
        except Exception as error:  # this start failed; another start may have succeeded
            if not self.is_running:
                _running.discard(self)
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                self._explain_taken_port(error)
            raise
        except BaseException:  # Ctrl-C, perhaps just after the server began to listen
            self._begin_stop()
            raise
        finally:
            if is_new:
                self._dispatcher = dispatcher
                dispatcher.begin()
            else:
                dispatcher.abandon()
        return is_new

    def _explain_taken_port(self, error: OSError) -> None:
        """Name the Tantor of this process that has the port or socket, if any, and make `get_tantor()` return it."""
        failed = str(error.strerror)
        for other in list(_running):
            if other is self or not other.is_running:
                continue
            if any(f" {address}: " in failed for address in other._addresses() if address.startswith(_UNIX)):
                taken = "socket"
            elif other._has_tcp() and f":{other.port}: " in failed:
                taken = "port"
            else:
                continue
            remember_latest(other)
            error.strerror = (
                f"{failed}; {other!r} of this process has the {taken}: get_tantor() gives that one, "
                f"and its stop() frees the {taken}"
            )
            return

    def _dispatched(self, dispatcher: Dispatcher) -> None:
        if dispatcher is self._dispatcher:  # the server was not started again in between
            _running.discard(self)


# this process has logged that its messages reach no client
_has_warned = False

# running servers; these references keep them alive when the application drops its own
_running: set[Tantor] = set()

# those with a database, which may be open also while the server does not run
_stored: "WeakSet[Tantor]" = WeakSet()

# those that may have entries for a Memory
_keepers: "WeakSet[Keeper]" = WeakSet()
_prepared = False


def _prepare_process() -> None:
    global _prepared
    if not _prepared:
        _prepared = True
        atexit.register(_stop_all)


def _stop_all() -> None:
    """Stop all servers before the interpreter ends, because no thread may call into an interpreter that has ended."""
    running = list(_running)
    for tantor in running:
        tantor._begin_stop()
    for tantor in running:
        tantor._wait_stopped(tantor.setting("drain_timeout") + _HANDLER_TIMEOUT)
        if tantor._dispatcher is not None:
            tantor._dispatcher.wait_finished(_HANDLER_TIMEOUT)
    for tantor in list(_stored):
        with contextlib.suppress(ForkedError):  # a child does not stop the server of its parent
            tantor._close_storage(_STORAGE_TIMEOUT)
    for keeper in list(_keepers):
        keeper.wait_empty(_MEMORY_TIMEOUT)
    _tantor.wait_for_threads(_THREAD_TIMEOUT)


def _after_fork_in_child() -> None:
    _tantor.after_fork_in_child()
    _running.clear()


# at import: functions that the application registers later run earlier before a fork, and later in the child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_tantor.before_fork,
        after_in_parent=_tantor.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
