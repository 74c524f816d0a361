"""A runtime that asks the gate as fast as it can, and writes down when it was told what."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

from workspace_adapter import (
    AtClosedGate,
    Capabilities,
    Finish,
    Permit,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    ToolCall,
    TurnEvent,
    TurnFinished,
    TurnRequest,
)


class AskingSession(RuntimeSession):
    """Asks until it is refused."""

    def __init__(self, context: SessionContext) -> None:
        self._context = context

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Make one call after another; what it was told goes into the workdir."""
        gate, granted = self._context.gate, 0.0
        record = self._context.workdir / f"{turn.id}.{turn.attempt}"
        for number in count():
            call = ToolCall(id=f"{turn.attempt}.{number}", name="nothing", arguments="")
            if await gate.ask(call) is Permit.PARKED:
                break
            granted = time.monotonic()
            await gate.ended(call.id)
            if number == 0:
                _write(record, "asking", "")
        told = {"last_granted": granted, "refused": time.monotonic()}
        _write(record, "told", json.dumps(told))
        yield TurnFinished(finish=Finish.PARKED)


class AskingAdapter(RuntimeAdapter):
    """For benchmarks/gate.py."""

    name = "asking"
    capabilities = Capabilities(gate=AtClosedGate.END, resumes=True)

    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        """Open a conversation."""
        yield AskingSession(context)


def _write(record: Path, suffix: str, text: str) -> None:
    """Write a file that is whole once its name is there."""
    new = Path(f"{record}.new")
    new.write_text(text)
    new.rename(f"{record}.{suffix}")
