"""What saving costs who publishes, and how many durable publications a second there are; a line of JSON for each.

Publishing is measured in CPU time of the publishing thread alone, with Tantor in memory and on a SQLite file in turns.
Durable publishing is measured in turns with the disk itself.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from python_calls import DATA, report
from tantor import Tantor

CALLS = 50_000
IN_FLIGHT = 64
CATCH_UP_LIMIT = 60.0
# a subscriber gets CALLS messages as fast as they can be published, and is not to be closed for being behind
ROOM: dict[str, Any] = {"max_pending_bytes": 256 << 20}

# SQLite's log is written in pages, and over again from its start once it is long enough.
PAGE_BYTES = 4096
LOG_PAGES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--generator", type=Path, required=True, help="the tantor-bench binary")
    parser.add_argument(
        "--folder", type=Path, required=True, help="where the databases are, on the disk to be measured"
    )
    parser.add_argument("--rounds", type=int, default=15, help="turns each (15)")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn of durable publishing (1)")
    options = parser.parse_args()
    for subscribers in (0, 1):
        measure_publishing(options, subscribers)
    measure_durable(options)


def measure_publishing(options: argparse.Namespace, subscribers: int) -> None:
    database = f"sqlite:///{options.folder / f'publishing-{subscribers}.db'}"
    with (
        Tantor(0, "127.0.0.1", **ROOM) as memory,
        Tantor(0, "127.0.0.1", database=database, **ROOM) as sqlite,
        listening(options.generator, memory, subscribers),
        listening(options.generator, sqlite, subscribers),
    ):
        stores = {"memory": memory, "sqlite": sqlite}
        for round_ in range(options.rounds):
            # each has the first turn as often as the other
            for store in sorted(stores, reverse=round_ % 2 == 1):
                cost = cost_of_publishing(stores[store], subscribers)
                report(case="publish", store=store, subscribers=subscribers, round=round_, cpu_us=cost)


def cost_of_publishing(tantor: Tantor, subscribers: int) -> float:
    """CPU µs of this thread a call; the loop itself is in it."""
    begun = time.thread_time()
    for _ in range(CALLS):
        reached = tantor.broadcast("bench", "tick", DATA)
    cost = (time.thread_time() - begun) * 1e6 / CALLS
    if reached.result() != subscribers:
        raise RuntimeError(f"a publication was for {reached.result()} subscribers; there should be {subscribers}")
    catch_up(tantor)
    return cost


def catch_up(tantor: Tantor) -> None:
    """Wait until everything has been saved and sent, so that no turn pays for the one before."""

    def waiting() -> int:
        stats = tantor.stats()
        if stats["storage"].get("changes_lost") or stats["dropped"]:
            raise RuntimeError(f"messages were dropped: {stats['storage']}, {stats['dropped']}")
        return int(stats["storage"].get("queued_changes", 0)) + int(stats["queued_messages"])

    wait_for(lambda: waiting() == 0, "everything to be saved and sent")


@contextlib.contextmanager
def listening(generator: Path, tantor: Tantor, subscribers: int) -> Iterator[None]:
    """So many subscribers of `bench` in a process of their own, which read and do nothing else."""
    if subscribers == 0:
        yield
        return
    target = f"tantor:tantor:{tantor.port}:{os.getpid()}"
    command = [str(generator), "listen", "--target", target, "--subscribers", str(subscribers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as listeners:
        wait_for(lambda: tantor.get_presence("bench")["online"] == subscribers, "the subscribers")
        yield
        assert listeners.stdin is not None
        listeners.stdin.close()
    if listeners.returncode != 0:
        raise RuntimeError(f"the subscribers gave up: {command} exited with {listeners.returncode}")


def measure_durable(options: argparse.Namespace) -> None:
    database = f"sqlite:///{options.folder / 'durable.db'}"
    with Tantor(0, "127.0.0.1", database=database) as tantor:
        for round_ in range(options.rounds):
            disk = disk_rate(options.folder, options.seconds / 2)
            measured = asyncio.run(publish_durably(tantor, options.seconds))
            report(case="durable", in_flight=IN_FLIGHT, round=round_, disk_writes_per_second=disk, **measured)


async def publish_durably(tantor: Tantor, seconds: float) -> dict[str, Any]:
    published = 0
    begun = time.perf_counter()
    end = begun + seconds

    async def publish() -> None:
        nonlocal published
        while time.perf_counter() < end:
            await tantor.broadcast("bench", "tick", DATA, durable=True)
            published += 1

    commits, cpu = tantor.stats()["storage"]["commits"], time.process_time()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.create_task(publish())
    lasted = time.perf_counter() - begun
    return {
        "publications_per_second": published / lasted,
        "commits_per_second": (tantor.stats()["storage"]["commits"] - commits) / lasted,
        "cpu_us": (time.process_time() - cpu) * 1e6 / published,
    }


def disk_rate(folder: Path, seconds: float) -> float:
    """Pages written and synced a second, in a file that has its size already, as SQLite's log has after a while."""
    page = os.urandom(PAGE_BYTES)
    path = folder / "disk"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.pwrite(descriptor, bytes(PAGE_BYTES * LOG_PAGES), 0)
        os.fsync(descriptor)
        written = 0
        begun = time.perf_counter()
        while (lasted := time.perf_counter() - begun) < seconds:
            os.pwrite(descriptor, page, written % LOG_PAGES * PAGE_BYTES)
            os.fdatasync(descriptor)
            written += 1
        return written / lasted
    finally:
        os.close(descriptor)
        path.unlink()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + CATCH_UP_LIMIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {CATCH_UP_LIMIT} s for {what}")
        time.sleep(0.01)


if __name__ == "__main__":
    main()
