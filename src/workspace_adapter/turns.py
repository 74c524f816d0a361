"""The life of a turn: its states and the table of transitions.

Everything that says which change of state is allowed stands here; the journal
refuses anything else. A row that says ``running`` while nobody runs it *is* the
resume-pending marker::

    accepted ──► running ──► answered
       │          │  ▲ │ └──► failed ──(retryable, asked again)──► running
       │          │  │ └────► canceled
       │          ▼  │
       │     parked / interrupted ──► answered, canceled, expired, suspended
       ▼                                                   │
    canceled, expired                    suspended ──(released)──► interrupted
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .errors import InvalidTransition


class State(StrEnum):
    """Where a turn stands."""

    ACCEPTED = "accepted"  #: journalled, waiting for its place
    RUNNING = "running"  #: a runtime works on it, or did when its process died
    ANSWERED = "answered"  #: the answer, or the agent's question, is stored
    FAILED = "failed"  #: it ended without an answer; the reason is stored
    CANCELED = "canceled"  #: somebody withdrew it; never resumed
    PARKED = "parked"  #: ended at the closed gate, to be continued
    INTERRUPTED = "interrupted"  #: its runtime died, to be continued
    EXPIRED = "expired"  #: nobody may want it any more
    SUSPENDED = "suspended"  #: given up on until a person releases it


INITIAL_PROMPT = "self-initial-prompt"
"""The source of the one turn that a workspace begins with: nobody asks, and it is resumed all the same."""

TRANSITIONS: dict[State, frozenset[State]] = {
    State.ACCEPTED: frozenset({State.RUNNING, State.CANCELED, State.EXPIRED}),
    State.RUNNING: frozenset({State.ANSWERED, State.FAILED, State.CANCELED, State.PARKED, State.INTERRUPTED}),
    State.PARKED: frozenset({State.RUNNING, State.ANSWERED, State.CANCELED, State.EXPIRED, State.SUSPENDED}),
    State.INTERRUPTED: frozenset(
        {State.RUNNING, State.ANSWERED, State.CANCELED, State.EXPIRED, State.SUSPENDED}
    ),
    State.SUSPENDED: frozenset({State.INTERRUPTED, State.CANCELED}),
    State.EXPIRED: frozenset({State.RUNNING}),
    State.FAILED: frozenset({State.RUNNING}),
    State.ANSWERED: frozenset(),
    State.CANCELED: frozenset(),
}

RESUME_PENDING = frozenset({State.RUNNING, State.PARKED, State.INTERRUPTED})
"""Must be continued when nobody runs it."""

ENDED = frozenset({State.ANSWERED, State.FAILED, State.CANCELED, State.EXPIRED})
"""Nothing more happens unless somebody asks again."""

TOLD = ENDED | {State.SUSPENDED}
"""The asker can be told how it stands and need not wait any longer."""

CANCELABLE = frozenset(state for state, targets in TRANSITIONS.items() if State.CANCELED in targets)
"""Somebody may still withdraw it."""


def check(turn_id: str, source: State, target: State, *, retryable: bool = False) -> None:
    """Refuse a transition the table does not have.

    Args:
        retryable: of a failed turn, whether its failure allowed another try.

    Raises:
        InvalidTransition: naming the turn and both states.
    """
    allowed = target in TRANSITIONS[source]
    if source is State.FAILED and not retryable:
        allowed = False
    if not allowed:
        raise InvalidTransition(f"turn {turn_id} cannot go from {source} to {target}")


class OutcomeKind(StrEnum):
    """What kind of end a turn came to; finer than its state."""

    ANSWERED = "answered"
    ASKED_BACK = "asked-back"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a turn ended, or why it is suspended; stored as JSON with the turn."""

    kind: OutcomeKind
    reason: str = ""
    """For people; empty when answered."""
    retryable: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message to one session, as the journal knows it. Times are UTC epoch seconds."""

    id: str
    seq: int
    """Order of arrival over the whole workspace."""
    task_id: str
    turn_key: str
    content_hash: str
    message_id: str
    session_id: str
    """The A2A contextId."""
    caller: str | None
    """Who asked, where authenticated."""
    source: str | None
    """``source_type`` of a message of the platform's own making."""
    state: State
    attempt: int
    """Starts so far; fences every later write."""
    strikes: int
    """Charged starts since the last progress."""
    charges: int
    """Charged starts ever."""
    settled: bool
    """It was settled when a drain was acknowledged: its next start is free."""
    cut: str | None
    """The call open at the last cut, as ``name`` and argument digest."""
    cause: str | None
    """Why it is in this state, in one line."""
    outcome: Outcome | None
    answer: str | None
    accepted_at: float
    started_at: float | None
    last_event_at: float | None
    ended_at: float | None
    delivered_at: float | None
    expires_at: float | None
    """The sender's own time limit for a message still waiting."""
    notified_at: float | None
    """When the platform took this end, to tell it to the user of its canvas."""
    canvas: bool = False
    """Its asker is the user of the platform's canvas, who can be told without a connection."""
    untold: str | None = None
    """Why the platform will not tell that user; it is not asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call of one attempt, as journalled. Times are UTC epoch seconds."""

    turn_id: str
    attempt: int
    id: str
    name: str
    digest: str
    """Of the arguments."""
    excerpt: str
    """The arguments' first characters, for people and for the recovery note."""
    asked_at: float
    permitted_at: float | None
    ended_at: float | None
    withdrawn_at: float | None
    """The permit was taken back before the runtime saw it."""
    outcome: str | None
    """``ok`` or ``error`` once ended."""

    @property
    def started(self) -> bool:
        """Whether the tool may have run."""
        return self.permitted_at is not None and self.withdrawn_at is None

    @property
    def unknown(self) -> bool:
        """Whether it may have run and nobody saw it end."""
        return self.started and self.ended_at is None

    @property
    def fate(self) -> str:
        """What became of it, in words for people."""
        if not self.started:
            return "never started"
        return "unknown" if self.unknown else f"finished ({self.outcome})"

    @property
    def same(self) -> str:
        """What makes two calls the same call: name and argument digest."""
        return f"{self.name} {self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What the platform wants a session's agent to know; the newest replaces the one before."""

    text: str
    of: str
    """The turn that brought it."""
    given_to: str | None = None
    """The turn whose prompt it was last put before."""
    attempt: int = 0
    """The attempt of that turn."""
    with_message: bool = False
    """That prompt held the turn's message too: who saw the one saw the other."""
