"""A real shim to try things on: a child process, killed for real, with the workspaces it starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx

from .workspace import MARK, Child, NotInTime, carrying, end_all


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

    async def until_online(self, workspace_id: str, *, other_than: str | None = None) -> dict[str, Any]:
        """Wait until a workspace is online and nothing is done to it; return it.

        Args:
            other_than: the boot id of a life that does not count.

        Raises:
            NotInTime: it did not come.
        """

        async def online() -> dict[str, Any] | None:
            with suppress(httpx.TransportError, AssertionError):  # the shim may be starting too
                found: dict[str, Any] = await self.call("GET", f"/workspaces/{workspace_id}")
                if found["status"] == "online" and not found["restarting"] and found["boot_id"] != other_than:
                    return found
            return None

        return await self._found(online, f"workspace {workspace_id}")

    async def until_over(self, workspace_id: str, cycle_id: str) -> dict[str, Any]:
        """Wait for the end of a restart, or of what else was asked for; return it.

        Raises:
            NotInTime: it did not come.
        """

        async def over() -> dict[str, Any] | None:
            for cycle in await self.call("GET", f"/workspaces/{workspace_id}/restarts"):
                if cycle["id"] == cycle_id and "ended_at" in cycle:
                    found: dict[str, Any] = cycle
                    return found
            return None

        return await self._found(over, f"the end of cycle {cycle_id}")

    async def _found(self, look: Callable[[], Awaitable[dict[str, Any] | None]], what: str) -> dict[str, Any]:
        with anyio.move_on_after(self.patience):
            while (found := await look()) is None:  # noqa: ASYNC110  another process sets no event
                await anyio.sleep(0.02)
            return found
        raise NotInTime(f"{what} did not come within {self.patience:g} s", self.logged())

    def pid(self, workspace_id: str) -> int:
        """Return the pid of a workspace's sidecar."""
        return int((self.place(workspace_id) / "pid").read_text())

    def kill_workspace(self, workspace_id: str) -> None:
        """SIGKILL a workspace's sidecar; what it started may survive it."""
        os.kill(self.pid(workspace_id), signal.SIGKILL)


class Guest:
    """A workspace that a shim runs as a process, to be played on.

    Args:
        shim: whose it is.
        workspace_id: under which it was made.
    """

    def __init__(self, shim: Shim, workspace_id: str) -> None:
        self.shim = shim
        self.id = workspace_id
        self.place = shim.place(workspace_id)
        self.patience = shim.patience
        self.state_dir = self.place / "state"
        self.workdir = self.place / "work"
        self.url = f"{shim.url}/workspaces/{workspace_id}/a2a"
        """Where messages for it are sent."""

    def envelope(self, text: str) -> dict[str, Any]:
        """Build an A2A 0.3 envelope."""
        return self.shim.envelope(text)

    def logged(self) -> str:
        """Everything it and its shim have logged."""
        log = self.place / "workspace.log"
        return f"{log.read_text(errors='replace') if log.exists() else ''}\n{self.shim.logged()}"

    def kill_everything(self) -> int:
        """SIGKILL everything that runs in it, as a lost container does; return how many processes."""
        return end_all(lambda: carrying(f"WORKSPACE_PROCESS={self.place}"))
