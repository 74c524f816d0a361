"""A real shim to try things on: a child process, killed for real, with the workspaces it starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx

from .workspace import MARK, Child


class Shim(Child):
    """One shim; its workspaces are processes of their own, which outlive it.

    Args:
        root: an empty directory of its own.
        environ: what its environment starts from, such as this process's.
        settings: ``SHIM_`` variables.
        patience: seconds any single step may take.
    """

    def __init__(
        self, root: Path, *, environ: Mapping[str, str], settings: Mapping[str, str], patience: float = 30.0
    ) -> None:
        super().__init__(
            root, ("platform", "serve"), log=root / "shim.log", directory=root, patience=patience
        )
        self.state_dir = root / "shim"
        self.environ = {
            **environ,
            **self.mark,
            "SHIM_PORT": str(self.port),
            "SHIM_STATE_DIR": str(self.state_dir),
            **settings,
        }

    def place(self, workspace_id: str) -> Path:
        """Return the directory of a workspace that runs as a process."""
        return self.state_dir / "workspaces" / workspace_id

    async def create(self, workspace_id: str, adapter: str, *inherit: str, **environ: str) -> dict[str, Any]:
        """Make a workspace that runs as a process, and wait until it registered.

        Args:
            inherit: variables of the shim's environment that it gets.
            environ: its own variables.
        """
        spec = {"inherit": [MARK, "CI_MARK", *inherit], "environ": {"WORKSPACE_ADAPTER": adapter, **environ}}
        made: dict[str, Any] = await self.call(
            "POST", "/workspaces", id=workspace_id, provisioner="process", spec=spec
        )
        await self.until_online(workspace_id)
        return made

    async def call(self, method: str, path: str, **body: Any) -> Any:
        """Make one of the operator's calls; return what it answers.

        Raises:
            AssertionError: it answers no.
        """
        async with httpx.AsyncClient(base_url=self.url, timeout=self.patience) as client:
            reply = await client.request(method, path, json=body if method in ("POST", "PUT") else None)
        if reply.status_code >= 400:
            raise AssertionError(f"{method} {path}: HTTP {reply.status_code}: {reply.text}")
        return reply.json()

    async def send(self, workspace_id: str, body: Mapping[str, Any], **headers: str) -> httpx.Response:
        """Send an envelope to a workspace once.

        Raises:
            httpx.TransportError: the connection was lost.
        """
        async with httpx.AsyncClient(base_url=self.url, timeout=self.patience) as client:
            return await client.post(f"/workspaces/{workspace_id}/a2a", json=body, headers=headers)

    async def until_online(self, workspace_id: str) -> dict[str, Any]:
        """Wait until a workspace is online and nothing is done to it; return it.

        Raises:
            TimeoutError: it did not come.
        """
        with anyio.fail_after(self.patience):
            while True:
                with suppress(httpx.TransportError):
                    found: dict[str, Any] = await self.call("GET", f"/workspaces/{workspace_id}")
                    if found["status"] == "online" and not found["restarting"]:
                        return found
                await anyio.sleep(0.02)

    def pid(self, workspace_id: str) -> int:
        """Return the pid of a workspace's sidecar."""
        return int((self.place(workspace_id) / "pid").read_text())

    def kill_workspace(self, workspace_id: str) -> None:
        """SIGKILL a workspace's sidecar; what it started may survive it."""
        os.kill(self.pid(workspace_id), signal.SIGKILL)
