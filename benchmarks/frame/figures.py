"""A figure, its limit and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median


class Verdict(StrEnum):
    """What a figure's limit says of it."""

    OK = "ok"
    SHORT = "SHORT"
    NONE = "–"
    """It has no limit: it is shown beside the others."""


@dataclass(frozen=True, slots=True)
class Limit:
    """``times`` the reference ``plus`` something in the figure's own unit."""

    at_least: bool
    times: float
    plus: float
    every_round: bool
    """Whether the worst round decides, not the median."""

    def bound(self, reference: float) -> float:
        """Return what the figure may just be, given its reference in the same round."""
        return self.times * reference + self.plus

    def margin(self, measured: float, reference: float) -> float:
        """Return how many times better than the bound it is; below 1 it falls short."""
        better, worse = self.bound(reference), measured
        if self.at_least:
            better, worse = worse, better
        if worse:
            return better / worse
        return math.inf


def at_least(plus: float = 0.0, *, times: float = 0.0) -> Limit:
    """At least so much, or so many times the reference; the median round decides."""
    return Limit(at_least=True, times=times, plus=plus, every_round=False)


def at_most(plus: float = 0.0, *, times: float = 0.0) -> Limit:
    """At most so much, or so many times the reference, or the sum; the median round decides."""
    return Limit(at_least=False, times=times, plus=plus, every_round=False)


def never() -> Limit:
    """Not once, in no round."""
    return Limit(at_least=False, times=0.0, plus=0.0, every_round=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table."""

    what: str
    unit: str
    measured: Sequence[float]
    """One value a round, at least one."""
    against: str = ""
    """What the reference is, where there is one."""
    reference: Sequence[float] = ()
    """One value a round, of the same rounds and in the same unit."""
    limit: Limit | None = None

    def __post_init__(self) -> None:
        if not self.measured or len(self.reference) not in (0, len(self.measured)):
            raise ValueError(f"{self.what}: one value a round is needed, and as many of the reference")
        if bool(self.reference) != bool(self.against):
            raise ValueError(f"{self.what}: a reference and its name go together")

    @property
    def margin(self) -> float | None:
        """How many times better than its limit; infinite where nothing was to be and nothing was."""
        if self.limit is None:
            return None
        references = self.reference or [0.0] * len(self.measured)
        margins = [self.limit.margin(m, r) for m, r in zip(self.measured, references, strict=True)]
        return min(margins) if self.limit.every_round else median(margins)

    @property
    def verdict(self) -> Verdict:
        """Whether the limit is kept."""
        margin = self.margin
        if margin is None:
            return Verdict.NONE
        return Verdict.OK if margin >= 1.0 else Verdict.SHORT


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles, between which the middle half of the rounds lies."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last * 0.25)], ordered[round(last * 0.75)]
