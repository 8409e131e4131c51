"""Storms for clients: steady publishing, random faults, a server that is killed and started again."""

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from fault_proxy import BOTH, RESET, TO_CLIENT, TO_SERVER, FaultProxy, Link
from support import free_port
from tantor import Tantor


@contextlib.contextmanager
def publishing(server: Tantor, channel: str, threads: int = 8, pause: float = 0.001) -> Iterator[Callable[[], int]]:
    """Publish from threads. Return a function that ends this and returns the number of publications."""
    done = threading.Event()
    counts = [0] * threads
    errors: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            while not done.is_set():
                server.broadcast(channel, "n", [thread, counts[thread]])
                counts[thread] += 1
                done.wait(pause)
        except BaseException as error:
            errors.append(error)
            raise

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
    for worker in workers:
        worker.start()

    def end() -> int:
        done.set()
        for worker in workers:
            worker.join(30)
        assert not errors, errors
        return sum(counts)

    try:
        yield end
    finally:
        end()


class Publisher(threading.Thread):
    """Broadcasts 1, 2, 3… on a channel until `end` is called."""

    def __init__(self, server: Tantor, channel: str, per_second: float) -> None:
        super().__init__(daemon=True)
        self.last = 0
        self._server, self._channel, self._pause = server, channel, 1 / per_second
        self._end = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._end.wait(self._pause):
            self._server.broadcast(self._channel, "n", self.last + 1).result()
            self.last += 1

    def end(self) -> int:
        """End, and return the last number."""
        self._end.set()
        self.join(10)
        return self.last


class Storm(threading.Thread):
    """Random faults: of single connections, and of all connections for two seconds."""

    def __init__(self, proxy: FaultProxy, seconds: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.counts: dict[str, int] = {}
        # the times at which faults end, the earliest first
        self._stalls: list[tuple[float, Link]] = []
        self._proxy, self._seconds, self._random = proxy, seconds, random.Random(seed)
        self.start()

    def run(self) -> None:
        end = time.monotonic() + self._seconds
        next_outage = time.monotonic() + self._random.uniform(0.5, 3)
        while time.monotonic() < end:
            time.sleep(self._random.uniform(0.02, 0.1))
            while self._stalls and time.monotonic() > self._stalls[0][0]:
                self._proxy.resume(connection=self._stalls.pop(0)[1])
            if time.monotonic() > next_outage:
                self._count("outage")
                self._proxy.refuse(2)
                self._proxy.cut(RESET)
                next_outage = time.monotonic() + self._random.uniform(4, 7)
            elif links := self._proxy.connections:
                self._befall(self._random.choice(links))
        self._proxy.accept()
        self._proxy.resume()

    def _befall(self, link: Link) -> None:
        fault = self._random.choice(["reset", "fin", "half_close", "stall", "drop", "reset", "fin"])
        self._count(fault)
        if fault in ("reset", "fin"):
            self._proxy.cut(fault, connection=link)
        elif fault == "half_close":
            self._proxy.half_close(self._random.choice([TO_SERVER, TO_CLIENT]), connection=link)
        elif fault == "stall":
            self._proxy.stall(self._random.choice([TO_SERVER, TO_CLIENT, BOTH]), connection=link)
            self._stalls.append((time.monotonic() + 2, link))
        else:
            self._proxy.drop(self._random.choice([TO_SERVER, TO_CLIENT, BOTH]), connection=link)

    def _count(self, fault: str) -> None:
        self.counts[fault] = self.counts.get(fault, 0) + 1


# Serves, and publishes 1, 2, 3… durably, on from the last number of a killed process. Prints each saved number.
DURABLE_SERVER = """
import sys, time
from tantor import Tantor
port, database, channel, pause = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
server = Tantor(port=port, host="127.0.0.1", database=database, durable=True, history_size=100_000,
                heartbeat_interval=0.5, heartbeat_timeout=5)
server.start_background()
kept = server.history(channel, limit=1).result().publications
n = kept[-1]["data"] if kept else 0
print("listening", flush=True)
while True:
    server.broadcast(channel, "n", n + 1).result()
    n += 1
    print(n, flush=True)
    time.sleep(pause)
"""


class DurableServer:
    """A server in a process of its own, on SQLite, that continues after a kill and a new start."""

    def __init__(self, database: Path, channel: str, per_second: float) -> None:
        self.port = free_port()
        self._arguments = [str(self.port), f"sqlite:///{database}", channel, str(1 / per_second)]
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def start(self) -> None:
        command = [sys.executable, "-c", DURABLE_SERVER, *self._arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "listening\n", f"the server said {line!r}"

    def kill(self) -> int:
        """Kill the process with SIGKILL; return the last number that it reported as saved."""
        self._process.kill()
        said, _ = self._process.communicate()
        return int((said.splitlines() or ["0"])[-1])
