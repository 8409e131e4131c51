"""Turn the lines of JSON that `run.py` has collected into tables, and say of each bar whether it is met."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.results.read_text().splitlines()]
    for table in (fan_out_table, throughput_table, connect_table, latency_table, python_table, failures):
        if text := "\n".join(table(lines)):
            print(text, end="\n\n")
    missed = False
    for bar in BARS:
        figure = bar.figure(lines)
        verdict = "not measured" if figure is None else "met" if bar.is_met(figure) else "MISSED"
        missed = missed or verdict == "MISSED"
        measured = "" if figure is None else f"{figure:,.{bar.digits}f}"
        print(f"{verdict:12}  {measured:>9} ({bar.word} {bar.limit:,.{bar.digits}f})  {bar.promise}")
    sys.exit(1 if missed and options.check else 0)


def fan_out_table(lines: list[Line]) -> Iterable[str]:
    columns = fan_out_columns(lines)
    if not columns:
        return
    yield "CPU µs a delivery: median (quartiles), and the median ratio to the bare loop in the same round."
    yield ""
    yield from header("server", [f"{subscribers:,} subs, w{window}" for subscribers, window in columns])
    for server in servers(lines, "fanout"):
        yield row(server, [fan_out_cell(lines, server, column) for column in columns])
    yield ""
    yield generator_line(lines)


def fan_out_cell(lines: list[Line], server: str, column: tuple[int, int]) -> str:
    measured = fan_out_lines(lines, server, column)
    if not measured:
        return ""
    ratio = fan_out_ratio(lines, server, column)
    suffix = "" if server == "bare" or ratio is None else f", ×{ratio:.2f}"
    return spread([line["server_cpu_us"] for line in measured]) + suffix


def fan_out_ratio(lines: list[Line], server: str, column: tuple[int, int]) -> float | None:
    """The median over the rounds of what the server cost over what the bare loop cost in the same round."""
    ratios = []
    for index, line in enumerate(lines):
        if is_fan_out(line, server, column):
            # the bare loop has the last turn of a round
            bare = next((other for other in lines[index:] if is_fan_out(other, "bare", column)), None)
            if bare is not None:
                ratios.append(line["server_cpu_us"] / bare["server_cpu_us"])
    return statistics.median(ratios) if ratios else None


def throughput_table(lines: list[Line]) -> Iterable[str]:
    columns = fan_out_columns(lines)
    if not columns:
        return
    yield "Deliveries a second on the server's one core, median, in thousands."
    yield ""
    yield from header("server", [f"{subscribers:,} subs, w{window}" for subscribers, window in columns])
    for server in servers(lines, "fanout"):
        medians = [median_of(fan_out_lines(lines, server, column), "deliveries_per_second") for column in columns]
        yield row(server, ["" if value is None else f"{value / 1000:,.0f}" for value in medians])


def generator_line(lines: list[Line]) -> str:
    fan_out = [line for line in lines if line["case"] == "fanout" and "error" not in line]
    sizes = sorted({line["payload_bytes"] for line in fan_out})
    share = statistics.median(line["generator_cpu_us"] / line["server_cpu_us"] for line in fan_out)
    return (
        f"Delivered payload {sizes[0]} to {sizes[-1]} bytes. "
        f"The generator used {share:.2f} of the CPU time that the servers used (median)."
    )


def connect_table(lines: list[Line]) -> Iterable[str]:
    counts = sorted({line["connections"] for line in lines if line["case"] == "connect" and "error" not in line})
    if not counts:
        return
    columns = [f"CPU µs a connect, {count:,}" for count in counts]
    columns += [f"KiB each, {count:,}" for count in counts]
    columns.append(f"connects a second, {counts[-1]:,}")
    if len(counts) > 1:
        columns.append(f"KiB each, slope {counts[0]:,} to {counts[-1]:,}")
    yield "Connections: CPU time of the server for each, and resident memory for each idle one; median (quartiles)."
    yield ""
    yield from header("server", columns)
    for server in servers(lines, "connect"):
        cells = [connect_cell(lines, server, count, lambda line: float(line["server_cpu_us"])) for count in counts]
        cells += [connect_cell(lines, server, count, kibibytes_each) for count in counts]
        rate = median_of(connect_lines(lines, server, counts[-1]), "connects_per_second")
        cells.append("" if rate is None else f"{rate:,.0f}")
        if len(counts) > 1:
            cells.append(spread(memory_slopes(lines, server, counts[0], counts[-1])))
        yield row(server, cells)


def connect_cell(lines: list[Line], server: str, count: int, figure: Callable[[Line], float]) -> str:
    return spread([figure(line) for line in connect_lines(lines, server, count)])


def kibibytes_each(line: Line) -> float:
    grown, connections = line["resident_bytes"] - line["resident_bytes_before"], line["connections"]
    return float(grown / connections / 1024)


def memory_slopes(lines: list[Line], server: str, few: int, many: int) -> list[float]:
    pairs = zip(connect_lines(lines, server, few), connect_lines(lines, server, many), strict=False)
    return [
        (large["resident_bytes"] - small["resident_bytes"]) / (large["connections"] - small["connections"]) / 1024
        for small, large in pairs
    ]


def latency_table(lines: list[Line]) -> Iterable[str]:
    measured = [line for line in lines if line["case"] == "latency" and "error" not in line]
    if not measured:
        return
    loads = sorted({load_of(line) for line in measured})
    yield "Latency in ms from the time at which a publish was due to its arrival, median of the rounds."
    yield ""
    names = [
        f"{subscribers:,} subs, {rate:,}/s: {name}" for subscribers, rate in loads for name in ("p50", "p99", "max")
    ]
    yield from header("server", names)
    for server in servers(lines, "latency"):
        cells = []
        for load in loads:
            here = [line for line in measured if line["server"] == server and load_of(line) == load]
            medians = [median_of(here, key) for key in ("p50_ms", "p99_ms", "max_ms")]
            cells += ["" if value is None else f"{value:.2f}" for value in medians]
        yield row(server, cells)


def load_of(line: Line) -> tuple[int, int]:
    return line["subscribers"], line["publishes_per_second"]


def python_table(lines: list[Line]) -> Iterable[str]:
    calls = [line for line in lines if line["case"] == "python"]
    if calls:
        yield "CPU µs a call from Python: median (least to most of 9 repeats)."
        yield ""
        yield from header("call", ["server not running", "server running"])
        for call in unique(line["call"] for line in calls):
            by_server = {line["server"]: line for line in calls if line["call"] == call}
            cells = [by_server.get(server) for server in ("not running", "running")]
            yield row(
                call,
                [
                    f"{cell['cpu_us']:.2f} ({cell['least_us']:.2f} to {cell['most_us']:.2f})" if cell else ""
                    for cell in cells
                ],
            )
    floods = [line for line in lines if line["case"] == "events"]
    if floods:
        rates = [line["events_per_second"] for line in floods]
        yield ""
        yield (
            f"Events into a handler: {statistics.median(rates):,.0f} a second ({min(rates):,.0f} to {max(rates):,.0f}) "
            f"from {floods[0]['connections']} connections, {median_of(floods, 'server_cpu_us'):.2f} CPU µs each; "
            f"of {sum(line['frames'] for line in floods):,} frames {sum(line['lost'] for line in floods):,} lost."
        )


def failures(lines: list[Line]) -> Iterable[str]:
    errors = [line for line in lines if "error" in line]
    yield from unique(f"Not measured: {line['case']}, {line['clients']:,} clients: {line['error']}" for line in errors)


@dataclass(frozen=True)
class Bar:
    promise: str
    limit: float
    figure: Callable[[list[Line]], float | None]
    at_least: bool = False
    digits: int = 2

    @property
    def word(self) -> str:
        return "at least" if self.at_least else "at most"

    def is_met(self, figure: float) -> bool:
        return figure >= self.limit if self.at_least else figure <= self.limit


def idle_memory(lines: list[Line]) -> float | None:
    measured = [kibibytes_each(line) for line in connect_lines(lines, "tantor", 10_000)]
    return statistics.median(measured) if measured else None


def connect_ratio(lines: list[Line]) -> float | None:
    tantor = connect_lines(lines, "tantor", 10_000)
    # the peers' rounds have bare ones of their own, later in the file
    pairs = zip(tantor, connect_lines(lines, "bare", 10_000), strict=False)
    ratios = [ours["server_cpu_us"] / bare["server_cpu_us"] for ours, bare in pairs]
    return statistics.median(ratios) if ratios else None


def call_cost(call: str) -> Callable[[list[Line]], float | None]:
    """The dearer of the two: with a server running and without."""

    def cost(lines: list[Line]) -> float | None:
        found = [line["cpu_us"] for line in lines if line["case"] == "python" and line["call"] == call]
        return max(found, default=None)

    return cost


def event_rate(lines: list[Line]) -> float | None:
    return median_of([line for line in lines if line["case"] == "events"], "events_per_second")


BARS = (
    Bar(
        "CPU a delivery over the bare loop's, 1,000 subscribers, window 1",
        1.25,
        lambda lines: fan_out_ratio(lines, "tantor", (1000, 1)),
    ),
    Bar(
        "CPU a delivery over the bare loop's, 100 subscribers, window 64",
        0.06,
        lambda lines: fan_out_ratio(lines, "tantor", (100, 64)),
        digits=3,
    ),
    Bar("KiB resident for each of 10,000 idle connections in jungle", 4.0, idle_memory),
    Bar("CPU of connecting 10,000 over the bare accept's, join notices included", 2.5, connect_ratio),
    Bar("CPU µs of broadcast() of 100 bytes to a channel without subscribers", 3.0, call_cost("broadcast")),
    Bar("CPU µs of the same, awaited", 4.0, call_cost("await broadcast")),
    Bar("events a second into a trivial sync handler", 200_000, event_rate, at_least=True, digits=0),
)


def fan_out_columns(lines: list[Line]) -> list[tuple[int, int]]:
    return sorted(
        {(line["subscribers"], line["window"]) for line in lines if line["case"] == "fanout" and "error" not in line}
    )


def is_fan_out(line: Line, server: str, column: tuple[int, int]) -> bool:
    return (
        line["case"] == "fanout"
        and "error" not in line
        and line["server"] == server
        and (line["subscribers"], line["window"]) == column
    )


def fan_out_lines(lines: list[Line], server: str, column: tuple[int, int]) -> list[Line]:
    return [line for line in lines if is_fan_out(line, server, column)]


def connect_lines(lines: list[Line], server: str, count: int) -> list[Line]:
    return [
        line
        for line in lines
        if line["case"] == "connect"
        and "error" not in line
        and (line["server"], line["connections"]) == (server, count)
    ]


def servers(lines: list[Line], case: str) -> list[str]:
    """In the order in which they were measured, the bare loop first."""
    names = unique(line["server"] for line in lines if line["case"] == case and "error" not in line)
    return sorted(names, key=lambda name: name != "bare")


def unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def median_of(lines: list[Line], key: str) -> float | None:
    return statistics.median(line[key] for line in lines) if lines else None


def spread(values: list[float]) -> str:
    if not values:
        return ""
    low, middle, high = quartiles(values)
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def quartiles(values: list[float]) -> list[float]:
    """On a machine that others use too the extremes say how busy they were."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def header(first: str, columns: list[str]) -> Iterable[str]:
    yield row(first, columns)
    yield row("---", ["---"] * len(columns))


def row(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"


if __name__ == "__main__":
    main()
