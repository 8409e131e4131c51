"""Calls the application's handlers: one thread takes events from Rust in batches, coroutines go to a loop.

The events of one client are handled in order; a slow handler delays other handlers at most, never a socket.
"""

import asyncio
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tantor import _tantor
from tantor.coroutines import CoroutineRunner, Handler, log_failure, native

_BATCH = 1024


_LOGGERS = (
    "tantor",
    "tantor.server",
    "tantor.auth",
    "tantor.connections",
    "tantor.events",
    "tantor.storage",
)


def effective_log_level() -> int:
    """The lowest level that any of Tantor's loggers accepts; Rust creates no records below this level."""
    level = min(logging.getLogger(name).getEffectiveLevel() for name in _LOGGERS)
    return min(level, logging.CRITICAL)


class Handlers:
    """The handlers of each event."""

    def __init__(self, messenger: _tantor.Messenger) -> None:
        self._messenger = messenger
        self._by_event: dict[str, tuple[Handler, ...]] = {}
        self._changing = native("_thread", "allocate_lock")()
        self.make_context: Callable[[], AbstractContextManager[Any]] | None = None
        """Creates the context in which each handler runs, such as `Flask.app_context`."""

    def add(self, event: str, handler: Handler) -> None:
        """Register a handler; a handler that is registered twice is called twice."""
        if not isinstance(event, str):
            raise TypeError(f"event must be a str, not {type(event).__name__}")
        if not callable(handler):
            raise TypeError(f"a handler of {event!r} must be callable, not {type(handler).__name__}")
        with self._changing:
            self._by_event[event] = (*self._by_event.get(event, ()), handler)
            self._messenger._want_event(event, True)

    def remove(self, event: str, handler: Handler) -> bool:
        """Remove the handler's latest registration; False if there is none."""
        with self._changing:
            handlers = list(self._by_event.get(event, ()))
            if handler not in handlers:
                return False
            handlers.reverse()
            handlers.remove(handler)
            handlers.reverse()
            self._by_event[event] = tuple(handlers)
            if not handlers:
                self._messenger._want_event(event, False)
            return True

    def of(self, event: str) -> tuple[Handler, ...]:
        """The handlers of an event, in the order of registration."""
        return self._by_event.get(event, ())


class Dispatcher:
    """Dispatches the events of one run of the server, to the last event after the end of the run.

    Making one starts its thread, which waits for `begin` or `abandon`. So a process that can start no more threads
    fails before its server listens. Coroutines run on `loop`; if it is None, or ends before the server does, on a loop
    of Tantor's own. The thread takes nothing before the `previous` run's dispatcher has taken its last event.
    `on_finished` is called after the last event.

    Errors: `RuntimeError` when no thread can be started.
    """

    def __init__(
        self,
        messenger: _tantor.Messenger,
        handlers: Handlers,
        loop: asyncio.AbstractEventLoop | None,
        previous: "Dispatcher | None",
        on_finished: "Callable[[Dispatcher], None]",
    ) -> None:
        self._messenger = messenger
        self._handlers = handlers
        self._previous = previous
        self._on_finished = on_finished
        self._coroutines = CoroutineRunner(loop, messenger.setting("event_queue_bytes"))
        self._is_abandoned = False
        self._begun = _closed_gate()
        self._taken = _closed_gate()
        self._finished = _closed_gate()
        native("_thread", "start_new_thread")(self._run, ())

    def begin(self) -> None:
        """Start to take events, because the server listens."""
        self._begun.release()

    def abandon(self) -> None:
        """End the thread, because the server was not started."""
        self._is_abandoned = True
        self._begun.release()

    def wait_finished(self, timeout: float) -> bool:
        """Block until every event was handled; False when `timeout` seconds passed before."""
        return _wait_gate(self._finished, timeout)

    async def finished(self, timeout: float) -> None:
        """Wait on the running loop until every event was handled, or `timeout` seconds passed."""
        deadline = asyncio.get_running_loop().time() + timeout
        while not self.wait_finished(0) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.005)

    def _run(self) -> None:
        _wait_gate(self._begun, -1)
        if self._is_abandoned:
            return
        try:
            if self._previous is not None:
                _wait_gate(self._previous._taken, -1)
                self._previous = None
            while (batch := self._messenger._next_events(_BATCH)) is not None:
                _contained(self._update_log_level)
                for name, data, size in batch:
                    try:
                        self._tell(name, data, size)
                    except BaseException:  # this thread handles all events, so no exception may end it
                        traceback.print_exc()
                _contained(self._coroutines.submit)
        finally:
            self._taken.release()
            _contained(self._coroutines.finish)
            self._on_finished(self)
            self._finished.release()

    def _update_log_level(self) -> None:
        # an empty batch arrives about once a second, so a level that the application changes takes effect
        self._messenger._set_log_level(effective_log_level())

    def _tell(self, name: str, data: dict[str, Any], size: int) -> None:
        if not name:
            logging.getLogger(f"tantor.{data['logger']}").log(data["level"], "%s", data["message"])
            return
        handlers = self._handlers.of(name)
        make_context = self._handlers.make_context
        client_id = data.get("client_id")
        for handler in handlers:
            try:
                with nullcontext() if make_context is None else make_context():
                    result = handler(data if len(handlers) == 1 else data.copy())
                # a `Done` already holds its result
                if result is not None and not isinstance(result, _tantor.Done) and inspect.isawaitable(result):
                    if make_context is not None:
                        result = _within(make_context, result)
                    self._coroutines.add(name, handler, client_id, result, size)
            except BaseException:  # an exception of a handler ends here, also SystemExit
                log_failure(name, handler)


async def _within(make_context: Callable[[], AbstractContextManager[Any]], awaitable: Awaitable[Any]) -> None:
    with make_context():
        await awaitable


def _contained(call: Callable[..., None], *arguments: Any) -> None:
    """Call, and log any exception, because the thread handles all events and must not end."""
    try:
        call(*arguments)
    except BaseException:
        traceback.print_exc()


def _closed_gate() -> Any:
    """A lock that opens for good when it is released."""
    gate = native("_thread", "allocate_lock")()
    gate.acquire()
    return gate


def _wait_gate(gate: Any, timeout: float) -> bool:
    if not gate.acquire(timeout=timeout):
        return False
    gate.release()
    return True
