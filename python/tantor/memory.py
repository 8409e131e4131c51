"""Gives sent messages to the `Memory` of Flask-TSK, under the keys of the original, outside the hot path."""

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

# the most entries that wait for a slow Memory; beyond it new entries are dropped, and the drop is logged
_MAX_WAITING = 10_000


class Memory(Protocol):
    """The interface of a memory: Flask-TSK's, or the application's own."""

    def remember(self, key: str, value: Any, ttl: int) -> Any:
        """Keep `value` under `key` for `ttl` seconds."""


def _logger() -> logging.Logger:
    # looked up at each use, because `logging.config` disables the loggers that exist when it is called
    return logging.getLogger("tantor.storage")


def find_memory() -> Memory | None:
    """The `Memory` of an installed Flask-TSK, if it has `remember`."""
    try:
        if not importlib.util.find_spec("tsk_flask") or not importlib.util.find_spec("tsk_flask.memory"):
            return None
        memory = _memory_of(importlib.import_module("tsk_flask.memory"))
    except Exception as error:  # the import of another package may fail in any way, and Tantor works without it
        _logger().debug("tsk_flask.memory cannot be used: %s", error)
        return None
    return memory if callable(getattr(memory, "remember", None)) else None


def _memory_of(module: ModuleType) -> Any:
    """The object with `remember`: the class itself, as the original uses it, or else the shared instance."""
    found = module.Memory
    remember = inspect.getattr_static(found, "remember", None)
    if not isinstance(found, type) or isinstance(remember, classmethod | staticmethod):
        return found
    get_memory = getattr(module, "get_memory", found)
    return get_memory()


class Keeper:
    """Gives entries to a `Memory`, in order, on a thread of its own. An idle thread ends after a while."""

    _IDLE = 1.0

    def __init__(self) -> None:
        self._entries: deque[tuple[Memory, str, Any, int]] = deque()
        self._changed = threading.Condition()
        self._is_running = False
        self._is_handing_over = False
        self._dropped = 0
        self._process = os.getpid()

    def keep(self, memory: Memory, key: str, value: Any, ttl: int) -> None:
        """Queue an entry. An exception of the `Memory` is logged."""
        if (
            self._process != os.getpid()
        ):  # a fork has no such thread, and the lock may be held by a thread of the parent
            self.__init__()  # type: ignore[misc]
        with self._changed:
            if len(self._entries) >= _MAX_WAITING:
                self._dropped += 1
                if self._dropped > 1:  # logged once, until the queue is empty
                    return
                _logger().warning("Memory is behind: %s and what follows is not remembered", key)
                return
            self._entries.append((memory, key, value, ttl))
            self._changed.notify_all()
            if not self._is_running:
                self._is_running = True
                try:
                    threading.Thread(target=self._run, name="tantor-memory", daemon=True).start()
                except RuntimeError:  # the interpreter is ending; `wait_empty` gives the entry to the Memory
                    self._is_running = False

    def wait_empty(self, timeout: float) -> bool:
        """Block until the queue is empty; False if `timeout` seconds passed before."""
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
