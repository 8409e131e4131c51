"""Runs the coroutines of async handlers, on the application's event loop or on a loop of Tantor's own."""

import asyncio
import importlib
import inspect
import logging
import sys
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

Handler = Callable[[dict[str, Any]], Any]

# the most coroutines that run at once; at this limit, or when their events take `event_queue_bytes`, no further
# events are taken, so the queue of events fills and clients are read no further
_MAX_WAITING = 16384


def native(module: str, name: str) -> Any:
    """A function of the standard library as it is without gevent or eventlet, whose threads are greenlets."""
    if (monkey := sys.modules.get("gevent.monkey")) is not None:
        return monkey.get_original(module, name)
    if (patcher := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(patcher.original(module), name)
    return getattr(importlib.import_module(module), name)


def log_failure(event: str, handler: Handler) -> None:
    """Log the exception that a handler has just raised. An error of the logging itself is printed and has no effect."""
    try:
        shown = getattr(handler, "__qualname__", None) or repr(handler)
    except BaseException:
        shown = object.__repr__(handler)
    try:
        logging.getLogger("tantor.events").exception("the handler %s of event %r failed", shown, event)
    except BaseException:  # a filter of the application's, for example
        traceback.print_exc()


_Job = tuple[str, Handler, Awaitable[Any], int]


class CoroutineRunner:
    """Runs the coroutines of one client one after another, and those of different clients concurrently.

    They run on `loop`; if it is None, or has been closed, on a loop of the runner's own. `add`, `submit` and
    `finish` are for one thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None, max_bytes: int) -> None:
        self._loop = loop
        self._max_bytes = max_bytes
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._is_inline = False
        self._batch: list[tuple[str | None, _Job]] = []
        self._waiting: dict[str | None, deque[_Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # the coroutines that run, and the bytes of their events
        self._submitted = 0
        self._submitted_bytes = 0
        self._done = 0
        self._done_bytes = 0
        self._room = native("_thread", "allocate_lock")()

    def add(self, name: str, handler: Handler, client_id: str | None, awaitable: Awaitable[Any], size: int) -> None:
        """Add the coroutine that a handler returned for an event of `size` bytes, for the next `submit`."""
        self._batch.append((client_id, (name, handler, awaitable, size)))

    def submit(self) -> None:
        """Give the added coroutines to the loop, in one call. Blocks while too many coroutines run."""
        if not self._batch:
            return
        batch, self._batch = self._batch, []
        size = sum(job[-1] for _, job in batch)
        for _ in range(2):
            loop = self._target()
            self._submitted += len(batch)
            self._submitted_bytes += size
            if self._is_inline:
                loop.run_until_complete(self._run_all(batch))
                return
            try:
                loop.call_soon_threadsafe(self._accept, batch, self._waiting)
                break
            except RuntimeError:  # the loop was closed in between; the next turn uses another loop
                self._done += len(batch)
                self._done_bytes += size
        while self._is_full() and loop.is_running():
            # each coroutine that ends releases it; the timeout is for a loop that ended before its coroutines
            self._room.acquire(timeout=0.1)

    def finish(self) -> None:
        """Wait for the running coroutines while their loop runs; then end the loop, if it is the runner's own."""
        loop = self._loop if self._own_loop is None else self._own_loop
        while loop is not None and self._submitted > self._done and loop.is_running():
            self._room.acquire(timeout=0.05)
        if self._own_loop is None or self._own_loop.is_closed():
            return
        if self._is_inline:
            self._own_loop.close()
        else:
            self._own_loop.call_soon_threadsafe(self._own_loop.stop)

    def _is_full(self) -> bool:
        is_over = self._submitted_bytes - self._done_bytes > self._max_bytes
        return is_over or self._submitted - self._done > _MAX_WAITING

    def _target(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None and not self._loop.is_closed():
            return self._loop
        if self._own_loop is None or self._own_loop.is_closed():
            # the coroutines of a closed loop ended with the loop
            self._waiting = {}
            self._done, self._done_bytes = self._submitted, self._submitted_bytes
            self._own_loop = self._start_loop()
        return self._own_loop

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        """A loop that runs on a thread of its own; a loop to be run inline, if no thread can be started."""
        started: list[asyncio.AbstractEventLoop] = []
        runs = native("_thread", "allocate_lock")()
        runs.acquire()

        def run() -> None:
            # created on this thread, because with gevent a loop's sockets belong to the thread that creates them
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
            started.append(loop)
            loop.call_soon(runs.release)
            try:
                loop.run_forever()
            finally:
                loop.close()

        try:
            native("_thread", "start_new_thread")(run, ())
        except RuntimeError:  # the interpreter is ending, and starts no more threads
            self._is_inline = True
            return asyncio.new_event_loop()
        runs.acquire()
        return started[0]

    def _accept(self, batch: list[tuple[str | None, _Job]], waiting: dict[str | None, deque[_Job]]) -> None:
        for client_id, job in batch:
            if (jobs := waiting.get(client_id)) is not None:
                jobs.append(job)
                continue
            waiting[client_id] = deque([job])
            task = asyncio.get_running_loop().create_task(self._run_client(client_id, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_all(self, batch: list[tuple[str | None, _Job]]) -> None:
        self._accept(batch, self._waiting)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run_client(self, client_id: str | None, waiting: dict[str | None, deque[_Job]]) -> None:
        jobs = waiting[client_id]
        try:
            while jobs:
                name, handler, awaitable, size = jobs.popleft()
                try:
                    await awaitable
                except asyncio.CancelledError:
                    if (task := asyncio.current_task()) is not None and task.cancelling():
                        raise
                    log_failure(name, handler)
                except GeneratorExit:
                    raise
                except BaseException:  # also SystemExit: no exception of a handler ends the loop
                    log_failure(name, handler)
                finally:
                    self._finish_one(size)
        finally:
            del waiting[client_id]
            for _, _, awaitable, size in jobs:  # only when the loop is being closed
                self._finish_one(size)
                if inspect.iscoroutine(awaitable):
                    awaitable.close()

    def _finish_one(self, size: int) -> None:
        self._done += 1
        self._done_bytes += size
        if self._room.locked():
            self._room.release()
