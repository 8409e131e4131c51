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
    """Copy a database, also while a server uses it, to a file that there is not yet."""

def restore(backup: str, database: str) -> None:
    """Put a copy in the place of a database that no server uses; every channel has another epoch then."""

def setting_table() -> list[tuple[str, str, Any, str]]:
    """Every setting as `(name, kind, default, help)`; kind is "integer", "number", "boolean", "text",
    "json" (text that holds JSON) or "list" (text of names with commas between).

    A default of None means that it is derived from other settings; `help` says how.
    """

def nearest_setting(name: str) -> str | None:
    """The setting that a misspelled name was most likely meant to be; None where none is near."""

def before_fork() -> None:
    """Wait, without the interpreter lock, until nothing is under way that a fork must not cut: a start, a commit.
    Nothing of the kind begins until one of the next two is called, on the same thread."""

def after_fork_in_parent() -> None:
    """Tell the module that the fork is done, in the parent."""

def after_fork_in_child() -> None:
    """Tell the module that this process is a fresh fork: what was started before is not ours."""

def wait_for_threads(timeout: float) -> bool:
    """Block until no thread of an ended server can call into Python; False when `timeout` seconds passed before."""

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

    `await done`, `asyncio.run(done)`, `asyncio.create_task(done)` and `asyncio.gather(done)` give the
    result; `done.result()` gives it without a loop.
    """

    @property
    def value(self) -> _T:
        """The result."""

    @property
    def message_id(self) -> str | None:
        """Of an emergency, for `delivery()`; None for anything else."""

    def result(self) -> _T:
        """The result, without a wait."""

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
    """A server and the calls on it. Every method may be called from any thread.

    In a child process that inherited a started one, every method raises `RuntimeError`.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Takes what a subclass's `__init__` takes, and nothing of it; `_configure` must follow."""

    def _configure(self, settings: Mapping[str, object], default: Callable[[Any], Any] | None = None) -> None:
        """Make the node, once; before it, every other method raises `RuntimeError`.

        Raises `SettingError` for a bad value, `TypeError` for an unknown setting.
        """

    @property
    def port(self) -> int:
        """The TCP port asked for; once listening, the one in use. 0 where every host is a Unix socket."""

    @property
    def host(self) -> str:
        """The addresses, names and Unix sockets asked for."""

    @property
    def is_running(self) -> bool:
        """Whether it listens, in this process."""

    def setting(self, name: str) -> Any:
        """The value in force of one setting; `KeyError` if there is none of that name."""

    def _listen(self, timeout: float | None = None) -> bool:
        """Bind and start the shards; returns once connections are accepted.

        False when it is already listening. Raises `OSError` naming host and port, or the path of a Unix socket;
        `TimeoutError` when it does not listen after `timeout` seconds.
        """

    def _begin_stop(self) -> None:
        """Start to drain; returns at once. Nothing happens when it is not running."""

    def _wait_stopped(self, timeout: float | None = None) -> bool:
        """Block (without the interpreter lock) until the server has ended; False when time ran out."""

    def _close_storage(self, timeout: float) -> None:
        """Have saved what is still to be, within so many seconds; then the database is closed until it is needed."""

    def _stopped(self) -> Operation:
        """The end of the server, which may not have begun yet."""

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
        """Publish to everyone subscribed to a channel; gives the number of connected subscribers it was handed to.

        `data` is what JSON can hold. None, or no data, arrives as `{}`, as with the original Tantor.
        `priority` is "low", "normal" (the default), "high" or "emergency". With `durable`, or on a durable channel, the
        awaitable is done when it is saved. A repeat with an `idempotency_key` publishes nothing and gives the first
        result. Errors: `DataError` for what JSON cannot hold; `ValueError` for a name or option that cannot be;
        `StorageError` if the database cannot be used.
        """

    def history(
        self, channel: str, limit: int = 100, after: int | None = None, before: int | None = None
    ) -> Done[History]:
        """What is kept of a channel: with `after` the oldest `limit` behind that offset, else the newest `limit`
        (before the offset `before`, if given). `ValueError` for what cannot be.
        """

    def delivery(self, message_id: str) -> dict[str, int] | None:
        """`{"handed_over", "written", "acknowledged", "waiting"}` of a message that was sent, or of an emergency: to
        how many connections it was handed over, how many sockets took it, how many clients acknowledged it, and for
        how many it is kept. None for one that is not known any more (the last 100,000 are).
        """

    def resume_token(self, client_id: str) -> str:
        """A token with which a client can connect under this id: `ws://host/?resume=` and the token.

        `ValueError` if `resume_ttl` is 0.
        """

    def _user_data(self, client_id: str) -> bytes | None:
        """What is kept for a client, as JSON; None when nothing is."""

    def _set_user_data(self, client_id: str, data: Any) -> None:
        """Keep something for a client, as long as it is known. `DataError` for what JSON cannot hold."""

    def subscribe(self, client_id: str, channel: str) -> Done[bool]:
        """Put a client on a channel; it need not be connected. Always True."""

    def unsubscribe(self, client_id: str, channel: str) -> Done[bool]:
        """Take a client off a channel. Always True."""

    def emergency(self, message: str) -> EmergencyResult:
        """To every connected client once, ahead of all that waits; gives how many, and has the `message_id`."""

    def get_presence(self, channel: str | None = None) -> dict[str, Any]:
        """`{"channel", "online", "users"}` of one channel, or `{name: count}` of all."""

    def stats(self) -> dict[str, Any]:
        """Counters and gauges; see docs/protocol.md for the keys."""

    def _channel_names(self) -> list[str]: ...
    def _channel_count(self) -> int: ...
    def _has_channel(self, name: str) -> bool: ...
    def _channel_info(self, name: str) -> tuple[str, str, list[str], float] | None:
        """`(name, type, subscribers, created_at)`, or None."""

    def create_channel(self, name: str, kind: Literal["public", "private", "emergency"] = "public") -> bool:
        """Make a channel; False when there is one of this name. `ValueError` for a name or kind that cannot be."""

    def delete_channel(self, name: str) -> bool:
        """Drop a channel, its history and its subscriptions; False when there is none of that name."""

    def _connection_ids(self) -> list[str]: ...
    def _connection_count(self) -> int: ...
    def _has_connection(self, client_id: str) -> bool: ...
    def _connection_info(self, client_id: str) -> tuple[str, float, float, list[str]] | None:
        """`(client_id, joined_at, last_ping, channels)`, times in Unix seconds; None when not connected."""

    def _want_event(self, event: str, wanted: bool) -> None:
        """Queue events of this name for `_next_events`, or stop to. Log records are always queued."""

    def _set_log_level(self, level: int) -> None:
        """Make no log records below this level of `logging`."""

    def _next_events(self, most: int) -> list[tuple[str, dict[str, Any], int]] | None:
        """Wait (without the interpreter lock) for events; None once the server has ended and all are taken.

        Each is `(name, fields, bytes that it took of event_queue_bytes)`; those of the call before count as handled.
        A log record is `("", {"logger", "level", "message"}, bytes)` with the level of `logging`.
        """
