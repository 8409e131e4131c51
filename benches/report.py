"""Turn the lines of JSON that `run.py` has collected into tables, and say of each bar whether it is met."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import extremes, header, median, median_of, row, spread

Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--check", action="store_true", help="exit with 1 when a bar is missed")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.results.read_text().splitlines()]
    tables = (
        bar_table,
        fan_out_table,
        keeping_table,
        throughput_table,
        connect_table,
        latency_table,
        python_table,
        publish_table,
        durable_table,
        recover_table,
        resume_table,
        failures,
    )
    for table in tables:
        if text := "\n".join(table(lines)):
            print(text, end="\n\n")
    sys.exit(1 if options.check and any(bar.verdict(lines) == MISSED for bar in BARS) else 0)


def bar_table(lines: list[Line]) -> Iterable[str]:
    yield from header("bar", ["at most", "measured", ""])
    for bar in BARS:
        figure, limit = bar.figure(lines), bar.limit_of(lines)
        measured = "" if figure is None else f"{figure:,.{bar.digits}f}"
        allowed = "" if limit is None else f"{'at least ' if bar.at_least else ''}{limit:,.{bar.digits}f}"
        yield row(bar.promise, [allowed, measured, bar.verdict(lines)])


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


def keeping_table(lines: list[Line]) -> Iterable[str]:
    columns = [column for column in fan_out_columns(lines) if keeping_ratios(lines, DEFAULTS, column)]
    if not columns:
        return
    yield (
        f"What keeping and saving costs: CPU a delivery over that of `{WITHOUT_HISTORY}` in the same round; "
        "median (quartiles)."
    )
    yield ""
    yield from header("server", [f"{subscribers:,} subs, w{window}" for subscribers, window in columns])
    for server in (DEFAULTS, WITH_SQLITE):
        yield row(server, [spread(keeping_ratios(lines, server, column)) for column in columns])


DEFAULTS = "tantor"
WITHOUT_HISTORY = "tantor, history_size=0"
WITH_SQLITE = "tantor, SQLite"


def keeping_ratios(lines: list[Line], server: str, column: tuple[int, int]) -> list[float]:
    return ratios_by_round(
        fan_out_lines(lines, server, column), fan_out_lines(lines, WITHOUT_HISTORY, column), "server_cpu_us"
    )


def ratios_by_round(lines: list[Line], others: list[Line], key: str) -> list[float]:
    by_round = {line["round"]: line[key] for line in others}
    return [line[key] / by_round[line["round"]] for line in lines if line["round"] in by_round]


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


def publish_table(lines: list[Line]) -> Iterable[str]:
    counts = sorted({line["subscribers"] for line in lines if line["case"] == "publish"})
    if not counts:
        return
    yield "Publishing from Python: CPU µs of the publishing thread a call, median (quartiles)."
    yield ""
    yield from header(
        "`broadcast` of the 100-byte dict", ["memory", "SQLite, without waiting", "ratio in the same round"]
    )
    for count in counts:
        cells = [
            spread([line["cpu_us"] for line in publish_lines(lines, store, count)]) for store in ("memory", "sqlite")
        ]
        yield row(f"{count or 'no'} subscriber{'s'[: count > 1]}", [*cells, spread(publish_ratios(lines, count))])


def publish_lines(lines: list[Line], store: str, subscribers: int) -> list[Line]:
    return [
        line
        for line in lines
        if line["case"] == "publish" and (line["store"], line["subscribers"]) == (store, subscribers)
    ]


def publish_ratios(lines: list[Line], subscribers: int) -> list[float]:
    saved, memory = (publish_lines(lines, store, subscribers) for store in ("sqlite", "memory"))
    return ratios_by_round(saved, memory, "cpu_us")


def durable_table(lines: list[Line]) -> Iterable[str]:
    measured = [line for line in lines if line["case"] == "durable"]
    if not measured:
        return
    in_flight = measured[0]["in_flight"]
    yield f"Durable publishing from Python, {in_flight} in flight, and the disk beside it; median (quartiles)."
    yield ""
    columns = {
        "publications_per_second": "publications a second",
        "commits_per_second": "commits a second",
        "disk_writes_per_second": "the disk: 4 KiB written and synced, a second",
        "cpu_us": "CPU µs of the process a publication",
    }
    yield from header("", list(columns.values()))
    yield row("SQLite, `durable=True`", [spread([line[key] for line in measured]) for key in columns])
    yield ""
    disk = median_of(measured, "disk_writes_per_second")
    of_disk = DISK_RATES * (disk or 0)
    binds = f"{DURABLE_RATE:,}" if of_disk > DURABLE_RATE else "the disk"
    yield (
        f"Asked are {DURABLE_RATE:,} a second, or {DISK_RATES} times the disk's rate ({of_disk:,.0f}) if that is less: "
        f"{binds} binds."
    )


DURABLE_RATE = 20_000
DISK_RATES = 200


def recover_table(lines: list[Line]) -> Iterable[str]:
    measured = measured_lines(lines, "recover")
    if not measured:
        return
    missed, joins = measured[0]["publications"], measured[0]["joins"]
    kibibytes = measured[0]["reply_bytes"] / 1024
    yield (
        f"Recovering {missed} messages ({kibibytes:.0f} KiB): ms from sending `join_channel` to the whole reply, "
        f"of {joins} joins one after the other; median of the rounds."
    )
    yield ""
    yield from header("", ["p50", "p99", "max"])
    for name, kind in (("join with `recover`", "join"), ("`ping` beside it", "ping")):
        medians = [median_of(measured, f"{kind}_{key}_ms") for key in ("p50", "p99", "max")]
        yield row(name, [f"{value:.3f}" for value in medians if value is not None])


def resume_table(lines: list[Line]) -> Iterable[str]:
    measured = measured_lines(lines, "resume")
    if not measured:
        return
    first = measured[0]
    yield (
        f"{first['clients']:,} clients come back at once to a server that was killed and started again; each has "
        f"missed {first['missed']} publications, and {first['mailed']} of them a message of their own. "
        f"Median (least to most) of {len(measured)} restarts."
    )
    yield ""
    yield from header("", ["measured"])
    for name, figure in RESUME_ROWS.items():
        yield row(name, [extremes([figure(line) for line in measured])])


RESUME_ROWS: dict[str, Callable[[Line], float]] = {
    "resumed as the same client": lambda line: line["resumed"],
    "got exactly what they had missed": lambda line: line["complete"],
    "publications lost": lambda line: line["lost"],
    "publications twice": lambda line: line["surplus"],
    "messages to one client lost": lambda line: line["mail_lost"],
    "messages to one client twice": lambda line: line["mail_surplus"],
    "ms from starting the server to listening, all clients restored": lambda line: line["listens_after_seconds"] * 1e3,
    "ms from the first connect to the last reply": lambda line: line["seconds"] * 1e3,
    "connects a second": lambda line: line["connects_per_second"],
    "CPU µs of the server a client": lambda line: line["server_cpu_us"],
    "CPU µs of the generator a client": lambda line: line["generator_cpu_us"],
}


def failures(lines: list[Line]) -> Iterable[str]:
    errors = [line for line in lines if "error" in line]
    yield from unique(f"Not measured: {line['case']}, {line['clients']:,} clients: {line['error']}" for line in errors)


MISSED = "MISSED"


@dataclass(frozen=True)
class Bar:
    promise: str
    limit: float | Callable[[list[Line]], float | None]
    figure: Callable[[list[Line]], float | None]
    at_least: bool = False
    digits: int = 2

    def limit_of(self, lines: list[Line]) -> float | None:
        return self.limit(lines) if callable(self.limit) else self.limit

    def verdict(self, lines: list[Line]) -> str:
        figure, limit = self.figure(lines), self.limit_of(lines)
        if figure is None or limit is None:
            return "not measured"
        return "met" if (figure >= limit if self.at_least else figure <= limit) else MISSED


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


def keeping_ratio(subscribers: int, window: int) -> Callable[[list[Line]], float | None]:
    return lambda lines: median(keeping_ratios(lines, DEFAULTS, (subscribers, window)))


def durable_rate(lines: list[Line]) -> float | None:
    return median_of([line for line in lines if line["case"] == "durable"], "publications_per_second")


def durable_limit(lines: list[Line]) -> float | None:
    disk = median_of([line for line in lines if line["case"] == "durable"], "disk_writes_per_second")
    return None if disk is None else min(DURABLE_RATE, DISK_RATES * disk)


def not_as_it_should_be(lines: list[Line]) -> float | None:
    """Clients that did not come back as themselves, and messages that they did not get once."""
    resumes = [line for line in lines if line["case"] == "resume"]
    keys = ("lost", "surplus", "mail_lost", "mail_surplus")
    wrong = [
        line["clients"] if "error" in line else line["clients"] - line["resumed"] + sum(line[key] for key in keys)
        for line in resumes
    ]
    return float(sum(wrong)) if wrong else None


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
    Bar("CPU a delivery with history over without, 1,000 subscribers, window 1", 1.10, keeping_ratio(1000, 1)),
    Bar("CPU a delivery with history over without, 100 subscribers, window 64", 1.10, keeping_ratio(100, 64)),
    Bar(
        "CPU of the publishing thread beside SQLite over memory, no subscriber",
        1.15,
        lambda lines: median(publish_ratios(lines, 0)),
    ),
    Bar("the same, one subscriber", 1.15, lambda lines: median(publish_ratios(lines, 1))),
    Bar("durable publications a second, 64 in flight", durable_limit, durable_rate, at_least=True, digits=0),
    Bar(
        "ms at the 99th percentile to recover 300 messages",
        20.0,
        lambda lines: median_of(measured_lines(lines, "recover"), "join_p99_ms"),
    ),
    Bar(
        "messages lost or doubled, and clients not resumed, when everyone comes back after kill -9",
        0.0,
        not_as_it_should_be,
        digits=0,
    ),
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


def measured_lines(lines: list[Line], case: str) -> list[Line]:
    return [line for line in lines if line["case"] == case and "error" not in line]


if __name__ == "__main__":
    main()
