"""Flood Tantor, and print what two clients that have nothing to do with the flood notice of it.

`make attack` runs this. Each row has a server of its own, pinned to one core; the floods and the pair share the other
one, on which the pair's thread goes first. README.md says what the columns mean.
"""

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from run import GENERATOR_CORE, OUTPUT, SAVING, TANTOR, Bench, build_generator, prepare, say, words

FLOODS = {
    "broadcasts": "one client broadcasts to 1,000 subscribers",
    "joins": "one client joins and leaves a channel of 199 subscribers",
    "pings": "64 clients ping",
    "burst": "one client sends 40 MB to 20 readers of 12.5 MB/s",
    "large": "one client sends messages of 900 kB to 1,000 readers",
    "half-frames": "1,000 clients send half of a message of 1 MiB",
    "heads": "up to 10,000 connections send 16 kB of a request head",
    "half-open": "up to 10,000 connections send nothing",
    "stalled": "one client broadcasts to 500 that never read",
    "keys": "one client uses 100,001 idempotency keys",
    "histories": "one client asks for the history of 10,001 invented channels, again and again",
    "resets": "clients connect and reset, one after the other",
    "long-names": "the same, with 127 joins of long names, on SQLite",
}
# Settings of the server, besides the defaults.
SETTINGS = {"long-names": (SAVING,)}
COLUMNS = (
    "flood",
    "p50, ms",
    "p99, ms",
    "most, ms",
    "memory, MB",
    "TCP memory, MB",
    "sent, MB",
    "received, MB",
    "closed",
    "drained, s",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--floods", type=words, default=tuple(FLOODS), help=f"some of {','.join(FLOODS)} (all)")
    parser.add_argument("--rounds", type=int, default=1, help="of each flood (1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="before, during and after the flood, each (3)")
    parser.add_argument(
        "--tantor-python", type=Path, default=Path(sys.executable), help="an interpreter that has Tantor"
    )
    parser.add_argument("--setting", action="append", default=[], help="of the server, as name=value")
    options = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    bench = Bench(build_generator(), options.tantor_python.absolute(), options, OUTPUT / "attacks.jsonl")
    bench.results.write_text("")
    print_row(COLUMNS)
    print_row("---" for _ in COLUMNS)
    for flood in options.floods:
        for _ in range(options.rounds):
            result = attack(bench, flood)
            if result is not None:
                bench.note(result)
                print_row(cells(result))


def attack(bench: Bench, flood: str) -> dict[str, Any] | None:
    settings = (*SETTINGS.get(flood, ()), *bench.options.setting)
    server = dataclasses.replace(TANTOR, arguments=settings)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(bench.running(server))
        command = [bench.generator, "attack", "--target", target, "--flood", flood]
        generator = subprocess.run(
            [*command, "--seconds", str(bench.options.seconds)],
            stdout=subprocess.PIPE,
            preexec_fn=lambda: prepare(GENERATOR_CORE),
        )
    if generator.returncode != 0:
        say(f"{flood}: the generator gave up")
        return None
    result: dict[str, Any] = json.loads(generator.stdout)
    return result


def cells(result: dict[str, Any]) -> list[str]:
    """Before, during and after the flood, where there are three of a figure."""

    def phases(figure: str) -> str:
        return " / ".join(f"{result[phase][figure]:.3g}" for phase in ("before", "during", "after"))

    def memory(figure: str) -> str:
        return " / ".join(f"{result[f'{figure}_{when}'] / 1e6:.0f}" for when in ("before", "most", "after"))

    return [
        FLOODS[result["flood"]],
        phases("p50_ms"),
        phases("p99_ms"),
        phases("max_ms"),
        memory("memory"),
        memory("kernel_memory"),
        f"{result['sent_bytes'] / 1e6:.1f}",
        f"{result['received_bytes'] / 1e6:.0f}",
        f"{result['closed']:,} of {result['clients']:,}",
        f"{result['drained_after_seconds']:.1f}",
    ]


def print_row(columns: Any) -> None:
    print("| " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    main()
