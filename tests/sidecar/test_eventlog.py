"""A turn's log writer ends whenever the attempt does."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from workspace_adapter.events import Activity
from workspace_adapter.resume import Action, Verdict
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.sidecar.sessions.eventlog import EventLog

from .journal.made import NOW, running


@pytest.mark.parametrize("steps", range(8))
async def test_an_attempt_may_end_at_any_moment_of_a_write(tmp_path: Path, steps: int) -> None:
    journal = await Journal.open(tmp_path / "state", boot_id="boot-1", now=NOW)
    try:
        turn = await running(journal)
        verdict = Verdict(action=Action.RESUME, because="new")
        log = EventLog(journal, turn.id, turn.attempt, verdict, clock=lambda: NOW)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as writing:
                writing.start_soon(log.write)
                await log.say(Activity("works"))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                log.end()
    finally:
        await journal.close()
