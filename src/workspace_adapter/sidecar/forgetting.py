"""Erases a conversation for good: what its runtime keeps, its files, then its rows.

The rows go last, for they hold the handle: whatever a crash leaves, the same command
finishes. A message of the session that is sent again afterwards is a new one, since its
identity is forgotten too.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import anyio

from ..adapter import ForgottenSession, RuntimeAdapter
from ..errors import AdapterError, WorkspaceAdapterError
from ..turns import ENDED, State, Turn
from .door.parts import Uploads
from .fence import fence
from .journal import Journal

logger = logging.getLogger(__name__)

CAUSE = "canceled by the operator"

STILL_THERE = (
    "What was forgotten still stands in unused parts of the journal's file: mend that, then say"
    " workspace-adapter journal vacuum --full"
)

_LIMIT = 60.0
"""Seconds a runtime gets to forget one session."""


class Forgetting:
    """What is known to erase a session by.

    Args:
        adapter: ``None`` to leave what the runtime keeps.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        uploads: Uploads,
        adapter: RuntimeAdapter | None,
        workdir: Path,
        adapter_dir: Path,
    ) -> None:
        self._journal = journal
        self._uploads = uploads
        self._adapter = adapter
        self._workdir = workdir
        self._adapter_dir = adapter_dir

    def to_cancel(self, session_id: str, *, cancel: bool) -> list[Turn]:
        """Return the turns of a session that must be canceled first, the oldest first.

        Raises:
            WorkspaceAdapterError: there are some, and ``cancel`` is false.
        """
        states = [state for state in State if state not in ENDED]
        found = self._journal.turns(states=states, session_id=session_id, limit=1 << 30)[::-1]
        if found and not cancel:
            named = ", ".join(f"{turn.id} {turn.state}" for turn in found[:3])
            raise WorkspaceAdapterError(
                f"session {session_id!r} has turns that have not ended ({named}"
                f"{', …' if len(found) > 3 else ''}): wait for them, or say --cancel"
            )
        return found

    async def erase(self, session_id: str, *, with_runtime: bool = True) -> dict[str, Any]:
        """Erase a session that is not open and has no turn that could start; return what went.

        ``turns`` and ``uploads`` are counts; ``runtime`` says what its runtime erased,
        ``None`` where it was not asked or cannot; ``left`` says what may still hold
        something of it.

        Raises:
            WorkspaceAdapterError: there is no trace of such a session; its runtime could
                not erase what it keeps, and nothing else was erased; or its uploads could
                not be removed, and its rows are still there.
        """
        session = self._journal.session(session_id)
        last = self._journal.turns(session_id=session_id, states=ENDED, limit=1)
        handle = session.handle if session else None
        asked = ForgottenSession(
            session_id=session_id, handle=handle, workdir=self._workdir, state_dir=self._adapter_dir
        )
        runtime, left = await self._ask_runtime(asked) if with_runtime else (None, _kept(asked, "not asked"))
        try:
            uploads = await self._uploads.forget(session_id)
        except OSError as error:
            raise WorkspaceAdapterError(
                f"the uploads of session {session_id!r} could not all be removed, and its turns are still"
                f" there: {error}. Mend that and say it again"
            ) from error
        if session is None and not last and not runtime and not uploads:
            raise unknown(session_id)
        turns = await self._journal.forget(session_id, through=last[0].seq if last else 0)
        logger.info("session %s: forgotten, with %d turns", session_id, turns)
        return {
            "session": session_id,
            "turns": turns,
            "uploads": uploads,
            "runtime": runtime,
            "left": left + [f"{path}: a damaged journal that was moved aside" for path in self._set_aside()],
        }

    async def _ask_runtime(self, session: ForgottenSession) -> tuple[list[str] | None, list[str]]:
        if self._adapter is None or type(self._adapter).forget is RuntimeAdapter.forget:
            return None, _kept(session, "not able to forget")
        try:
            with anyio.fail_after(_LIMIT), fence("forget"):
                erased = [str(what) for what in await self._adapter.forget(session)]
        except (AdapterError, TimeoutError) as error:
            why = str(error) or f"no answer for {_LIMIT:g} s"
            raise WorkspaceAdapterError(
                f"the runtime could not forget session {session.session_id!r}, and nothing of it was erased:"
                f" {why}. Mend that and say it again; or leave what the runtime keeps: --journal-only"
            ) from error
        if not erased and session.handle is not None:  # forgotten half, or by another runtime than its own
            name = self._adapter.name
            return [], _kept(session, f"unknown to {name}. Was that its runtime (WORKSPACE_ADAPTER)?")
        return erased, []

    def _set_aside(self) -> list[Path]:
        return sorted(self._adapter_dir.parent.glob("journal.db.damaged-*"))


def unknown(session_id: str) -> WorkspaceAdapterError:
    """Say that there is none of that name, and how to find the right one."""
    return WorkspaceAdapterError(f"there is no session {session_id!r}; see: workspace-adapter sessions list")


def _kept(session: ForgottenSession, why: str) -> list[str]:
    if session.handle is None:
        return [f"what the runtime keeps of it, if anything: it was {why}"]
    return [f"what the runtime keeps of it under {session.handle}: it was {why}"]
