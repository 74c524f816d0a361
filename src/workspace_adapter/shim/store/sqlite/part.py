"""What the verbs of every noun stand on: the writer, the rules, who is told what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from ....queueing import Rules, State
from ..contract import Cycle, Status
from .writer import Transaction, Writer

LIVE = "('queued', 'delayed', 'leased')"


class Part:
    """The store, as far as one noun's verbs know it."""

    _writer: Writer
    _rules: Rules
    on_due: Callable[[str], None]
    on_ended: Callable[[int], None]
    on_said: Callable[[int], None]
    on_cycle: Callable[[str], None]


HELD = "id = ? AND attempt = ? AND owner = ? AND ended_at IS NULL"
"""Of a cycle: it is still its owner's. Its values are the cycle's ``fence``."""


def fence(cycle: Cycle) -> tuple[int, int, str | None]:
    """Return what says whose a cycle is."""
    return cycle.id, cycle.attempt, cycle.owner


def holds(transaction: Transaction, cycle: Cycle) -> bool:
    """Say whether a cycle is still its owner's."""
    return transaction.one(f"SELECT 1 FROM cycles WHERE {HELD}", *fence(cycle)) is not None


def moment(now: float | None) -> float:
    """Return the time a verb was told, or the clock's."""
    return time.time() if now is None else now


def among(states: Collection[State | Status]) -> str:
    """Write constants of ours for an ``IN``."""
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"
