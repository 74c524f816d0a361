"""What one heartbeat says, when it is due, and when the workspace registers.

Told the time and what happened; ``sidecar/platform/pulse.py`` is the moving half. All times are
monotonic seconds. ``chance`` is a random number of [0, 1), which keeps many workspaces
from speaking at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from .queueing import NO_ROOM
from .wire import WEDGED, Heartbeat

TEXT_LIMIT = 500
"""Characters of a text that a heartbeat carries."""

_RECENT = 20
"""Ends that the error rate looks back on."""

_RECENT_FOR = 600.0
"""Seconds for which an end counts."""

_FEW = 5
"""Ends below which the rate is taken of this many: one failure alone degrades no workspace."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A turn's end, for the error rate."""

    at: float
    failure: str | None
    """Why it failed, if it did."""


@dataclass(frozen=True, slots=True)
class Ends:
    """The latest ends of turns."""

    latest: tuple[Ended, ...] = ()

    def and_(self, end: Ended) -> Ends:
        """Return these with one more."""
        return Ends((*self.latest, end)[-_RECENT:])

    def rate(self, now: float) -> float:
        """Return which part of the recent ones failed."""
        recent = self._recent(now)
        return round(sum(end.failure is not None for end in recent) / max(len(recent), _FEW), 3)

    def sample(self, now: float) -> str:
        """Return why the latest failed one did; empty when none did."""
        return next((end.failure for end in reversed(self._recent(now)) if end.failure is not None), "")

    def _recent(self, now: float) -> list[Ended]:
        return [end for end in self.latest if now - end.at < _RECENT_FOR]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vitals:
    """How the workspace stands, as its event loop says."""

    running: int = 0
    waiting: int = 0
    current_task: str = ""
    accepting: bool = True
    """Turns may start: the gate is open."""
    leaving: bool = False
    """It drains or stops, so another container may have the address next."""
    state: str = ""
    trouble: str | None = None
    """Why the runtime cannot work, as the runtime says."""
    ends: Ends = Ends()
    agent_card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What stays the same in every heartbeat of one life."""

    workspace_id: str
    boot_id: str
    version: str
    idle_timeout: float
    began: float


def heartbeat(
    identity: Identity,
    vitals: Vitals,
    *,
    now: float,
    blocked: str | None = None,
    generation: int | None = None,
) -> Heartbeat:
    """Word one heartbeat.

    Args:
        blocked: what is known of an event loop that does not answer.
        generation: of the platform's last reply.
    """
    wedged = blocked or vitals.trouble
    room = vitals.accepting and not vitals.leaving
    return Heartbeat(
        workspace_id=identity.workspace_id,
        active_tasks=vitals.running + (0 if room else NO_ROOM),
        is_busy=vitals.running > 0 or not room,
        current_task=vitals.current_task[:TEXT_LIMIT],
        error_rate=vitals.ends.rate(now),
        sample_error=(wedged or vitals.ends.sample(now))[:TEXT_LIMIT],
        uptime_seconds=int(now - identity.began),
        runtime_state=WEDGED if wedged else "",
        idle_timeout_seconds=math.ceil(identity.idle_timeout),
        agent_card=vitals.agent_card,
        observed_generation=generation,
        boot_id=identity.boot_id,
        state=vitals.state,
        waiting=vitals.waiting,
        version=identity.version,
    )


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast everything goes, all of it in terms of the longest time between two heartbeats."""

    interval: float

    @property
    def timeout(self) -> float:
        """Seconds one exchange may take: a platform counts two missing heartbeats against us."""
        return max(1.0, self.interval / 2)

    @property
    def first(self) -> float:
        """Seconds before what failed is tried again for the first time; then twice as long each time."""
        return self.interval / 10

    @property
    def slow(self) -> float:
        """Seconds between two tries of what the platform refuses."""
        return 6 * self.interval

    @property
    def outage(self) -> float:
        """Seconds without an answer after which the platform has forgotten us."""
        return 15 * self.interval

    @property
    def absence(self) -> float:
        """Seconds without an answer after which the platform counts as lost."""
        return 1.5 * self.interval

    @property
    def burst(self) -> int:
        """Heartbeats that changes may cause at once; then one more each ``first`` seconds."""
        return 10


class Act(Enum):
    """What is to be done now."""

    REGISTER = auto()
    BEAT = auto()


class News(Enum):
    """What an operator is told."""

    REGISTERED = auto()
    NOT_REGISTERED = auto()  #: it failed, for a reason not told yet
    LOST = auto()  #: no heartbeat was answered for a while
    BACK = auto()


@dataclass(slots=True)
class Rhythm:
    """When to register and when to beat."""

    pace: Pace
    registered_at: float | None = None
    """Since when the platform knows us; ``None``: it does not, or has forgotten."""
    answered_at: float | None = None
    """When it answered last with a yes."""
    failures: int = 0
    """Heartbeats that failed since the last one that did not."""
    lost: bool = False
    _tried: bool = False
    _refusals: int = 0
    _register_at: float = -math.inf
    _beat_at: float = -math.inf
    _not_before: float = -math.inf
    _tokens: float = field(default=0.0)
    _filled_at: float = -math.inf
    _told: object = None

    def next(
        self, now: float, *, changed: bool = False, urgent: bool = False, leaving: bool = False
    ) -> Act | None:
        """Say what is due.

        Args:
            changed: the workspace stands otherwise than the last heartbeat said.
            urgent: it has begun or ceased to take work since the last one was tried.
            leaving: it drains or stops, and so must not register.
        """
        self._forget(now)
        beat = now >= self._beats_at(now, changed, urgent, leaving)
        if beat and urgent:
            return Act.BEAT
        if not leaving and self.registered_at is None and now >= self._register_at:
            return Act.REGISTER
        return Act.BEAT if beat else None

    def wait(
        self, now: float, *, changed: bool = False, urgent: bool = False, leaving: bool = False
    ) -> float:
        """Return the seconds until something is due."""
        at = self._beats_at(now, changed, urgent, leaving)
        if leaving:
            pass
        elif self.registered_at is None:
            at = min(at, self._register_at)
        elif self.answered_at is not None:
            at = min(at, self.answered_at + self.pace.outage)
        return max(0.0, at - now)

    def _beats_at(self, now: float, changed: bool, urgent: bool, leaving: bool) -> float:
        if not self._tried and not leaving:
            return math.inf  # who nobody knows is heard by nobody
        if urgent:
            return now
        if changed:
            full = self._filled_at + (1 - self._tokens) * self.pace.first
            return min(self._beat_at, max(self._not_before, full))
        return self._beat_at

    def _forget(self, now: float) -> None:
        """A platform that has not heard of us for so long knows neither us nor our address."""
        if (
            self.registered_at is not None
            and self.answered_at is not None
            and now - self.answered_at >= self.pace.outage
        ):
            self.registered_at, self._refusals, self._register_at = None, 0, now

    # --- what came of it --------------------------------------------------------------

    def registered(self, now: float) -> News:
        """The platform knows us; a heartbeat follows at once."""
        self.registered_at = now
        self._tried, self._refusals, self._told = True, 0, None
        self._beat_at, self._not_before = now, -math.inf
        self._answered(now)
        return News.REGISTERED

    def not_registered(
        self, now: float, *, status: int | None, retry_after: float | None, chance: float
    ) -> News | None:
        """Registering failed; it is tried again, for ever."""
        self._tried = True
        slow = refused(status)
        first = self.pace.first * (4 if slow else 1)
        longest = self.pace.slow if slow else self.pace.slow / 2
        delay = _backoff(first, self._refusals, longest) * (1 - chance / 4)
        self._refusals += 1
        self._register_at = now + max(delay, min(retry_after or 0.0, self.pace.slow))
        kind = ("refused", status) if slow else "absent"
        if kind == self._told or (self.lost and not slow):
            return None
        self._told = kind
        return News.NOT_REGISTERED

    def beating(self, now: float, *, chance: float) -> None:
        """A heartbeat leaves."""
        filled = self._tokens + (now - self._filled_at) / self.pace.first
        self._tokens = max(0.0, min(self.pace.burst, filled) - 1)
        self._filled_at = now
        self._beat_at = now + self.pace.interval * (1 - chance / 10)

    def beaten(self, now: float) -> News | None:
        """It was answered."""
        news = News.BACK if self.lost else None
        self._not_before = -math.inf
        self._answered(now)
        return news

    def missed(
        self, now: float, *, status: int | None, retry_after: float | None, chance: float
    ) -> News | None:
        """It was not."""
        self.failures += 1
        if refused(status):
            delay = self.pace.interval
        else:
            delay = _backoff(self.pace.first, self.failures - 1, self.pace.interval) * (1 - chance / 4)
        self._not_before = now + max(delay, min(retry_after or 0.0, self.pace.slow))
        self._beat_at = self._not_before
        if status in _UNKNOWN and self.registered_at is not None:
            self.registered_at, self._refusals, self._register_at = None, 0, now + self.pace.first
        if self.lost or self.answered_at is None or now - self.answered_at <= self.pace.absence:
            return None
        self.lost = True
        return News.LOST

    def _answered(self, now: float) -> None:
        self.answered_at, self.failures, self.lost = now, 0, False


_UNKNOWN = (404, 409)
"""The platform knows no such workspace, or not this life of it: it was restored from a backup, say."""


def refused(status: int | None) -> bool:
    """Whether this answer is the platform's no, which time alone hardly changes."""
    return status is not None and 400 <= status < 500 and status not in (408, 425, 429)


def _backoff(first: float, times: int, longest: float) -> float:
    return min(longest, first * 2.0 ** min(times, 30))


@dataclass(slots=True)
class Watch:
    """Whether the event loop lives.

    It leaves a sign of life again and again. Who looks less often than every ``limit`` has
    been stopped together with the loop, and starts to count anew: wait for :attr:`patience`
    at most.
    """

    limit: float
    _looked_at: float = -math.inf
    _since: float = -math.inf

    def silence(self, now: float, sign_at: float) -> float:
        """Return for how many seconds the loop has given no sign."""
        if now - self._looked_at > self.limit:
            self._since = now
        self._looked_at = now
        return now - max(sign_at, self._since)

    @property
    def patience(self) -> float:
        """Seconds after which to look again."""
        return self.limit / 2
