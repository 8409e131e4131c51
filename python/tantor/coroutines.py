"""Runs what async handlers returned, on the application's loop or on one of Tantor's own."""

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

# coroutines under way; beyond it, or beyond `event_queue_bytes` of their events, no further events are taken, and
# clients are held back in turn
_MAX_WAITING = 16384


def native(module: str, name: str) -> Any:
    """A function of the standard library as it is without gevent or eventlet, whose threads are greenlets."""
    if (monkey := sys.modules.get("gevent.monkey")) is not None:
        return monkey.get_original(module, name)
    if (patcher := sys.modules.get("eventlet.patcher")) is not None:
        return getattr(patcher.original(module), name)
    return getattr(importlib.import_module(module), name)


def log_failure(event: str, handler: Handler) -> None:
    """Log what a handler has just raised; whatever goes wrong in that is shown, and harms nothing."""
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
    """For one client one coroutine after another, for several clients side by side.

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
        # coroutines, and the bytes of their events
        self._submitted = 0
        self._submitted_bytes = 0
        self._done = 0
        self._done_bytes = 0
        self._room = native("_thread", "allocate_lock")()

    def add(self, name: str, handler: Handler, client_id: str | None, awaitable: Awaitable[Any], size: int) -> None:
        """Note what a handler of an event of `size` bytes returned, for the next `submit`."""
        self._batch.append((client_id, (name, handler, awaitable, size)))

    def submit(self) -> None:
        """Hand what was added to the loop, in one call; waits while too much is under way."""
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
            except RuntimeError:  # it was closed in between, and another one is chosen
                self._done += len(batch)
                self._done_bytes += size
        while self._is_full() and loop.is_running():
            # released by each coroutine that ends; the timeout is for a loop that ended without one
            self._room.acquire(timeout=0.1)

    def finish(self) -> None:
        """Wait for what is under way, while its loop runs; then end the loop, if it is the runner's own."""
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
            # what waited on a loop that is gone went with it
            self._waiting = {}
            self._done, self._done_bytes = self._submitted, self._submitted_bytes
            self._own_loop = self._start_loop()
        return self._own_loop

    def _start_loop(self) -> asyncio.AbstractEventLoop:
        """A loop that runs on a thread of its own, or one to be run inline where no thread can be had."""
        started: list[asyncio.AbstractEventLoop] = []
        runs = native("_thread", "allocate_lock")()
        runs.acquire()

        def run() -> None:
            # made here, because a loop's sockets may belong to the thread that makes them (gevent's do)
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
        except RuntimeError:  # the interpreter is ending, and starts no thread any more
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
                except BaseException:  # SystemExit included: a handler ends no loop
                    log_failure(name, handler)
                finally:
                    self._finish_one(size)
        finally:
            del waiting[client_id]
            for _, _, awaitable, size in jobs:  # the loop is being closed
                self._finish_one(size)
                if inspect.iscoroutine(awaitable):
                    awaitable.close()

    def _finish_one(self, size: int) -> None:
        self._done += 1
        self._done_bytes += size
        if self._room.locked():
            self._room.release()
