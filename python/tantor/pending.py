"""Results of calls whose work goes on after the call: awaitables that also have `.result()`, for synchronous code."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from tantor import _tantor

_T = TypeVar("_T")

# seconds between two looks, on event loops that cannot watch a socket
_POLL_INTERVAL = 0.005


class _Begun(Coroutine[Any, Any, _T], Generic[_T]):
    """An operation that has begun. May be awaited more than once, and be made a task."""

    __slots__ = ("__weakref__", "_operation", "_running")

    def __init__(self, operation: _tantor.Operation) -> None:
        self._operation = operation
        self._running: Coroutine[Any, Any, _T] | None = None

    @abstractmethod
    def result(self, timeout: float | None = None) -> _T:
        """Block until the operation has ended, and return its result."""

    async def _ended(self) -> _T:
        if not self._operation.done():
            await ended(self._operation)
        return self.result()

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._ended().__await__()

    def send(self, value: Any, /) -> Any:
        """As a coroutine, for `asyncio.create_task`."""
        return self._coroutine().send(value)

    def throw(self, typ: Any, val: Any = None, tb: Any = None, /) -> Any:
        """As a coroutine."""
        if val is None and tb is None:
            return self._coroutine().throw(typ)
        return self._coroutine().throw(typ, val, tb)

    def close(self) -> None:
        """As a coroutine."""
        if self._running is not None:
            self._running.close()

    def _coroutine(self) -> Coroutine[Any, Any, _T]:
        if self._running is None:
            self._running = self._ended()
        return self._running


class Pending(_Begun[_T]):
    """The result of a call whose message is being saved. `await` it, or call `.result()` in synchronous code.

    May be awaited more than once, and from any event loop. Cancelling the wait does not undo the call.
    Errors: `StorageError` if the message could not be saved; then no client got what was to be delivered after saving.
    """

    __slots__ = ("message_id", "value")

    def __init__(self, value: _T, operation: _tantor.Operation, message_id: str | None = None) -> None:
        super().__init__(operation)
        self.value = value
        """The result, known before the message is saved."""
        self.message_id = message_id
        """The id of an emergency, for `delivery()`; None for other messages."""

    def done(self) -> bool:
        """True if the message is saved, or could not be saved."""
        return self._operation.done()

    def result(self, timeout: float | None = None) -> _T:
        """Block until the message is saved. `TimeoutError` after `timeout` seconds.

        On the thread of an event loop, call it only when `done()` is true: it blocks the loop.
        """
        if not self._operation.wait(timeout):
            raise TimeoutError(f"the message was not saved within {timeout:g} s")
        return self.value

    def __repr__(self) -> str:
        return f"Pending({self.value!r}, {'done' if self.done() else 'being saved'})"


class Stopping(_Begun[None]):
    """The stop of a server, which has begun. `await` it, or call `.result()` in synchronous code."""

    __slots__ = ()

    def done(self) -> bool:
        """True if the server has ended."""
        return self._operation.done()

    def result(self, timeout: float | None = None) -> None:
        """Block until the server has ended. `TimeoutError` after `timeout` seconds."""
        if not self._operation.wait(timeout):
            raise TimeoutError(f"the server has not ended within {timeout:g} s")

    def __repr__(self) -> str:
        return f"Stopping({'done' if self.done() else 'under way'})"


if TYPE_CHECKING:

    class EmergencyResult(Coroutine[Any, Any, int]):
        """What `emergency()` returns, for type checkers: a `Done[int]` or `Pending[int]` that has a message id."""

        @property
        def value(self) -> int:
            """The number of clients that the emergency was delivered to."""

        @property
        def message_id(self) -> str:
            """The id for `delivery()`."""

        def result(self) -> int:
            """The number of clients; with a durable emergency, blocks until it is saved."""


# the tasks of each event loop on which an operation was awaited; None for a loop that cannot watch a socket
_tasks: "WeakKeyDictionary[asyncio.AbstractEventLoop, _tantor.LoopTasks | None]" = WeakKeyDictionary()


def ended(operation: _tantor.Operation) -> Awaitable[None]:
    """An awaitable of the running event loop, done when an operation has ended, also with an error."""
    loop = asyncio.get_running_loop()
    tasks = _tasks.get(loop)  # one look, because each durable call comes here
    if tasks is None and loop not in _tasks:
        tasks = _tasks[loop] = _make_tasks(loop)
    return _poll(operation) if tasks is None else operation.future(tasks)


async def _poll(operation: _tantor.Operation) -> None:
    while not operation.done():
        await asyncio.sleep(_POLL_INTERVAL)


def _make_tasks(loop: asyncio.AbstractEventLoop) -> "_tantor.LoopTasks | None":
    for other in list(_tasks):
        # a task that a closed loop never ran refers to its loop, so such a loop would stay in memory
        if other.is_closed():
            del _tasks[other]
    try:
        tasks = _tantor.LoopTasks()
        loop.add_reader(tasks.fileno(), tasks.run_woken)
    except (NotImplementedError, OSError):  # Windows' default loop, or a system without such sockets
        return None
    return tasks
