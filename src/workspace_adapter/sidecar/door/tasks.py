"""Tasks as their callers see them, read from the journal."""

from __future__ import annotations

import json

from a2a.types import a2a_pb2 as a2a

from ...errors import UnknownTask
from ...turns import TOLD, Turn
from ..journal import Journal
from . import rendering
from .cursor import Cursor
from .rendering import Progress

_AT_ONCE = 1000
"""Rows that one read takes."""


class Tasks:
    """A task is its turns; the latest decides its state."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def turns(self, task_id: str, caller: str | None) -> list[Turn]:
        """Return a task's turns in order, at least one.

        Raises:
            UnknownTask: there is none, or it is another caller's.
        """
        turns = self._journal.turns_of_task(task_id)
        session = self._journal.session(turns[0].session_id) if turns else None
        if session is None or session.caller != caller:
            raise UnknownTask("no such task")
        return turns

    def all_of(self, caller: str | None) -> list[list[Turn]]:
        """Return every task this caller started, as its turns in order."""
        tasks: dict[str, list[Turn]] = {}
        before: int | None = None
        while turns := self._journal.turns(caller=caller, limit=_AT_ONCE, before_seq=before):
            for turn in turns:
                if turn.caller == caller:
                    tasks.setdefault(turn.task_id, []).insert(0, turn)
            before = turns[-1].seq
        return list(tasks.values())

    def progress(self, turn: Turn) -> Progress:
        """Return what the turn's event log amounts to."""
        progress = Progress()
        more = True
        while more:
            logged = self._journal.events(turn.id, after=progress.n, limit=_AT_ONCE)
            progress.take(logged)
            more = len(logged) == _AT_ONCE
        return progress

    def task(self, turns: list[Turn], *, history: int | None = None, artifacts: bool = True) -> a2a.Task:
        """Render a task as its latest turn has it.

        Args:
            history: how many of the latest messages; ``None`` all that are kept.
        """
        progress = self.progress(turns[-1]) if artifacts else None
        return rendering.task(turns[-1], progress=progress, history=self._messages(turns, history))

    def snapshot(self, turns: list[Turn]) -> tuple[Cursor, a2a.Task]:
        """Render a task whole, with the position in its latest turn's log that it reflects."""
        turn = turns[-1]
        progress = self.progress(turn)
        cursor = Cursor(turn.seq, progress.n, rendering.ENDS if turn.state in TOLD else 0)
        messages = self._messages(turns, None)
        return cursor, rendering.task(turn, progress=progress, history=messages, cursor=cursor)

    def _messages(self, turns: list[Turn], limit: int | None) -> list[a2a.Message]:
        """Return what was said: the messages that are still kept, and what they were told."""
        said: list[a2a.Message] = []
        for turn in turns if limit != 0 else ():
            if raw := self._journal.message(turn.id):
                said.append(rendering.sent(turn, json.loads(raw)))
            if turn.state in TOLD:
                said.append(rendering.message(turn))
        return said if limit is None else said[max(0, len(said) - limit) :]
