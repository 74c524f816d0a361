"""The turns running now, the calls they have open, and the order of those that wait.

``active_tasks`` is ``len(ledger)``, never a counter. Plain and synchronous: whoever
holds the ledger changes it and starts what it says may start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Running:
    """One turn that a runtime works on."""

    turn_id: str
    session_id: str
    attempt: int = 0
    """0 while it is only being prepared: no runtime has seen a byte of it."""
    open: set[str] = field(default_factory=set)
    """Calls permitted, or about to be, and not ended."""
    held: set[str] = field(default_factory=set)
    """Calls waiting at the closed gate."""
    about: str = ""
    """What it was asked, for people: the beginning, in one line; empty while it is only being prepared."""
    waits_for_drain: bool = False
    """A tool of its own asked for the drain and waits for it."""

    @property
    def settled(self) -> bool:
        """Whether a drain need not wait for it: a call held and none open, or not begun."""
        if self.waits_for_drain:
            return True
        return not self.open and (bool(self.held) or self.attempt == 0)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One turn in line."""

    turn_id: str
    session_id: str
    seq: int
    resumed: bool

    @property
    def rank(self) -> tuple[bool, int]:
        """Resumed work goes ahead of every new message; else the order of arrival."""
        return (not self.resumed, self.seq)


class Ledger:
    """Who runs and who waits."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        """Sessions that may work at once."""
        self._running: dict[str, Running] = {}
        self._waiting: dict[str, Waiting] = {}
        self._barred: set[str] = set()

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Running]:
        return iter(tuple(self._running.values()))

    def __contains__(self, turn_id: object) -> bool:
        return turn_id in self._running or turn_id in self._waiting

    def get(self, turn_id: str) -> Running | None:
        """Return a running turn."""
        return self._running.get(turn_id)

    @property
    def waiting(self) -> tuple[str, ...]:
        """The turns that wait, in the order they are to start."""
        return tuple(w.turn_id for w in sorted(self._waiting.values(), key=lambda w: w.rank))

    def wait(self, turn_id: str, session_id: str, *, seq: int, resumed: bool = False) -> None:
        """Put a turn in line; harmless for one that runs or waits already."""
        if turn_id not in self:
            self._waiting[turn_id] = Waiting(turn_id, session_id, seq, resumed)

    def withdraw(self, turn_id: str) -> bool:
        """Take a waiting turn out of the line; say whether it was there."""
        return self._waiting.pop(turn_id, None) is not None

    def start_next(self) -> Running | None:
        """Move the turn that may start now to the running ones, if there is one."""
        if len(self._running) >= self.capacity:
            return None
        busy = self._barred.union(running.session_id for running in self._running.values())
        ready = (w for w in self._waiting.values() if w.session_id not in busy)
        first = min(ready, key=lambda w: w.rank, default=None)
        if first is None:
            return None
        del self._waiting[first.turn_id]
        running = Running(first.turn_id, first.session_id)
        self._running[first.turn_id] = running
        return running

    def bar(self, session_id: str) -> None:
        """Start no turn of this session until :meth:`unbar`."""
        self._barred.add(session_id)

    def unbar(self, session_id: str) -> None:
        """Let its turns start again."""
        self._barred.discard(session_id)

    def end(self, turn_id: str) -> None:
        """Take out a turn whose runtime has really stopped."""
        self._running.pop(turn_id, None)
