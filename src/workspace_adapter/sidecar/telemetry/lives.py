"""How the lives of a workspace before this one ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Self

KEPT = "lives"
"""The key under which the journal keeps them."""


@dataclass(slots=True, kw_only=True)
class Lives:
    """How many ended in which way, and how the last one did."""

    stopped: int = 0
    """Ended because they were told to."""
    cut: int = 0
    """Ended otherwise: SIGKILL, out of memory, node lost, or a fault."""
    told: bool | None = None
    """Whether the last one was told to stop; ``None`` where there was none."""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read what ``as_text`` wrote; where there is nothing to go on from, there was no life before."""
        try:
            values = json.loads(text or "")
            return cls(stopped=int(values["stopped"]), cut=int(values["cut"]), told=bool(values["told"]))
        except (ValueError, TypeError, KeyError):
            return cls()

    def begin(self) -> None:
        """Another life begins: only now it is known how the one before ended."""
        self.stopped += self.told is True
        self.cut += self.told is False
        self.told = False

    def stop(self) -> None:
        """This one was told to stop."""
        self.told = True

    def as_text(self) -> str:
        """Write it down."""
        return json.dumps(asdict(self))
