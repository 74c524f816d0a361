"""A runtime that answers with the question, for smoke tests."""

from __future__ import annotations

from ..adapter import Capabilities, ForgottenSession, RuntimeAdapter, RuntimeSession, TurnEvents, TurnRequest
from ..events import TurnFinished


class EchoSession(RuntimeSession):
    """A conversation that remembers nothing."""

    async def run_turn(self, turn: TurnRequest) -> TurnEvents:
        """Answer with the message."""
        yield TurnFinished(answer=turn.text)


class EchoAdapter(RuntimeAdapter):
    """Needs nothing, starts nothing, calls no tool."""

    name = "echo"
    capabilities = Capabilities(gate=None, covers="nothing: it calls no tool")
    Session = EchoSession

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Nothing was kept."""
        return []
