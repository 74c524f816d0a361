"""How a command prints: a table for people, JSON for machines."""

from __future__ import annotations

import argparse
import json
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, overload

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@overload
def time(at: float) -> str: ...
@overload
def time(at: float | None) -> str | None: ...
def time(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def size(bytes: int) -> str:
    """Return a size for people, exact below a KiB."""
    if bytes < 1024:
        return f"{bytes} bytes"
    return next(f"{bytes / unit:.1f} {name}" for unit, name in _UNITS if bytes >= unit)


def excerpt(text: str, most: int = 200) -> str:
    """Return the beginning of a text, and how long it is where that is not all."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def show(options: argparse.Namespace, value: Mapping[str, Any], rows: Sequence[tuple[str, object]]) -> None:
    if options.json:
        print_json(value)
    else:
        table([(name, _text(value)) for name, value in rows])


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def print_json(value: object) -> None:
    print(json.dumps(value))


def table(rows: Sequence[tuple[str, ...]]) -> None:
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(_cells(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        padded = (text + " " * (width - _cells(text)) for text, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())


def _cells(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def printable(text: str) -> str:
    """Escape what a terminal would obey: ids and causes may hold what callers sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
