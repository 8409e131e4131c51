"""SIGTERM, by which supervisors end a process: the servers first tell their clients and close their databases."""

import os
import signal
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """A server, as a signal handler uses it."""

    def _begin_stop(self) -> None:
        """Start to stop the server."""


def stop_at_sigterm(server: Stoppable) -> Callable[[], None]:
    """Make SIGTERM stop a server and then call the previous handler. Returns a function that undoes this.

    For a main thread that waits for the server's end. Nothing is changed in another thread, where Python allows no
    handlers, or where SIGTERM is ignored or is not Python's to handle.
    """
    previous = _present_handler()
    if previous is None or previous is signal.SIG_IGN:
        return lambda: None

    def stop(number: int, frame: FrameType | None) -> None:
        server._begin_stop()
        if callable(previous):
            previous(number, frame)

    def restore() -> None:
        if signal.getsignal(signal.SIGTERM) is stop:
            signal.signal(signal.SIGTERM, previous)

    signal.signal(signal.SIGTERM, stop)
    return restore


def exit_at_sigterm(running: Collection[Stoppable]) -> None:
    """Make SIGTERM stop the running servers, and end the process as `sys.exit(143)` does.

    For a process that does something else in its main thread. Nothing is changed in another thread, or where the
    application or what hosts it has a handler of its own.
    """
    if _present_handler() is not signal.SIG_DFL:
        return

    def end(number: int, _frame: FrameType | None) -> None:
        servers = list(running)
        if not servers:  # nothing to stop, so the default action applies
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for server in servers:
            server._begin_stop()
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _present_handler() -> Callable[[int, FrameType | None], object] | int | None:
    """The handler of SIGTERM, or None where it cannot be replaced."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.getsignal(signal.SIGTERM)
