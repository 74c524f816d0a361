"""How ends and work are put in words, and when the platform is told of them unasked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .turns import State, Turn

# --- an end, for its asker ------------------------------------------------------------


def answer_text(turn: Turn) -> str:
    """Return the answer; never empty, because readers take an empty one for none."""
    return turn.answer or "(the agent finished without a word)"


def reason(turn: Turn) -> str:
    """Say why there is no answer, and what to do about it where something can be done."""
    why = (turn.outcome.reason if turn.outcome else "") or turn.cause or str(turn.state)
    if turn.state is State.SUSPENDED:
        why = f"suspended: {why}; it waits for a person: workspace-adapter turns release {turn.id}"
    return why


def end_text(turn: Turn) -> str:
    """Return what its asker reads: the answer, or why there is none."""
    return answer_text(turn) if turn.state is State.ANSWERED else f"Agent error: {reason(turn)}"


# --- an end, for the user of the canvas -------------------------------------------------

LONGEST = 100_000
"""Characters of an end that the platform is asked to show its user."""

_REFUSALS = frozenset({403, 410, 413, 422})
"""Answers to ``/notify`` that asking again will not change: the user does not want to be told
(403), the workspace is no more (410), this message cannot be shown (413, 422). Everything else,
a wrong token or tenant too, is mended without us."""

_FIRST_RETRY = 5.0
_LAST_RETRY = 300.0


def notification(turn: Turn) -> str:
    """Return what the user of the canvas reads of an end that nobody heard."""
    text = end_text(turn)
    if len(text) <= LONGEST:
        return text
    more = f"{len(text) - LONGEST} more characters: workspace-adapter turns answer {turn.id}"
    return f"{text[:LONGEST]}\n[… {more}]"


def is_refusal(status: int | None) -> bool:
    """Whether the platform will never tell this end."""
    return status in _REFUSALS


def concerns_all(status: int | None) -> bool:
    """Whether a failure says nothing about the one end: another would fail as well."""
    return status is None or status in (401, 408, 429, 502, 503, 504)


def retry_in(failures: int, *, asked: float | None, chance: float) -> float:
    """Return the seconds until the next try.

    Args:
        failures: in a row.
        asked: seconds that the platform asks for.
        chance: 0 to 1; spreads the tries of many workspaces.
    """
    wait = min(_FIRST_RETRY * 2.0 ** min(failures - 1, 16), _LAST_RETRY)
    return max(asked or 0.0, wait * (0.75 + chance / 2))


_NOT_ITS_FAULT = 8
"""Tries in vain, a quarter of an hour of them, of which an end is not held for the reason. What something on
the way drops looks like a platform that is away."""


class Wait(NamedTuple):
    """What follows from a try in vain."""

    own: float | None
    """Seconds until this end is tried again; ``None``: it waits with the others."""
    all: float | None
    """Seconds until any is."""
    is_news: bool
    """An operator has not been told yet."""


class Tries:
    """What has come of telling ends: which one is next, and who waits how long.

    What fails alone waits behind the others, and keeps none of them. A platform that fails for
    one after the other, or does not answer, is not asked for each.
    """

    def __init__(self) -> None:
        self._own: dict[str, int] = {}
        """Tries in vain of which the end may be the reason."""
        self._lost: dict[str, int] = {}
        """Tries in vain of which the platform seems to be."""
        self._in_a_row: set[str] = set()
        """Ends that may be the reason, since the last that was told."""
        self._away = 0
        """Tries in vain of which the platform seems to be, likewise."""

    def in_order(self, untold: Sequence[str]) -> list[str]:
        """Return what nobody was told, oldest first but for what failed; all else is forgotten."""
        for tries in (self._own, self._lost):
            for gone in tries.keys() - {*untold}:
                del tries[gone]
        self._in_a_row.intersection_update(untold)
        return sorted(untold, key=lambda turn_id: self._own.get(turn_id, 0))

    @property
    def fail_for_all(self) -> bool:
        """One end may be the reason of its own failures; of a second one's in a row, the platform is."""
        return self._away > 0 or len(self._in_a_row) > 1

    def told(self) -> None:
        """One was told, or refused for good: the platform works."""
        self._in_a_row.clear()
        self._away = 0

    def failed(self, turn_id: str, *, status: int | None, asked: float | None, chance: float) -> Wait:
        """A try was in vain; see :func:`retry_in` for the arguments."""
        was_news, lost = not self.fail_for_all, self._lost.get(turn_id, 0)
        if concerns_all(status) and lost < _NOT_ITS_FAULT:
            self._lost[turn_id] = lost + 1
            self._away += 1
            return Wait(None, retry_in(self._away, asked=asked, chance=chance), was_news)
        self._in_a_row.add(turn_id)
        own = self._own[turn_id] = self._own.get(turn_id, 0) + 1
        others = max(1, len(self._in_a_row) - 1)
        return Wait(
            retry_in(own, asked=asked, chance=chance),
            retry_in(others, asked=asked, chance=chance) if self.fail_for_all else None,
            was_news and own == 1,
        )


# --- work, for the platform -------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What one running turn does."""

    turn_id: str
    session_id: str
    since: float | None
    """UTC epoch seconds; ``None`` while it is only being prepared."""
    quiet: float
    """Seconds since its runtime's last sign of life."""
    line: str
    """What the agent does, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a workspace does."""

    doing: Sequence[Doing] = ()
    waiting: int = 0
    """Turns in line."""


_LINE = 160
"""Characters of what one turn does."""

_LISTED = 10
"""Turns that are told one by one."""


def activity_line(work: Work, *, now: float) -> str:
    """Say in one line what the agent does."""
    told = [f"{one_line(doing.line)} ({_since(doing, now)})" for doing in work.doing[:_LISTED]]
    more = len(work.doing) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def probe_answer(work: Work, *, now: float) -> str:
    """Tell who asks whether the workspace is stuck what it does, since when."""
    waiting = f"{work.waiting} more wait" if work.waiting != 1 else "1 more waits"
    if not work.doing:
        return f"Nothing runs; {waiting}."
    lines = [
        f"- {one_line(doing.line)}: turn {doing.turn_id}, {_since(doing, now)},"
        f" last sign of life {doing.quiet:.0f} s ago"
        for doing in work.doing[:_LISTED]
    ]
    count = "1 turn runs" if len(work.doing) == 1 else f"{len(work.doing)} turns run"
    return "\n".join([f"{count}; {waiting}.", *lines])


def _since(doing: Doing, now: float) -> str:
    return "starting" if doing.since is None else f"for {max(0.0, now - doing.since):.0f} s"


def one_line(text: str) -> str:
    """Return a text as one line that is not long."""
    line = " ".join(text.split())
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"


def activity_due(busy_since: float, told_at: float | None, *, after: float, every: float) -> float:
    """Return when the platform is to be told next that something is done.

    Whatever is shorter than ``after`` is not worth a word, and while anything runs the
    last word is never older than ``every``.

    Args:
        busy_since: when the first of what runs was seen; ``told_at``: the last word.
    """
    due = busy_since + after
    return due if told_at is None else max(due, told_at + every)
