"""What the verbs of every noun stand on: the writer, the rules, who is told what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ....queueing import Rules, State
from ..contract import Status
from .writer import Writer

LIVE = "('queued', 'delayed', 'leased')"


class Part:
    """The store, as far as one noun's verbs know it."""

    _writer: Writer
    _rules: Rules
    on_due: Callable[[str], None]
    on_ended: Callable[[int], None]
    on_said: Callable[[int], None]
    on_cycle: Callable[[str], None]


def moment(now: float | None) -> float:
    """Return the time a verb was told, or the clock's."""
    return time.time() if now is None else now


def among(states: Collection[State | Status]) -> str:
    """Write constants of ours for an ``IN``."""
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"
