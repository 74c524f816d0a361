"""What became of turns in this life, counted as it happens."""

from __future__ import annotations

from collections import Counter

from ...resume import Resumption, Verdict
from ...turns import RESUME_PENDING, OutcomeKind, Turn
from ..durations import WORK, Durations


class Tally:
    """Hears of every start and of every end; nothing of it outlives the process."""

    def __init__(self) -> None:
        self.attempts: Counter[Resumption] = Counter()
        self.ends: Counter[OutcomeKind] = Counter()
        """Suspensions as well."""
        self.tokens = {"input": 0, "output": 0}
        self.resumed = Durations(WORK)
        """From the last sign of life of one attempt to the start of the next."""
        self.took = Durations(WORK)
        """From a message's acceptance to its turn's end."""

    def started(self, before: Turn, started: Turn, verdict: Verdict) -> None:
        """An attempt was charged; ``before`` is the turn as it was."""
        self.attempts[verdict.resumption] += 1
        if before.state in RESUME_PENDING and before.last_event_at and started.started_at:
            self.resumed.observe(max(0.0, started.started_at - before.last_event_at))

    def told(self, turn: Turn) -> None:
        """A turn ended, or was suspended."""
        if turn.outcome is not None:
            self.ends[turn.outcome.kind] += 1
            self.tokens["input"] += turn.outcome.input_tokens
            self.tokens["output"] += turn.outcome.output_tokens
        if turn.ended_at is not None:
            self.took.observe(max(0.0, turn.ended_at - turn.accepted_at))
