"""The operator's verbs on a live sidecar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio

from ...errors import UnknownTask, WorkspaceAdapterError
from ...ledger import Ledger
from ...turns import Turn
from ..drainer import Drainer
from ..forgetting import CAUSE, Forgetting
from ..journal import Journal
from ..sessions.sessions import Sessions
from .offline import vacuum
from .socket import Verb


class Control:
    """The verbs behind the control socket; each returns what is printed as JSON."""

    def __init__(
        self,
        *,
        journal: Journal,
        sessions: Sessions,
        drainer: Drainer,
        ledger: Ledger,
        forgetting: Forgetting,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._drainer = drainer
        self._ledger = ledger
        self._forgetting = forgetting
        self._one_by_one = anyio.Lock()
        self._status = status

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """By name, as the socket takes them."""
        return {
            "status": self.status,
            "sessions": self.sessions,
            "drain": self.drain,
            "cancel": self.cancel,
            "release": self.release,
            "forget": self.forget,
            "drive_out": self.drive_out,
            "vacuum": self.vacuum,
        }

    async def status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What ``/status`` says."""
        return self._status()

    async def sessions(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Say of each session whose runtime is there whether it is ``open`` or ``running``."""
        return self._sessions.runtimes()

    async def drain(self, request: Mapping[str, Any]) -> dict[str, object]:
        """Drain, and return the report: ``wait`` seconds at most.

        ``mark`` is the mark a caller inside a turn's own tool carries; that turn is not
        waited for, since it waits for us.
        """
        wait = request.get("wait")
        if wait is None:
            wait = self._drainer.cap
        if not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise WorkspaceAdapterError(f"wait must be a number of seconds, not {wait!r}")
        with self._not_waiting_for(self._sessions.running_with_mark(str(request.get("mark", "")))):
            report = await self._drainer.begin("the operator", cap=wait)
        return report.as_json()

    async def cancel(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Withdraw a turn for good."""
        turn = self._turn(request)
        canceled = await self._sessions.cancel(turn.id, cause=CAUSE)
        if canceled is None:
            raise WorkspaceAdapterError(f"turn {turn.id} has ended already: it is {turn.state}")
        return {"turn": turn.id, "state": str(canceled.state)}

    async def release(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Let a suspended turn run again."""
        turn = self._turn(request)
        released = await self._journal.release(turn.id, now=self._journal.clock())
        if released is None:
            raise WorkspaceAdapterError(f"turn {turn.id} is {turn.state}, not suspended")
        self._sessions.submit(released)
        return {"turn": turn.id, "state": str(released.state)}

    async def forget(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Erase a session, its turns canceled first where ``cancel`` says so; see ``Forgetting.erase``.

        ``runtime``: false leaves what its runtime keeps.
        """
        session_id, cancel = str(request.get("session", "")), request.get("cancel") is True
        async with self._one_by_one, self._sessions.barred(session_id):
            canceled = self._forgetting.to_cancel(session_id, cancel=cancel)
            for turn in canceled:
                await self._sessions.cancel(turn.id, cause=CAUSE)
            await self._sessions.close(session_id)
            erased = await self._forgetting.erase(
                session_id, with_runtime=request.get("runtime") is not False
            )
        return erased | {"canceled": [turn.id for turn in canceled]}

    async def drive_out(self, request: Mapping[str, Any]) -> float:
        """Drive what was forgotten out of the journal's files; return the seconds every write waited."""
        async with self._one_by_one:
            return await self._journal.drive_out() if self._journal.has_traces else 0.0

    async def vacuum(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Give unused room back; ``full``: by writing the whole file anew."""
        async with self._one_by_one:
            return await vacuum(self._journal, full=request.get("full") is True)

    def _turn(self, request: Mapping[str, Any]) -> Turn:
        turn = self._journal.turn(str(request.get("turn", "")))
        if turn is None:
            raise UnknownTask(f"there is no turn {request.get('turn')!r}; see: workspace-adapter turns list")
        return turn

    @contextmanager
    def _not_waiting_for(self, turn_id: str | None) -> Iterator[None]:
        running = self._ledger.get(turn_id) if turn_id else None
        if running is None:
            yield
            return
        running.waits_for_drain = True
        try:
            yield
        finally:
            running.waits_for_drain = False
