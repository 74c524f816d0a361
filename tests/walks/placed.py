"""An adapter that answers with the place in a trace it was given."""

from __future__ import annotations

from workspace_adapter import (
    Capabilities,
    RuntimeAdapter,
    RuntimeSession,
    TurnEvents,
    TurnFinished,
    TurnRequest,
)


class PlacedSession(RuntimeSession):
    async def run_turn(self, turn: TurnRequest) -> TurnEvents:
        yield TurnFinished(answer=turn.metadata["traceparent"])


class Placed(RuntimeAdapter):
    name = "placed"
    capabilities = Capabilities(gate=None)
    Session = PlacedSession
