from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from workspace_adapter.sidecar import housekeeping as room
from workspace_adapter.sidecar.door.parts import Uploads
from workspace_adapter.sidecar.gate import Switch
from workspace_adapter.sidecar.housekeeping import Housekeeping
from workspace_adapter.sidecar.journal import Journal, Reader
from workspace_adapter.sidecar.journal import journal as journal_room

from .journal.made import NOW, answered


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.01)


async def test_what_was_forgotten_and_cannot_be_driven_out_is_told_and_keeps_no_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(room, "_PROBE_EVERY", 0.01)
    monkeypatch.setattr(room, "_PRUNE_EVERY", 0.1)
    monkeypatch.setattr(journal_room, "_LOG_PATIENCE", 0.05)
    journal = await Journal.open(tmp_path, boot_id="boot-1", now=NOW)
    uploads = Uploads(workdir=tmp_path, state_dir=tmp_path, clock=lambda: 0.0)
    message = {"parts": [{"kind": "file", "file": {"name": "old", "bytes": "b2xk"}}]}
    await uploads.materialise(message, session_id="s")
    await answered(journal, "m")
    await journal.forget("session", through=1 << 60)
    async with anyio.create_task_group() as tasks:
        with Reader.open(tmp_path) as reader, reader.snapshot():
            assert reader.turns() == []
            tasks.start_soon(Housekeeping(Switch(), retention=0).run, journal, uploads, lambda: None)
            await until(lambda: not uploads.of("s"))
            await until(lambda: "what was forgotten still stands" in caplog.text)
        await until(lambda: not journal.has_traces)
        tasks.cancel_scope.cancel()
    await journal.close()
