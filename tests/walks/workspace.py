"""The workspace that the walks walk through."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import inherited
from workspace_adapter.testing.workspace import Workspace as BareWorkspace
from workspace_adapter.testing.workspace import answer_of

__all__ = ["DEADLINE", "ENDS", "HOLDS", "Workspace", "answer_of", "script", "workspace"]

ENDS = "workspace_adapter.testing.fakes:ScriptedEnds"
HOLDS = "workspace_adapter.testing.fakes:ScriptedHolds"
DEADLINE = 20.0
"""Seconds any single step of a walk may take; only a failing walk takes that long."""


def script(*steps: dict[str, Any]) -> str:
    """Write a message that carries a script for a scripted fake."""
    return f"please do this: <<<{json.dumps(list(steps))}>>>"


class Workspace(BareWorkspace):
    """A workspace whose tools leave their effects in one file."""

    def __init__(self, root: Path, adapter: str, **settings: str) -> None:
        super().__init__(
            root,
            adapter,
            environ=inherited() | {"HOME": str(root)},
            settings={"WORKSPACE_LOG_LEVEL": "debug", **settings},
            patience=DEADLINE,
        )
        self.effects = self.workdir / "effects"

    async def send(self, text: str, **more: Any) -> httpx.Response:
        return await self.post(self.envelope(text, **more))

    def serves(self) -> bool:
        """Whether somebody answers on the port."""
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def lines(self) -> list[str]:
        """The effects the tools themselves wrote."""
        return self.effects.read_text().splitlines() if self.effects.exists() else []

    def told_unknown(self) -> set[str]:
        """Collect the effects of which a scripted runtime was told that their outcome is unknown.

        An effect is 32 characters of a name, a dot, and the number of the call.
        """
        told: set[str] = set()
        for fact in self._noted("given"):
            unknown = fact["text"].partition("unknown;")[2].partition("These tool calls")[0]
            told |= {word for word in unknown.split() if "." in word and len(word) == 34}
        return told

    def _noted(self, kind: str) -> Iterator[dict[str, str]]:
        """Yield the facts of one kind that a scripted runtime's transcripts hold."""
        for transcript in self.state_dir.rglob("scripted/*.jsonl"):
            for line in transcript.read_text().splitlines():
                with suppress(ValueError):  # one that a SIGKILL cut short
                    if (fact := json.loads(line))["fact"] == kind:
                        yield fact

    async def until_effect(self, line: str) -> None:
        await self.until(lambda: line in self.lines(), f"effect {line!r}")

    async def until_ended(self) -> None:
        """Wait until a scripted runtime has noted the end of a call: a kill from then on repeats it never.

        Its effect is there a moment before: a kill then leaves a call whose outcome nobody knows.
        """
        await self.until(lambda: any(self._noted("ended")), "the end of a tool call")

    def turns(self) -> list[dict[str, Any]]:
        listed = self.command("turns", "list", "--json")
        assert listed.returncode == 0, listed.stderr
        found: list[dict[str, Any]] = json.loads(listed.stdout)
        return found

    def turn(self, turn_id: str) -> dict[str, Any]:
        shown = self.command("turns", "show", turn_id, "--json")
        assert shown.returncode == 0, shown.stderr
        found: dict[str, Any] = json.loads(shown.stdout)
        return found


@asynccontextmanager
async def workspace(
    root: Path, adapter: str = ENDS, *, start: bool = True, **settings: str
) -> AsyncIterator[Workspace]:
    """Hold a workspace; whatever is left of it at the end is killed."""
    made = Workspace(root, adapter, **settings)
    try:
        if start:
            await made.start()
        yield made
    finally:
        made.kill_everything()
