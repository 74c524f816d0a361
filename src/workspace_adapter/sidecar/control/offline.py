"""The operator's changes while no sidecar owns the journal."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from ...adapter import RuntimeAdapter
from ...errors import JournalUnavailable, UnknownTask, WorkspaceAdapterError
from ...settings import without_secrets
from ...turns import CANCELABLE, Outcome, OutcomeKind, State, Turn
from ..adapter_life import running
from ..children import LifeChildren, reap_other_lives
from ..door.parts import Uploads
from ..forgetting import CAUSE, STILL_THERE, Forgetting
from ..journal import Journal, Reader, this_machine

_PATIENCE = 5.0
"""Seconds a command waits for another one to be done with the journal."""


@asynccontextmanager
async def _owned(state_dir: Path) -> AsyncIterator[Journal]:
    """Own the journal meanwhile.

    Raises:
        StateDirError: a sidecar owns it after all, or another command for long.
        JournalError: there is none, or it cannot be read.
    """
    Reader.open(state_dir).close()  # opening it to write would make one where there is none
    journal = await Journal.open(
        state_dir, boot_id=secrets.token_hex(8), now=time.time(), machine=this_machine, patience=_PATIENCE
    )
    try:
        yield journal
    finally:
        await journal.close()


async def change(state_dir: Path, verb: str, turn_id: str) -> dict[str, str]:
    """Cancel or release a turn in the journal itself; return what it has become.

    Raises:
        StateDirError: a sidecar owns the journal after all.
        JournalError: there is none, or it cannot be read.
        UnknownTask: no such turn.
        WorkspaceAdapterError: the turn's state does not allow it.
    """
    async with _owned(state_dir) as journal:
        turn = journal.turn(turn_id)
        if turn is None:
            raise UnknownTask(f"there is no turn {turn_id!r}; see: workspace-adapter turns list")
        if verb == "release":
            changed = await journal.release(turn_id, now=journal.clock())
        else:
            changed = await _cancel(journal, turn_id)
        if changed is None:
            raise WorkspaceAdapterError(f"turn {turn_id} is {turn.state}: {verb} does not apply")
        return {"turn": turn_id, "state": str(changed.state)}


async def _cancel(journal: Journal, turn_id: str) -> Turn | None:
    return await journal.change(
        turn_id,
        expect=CANCELABLE,
        to=State.CANCELED,
        cause=CAUSE,
        outcome=Outcome(kind=OutcomeKind.CANCELED, reason=CAUSE),
        now=journal.clock(),
    )


async def forget(
    state_dir: Path,
    session_ids: Sequence[str],
    *,
    adapter: RuntimeAdapter | None,
    workdir: Path,
    environ: Mapping[str, str],
    cancel: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Erase sessions; return what went of each, and why of others it did not.

    Args:
        adapter: whose runtime is told to forget; ``None`` leaves what it keeps.

    Raises:
        StateDirError: a sidecar owns the journal after all.
        JournalError: there is none, or it cannot be used.
        AdapterError: the adapter cannot be used; nothing was erased.
    """
    erased: list[dict[str, Any]] = []
    refused: list[str] = []
    async with _owned(state_dir) as journal, AsyncExitStack() as life:
        await reap_other_lives(journal)  # what is left of a runtime would go on writing
        adapter_dir = state_dir / (adapter.name if adapter is not None else "")
        if adapter is not None:
            adapter_dir.mkdir(mode=0o700, exist_ok=True)
            children = LifeChildren(without_secrets(environ), journal)
            await life.enter_async_context(running(adapter, children, adapter_dir))
        forgetting = Forgetting(
            journal=journal,
            uploads=Uploads(workdir=workdir, state_dir=state_dir, clock=journal.time),
            adapter=adapter,
            workdir=workdir,
            adapter_dir=adapter_dir,
        )
        for session_id in session_ids:
            try:
                canceled = forgetting.to_cancel(session_id, cancel=cancel)
                for turn in canceled:
                    await _cancel(journal, turn.id)
                gone = await forgetting.erase(session_id, with_runtime=adapter is not None)
                erased.append(gone | {"canceled": [turn.id for turn in canceled]})
            except WorkspaceAdapterError as error:
                refused.append(str(error))
        try:
            if journal.has_traces:
                await journal.drive_out()
        except JournalUnavailable as error:
            refused.append(f"{error}. {STILL_THERE}")
    return erased, refused


async def vacuum_file(state_dir: Path, *, full: bool) -> dict[str, Any]:
    """Give unused room back; see :func:`vacuum`."""
    async with _owned(state_dir) as journal:
        return await vacuum(journal, full=full)


async def vacuum(journal: Journal, *, full: bool) -> dict[str, Any]:
    """Give unused room of the journal back to the file system.

    Args:
        full: by writing the whole file anew, for which every write waits.

    Returns:
        ``freed_bytes``, and ``waited_seconds`` that writes had to wait for a whole file.
    """
    before = journal.file_bytes()
    if full:
        waited = await journal.drive_out()
    else:
        waited = 0.0
        await journal.vacuum()
    return {"freed_bytes": before - journal.file_bytes(), "waited_seconds": round(waited, 3)}
