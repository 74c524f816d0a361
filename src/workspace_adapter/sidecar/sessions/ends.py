"""How one attempt ended, read from what its runtime did."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import AdapterError, BadMessage, RuntimeLost, RuntimeUnusable, SessionLost, TurnFailed
from ...events import Finish, TurnFinished, Usage
from ...resume import Evidence
from ...turns import Outcome, OutcomeKind, State


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How one attempt ended."""

    to: State | None
    """``None``: the row stays as it is."""
    cause: str
    outcome: Outcome | None = None
    answer: str | None = None
    evidence: Evidence | None = None
    """What is known already for judging it anew."""
    close: bool = False
    """The runtime is gone or not to be trusted: leave its context, end its processes."""


def finished(event: TurnFinished, usage: Usage | None, said: str) -> End:
    """Read how the runtime says the turn ended; ``said`` is the answer where it gives none."""
    answer = event.answer if event.answer is not None else said
    match event.finish:
        case Finish.PARKED:
            return End(to=State.PARKED, cause="it ended at the closed gate")
        case Finish.ANSWERED:
            outcome = _outcome(OutcomeKind.ANSWERED, usage)
            return End(to=State.ANSWERED, cause="answered", outcome=outcome, answer=answer)
        case Finish.ASKED_BACK:
            outcome = _outcome(OutcomeKind.ASKED_BACK, usage)
            return End(to=State.ANSWERED, cause="asked back", outcome=outcome, answer=answer)
        case Finish.REJECTED:
            reason = answer or "the agent rejected the request"
            outcome = _outcome(OutcomeKind.REJECTED, usage, reason=reason)
            return End(to=State.FAILED, cause="rejected by the agent", outcome=outcome)


def failed(error: AdapterError | BadMessage, usage: Usage | None = None) -> End:
    """Read what an exception says about its turn."""
    match error:
        case SessionLost():
            return End(
                to=State.INTERRUPTED,
                cause=f"the runtime lost the session: {error}",
                evidence=Evidence.session_lost(),
                close=True,
            )
        case RuntimeLost():
            return End(to=State.INTERRUPTED, cause=f"the runtime died: {error}", close=True)
    retryable = isinstance(error, RuntimeUnusable) or (isinstance(error, TurnFailed) and error.retryable)
    return End(
        to=State.FAILED,
        cause=type(error).__name__,
        outcome=_outcome(OutcomeKind.FAILED, usage, reason=str(error), retryable=retryable),
        close=not isinstance(error, TurnFailed | BadMessage),
    )


def idle(limit: float) -> End:
    """A runtime that gave no sign of life for ``limit`` seconds was stopped."""
    reason = f"the agent gave no sign of life for {limit:g} s (WORKSPACE_TURN_IDLE_LIMIT) and was stopped"
    outcome = _outcome(OutcomeKind.FAILED, None, reason=reason, retryable=True)
    return End(to=State.FAILED, cause="idle", outcome=outcome, close=True)


def _outcome(kind: OutcomeKind, usage: Usage | None, *, reason: str = "", retryable: bool = False) -> Outcome:
    return Outcome(
        kind=kind,
        reason=reason,
        retryable=retryable,
        input_tokens=usage.input_tokens if usage else 0,
        output_tokens=usage.output_tokens if usage else 0,
    )
