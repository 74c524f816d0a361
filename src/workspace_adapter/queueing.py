"""What becomes of one queued message: states, verdicts, backoff, expiry, capacity, order.

Everything that says which change of a queue item is allowed stands here; the store
refuses anything else. A lease that nobody renews *is* the mark of a holder that died::

                ┌────────────(put back: busy, restarting)────────────┐
                ▼                                                    │
    enqueued ► queued ──(claimed)──► leased ──(answer)──► completed  │
               ▲ │ ▲                  │ │ │  └────────────────────── ┘
     (replayed)│ │ └──(its time)── delayed ◄─(try later)
               │ │                    │   └──► failed: a dead letter
               │ └──► expired, dropped ◄┘         │
               └──────────────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from .errors import InvalidTransition


class State(StrEnum):
    """Where a queue item stands."""

    QUEUED = "queued"  #: waits for room at its workspace
    DELAYED = "delayed"  #: waits for a time
    LEASED = "leased"  #: a dispatcher holds it
    COMPLETED = "completed"  #: the workspace's answer is stored
    FAILED = "failed"  #: a dead letter: given up on until somebody replays it or its asker asks again
    EXPIRED = "expired"  #: its sender's own time limit passed while it waited
    DROPPED = "dropped"  #: taken out by an operator


TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.LEASED, State.EXPIRED, State.DROPPED}),
    State.DELAYED: frozenset({State.QUEUED, State.EXPIRED, State.DROPPED}),
    State.LEASED: frozenset(
        {State.LEASED, State.QUEUED, State.DELAYED, State.COMPLETED, State.FAILED, State.DROPPED}
    ),
    State.FAILED: frozenset({State.QUEUED, State.DROPPED}),
    State.EXPIRED: frozenset({State.QUEUED}),
    State.DROPPED: frozenset({State.QUEUED}),
    State.COMPLETED: frozenset(),
}
"""``leased`` to ``leased`` is a new holder's: the last one's renewals stopped."""

LIVE = frozenset({State.QUEUED, State.DELAYED, State.LEASED})
"""Somebody still has to do something."""

WAITING = frozenset({State.QUEUED, State.DELAYED})
"""Counts as depth."""

ENDED = frozenset(State) - LIVE
"""Its asker can be told how it stands."""

REVIVED = frozenset({State.FAILED, State.EXPIRED})
"""The same message sent again is tried anew; what an operator dropped stays dropped until it is replayed."""

REPLAYABLE = frozenset(state for state in ENDED if State.QUEUED in TRANSITIONS[state])
"""An operator may send it once more."""

DROPPABLE = frozenset(state for state, targets in TRANSITIONS.items() if State.DROPPED in targets)
"""An operator may take it out."""


def check(item_id: str, source: State, target: State) -> None:
    """Refuse a transition the table does not have.

    Raises:
        InvalidTransition: naming the item and both states.
    """
    if target not in TRANSITIONS[source]:
        raise InvalidTransition(f"queue item {item_id} cannot go from {source} to {target}")


NO_ROOM = 1000
"""A workspace that reports this many active tasks or more takes nothing new, whatever its limit: the
existing platform's wire has no other word for "not now" than more than any ``max_concurrent_tasks``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The numbers of the policy. Times are seconds."""

    strikes: int = 8
    """Failures that make a dead letter."""
    lapses: int = 20
    """Holders in a row that may die with an item before it is a dead letter."""
    backoff: float = 1.0
    """After the first failure; doubled by each further one."""
    backoff_cap: float = 60.0
    retry_after_cap: float = 300.0
    """The longest time that a workspace may ask us to wait."""
    busy_wait: float = 2.0
    """For a workspace that was busy and named no time, or was not reached; a beat that shows room ends it."""
    lease: float = 15.0
    """How long a lease holds without being renewed."""
    renewal: float = 5.0
    """How often a holder renews."""
    depth_cap: int = 1000
    """Waiting items a workspace may have."""
    retention: float = 7 * 86400.0
    """How long an ended item is kept; as long, its message is known."""
    stream_limit: int = 64 * 2**20
    """Bytes of events that are kept of one stream; beyond them the oldest go, whose absence their numbers
    show. Who follows the stream misses none."""
    priority_weight: float = 1.0
    """How much sooner one step of priority makes an item come."""

    @property
    def longest_wait(self) -> float:
        """Seconds. What is due later than that was delayed before the clock was set back."""
        return max(self.backoff_cap, self.retry_after_cap)

    def problems(self) -> tuple[str, ...]:
        """Return what cannot work, a sentence each."""
        found = []
        if self.lease <= 2 * self.renewal:
            found.append(
                f"a lease of {self.lease:g} s must be longer than two renewals ({self.renewal:g} s each):"
                " one that comes late must not lose it"
            )
        if self.backoff_cap < self.backoff:
            found.append(
                f"the longest backoff ({self.backoff_cap:g} s) is shorter than the first ({self.backoff:g} s)"
            )
        found += [
            f"{name} must be positive"
            for name in (
                "strikes",
                "lapses",
                "backoff",
                "renewal",
                "depth_cap",
                "retention",
                "busy_wait",
                "stream_limit",
            )
            if getattr(self, name) <= 0
        ]
        if self.priority_weight < 0:
            found.append("priority_weight must not be negative")
        return tuple(found)


# --- order, expiry, room ------------------------------------------------------------------


def order_key(enqueued_at: float, priority: int, weight: float) -> float:
    """Return the one key an item is ordered by, fixed when it is enqueued; the smallest comes first.

    It is priority, order of arrival and ageing in one number: a step of priority is worth
    ``weight`` seconds of waiting, so nothing starves.
    """
    return enqueued_at - priority * weight


def capacity(max_concurrent: int, active_tasks: int, leased: int) -> int:
    """Return how many items a workspace can be given now.

    Args:
        max_concurrent: what it said it can do at once.
        active_tasks: what it last said it does; the items leased are among them, or not yet.
        leased: items of it that a dispatcher holds.
    """
    if active_tasks >= NO_ROOM:
        return 0
    return max(0, max_concurrent - max(active_tasks, leased))


def backoff(rules: Rules, strikes: int, jitter: float, asked: float | None = None) -> float:
    """Return the seconds until the next try.

    Args:
        strikes: failures so far, this one counted.
        jitter: between 0 and 1; spreads what failed together over the upper half of the time.
        asked: the workspace's ``Retry-After``, which is never undercut, up to its cap.
    """
    doublings = min(max(strikes, 1) - 1, 60)
    time = min(rules.backoff_cap, rules.backoff * 2.0**doublings) * (0.5 + jitter / 2)
    return max(time, min(asked or 0.0, rules.retry_after_cap))


def lapsed(lease_until: float, now: float) -> bool:
    """Say whether a holder missed its renewals. How long it holds the item does not matter."""
    return lease_until <= now


# --- verdicts -----------------------------------------------------------------------------


class Lost(StrEnum):
    """How a dispatch came to nothing on the wire."""

    UNREACHED = "unreached"  #: no connection: the workspace saw nothing
    CUT = "cut"  #: the connection broke after the message was sent, or part of it
    LATE = "late"  #: no answer before the dispatch's deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a workspace answered, as far as it matters here."""

    status: int
    body: Mapping[str, Any] | None
    """The JSON object, or ``None`` when it is none."""
    retry_after: float | None = None
    """Seconds, of the header; the body's ``retry_after`` counts where it has none."""

    def says(self, word: str) -> bool:
        """Whether the body's top level has this member, true."""
        return self.body is not None and self.body.get(word) is True

    @property
    def answers(self) -> bool:
        """Whether it is a JSON-RPC answer: a result, or an error."""
        return self.body is not None and (
            "result" in self.body or isinstance(self.body.get("error"), Mapping)
        )

    @property
    def retryable(self) -> bool:
        """Whether the answer tells of a failure and says that the same message may be sent again."""
        body = self.body or {}
        result, error = body.get("result"), body.get("error")
        told: list[object] = []
        if isinstance(result, Mapping):
            result = next(
                (result[name] for name in _A2A_1_0 if isinstance(result.get(name), Mapping)), result
            )
            told.append(result.get("metadata"))
            status = result.get("status")
            if isinstance(status, Mapping) and isinstance(status.get("message"), Mapping):
                told.append(status["message"].get("metadata"))
        if isinstance(error, Mapping):
            told.append(error.get("data"))
        return any(isinstance(data, Mapping) and data.get("retryable") is True for data in told)

    @property
    def asked_wait(self) -> float | None:
        """The seconds it asks us to wait."""
        if self.retry_after is not None:
            return max(0.0, self.retry_after)
        seconds = (self.body or {}).get("retry_after")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e10:
            return None
        return float(seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a leased item, to be written by a compare-and-set."""

    state: State
    because: str
    """For people, in one line."""
    wait: float = 0.0
    """Seconds: of an item that becomes ``delayed`` until its time; of one that goes back to the queue,
    until its *workspace* is asked again, unless a beat shows room."""
    strike: bool = False
    """It counts towards a dead letter."""
    taken: bool = False
    """The workspace may have the message: it expires no more while it waits here, since its work may run."""

    @property
    def ends_batch(self) -> bool:
        """Whether nothing more is sent to this workspace for now."""
        return self.state is State.QUEUED


_A2A_1_0 = ("task", "message", "statusUpdate")
"""Where A2A 1.0 puts what 0.3 has directly beneath ``result``."""

_GATEWAY = frozenset({502, 503, 504, 521, 522, 523, 524})
_FINAL = frozenset({400, 406, 413, 414, 415, 422})
"""What repetition cannot mend: the message itself is refused."""


def judge(reply: Reply | Lost, *, rules: Rules, strikes: int, restarting: bool, jitter: float) -> Verdict:
    """Say what becomes of an item by the workspace's answer.

    =======================================  =====================================================
    the workspace                            the item
    =======================================  =====================================================
    JSON-RPC result or error                 ``completed`` with it
    ... that says ``retryable``              ``delayed``; with the last strike ``failed``, answer kept
    429, ``busy``, ``restarting``            the same row back, no strike; the batch ends
    400, 413, 415 ...                        ``completed`` with the refusal
    not reached                              the same row back, no strike: it saw nothing; the batch ends
    cut, late, 502-504                       while restarting back, no strike; else ``delayed``
    202, empty, no JSON, 3xx, 401, 404, 5xx  ``delayed``: none of these is an answer
    =======================================  =====================================================

    Args:
        strikes: failures before this one.
        restarting: whether its restart is under way.
        jitter: between 0 and 1.
    """
    if isinstance(reply, Lost):
        if restarting:
            return _back(rules, f"{_LOST[reply]}; it is restarting", None, taken=reply is not Lost.UNREACHED)
        if reply is Lost.UNREACHED:
            return _back(rules, _LOST[reply], None, taken=False)
        return _later(rules, strikes, jitter, _LOST[reply], None, taken=True)
    asked, status = reply.asked_wait, reply.status
    if reply.says("restarting"):
        return _back(rules, "the workspace is restarting and keeps it", asked, taken=True)
    if status == 429 or reply.says("busy"):
        return _back(rules, "the workspace is busy", asked, taken=reply.says("taken"))
    if status < 300 and reply.answers:
        if not reply.retryable:
            return Verdict(state=State.COMPLETED, because="answered")
        return _later(rules, strikes, jitter, "the workspace failed at it and says try again", asked)
    if status in _FINAL:
        return Verdict(state=State.COMPLETED, because=f"refused with {status}")
    if status in _GATEWAY and restarting:
        return _back(rules, f"{status} while it is restarting", asked, taken=True)
    if status == 202:
        because = "202 without an answer"
    elif status < 300:
        because = f"{status} without an answer that can be read"
    else:
        because = f"answered {status}"
    return _later(rules, strikes, jitter, because, asked, taken=status < 300 or status in _GATEWAY)


_LOST = {
    Lost.UNREACHED: "the workspace could not be reached",
    Lost.CUT: "the connection broke before the answer",
    Lost.LATE: "no answer before the dispatch's deadline",
}


def _back(rules: Rules, because: str, asked: float | None, *, taken: bool) -> Verdict:
    wait = rules.busy_wait if asked is None else min(asked, rules.retry_after_cap)
    return Verdict(state=State.QUEUED, because=because, wait=wait, taken=taken)


def _later(
    rules: Rules, strikes: int, jitter: float, because: str, asked: float | None, *, taken: bool = False
) -> Verdict:
    strikes += 1
    if strikes >= rules.strikes:
        because = f"{because}; {strikes} failures, given up"
        return Verdict(state=State.FAILED, because=because, strike=True, taken=taken)
    wait = backoff(rules, strikes, jitter, asked)
    return Verdict(state=State.DELAYED, because=because, wait=wait, strike=True, taken=taken)


def outlived(lapses: int, rules: Rules) -> Verdict | None:
    """Say what becomes of an item just claimed whose holders died with it, one after another."""
    if lapses < rules.lapses:
        return None
    return Verdict(
        state=State.FAILED, because=f"{lapses} dispatchers in a row stopped while they held it, given up"
    )
