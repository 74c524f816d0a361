"""A row that misses its limit in the worst of its rounds."""

from __future__ import annotations

from benchmarks.frame import Bench, Figure, never


async def measure(bench: Bench) -> list[Figure]:
    """Return one figure that is short."""
    return [Figure(what="lost", unit="", measured=[0, 0, 1], limit=never())]
