"""Workspaces that somebody else stops and starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..store.contract import Workspace


class ExternalProvisioner:
    """Does nothing, and knows nothing."""

    certain = False

    def problems(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """A spec is whatever its owner writes down."""
        return ()

    async def prepare(self, workspace: Workspace) -> None: ...

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None: ...

    async def stop(self, workspace: Workspace, grace: float) -> None: ...

    async def running(self, workspace: Workspace) -> bool | None:
        return None

    async def remove(self, workspace: Workspace) -> None: ...

    def log(self, workspace_id: str) -> str:
        return "its log"

    def ended(self) -> list[str]:
        return []
