"""What a call from Python costs, and how many events a second reach a handler; a line of JSON for each.

Costs are CPU time of the whole process in µs a call, the median of several repeats, with the costs of well-known
calls measured between them.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tantor import Tantor

HERE = Path(__file__).resolve().parent
CALLS = 50_000
REPEATS = 9
# 100 bytes of JSON
DATA = {"user_id": 12345, "status": "completed", "image_path": "/images/elephants/herd-01.png", "ok": True}

FLOODS = 3
FLOOD_CONNECTIONS = 8
FLOOD_SECONDS = 4.0
FLOOD_WARM_UP = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Costs of calls from Python, and the rate of events into a handler.")
    parser.add_argument("--generator", type=Path, required=True, help="the tantor-bench binary")
    generator = parser.parse_args().generator
    assert len(json.dumps(DATA)) == 100, len(json.dumps(DATA))
    for server, running in (("not running", False), ("running", True)):
        with messenger(running) as tantor:
            measure_calls(server, tantor)
    for _ in range(FLOODS):
        measure_events(generator)


@contextmanager
def messenger(running: bool) -> Iterator[Tantor]:
    if running:
        with Tantor(0, "127.0.0.1") as tantor:
            yield tantor
    else:
        yield Tantor(0, "127.0.0.1")


def measure_calls(server: str, tantor: Tantor) -> None:
    async def nothing() -> None:
        pass

    plain: dict[str, Callable[[], object]] = {
        "json.dumps of the dict": lambda: json.dumps(DATA),
        "broadcast": lambda: tantor.broadcast("nobody", "tick", DATA),
    }
    awaited: dict[str, Callable[[], Awaitable[object]]] = {
        "await of an empty coroutine": nothing,
        "await broadcast": lambda: tantor.broadcast("nobody", "tick", DATA),
    }
    costs: dict[str, list[float]] = {name: [] for name in (*plain, *awaited)}
    for _ in range(REPEATS):
        for name, call in plain.items():
            costs[name].append(cost_of(call))
        for name, call in awaited.items():
            costs[name].append(asyncio.run(cost_of_awaiting(call)))
    for name, measured in costs.items():
        report(
            case="python",
            call=name,
            server=server,
            cpu_us=statistics.median(measured),
            least_us=min(measured),
            most_us=max(measured),
        )


def cost_of(call: Callable[[], object]) -> float:
    """CPU µs a call; the loop itself and the lambda are in it."""
    begun = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - begun) * 1e6 / CALLS


async def cost_of_awaiting(call: Callable[[], Awaitable[object]]) -> float:
    begun = time.process_time()
    for _ in range(CALLS):
        await call()
    return (time.process_time() - begun) * 1e6 / CALLS


def measure_events(generator: Path) -> None:
    """Flood a Tantor in another process, and ask its handler's count at both ends of an interval."""
    server = subprocess.Popen(
        [sys.executable, HERE / "servers" / "tantor_events.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        port = ask(server)["port"]
        target = f"tantor:tantor:{port}:{server.pid}"
        command = [str(generator), "flood", "--target", target, "--connections", str(FLOOD_CONNECTIONS)]
        flood = subprocess.Popen([*command, "--seconds", str(FLOOD_SECONDS)], stdout=subprocess.PIPE, text=True)
        time.sleep(FLOOD_WARM_UP)
        before, begun = ask(server), time.perf_counter()
        time.sleep(FLOOD_SECONDS - FLOOD_WARM_UP - 0.5)
        after, ended = ask(server), time.perf_counter()
        flooded = json.loads(flood.communicate()[0])
        lost = wait_for_the_rest(server, flooded["frames"])
        events = after["events"] - before["events"]
        report(
            case="events",
            connections=FLOOD_CONNECTIONS,
            events_per_second=events / (ended - begun),
            server_cpu_us=(after["cpu_seconds"] - before["cpu_seconds"]) * 1e6 / events,
            server_cpu_share=(after["cpu_seconds"] - before["cpu_seconds"]) / (ended - begun),
            generator_cpu_share=flooded["generator_cpu_share"],
            frames=flooded["frames"],
            lost=lost,
        )
        assert server.stdin is not None
        server.stdin.close()


def wait_for_the_rest(server: subprocess.Popen[str], frames: int) -> int:
    """Frames that the handler has not been given once the server has had time to; 0 is what is wanted."""
    deadline = time.monotonic() + 30
    while (lost := frames - int(ask(server)["events"])) > 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    return lost


def ask(server: subprocess.Popen[str]) -> dict[str, Any]:
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    answer: dict[str, Any] = json.loads(server.stdout.readline())
    return answer


def report(**line: object) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
