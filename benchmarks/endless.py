"""A runtime that echoes at once, but for one message on which it works without end."""

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

ENDLESS = "go on without end"


class EndlessSession(RuntimeSession):
    """Echoes, or waits."""

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Answer, unless it is never to end."""
        if turn.text == ENDLESS:
            await anyio.sleep_forever()
        yield TurnFinished(answer=turn.text)


class EndlessAdapter(RuntimeAdapter):
    """For benchmarks/boot.py; its journals are echo's too, whose turns all end."""

    name = "echo"
    capabilities = Capabilities(gate=None, covers="nothing: it calls no tool")
    Session = EndlessSession
