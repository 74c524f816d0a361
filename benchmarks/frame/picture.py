"""The figures as one picture: how far each is from its limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from statistics import median

from . import table
from .figures import Figure, Verdict

WIDTH, LINE, TOP, BOTTOM = 1000, 22, 64, 30
LABELS, VALUES = 400, 190
"""Pixels on the left for what was measured, on the right for the numbers."""

SPAN = 8.0
"""A bar ends at the margin of this, or of its inverse."""

COLOURS = {Verdict.OK: "#2f855a", Verdict.SHORT: "#c53030"}


def picture(figures: Sequence[tuple[str, Figure]], subtitle: str) -> str:
    """Return an SVG with one bar for each figure that has a limit, longer for better."""
    shown = [(row, figure) for row, figure in figures if figure.margin is not None]
    height = TOP + LINE * len(shown) + BOTTOM
    kept = sum(figure.verdict is Verdict.OK for _, figure in shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-size="12"'
        ' font-family="system-ui, sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(12, 24, f"{kept} of {len(shown)} limits kept", size=16),
        _text(12, 43, subtitle, colour="#555555"),
        *(_mark(times, height) for times in (1 / SPAN, 0.5, 1, 2, SPAN)),
        *(part for n, (row, figure) in enumerate(shown) for part in _bar(n, row, figure)),
        _text(_x(1), height - 10, "its limit", colour="#555555", anchor="middle"),
        _text(_x(SPAN), height - 10, f"{SPAN:g} times better", colour="#555555", anchor="end"),
        _text(_x(1 / SPAN), height - 10, f"{SPAN:g} times worse", colour="#555555"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bar(place: int, row: str, figure: Figure) -> list[str]:
    margin = figure.margin
    assert margin is not None
    end, origin = _x(margin), _x(1)
    top = TOP + LINE * place
    left, width = min(end, origin), max(abs(end - origin), 1.5)
    measured = table.quantity(median(figure.measured), figure.unit)
    return [
        _text(12, top + 15, f"{row}: {figure.what}{f', against {figure.against}' * bool(figure.against)}"),
        f'<rect x="{left:.1f}" y="{top + 4}" width="{width:.1f}" height="{LINE - 8}"'
        f' fill="{COLOURS[figure.verdict]}"/>',
        _text(WIDTH - 12, top + 15, f"{measured} ({table.limit(figure)})", anchor="end"),
    ]


def _mark(times: float, height: int) -> str:
    x, strong = _x(times), times == 1
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - BOTTOM + 4}"'
        f' stroke="{"#222222" if strong else "#dddddd"}" stroke-width="{1.5 if strong else 1}"/>'
    )


def _x(margin: float) -> float:
    middle = (LABELS + WIDTH - VALUES) / 2
    reach = (WIDTH - VALUES - LABELS) / 2
    within = min(max(margin, 1 / SPAN), SPAN)
    return middle + reach * math.log(within) / math.log(SPAN)


def _text(
    x: float, y: float, words: str, *, size: int = 12, colour: str = "#222222", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )
