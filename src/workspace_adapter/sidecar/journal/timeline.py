"""The journal's own time, which goes on evenly whatever is done to the wall clock.

Rows are stamped with it, so that their age is time that has passed. It is the machine's
uptime, carried over from one life to the next; whoever uses the journal speaks of
wall-clock time, and the offset between the two is applied on the way in and out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

KEPT = "clock"
"""The key in ``meta`` under which a life leaves what the next one goes on from."""

BELIEVED = 2 * 86400.0
"""Seconds between two lives for which the wall clock alone is believed, by default."""

NOTICED = 2.0
"""Seconds by which the wall clock must be off to count as set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """What a machine's clocks say at one moment."""

    wall: float
    """UTC epoch seconds; anybody may set it."""
    uptime: float
    """Seconds since the machine started, suspended time included; nobody can set it."""
    kernel: str
    """Names one start of one machine; empty where that is not known."""


Machine = Callable[[], Instant]
"""Reads its clocks."""


def this_machine() -> Instant:
    """Read the clocks of this one."""
    return Instant(wall=time.time(), uptime=time.clock_gettime(time.CLOCK_BOOTTIME), kernel=_kernel())


@cache
def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What one life leaves to the next."""

    kernel: str
    uptime: float
    at: float
    """The journal's time at that uptime."""
    offset: float

    _NUMBERS: ClassVar = ("uptime", "at", "offset")

    @classmethod
    def parse(cls, text: str | None) -> Kept | None:
        """Read what ``as_text`` wrote; ``None`` where there is nothing to go on from."""
        try:
            values = json.loads(text or "")
            return cls(kernel=values["kernel"], **{name: float(values[name]) for name in cls._NUMBERS})
        except (ValueError, TypeError, KeyError):
            return None

    def as_text(self) -> str:
        """Write it down."""
        return json.dumps({name: getattr(self, name) for name in ("kernel", *self._NUMBERS)})


class Timeline:
    """The journal's time in one life.

    Args:
        now: when it begins.
        kept: what the life before left.
        believed: seconds that count at most between two lives when only the wall clock
            can tell, because the machine is another one or was started anew.
    """

    def __init__(self, now: Instant, kept: Kept | None, *, believed: float = BELIEVED) -> None:
        self.offset = 0.0
        """Seconds to add to the journal's time to have the wall clock's."""
        self.passed = 0.0
        """Seconds since the life before, where only the wall clock can tell; it may have gone back."""
        self.doubted = 0.0
        """Those of them that are not counted."""
        if kept is None:
            at = now.wall
        elif now.kernel and now.kernel == kept.kernel and now.uptime >= kept.uptime:
            at = kept.at + now.uptime - kept.uptime
            self.offset = kept.offset
        else:
            self.passed = now.wall - kept.offset - kept.at
            counted = min(max(self.passed, 0.0), believed)
            at = kept.at + counted
            self.doubted = self.passed - counted
            self.offset = kept.offset + round(self.doubted)
        self._ahead = at - now.uptime

    def at(self, now: Instant) -> float:
        """Return the journal's time."""
        return now.uptime + self._ahead

    def look(self, now: Instant) -> float:
        """Say by how many seconds the wall clock was set since the last look; as a rule 0."""
        off = now.wall - self.offset - self.at(now)
        if abs(off) < NOTICED:
            return 0.0
        self.offset += round(off)
        return off

    def keep(self, now: Instant) -> Kept:
        """Return what the next life is to go on from."""
        return Kept(kernel=now.kernel, uptime=now.uptime, at=self.at(now), offset=self.offset)
