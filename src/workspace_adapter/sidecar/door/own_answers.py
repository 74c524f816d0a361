"""What the workspace answers itself, without its agent: the platform's notices and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...telling import Work, probe_answer
from ...wire import SelfAnswered
from ..boot import text_of

NOTED = "Noted. The agent is told with its next prompt; interrupted work goes on."

_LONGEST_NOTICE = 4096
"""Characters of a notice. Anyone may send one where messages need no bearer, so it must stay a
small part of a prompt."""


def answer(kind: SelfAnswered, work: Work, *, now: float) -> str:
    """Return the answer, at once: no turn waits for it and no model is asked."""
    match kind:
        case SelfAnswered.RESTART_CONTEXT:
            return NOTED
        case SelfAnswered.STALL_PROBE:
            return probe_answer(work, now=now)


def notice(kind: SelfAnswered, message: Mapping[str, Any]) -> str | None:
    """Return what the session's agent is to be told of a message.

    Raises:
        BadMessage: it has no parts that can be read.
    """
    text = text_of(message)
    if kind is not SelfAnswered.RESTART_CONTEXT or not text.strip():
        return None
    return text if len(text) <= _LONGEST_NOTICE else f"{text[:_LONGEST_NOTICE]}…"
