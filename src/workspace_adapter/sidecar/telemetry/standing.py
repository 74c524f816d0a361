"""How the workspace stands, as callers, operators and scrapers are told."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import __version__
from ...adapter import RuntimeAdapter
from ...drain import DrainState
from ...ledger import Ledger
from ...settings import Settings
from ...turns import State
from ..door.waiting import WaitingRoom
from ..drainer import Drainer
from ..gate import Switch
from ..housekeeping import Housekeeping
from ..journal import Journal
from ..platform.pulse import Pulse
from ..runtime_check import RuntimeCheck
from ..sessions.sessions import Sessions
from .lives import Lives
from .tally import Tally


@dataclass(kw_only=True, eq=False)
class Standing:
    """What the rooms say of themselves, put together when somebody asks."""

    settings: Settings
    adapter: RuntimeAdapter
    boot_id: str
    described: Mapping[str, Any]
    """The agent card, without what is known of the runtime."""
    runtime: RuntimeCheck
    ledger: Ledger
    switch: Switch
    drainer: Drainer
    room: WaitingRoom
    housekeeping: Housekeeping
    tally: Tally
    began: float
    """When this life did, monotonic."""
    began_at: float
    """The same in UTC epoch seconds."""
    pulse: Pulse | None = None
    lives: Lives = field(default_factory=Lives)
    journal: Journal | None = None
    """Once it is open."""
    sessions: Sessions | None = None
    """Once there are any."""
    working: bool = False
    """Once what was interrupted is at work again."""
    opened_after: float | None = None
    """Seconds from the start until the door opened, once it has."""

    def card(self) -> dict[str, Any]:
        """Return the agent card as it is now, with what the existing platform shows of a runtime."""
        return {**self.described, **self.runtime.told}

    def ready(self) -> tuple[bool, str]:
        """Say whether messages are accepted, else why not."""
        if self.journal is None:
            return False, "booting: the journal is not open yet"
        if self.opened_after is None:
            return False, "booting: the door is not open yet"
        if not self.housekeeping.healthy:
            return False, "the journal cannot be written"
        if self.drainer.state is DrainState.STOPPING:
            return False, "stopping"
        return True, "ready"

    def state(self) -> str:
        """Return ``booting``, then the drain's."""
        return str(self.drainer.state) if self.working else "booting"

    def status(self) -> dict[str, Any]:
        """Return what the operator is shown of a live sidecar."""
        journal = self.journal
        counts = journal.counts() if journal else {}
        capabilities = self.adapter.capabilities
        return {
            "workspace_id": self.settings.workspace_id,
            "version": __version__,
            "boot_id": self.boot_id,
            "uptime_seconds": round(time.monotonic() - self.began),
            "adapter": self.adapter.name,
            "gate_covers": capabilities.covers if capabilities.gate else None,
            "at_closed_gate": capabilities.gate,
            "state": self.state(),
            "gate": "open" if self.switch.opened else f"closed by {', '.join(self.switch.closed_by)}",
            "active_tasks": len(self.ledger),
            "running": [running.turn_id for running in self.ledger],
            "waiting": len(self.ledger.waiting),
            "turns": {str(state): counts.get(state, 0) for state in State},
            "journal_bytes": journal.size_bytes() if journal else None,
            "journal_salvaged": journal.salvaged if journal else None,
            "ready": self.ready()[0],
            "platform": self.pulse.status() if self.pulse else None,
        }
