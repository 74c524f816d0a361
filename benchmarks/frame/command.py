"""The command: which rows are measured, and where the figures go."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import anyio

from .bench import Bench, Unmeasurable
from .figures import Figure, Verdict, spread
from .picture import picture
from .table import table

Rows = Mapping[str, str]
"""Each row's name, and the module that measures it."""

PEERS = Path(__file__).parents[2] / ".venv-peers/bin/python"


def run(rows: Rows, arguments: Sequence[str]) -> int:
    """Measure, print and write.

    Returns:
        The exit code: 1 where ``--check`` was asked for and a limit is missed or a row could not be
        measured, 2 where the arguments are wrong.
    """
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure the rows of benchmarks/.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)}; none means all")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is missed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round of every figure")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it works")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.rows if name not in rows]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(rows)}")

    figures: list[tuple[str, Figure]] = []
    missing: dict[str, str] = {}
    for name in given.rows or rows:
        began = time.monotonic()
        try:
            figures += [(name, figure) for figure in _measure(rows[name], quick=given.quick)]
        except Unmeasurable as lack:
            missing[name] = str(lack)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)

    machine = _machine()
    subtitle = ", ".join(str(value) for value in machine.values())
    print(subtitle, table(figures), *(f"{n}: not measured: {why}" for n, why in missing.items()), sep="\n\n")
    if given.json:
        told = [{"row": row, **_as_json(figure)} for row, figure in figures]
        report = {"machine": machine, "quick": given.quick, "figures": told, "not_measured": missing}
        given.json.write_text(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if given.svg:
        given.svg.write_text(picture(figures, subtitle))
    short = any(figure.verdict is Verdict.SHORT for _, figure in figures)
    return int(given.check and (short or bool(missing)))


def _measure(module: str, *, quick: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="workspace-adapter-bench-") as scratch:
        bench = Bench(scratch=Path(scratch), peers=PEERS, quick=quick)
        measured: list[Figure] = anyio.run(import_module(module).measure, bench)
        return measured


def _as_json(figure: Figure) -> dict[str, Any]:
    limit = figure.limit
    return {
        "figure": figure.what,
        "unit": figure.unit,
        "median": median(figure.measured),
        "middle_half": spread(figure.measured),
        "measured": list(figure.measured),
        "against": figure.against or None,
        "reference_median": median(figure.reference) if figure.reference else None,
        "reference": list(figure.reference),
        "limit": limit
        and {
            "at_least": limit.at_least,
            "times": limit.times,
            "plus": limit.plus,
            "every_round": limit.every_round,
        },
        # Infinite where nothing was to be and nothing was; JSON has no word for it.
        "margin": min(figure.margin, sys.float_info.max) if figure.margin is not None else None,
        "verdict": figure.verdict.name.lower(),
    }


def _machine() -> dict[str, Any]:
    return {
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": f"{os.cpu_count()} cores",
        "load": f"load {os.getloadavg()[0]:.1f} at the end",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "sqlite": f"SQLite {sqlite3.sqlite_version}",
        "sdk": f"a2a-sdk {version('a2a-sdk')}",
        "server": f"uvicorn {version('uvicorn')}",
    }
