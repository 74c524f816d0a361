"""The figures as a table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from .figures import Figure, spread

HEAD = ("row", "figure", "median", "middle half", "against", "its median", "limit", "margin", "verdict")


def table(figures: Iterable[tuple[str, Figure]]) -> str:
    """Return the table; each figure comes with the name of its row."""
    lines = [HEAD, *(_cells(row, figure) for row, figure in figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    padded = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def _cells(row: str, figure: Figure) -> tuple[str, ...]:
    low, high = spread(figure.measured)
    return (
        row,
        figure.what,
        quantity(median(figure.measured), figure.unit),
        f"{number(low)} to {number(high)}",
        figure.against,
        quantity(median(figure.reference), figure.unit) if figure.reference else "",
        limit(figure),
        margin(figure),
        figure.verdict,
    )


def limit(figure: Figure) -> str:
    """Say a figure's limit in words."""
    if figure.limit is None:
        return ""
    times, plus = figure.limit.times, figure.limit.plus
    terms = [f"{times:g} x" if times else "", quantity(plus, figure.unit) if plus or not times else ""]
    return ("at least " if figure.limit.at_least else "at most ") + " + ".join(filter(None, terms))


def margin(figure: Figure) -> str:
    """Say how many times better than its limit a figure is."""
    if figure.margin is None:
        return ""
    return "whole" if math.isinf(figure.margin) else f"{figure.margin:.2f}"


def quantity(value: float, unit: str) -> str:
    """A number with its unit."""
    return f"{number(value)} {unit}".rstrip()


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"
