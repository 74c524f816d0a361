"""What a row is given to measure with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

QUICK = 3
"""Rounds of a quick run."""


class Unmeasurable(Exception):
    """This machine lacks what the row needs; the text says what, and how to get it."""


class Bench:
    """One row's run.

    Args:
        scratch: an empty directory of the row's own, on the disk that is measured.
        peers: the Python of the peers' virtual environment.
        quick: to see that it works, not how fast.
    """

    def __init__(self, *, scratch: Path, peers: Path, quick: bool) -> None:
        self.scratch = scratch
        self.quick = quick
        self._peers = peers

    @property
    def peers(self) -> Path:
        """The Python of the peers' virtual environment.

        Raises:
            Unmeasurable: it has not been made.
        """
        if not self._peers.exists():
            raise Unmeasurable(f"{self._peers} is missing: scripts/bench makes it")
        return self._peers

    async def interleave(
        self, sides: Mapping[str, Callable[[], Awaitable[T]]], *, rounds: int
    ) -> dict[str, list[T]]:
        """Measure every side once a round, and begin each round with another one.

        The machine's mood then falls on all sides alike, and none always follows the same other.
        A round more, the first, is thrown away.
        """
        order = list(sides)
        measured: dict[str, list[T]] = {side: [] for side in sides}
        for number in range(1 + (min(QUICK, rounds) if self.quick else rounds)):
            for side in order:
                value = await sides[side]()
                if number:
                    measured[side].append(value)
            order.append(order.pop(0))
        return measured
