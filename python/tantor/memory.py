"""The `Memory` of Flask-TSK: what is sent is handed to it under the original's keys, off the hot path."""

import importlib
import importlib.util
import logging
import queue
import threading
from typing import Any, Protocol

_LOGGER = logging.getLogger("tantor.storage")

# entries that wait for a slow Memory; beyond it new ones are dropped, which is logged
_MAX_WAITING = 10_000


class Memory(Protocol):
    """What remembers: Flask-TSK's, or the application's own."""

    def remember(self, key: str, value: Any, ttl: int) -> Any:
        """Keep `value` under `key` for `ttl` seconds."""


def find_memory() -> Memory | None:
    """The `Memory` of an installed Flask-TSK, if it has one that remembers."""
    try:
        if importlib.util.find_spec("tsk_flask.memory") is None:
            return None
        found = importlib.import_module("tsk_flask.memory").Memory
        memory: Any = found() if isinstance(found, type) else found
    except Exception as error:  # another package's import may fail in any way, and is not needed
        _LOGGER.debug("tsk_flask.memory cannot be used: %s", error)
        return None
    return memory if callable(getattr(memory, "remember", None)) else None


class Keeper:
    """Hands entries to a `Memory`, in order, on a thread of its own that ends when nothing comes for a while."""

    _IDLE = 1.0

    def __init__(self) -> None:
        self._entries: queue.Queue[tuple[Memory, str, Any, int]] = queue.Queue(_MAX_WAITING)
        self._lock = threading.Lock()
        self._is_running = False

    def keep(self, memory: Memory, key: str, value: Any, ttl: int) -> None:
        """Hand an entry over soon; a `Memory` that raises is logged."""
        try:
            self._entries.put_nowait((memory, key, value, ttl))
        except queue.Full:
            _LOGGER.warning("Memory is behind: %s is not remembered", key)
            return
        with self._lock:
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="tantor-memory", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                memory, key, value, ttl = self._entries.get(timeout=self._IDLE)
            except queue.Empty:
                with self._lock:
                    if self._entries.empty():
                        self._is_running = False
                        return
                continue
            try:
                memory.remember(key, value, ttl)
            except Exception:
                _LOGGER.exception("Memory did not remember %s", key)
