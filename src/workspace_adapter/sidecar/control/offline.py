"""The operator's changes while no sidecar owns the journal."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from ...errors import UnknownTask, WorkspaceAdapterError
from ...turns import CANCELABLE, Outcome, OutcomeKind, State
from ..journal import Journal, Reader, this_machine


async def change(state_dir: Path, verb: str, turn_id: str) -> dict[str, str]:
    """Cancel or release a turn in the journal itself; return what it has become.

    Raises:
        StateDirError: a sidecar owns the journal after all.
        JournalError: there is none, or it cannot be read.
        UnknownTask: no such turn.
        WorkspaceAdapterError: the turn's state does not allow it.
    """
    Reader.open(state_dir).close()  # opening it to write would make one where there is none
    journal = await Journal.open(
        state_dir, boot_id=secrets.token_hex(8), now=time.time(), machine=this_machine, patience=0.0
    )
    try:
        turn = journal.turn(turn_id)
        if turn is None:
            raise UnknownTask(f"there is no turn {turn_id!r}; see: workspace-adapter turns list")
        if verb == "release":
            changed = await journal.release(turn_id, now=journal.clock())
        else:
            cause = "canceled by the operator"
            changed = await journal.change(
                turn_id,
                expect=CANCELABLE,
                to=State.CANCELED,
                cause=cause,
                outcome=Outcome(kind=OutcomeKind.CANCELED, reason=cause),
                now=journal.clock(),
            )
        if changed is None:
            raise WorkspaceAdapterError(f"turn {turn_id} is {turn.state}: {verb} does not apply")
        return {"turn": turn_id, "state": str(changed.state)}
    finally:
        await journal.close()
