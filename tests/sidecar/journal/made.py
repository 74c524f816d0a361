"""Messages and turns for the tests of the journal."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from workspace_adapter.events import ToolCall
from workspace_adapter.sidecar.journal import Accepted, Journal, NewTurn
from workspace_adapter.turns import Outcome, OutcomeKind, State, Turn

NOW = 1_800_000_000.0
ANSWERED = Outcome(kind=OutcomeKind.ANSWERED)
RETRYABLE = Outcome(kind=OutcomeKind.FAILED, reason="the model is unreachable", retryable=True)
FINAL = Outcome(kind=OutcomeKind.FAILED, reason="no such model")

_ROOT = Path(__file__).parents[3]


def message(name: str = "m1", **changes: Any) -> NewTurn:
    """Return a message; everything about it follows from its name, but what is changed."""
    values: dict[str, Any] = {
        "turn_id": f"turn-{name}",
        "task_id": f"task-{name}",
        "session_id": "session",
        "turn_key": f"key-{name}",
        "content_hash": f"hash-{name}",
        "message_id": name,
        "caller": None,
        "source": None,
        "message": f'{{"messageId": "{name}"}}'.encode(),
        "accepted_at": NOW,
        "expires_at": None,
    }
    return NewTurn(**{**values, **changes})


def call(call_id: str = "c1", arguments: str = '{"command":"ls"}') -> ToolCall:
    return ToolCall(id=call_id, name="Bash", arguments=arguments)


async def accept(
    journal: Journal, new: NewTurn, *, inbox_limit: int = 1000, limit_bytes: int = 1 << 40
) -> Accepted:
    return await journal.accept(new, inbox_limit=inbox_limit, limit_bytes=limit_bytes)


async def started(journal: Journal, turn: Turn, *, now: float = NOW) -> Turn:
    """Start a turn from whatever state it is in."""
    return await journal.start(
        turn.id, expect=turn.state, attempt=turn.attempt, strikes=turn.strikes, cut=None, now=now
    )


async def running(journal: Journal, name: str = "m1", **changes: Any) -> Turn:
    """Accept a message and start its turn."""
    accepted = await accept(journal, message(name, **changes))
    return await started(journal, accepted.turn)


async def answered(journal: Journal, name: str, *, now: float = NOW, answer: str = "done") -> Turn:
    """Accept a message and answer it."""
    turn = await running(journal, name)
    ended = await journal.finish(
        turn.id, attempt=1, to=State.ANSWERED, cause="", outcome=ANSWERED, answer=answer, now=now
    )
    assert ended is not None
    return ended


def scalar(path: Path, sql: str) -> Any:
    """Ask the file something on a connection of the test's own."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()


def child(what: str, state_dir: Path, *, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start one of the roles in ``child.py`` in a process of its own."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "tests.sidecar.journal.child", what, str(state_dir)],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
