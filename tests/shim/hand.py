"""A provisioner whose workspaces run in name only: it notes what it was asked, and fails when told to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from workspace_adapter.errors import ProvisionerError
from workspace_adapter.shim.store.contract import Workspace


class Hand:
    """Notes each verb in ``done``; ``running`` is asked too often to be noted."""

    def __init__(self, *, certain: bool = True) -> None:
        self.certain = certain
        self.done: list[str] = []
        self.up = True
        """What ``running`` says; ``start`` and ``stop`` change it."""
        self.fails: dict[str, int] = {}
        """How often each verb fails from now on."""
        self.given: list[tuple[Mapping[str, str], Mapping[str, str]]] = []
        """Environment and secrets of each start."""
        self.on: dict[str, Callable[[], Awaitable[None]]] = {}
        """What is done in the middle of a verb."""
        self.died: list[str] = []

    def problems(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        return ()

    async def prepare(self, workspace: Workspace) -> None:
        await self._do("prepare")

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None:
        self.given.append((environ, secrets))
        await self._do("start")
        self.up = True

    async def stop(self, workspace: Workspace, grace: float) -> None:
        await self._do("stop")
        self.up = False

    async def running(self, workspace: Workspace) -> bool | None:
        return self.up

    async def remove(self, workspace: Workspace) -> None:
        await self._do("remove")

    def log(self, workspace_id: str) -> str:
        return f"the log of {workspace_id}"

    def ended(self) -> list[str]:
        return [] if self.up else list(self.died)

    async def _do(self, verb: str) -> None:
        self.done.append(verb)
        if verb in self.on:
            await self.on[verb]()
        if self.fails.get(verb, 0) > 0:
            self.fails[verb] -= 1
            raise ProvisionerError(f"{verb} failed")
