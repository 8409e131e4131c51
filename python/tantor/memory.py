"""The `Memory` of Flask-TSK: what is sent is handed to it under the original's keys, off the hot path."""

import importlib
import importlib.util
import inspect
import logging
import math
import os
import threading
import time
from collections import deque
from types import ModuleType
from typing import Any, Protocol

# entries that wait for a slow Memory; beyond it new ones are dropped, which is logged
_MAX_WAITING = 10_000


class Memory(Protocol):
    """What remembers: Flask-TSK's, or the application's own."""

    def remember(self, key: str, value: Any, ttl: int) -> Any:
        """Keep `value` under `key` for `ttl` seconds."""


def _logger() -> logging.Logger:
    # looked up at each use: `logging.config` disables loggers that exist when it is called
    return logging.getLogger("tantor.storage")


def find_memory() -> Memory | None:
    """The `Memory` of an installed Flask-TSK, if it has one that remembers."""
    try:
        if not importlib.util.find_spec("tsk_flask") or not importlib.util.find_spec("tsk_flask.memory"):
            return None
        memory = _memory_of(importlib.import_module("tsk_flask.memory"))
    except Exception as error:  # another package's import may fail in any way, and is not needed
        _logger().debug("tsk_flask.memory cannot be used: %s", error)
        return None
    return memory if callable(getattr(memory, "remember", None)) else None


def _memory_of(module: ModuleType) -> Any:
    """What has `remember`: the class itself, on which the original calls it, else the one that is shared."""
    found = module.Memory
    remember = inspect.getattr_static(found, "remember", None)
    if not isinstance(found, type) or isinstance(remember, classmethod | staticmethod):
        return found
    get_memory = getattr(module, "get_memory", found)
    return get_memory()


class Keeper:
    """Hands entries to a `Memory`, in order, on a thread of its own that ends when nothing comes for a while."""

    _IDLE = 1.0

    def __init__(self) -> None:
        self._entries: deque[tuple[Memory, str, Any, int]] = deque()
        self._changed = threading.Condition()
        self._is_running = False
        self._is_handing_over = False
        self._dropped = 0
        self._process = os.getpid()

    def keep(self, memory: Memory, key: str, value: Any, ttl: int) -> None:
        """Hand an entry over soon; a `Memory` that raises is logged."""
        if self._process != os.getpid():  # a fork has neither the thread nor a lock that can be trusted
            self.__init__()  # type: ignore[misc]
        with self._changed:
            if len(self._entries) >= _MAX_WAITING:
                self._dropped += 1
                if self._dropped > 1:  # said once, until it has caught up
                    return
                _logger().warning("Memory is behind: %s and what follows is not remembered", key)
                return
            self._entries.append((memory, key, value, ttl))
            self._changed.notify_all()
            if not self._is_running:
                self._is_running = True
                try:
                    threading.Thread(target=self._run, name="tantor-memory", daemon=True).start()
                except RuntimeError:  # the interpreter is ending, and `wait_empty` hands it over
                    self._is_running = False

    def wait_empty(self, timeout: float) -> bool:
        """Block until all was handed over; False when `timeout` seconds passed before."""
        if self._process != os.getpid():
            return True
        deadline = time.monotonic() + timeout
        with self._changed:
            is_left = not self._is_running and bool(self._entries)
            self._is_running |= is_left
        if is_left:
            self._run(idle=0, until=deadline)
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            return self._changed.wait_for(lambda: not self._entries and not self._is_handing_over, left)

    def _run(self, idle: float = _IDLE, until: float = math.inf) -> None:
        while True:
            with self._changed:
                self._is_handing_over = False
                self._changed.notify_all()
                if time.monotonic() >= until:
                    self._is_running = False
                    return
                deadline = time.monotonic() + idle
                while not self._entries:
                    if not self._changed.wait(max(0.0, deadline - time.monotonic())) and not self._entries:
                        self._is_running = False
                        return
                memory, key, value, ttl = self._entries.popleft()
                self._is_handing_over = True
                dropped = self._dropped if not self._entries else 0
                self._dropped -= dropped
            if dropped:
                _logger().warning("Memory has caught up: %d entries were not remembered", dropped)
            try:
                memory.remember(key, value, ttl)
            except Exception:
                _logger().exception("Memory did not remember %s", key)
