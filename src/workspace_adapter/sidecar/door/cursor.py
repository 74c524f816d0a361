"""A position in a turn's event log, as a string."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

_FORM = re.compile(r"(\d{1,18})\.(\d{1,18})(?:\.(\d))?", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """Where a subscriber stands. Its text is opaque to everybody else."""

    turn_seq: int
    """Of the turn: one task may have several, each with a log of its own."""
    n: int
    """The last entry of the log that was seen; 0 before the first."""
    end: int = 0
    """How many of the events were seen that end the stream and are made from the turn
    itself. An entry that is logged later, when the turn goes on, is past them."""

    def __str__(self) -> str:
        return f"{self.turn_seq}.{self.n}" + (f".{self.end}" if self.end else "")

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Read a cursor; ``None`` where it is none of ours."""
        match = _FORM.fullmatch(text) if isinstance(text, str) else None
        return cls(int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
