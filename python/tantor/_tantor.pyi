"""The Rust half of Tantor. Use it through `tantor.Tantor`; these are its raw parts."""

import asyncio
from collections.abc import Callable, Generator, Mapping
from typing import Any, Generic, Literal, NoReturn, Self, TypeVar, final

from typing_extensions import disjoint_base

from tantor.pending import EmergencyResult, Pending
from tantor.setting_types import Priority
from tantor.views import History

__all__ = [
    "Done",
    "LoopTasks",
    "Messenger",
    "Operation",
    "__version__",
    "after_fork_in_child",
    "after_fork_in_parent",
    "back_up",
    "before_fork",
    "nearest_setting",
    "restore",
    "setting_table",
    "wait_for_threads",
]

__version__: str

_T = TypeVar("_T")

def back_up(database: str, target: str) -> None:
    """Copy a database to a new file, also while a server uses the database."""

def restore(backup: str, database: str) -> None:
    """Replace a database that no server uses by a copy. Every channel then has a new epoch."""

def setting_table() -> list[tuple[str, str, Any, str]]:
    """Every setting as `(name, kind, default, help)`; kind is "integer", "number", "boolean", "text", "json" (text
    that holds JSON) or "list" (names separated by commas).

    A default of None means that the default is derived from other settings; `help` says how.
    """

def nearest_setting(name: str) -> str | None:
    """The setting that a misspelled name most likely stands for; None if no name is similar."""

def before_fork() -> None:
    """Wait, without the interpreter lock, until no thread does fork-sensitive work: a start, a commit. No such
    work begins until this thread calls `after_fork_in_parent` or `after_fork_in_child`.
    """

def after_fork_in_parent() -> None:
    """Allow fork-sensitive work again, in the parent."""

def after_fork_in_child() -> None:
    """Mark this process as a new fork: the servers and databases that the parent opened belong to the parent."""

def wait_for_threads(timeout: float) -> bool:
    """Block until no thread of Tantor can call into Python any more; False if `timeout` seconds passed before."""

@final
class Operation:
    """An operation that has begun: something is being saved, or a server stops. Python code cannot make one.

    In a forked child, an operation of the parent that had not ended raises `ForkedError`.
    """

    def done(self) -> bool:
        """True if the operation has ended, with success or with an error."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block (without the interpreter lock) until the operation has ended; False if `timeout` seconds passed before.

        Errors: `StorageError` if the operation failed.
        """

    def future(self, tasks: LoopTasks) -> asyncio.Future[None]:
        """A future of the running event loop, which is done when the operation has ended, also with an error.

        `tasks` are the tasks of that loop.
        """

@final
class LoopTasks:
    """The tasks of one event loop, which watches `fileno` and calls `run_woken` when the socket is readable.

    `OSError` where there are no such sockets.
    """

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """The socket's file descriptor."""

    def run_woken(self) -> None:
        """Run each task that was woken; on the thread of the event loop."""

@final
class Done(Generic[_T]):
    """An awaitable that already holds its result; also a `collections.abc.Coroutine`.

    `await done`, `asyncio.run(done)`, `asyncio.create_task(done)` and `asyncio.gather(done)` return the result;
    `done.result()` returns it without an event loop.
    """

    @property
    def value(self) -> _T:
        """The result."""

    @property
    def message_id(self) -> str | None:
        """The id of an emergency, for `delivery()`; None for other messages."""

    def result(self) -> _T:
        """The result, at once."""

    def __await__(self) -> Generator[Any, Any, _T]: ...
    def __iter__(self) -> Done[_T]: ...
    def __next__(self) -> NoReturn: ...
    def send(self, value: Any, /) -> NoReturn:
        """As a coroutine, for `asyncio.create_task`."""

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> NoReturn:
        """As a coroutine."""

    def close(self) -> None:
        """As a coroutine."""

    def __class_getitem__(cls, item: Any) -> Any: ...

@disjoint_base
class Messenger:
    """A server, and the calls on it. Every method may be called from any thread.

    In a forked child, every method of a messenger that the parent started raises `ForkedError`.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Takes what a subclass's `__init__` takes, and nothing of it; `_configure` must follow."""

    def _configure(self, settings: Mapping[str, object], default: Callable[[Any], Any] | None = None) -> None:
        """Apply the settings, once. Before this call, every other method raises `RuntimeError`.

        Errors: `SettingError` for a value that a setting does not take, `TypeError` for an unknown setting.
        """

    @property
    def port(self) -> int:
        """The configured TCP port; while the server listens, the port in use. 0 where every host is a Unix socket."""

    @property
    def host(self) -> str:
        """The configured addresses, host names and Unix sockets."""

    @property
    def is_running(self) -> bool:
        """True while the server listens, in this process."""

    def setting(self, name: str) -> Any:
        """The value in force of a setting. `KeyError` for an unknown name."""

    def _ask_before_attach(self, may_attach: Callable[[], object]) -> None: ...
    @property
    def _reaches_server(self) -> bool: ...
    def _listen(self, timeout: float | None = None) -> bool:
        """Bind the addresses and start the shards; return once connections are accepted.

        False if the server listens already. Errors: `OSError` that names host and port, or the path of a Unix
        socket; `TimeoutError` if the server does not listen within `timeout` seconds.
        """

    def _begin_stop(self) -> None:
        """Start to stop the server, and return at once. Does nothing if the server does not run."""

    def _wait_stopped(self, timeout: float | None = None) -> bool:
        """Block (without the interpreter lock) until the server has ended; False if `timeout` seconds passed before."""

    def _close_storage(self, timeout: float) -> None:
        """Save the waiting changes, for at most `timeout` seconds, and close the database until its next use."""

    def _stopped(self) -> Operation:
        """The end of the server as an operation, which ends at once if the server does not run."""

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
    ) -> Done[str] | Pending[str]:
        """As `tantor.Tantor.send`."""

    def broadcast(
        self,
        channel: str,
        event: str,
        data: Any = None,
        *,
        default: Callable[[Any], Any] | None = None,
        priority: Priority | None = None,
        durable: bool = False,
        idempotency_key: str | None = None,
    ) -> Done[int] | Pending[int]:
        """Publish to all subscribers of a channel. The result is the number of connected subscribers reached.

        `data` is a value that JSON can hold. None, or no data, arrives as `{}`, as with the original Tantor.
        `priority` is "low", "normal" (the default), "high" or "emergency". With `durable`, or on a durable channel,
        the awaitable is done when the message is saved. A repeat with the same `idempotency_key` publishes nothing,
        and returns the first result. Errors: `DataError` for data that JSON cannot hold; `ValueError` for an
        invalid name or option; `StorageError` if the database cannot be used.
        """

    def history(
        self, channel: str, limit: int = 100, after: int | None = None, before: int | None = None
    ) -> Done[History]:
        """A page of a channel's history: the oldest `limit` publications after the offset `after`, or else the newest
        `limit` publications (before the offset `before`, if given). `ValueError` for an invalid limit or offset.
        """

    def delivery(self, message_id: str) -> dict[str, int] | None:
        """The progress of a message or an emergency, as `{"handed_over", "written", "acknowledged", "waiting"}`.

        `handed_over` counts the connections that the message was queued for, `written` the sockets that took the
        message, `acknowledged` the clients that acknowledged the message, `waiting` the clients that the message is
        kept for. None for an unknown id; the server knows the last 100,000 messages.
        """

    def resume_token(self, client_id: str) -> str:
        """A token with which a client can connect under this id, as `ws://host/?resume=<token>`.

        `ValueError` if `resume_ttl` is 0.
        """

    def _user_data(self, client_id: str) -> bytes | None:
        """The data that the application keeps for a client, as JSON; None if there is none."""

    def _set_user_data(self, client_id: str, data: Any) -> None:
        """Keep data for a client while the server knows the client. `DataError` for data that JSON cannot hold."""

    def subscribe(self, client_id: str, channel: str) -> Done[bool]:
        """Subscribe a client, connected or not, to a channel. The result is always True."""

    def unsubscribe(self, client_id: str, channel: str) -> Done[bool]:
        """Unsubscribe a client from a channel. The result is always True."""

    def emergency(self, message: str) -> EmergencyResult:
        """Send a message to every connected client, once, before all other waiting messages.

        The result is the number of clients; the awaitable also has the `message_id`.
        """

    def get_presence(self, channel: str | None = None) -> dict[str, Any]:
        """The subscribers of one channel as `{"channel", "online", "users"}`, or `{name: count}` of all channels."""

    def stats(self) -> dict[str, Any]:
        """Counters and gauges of the server; docs/protocol.md lists the keys."""

    def _channel_names(self) -> list[str]: ...
    def _channel_count(self) -> int: ...
    def _has_channel(self, name: str) -> bool: ...
    def _channel_info(self, name: str) -> tuple[str, str, list[str], float] | None:
        """A channel as `(name, type, subscribers, created_at)`; None if there is none of this name."""

    def create_channel(self, name: str, kind: Literal["public", "private", "emergency"] = "public") -> bool:
        """Create a channel; False if there is one of this name. `ValueError` for an invalid name or kind."""

    def delete_channel(self, name: str) -> bool:
        """Delete a channel with its history and its subscriptions; False if there is none of this name."""

    def _connection_ids(self) -> list[str]: ...
    def _connection_count(self) -> int: ...
    def _has_connection(self, client_id: str) -> bool: ...
    def _connection_info(self, client_id: str) -> tuple[str, float, float, list[str]] | None:
        """A client as `(client_id, joined_at, last_ping, channels)`, times in Unix seconds; None if not connected."""

    def _want_event(self, event: str, wanted: bool) -> None:
        """Queue events of this name for `_next_events`, or stop queueing them. Log records are always queued."""

    def _set_log_level(self, level: int) -> None:
        """Queue no log records below this level of `logging`."""

    def _next_events(self, most: int) -> list[tuple[str, dict[str, Any], int]] | None:
        """Wait (without the interpreter lock) for events; None once the server has ended and all events were taken.

        An event is `(name, fields, bytes)`, where `bytes` is its share of `event_queue_bytes`. The events of one
        call count as handled at the next call. A log record is `("", {"logger", "level", "message"}, bytes)`, with
        the level of `logging`.
        """
