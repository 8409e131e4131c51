"""What calls return whose end is still to come: awaitables that also have `.result()`, for where nothing is awaited."""

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from tantor import _tantor

_T = TypeVar("_T")

# seconds between two looks, on event loops that cannot watch a socket
_POLL_INTERVAL = 0.005


class _Begun(Coroutine[Any, Any, _T], Generic[_T]):
    """Work that has begun. May be awaited more than once, and be made a task."""

    __slots__ = ("__weakref__", "_running")

    def __init__(self) -> None:
        self._running: Coroutine[Any, Any, _T] | None = None

    @abstractmethod
    async def _finished(self) -> _T:
        """Wait on the running loop."""

    def __await__(self) -> Generator[Any, Any, _T]:
        return self._finished().__await__()

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
            self._running = self._finished()
        return self._running


class Pending(_Begun[_T]):
    """Done when it is saved. `await` it, or call `.result()` where nothing can be awaited.

    May be awaited more than once, from any loop; what is published stays published when the wait is cancelled.
    Errors: `StorageError` if it could not be saved; what was to be handed over after saving was not, then.
    """

    __slots__ = ("_commit", "message_id", "value")

    def __init__(self, value: _T, commit: _tantor.Commit, message_id: str | None = None) -> None:
        super().__init__()
        self.value = value
        """The result, known before it is saved."""
        self.message_id = message_id
        """Of an emergency, for `delivery()`; None for anything else."""
        self._commit = commit

    def done(self) -> bool:
        """Whether it is saved, or could not be."""
        return self._commit.done()

    def result(self, timeout: float | None = None) -> _T:
        """Block until it is saved. `TimeoutError` after `timeout` seconds; not to be called on an event loop's thread
        unless it is done."""
        self._commit.wait(timeout)
        return self.value

    async def _finished(self) -> _T:
        if not self._commit.done():
            await _watch(self._commit)
        return self.result()

    def __repr__(self) -> str:
        return f"Pending({self.value!r}, {'done' if self.done() else 'being saved'})"


class Stopping(_Begun[None]):
    """The end of a server, which has begun. `await` it, or call `.result()` where nothing can be awaited."""

    __slots__ = ("_stopped", "_wait")

    def __init__(self, stopped: Callable[[], Awaitable[None]], wait: Callable[[float | None], bool]) -> None:
        super().__init__()
        self._stopped = stopped
        self._wait = wait

    def done(self) -> bool:
        """Whether the server has ended."""
        return self._wait(0.0)

    def result(self, timeout: float | None = None) -> None:
        """Block until the server has ended. `TimeoutError` after `timeout` seconds."""
        if not self._wait(timeout):
            raise TimeoutError(f"the server has not ended within {timeout:g} s")

    async def _finished(self) -> None:
        await self._stopped()

    def __repr__(self) -> str:
        return f"Stopping({'done' if self.done() else 'under way'})"


if TYPE_CHECKING:

    class EmergencyResult(Coroutine[Any, Any, int]):
        """What `emergency()` returns, for type checkers: a `Done[int]` or `Pending[int]` that has a message id."""

        @property
        def value(self) -> int:
            """How many clients it was handed to."""

        @property
        def message_id(self) -> str:
            """For `delivery()`."""

        def result(self) -> int:
            """The number of clients, once the emergency is saved if it is to be."""


class _Watcher:
    """An event loop's bell, and who waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bell = _tantor.Bell()
        self._waiting: dict[asyncio.Future[None], _tantor.Commit] = {}

    async def wait(self, commit: _tantor.Commit) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        if not self._waiting:
            self._loop.add_reader(self._bell.fileno(), self._hear)
        self._waiting[future] = commit
        try:
            if commit.ring_when_done(self._bell):
                await future
        finally:
            self._waiting.pop(future, None)
            if not self._waiting:
                self._loop.remove_reader(self._bell.fileno())

    def _hear(self) -> None:
        self._bell.hear()
        for future, commit in self._waiting.items():
            if commit.done() and not future.done():
                future.set_result(None)


_watchers: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Watcher | None]" = WeakKeyDictionary()


async def _watch(commit: _tantor.Commit) -> None:
    loop = asyncio.get_running_loop()
    if loop not in _watchers:
        _watchers[loop] = _make_watcher(loop)
    watcher = _watchers[loop]
    if watcher is not None:
        await watcher.wait(commit)
        return
    while not commit.done():
        await asyncio.sleep(_POLL_INTERVAL)


def _make_watcher(loop: asyncio.AbstractEventLoop) -> _Watcher | None:
    """None for a loop that cannot watch a socket, as Windows' own."""
    try:
        watcher = _Watcher(loop)
        loop.add_reader(watcher._bell.fileno(), watcher._hear)
        loop.remove_reader(watcher._bell.fileno())
    except (NotImplementedError, OSError):
        return None
    return watcher
