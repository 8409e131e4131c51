"""Calls what an application has set for states and gaps: in order, apart from all else, and whatever it raises."""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

Callback = Callable[[Any], Awaitable[None] | None]

# Calls that wait while one takes its time.
MAX_WAITING = 10_000


class Notifier:
    """A queue of calls, carried out one by one by a task of its own that lives while there are any."""

    def __init__(self) -> None:
        self._calls: deque[tuple[Callback, Any]] = deque()
        self._task: asyncio.Task[None] | None = None

    def call(self, callback: Callback | None, value: Any) -> None:
        """Have it called soon."""
        if callback is None:
            return
        if len(self._calls) >= MAX_WAITING:
            _, lost = self._calls.popleft()
            logging.getLogger("tantor.client").error("a callback takes too long: it is not told of %r", lost)
        self._calls.append((callback, value))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), name="tantor-client-callbacks")

    async def finish(self, timeout: float) -> None:
        """Wait until all is called, or cancel what is left. From within a callback: nothing is waited for."""
        if self._task is None or self._task is asyncio.current_task():
            return
        _, waiting = await asyncio.wait([self._task], timeout=timeout)
        if waiting:
            logging.getLogger("tantor.client").warning(
                "a callback still ran %g s after the client was closed; it is cancelled", timeout
            )
            self.cancel()

    def cancel(self) -> None:
        """End the task, whatever it does."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._calls:
            callback, value = self._calls.popleft()
            try:
                result = callback(value)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logging.getLogger("tantor.client").exception("a callback raised on %r", value)
