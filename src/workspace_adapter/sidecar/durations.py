"""How often something took how long, counted in memory for whoever asks."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence

MOMENTS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Bounds for what a disk takes."""

WAITS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds for what callers wait for."""

WORK = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0, 86400.0)
"""Bounds for what an agent takes, or a restart."""


class Durations:
    """A histogram. One thread observes, any may read.

    Args:
        bounds: seconds, ascending: the upper ends of the classes, but for the last one, which has none.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        """Seconds in all."""

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def classes(self) -> list[tuple[float, int]]:
        """Return each upper end, the last one infinite, with how many took no longer."""
        counts, total = tuple(self._counts), 0
        found = []
        for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
            total += count
            found.append((bound, total))
        return found

    def as_text(self) -> str:
        """Write it down, for :meth:`add`."""
        return json.dumps({"bounds": self._bounds, "counts": self._counts, "sum": self.sum})

    def add(self, text: str | None) -> None:
        """Add what was written down; nothing where that is not ours, or of other bounds."""
        try:
            kept = json.loads(text or "")
            counts, total = [int(count) for count in kept["counts"]], float(kept["sum"])
            if tuple(kept["bounds"]) != tuple(self._bounds) or len(counts) != len(self._counts):
                return
        except (ValueError, TypeError, KeyError):
            return
        self._counts = [one + other for one, other in zip(self._counts, counts, strict=True)]
        self.sum += total
