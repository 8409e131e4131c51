"""Scripts that tests run in processes of their own: once, or for as long as a test needs."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    pass

from support import TESTS, eventually

RUNTIME_DIR = "TANTOR_RUNTIME_DIR"


def run_python(
    source: str,
    *arguments: object,
    timeout: float = 60.0,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    options: Iterable[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter. A script that hangs fails with its whole output."""
    command = [sys.executable, *options, "-c", source, *map(str, arguments)]
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            cwd=cwd,
            env=script_environment(environment),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"the script still ran after {timeout:g} s\nstdout: {error.stdout}\nstderr: {error.stderr}")


def script_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a script: unbuffered UTF-8 output, this module on the path, no TANTOR_ variables but one."""
    # the processes of a test meet in the folder of the test
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TANTOR_") or name == RUNTIME_DIR}
    added = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": str(TESTS)}
    return kept | added | dict(extra or {})


class Script:
    """A script that runs in the background: read its lines, send signals, wait for its end."""

    def __init__(
        self,
        command: list[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path,
    ) -> None:
        self._log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=script_environment(environment),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # with all processes that the script has started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    @property
    def output(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_for_line(self, start: str, timeout: float = 30.0) -> str:
        """Return the rest of the first line with this prefix."""

        def found() -> str | None:
            lines = self.output.splitlines(keepends=True)
            complete = (line for line in lines if line.endswith("\n"))
            return next((line for line in complete if line.startswith(start)), None)

        def finished_or_found() -> str | bool:
            ended = self.process.poll() is not None
            return found() or ended

        eventually(finished_or_found, lambda: f"a line {start!r}...; output was:\n{self.output}", timeout)
        line = found()
        if line is None:
            pytest.fail(f"ended with {self.process.returncode} before a line {start!r}...:\n{self.output}")
        return line.removeprefix(start).strip()

    def wait(self, timeout: float = 30.0) -> int:
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            threads = self._abort()
            pytest.fail(f"still running after {timeout:g} s; output was:\n{self.output}\nthreads were:\n{threads}")

    def _abort(self) -> str:
        """End it and all that it has started, so that each prints where its Python threads are; what its native threads
        wait for, where the system tells."""
        members = [pid for pid in _processes() if _group(pid) == self.process.pid]
        threads = "\n".join(line for pid in members for line in _native_threads(pid))
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        return threads


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _native_threads(pid: int) -> list[str]:
    threads = []
    for task in Path(f"/proc/{pid}/task").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, call = ((task / entry).read_text().strip() for entry in ("comm", "syscall"))
            threads.append(f"{pid} {task.name} {name}: {call}")
    return threads


# Some tests fork with threads on purpose; Python from 3.12 on warns of that.
QUIET_FORK = ("-W", "ignore::DeprecationWarning")


def script(source: str, folder: Path) -> Script:
    """Start a script from a file, as multiprocessing needs it."""
    file = folder / "script.py"
    file.write_text(textwrap.dedent(source), encoding="utf-8")
    return Script([sys.executable, *QUIET_FORK, str(file)], log=folder / "log")


def works(source: str, *options: str) -> str:
    """Run a script that must succeed without output on stderr; return its output."""
    done = run_python(textwrap.dedent(source), options=(*QUIET_FORK, *options), timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
