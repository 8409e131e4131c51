"""Figures as text, and rows of tables."""

import statistics
from collections.abc import Iterable
from typing import Any

Line = dict[str, Any]


def median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def median_of(lines: list[Line], key: str) -> float | None:
    return statistics.median(line[key] for line in lines) if lines else None


def spread(values: list[float]) -> str:
    if not values:
        return ""
    low, middle, high = quartiles(values)
    digits = 2 if middle < 10 else 1 if middle < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def extremes(values: list[float]) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.0f}" if low == high else f"{middle:,.0f} ({low:,.0f} to {high:,.0f})"


def quartiles(values: list[float]) -> list[float]:
    """On a machine that others use too the extremes say how busy they were."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def header(first: str, columns: list[str]) -> Iterable[str]:
    yield row(first, columns)
    yield row("---", ["---"] * len(columns))


def row(first: str, cells: list[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"
