"""A runtime that answers with the question, for smoke tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from ..adapter import Capabilities, RuntimeAdapter, RuntimeSession, SessionContext, TurnRequest
from ..events import TurnEvent, TurnFinished


class EchoSession(RuntimeSession):
    """A conversation that remembers nothing."""

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Answer with the message."""
        yield TurnFinished(answer=turn.text)


class EchoAdapter(RuntimeAdapter):
    """Needs nothing, starts nothing, calls no tool."""

    name = "echo"
    capabilities = Capabilities(gate=None, covers="nothing: it calls no tool")

    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        """Open a conversation."""
        yield EchoSession()
