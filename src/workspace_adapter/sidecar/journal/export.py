"""One turn as a document that needs no journal to be read.

Its keys: ``format`` and ``version`` name this shape; ``schema`` is the journal's;
``exported_at``; ``turn``, ``session``, ``calls`` and ``events`` hold every column under
its own name, times in UTC epoch seconds; ``message`` is what was sent, ``null`` once the
turn can run no more; the answer is in ``turn``, wherever the journal keeps it.
"""

from __future__ import annotations

import json
from typing import Any

from .queries import Reader

FORMAT = "workspace-adapter turn"
VERSION = 1
"""Grows when a key changes its meaning or goes; a new key leaves it as it is."""


def document(journal: Reader, turn_id: str, *, now: float) -> dict[str, Any] | None:
    """Return a turn with everything that is known about it; ``None`` where there is none.

    Raises:
        JournalUnavailable: it cannot be read.
    """
    with journal.snapshot():
        turn = journal.turn(turn_id)
        if turn is None:
            return None
        (columns,) = journal.records("SELECT * FROM turns WHERE id = ?", turn_id)
        columns |= {"answer": turn.answer, "outcome": _parsed(columns["outcome"]), "settled": turn.settled}
        ((schema,),) = (row.values() for row in journal.records("PRAGMA user_version"))
        sessions = journal.records("SELECT * FROM sessions WHERE id = ?", turn.session_id)
        message = journal.message(turn_id)
        events = journal.records("SELECT * FROM events WHERE turn_id = ? ORDER BY n", turn_id)
        return {
            "format": FORMAT,
            "version": VERSION,
            "schema": schema,
            "exported_at": now,
            "turn": columns,
            "session": sessions[0] if sessions else None,
            "message": None if message is None else _parsed(message),
            "calls": journal.records("SELECT * FROM calls WHERE turn_id = ? ORDER BY n", turn_id),
            "events": [{**event, "body": _parsed(event["body"])} for event in events],
        }


def _parsed(text: str | bytes | None) -> Any:
    """Read what we wrote as JSON; what is damaged is given as the text it is."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text if isinstance(text, str) else text.decode(errors="replace")
