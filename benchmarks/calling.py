"""A runtime that makes calls through the gate, and remembers nothing but what the note tells it."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from benchmarks.effects import Work, World
from workspace_adapter import (
    AtClosedGate,
    Capabilities,
    Finish,
    Permit,
    RuntimeAdapter,
    RuntimeSession,
    ToolCall,
    TurnEvent,
    TurnFinished,
    TurnRequest,
)


class CallingSession(RuntimeSession):
    """Believes the note."""

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Make the calls that are left."""
        work, world, gate = Work.read(turn.text), World(self.context.workdir), self.context.gate
        world.begin(work)
        for number, effect in enumerate(work.effects):
            call = ToolCall(id=f"{turn.attempt}.{number}", name="make", arguments=effect)
            told = _told(turn.note or "", f"- make {effect}")
            # It looks for the effect only where it is told that the outcome is unknown.
            if "finished" in told or ("unknown" in told and world.happened()[effect]):
                continue
            if await gate.ask(call) is Permit.PARKED:
                yield TurnFinished(finish=Finish.PARKED)
                return
            await world.call(work, effect)
            await gate.ended(call.id)
        yield TurnFinished(answer=work.answer)


class CallingAdapter(RuntimeAdapter):
    """For benchmarks/loss.py."""

    name = "calling"
    capabilities = Capabilities(gate=AtClosedGate.END)
    Session = CallingSession


def _told(note: str, call: str) -> str:
    """The sentence above a call in the note; empty where it is not listed."""
    sentence = ""
    for line in note.splitlines():
        if line == call:
            return sentence
        if not line.startswith("- "):
            sentence = line
    return ""
