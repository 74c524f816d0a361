"""A runtime whose turns never end; what is left of them is for another to resume."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio

from workspace_adapter import (
    Capabilities,
    RuntimeAdapter,
    RuntimeSession,
    TurnEvent,
    TurnFinished,
    TurnRequest,
)
from workspace_adapter.runtimes.echo import EchoAdapter


class EndlessSession(RuntimeSession):
    """Waits."""

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Never end."""
        await anyio.sleep_forever()
        yield TurnFinished()


class EndlessAdapter(RuntimeAdapter):
    """Stands where echo will stand in the next life."""

    name = EchoAdapter.name
    capabilities = Capabilities(gate=None, covers="nothing: it calls no tool")
    Session = EndlessSession
