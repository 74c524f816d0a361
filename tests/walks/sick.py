"""An adapter that keeps the event loop to itself, and one that says that it cannot work."""

from __future__ import annotations

import time
from pathlib import Path

from workspace_adapter.adapter import (
    Capabilities,
    RuntimeAdapter,
    RuntimeSession,
    TurnEvents,
    TurnRequest,
)
from workspace_adapter.errors import TurnFailed
from workspace_adapter.events import TurnFinished


class Sick(RuntimeAdapter):
    """Blocks for as many seconds as the message says; fails at ``fail``."""

    name = "sick"
    capabilities = Capabilities(gate=None)

    class Session(RuntimeSession):
        async def run_turn(self, turn: TurnRequest) -> TurnEvents:
            if turn.text == "fail":
                raise TurnFailed("the model is gone")
            time.sleep(float(turn.text))
            yield TurnFinished(answer="awake")

    def wedged(self) -> str | None:
        note = Path("trouble")
        return note.read_text() if note.exists() else None
