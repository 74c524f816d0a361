"""The workspace that the tests of containers run."""

from __future__ import annotations

import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx

from workspace_adapter.testing.workspace import Asker

from ..walks.workspace import ENDS
from .engine import attempt, docker

PATIENCE = 40.0
"""Seconds any single step may take; only a failing test takes that long."""


class Container(Asker):
    """One workspace: its volumes survive, its containers do not."""

    def __init__(self, image: str, adapter: str, options: Sequence[str], settings: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{port}", patience=PATIENCE)
        self.name = f"workspace-test-{uuid.uuid4().hex[:12]}"
        self.configs = f"{self.name}-configs"
        self.image = image
        self.options = [
            *("--publish", f"127.0.0.1:{port}:8000"),
            *("--volume", f"{self.configs}:/configs"),
            *options,
        ]
        self.settings = {
            "WORKSPACE_ID": "ws-test",
            "WORKSPACE_ADAPTER": adapter,
            "WORKSPACE_LOG_LEVEL": "debug",
            **settings,
        }
        self.volume = ["--volume", f"{self.name}:/workspace"]
        self.command: Sequence[str] = ()
        self._earlier = ""

    # --- the operator's hands -------------------------------------------------------

    async def docker(self, *arguments: str) -> str:
        return await anyio.to_thread.run_sync(lambda: docker(*arguments))

    async def run(self) -> None:
        """Start a new container on the volumes; return at once."""
        environ = [f"--env={name}={value}" for name, value in self.settings.items()]
        command = ["run", "--detach", "--name", self.name, *self.options, *self.volume, *environ]
        await self.docker(*command, self.image, *self.command)

    async def start(self) -> None:
        """Start a new container on the volumes, and wait until it accepts messages."""
        await self.run()
        await self.until_ready()

    async def restart(self, grace: int = 10) -> float:
        """`docker restart`; return the seconds it took."""
        began = time.monotonic()
        await self.docker("restart", "--time", str(grace), self.name)
        return time.monotonic() - began

    async def stop(self, grace: int = 10) -> float:
        """`docker stop`; return the seconds it took."""
        began = time.monotonic()
        await self.docker("stop", "--time", str(grace), self.name)
        return time.monotonic() - began

    async def kill(self) -> None:
        """SIGKILL everything in it, all at once."""
        await self.docker("kill", self.name)

    async def start_again(self) -> None:
        """Start the container that is there."""
        await self.docker("start", self.name)

    async def remove(self) -> None:
        """`docker rm --force`, as the existing platform does; the volumes stay."""
        self._earlier = self.logged()
        await self.docker("rm", "--force", self.name)

    def dispose(self) -> None:
        """Leave nothing behind."""
        attempt("rm", "--force", "--volumes", self.name)
        attempt("volume", "rm", "--force", self.name, self.configs)

    # --- what can be seen -----------------------------------------------------------

    def inspect(self, template: str) -> str:
        """Say what the engine knows of it, by a template such as ``.State.ExitCode``."""
        return docker("inspect", "--format", f"{{{{{template}}}}}", self.name)

    def alive(self) -> bool:
        return self.inspect(".State.Status") in ("running", "restarting")

    def logged(self) -> str:
        done = attempt("logs", self.name)
        return self._earlier + done.stdout + done.stderr

    async def sh(self, command: str, *options: str) -> str:
        """Run a command of the shell in it; return what it printed."""
        return await self.docker("exec", *options, self.name, "bash", "-c", command)

    async def until_sh(self, condition: str) -> None:
        """Wait in it until a condition of the shell holds."""
        limit = int(self.patience)
        await self.sh(f"timeout {limit} bash -c 'until {condition}; do sleep 0.02; done'")

    async def effects(self) -> list[str]:
        """The effects the tools themselves wrote."""
        return (await self.sh("cat effects 2>/dev/null || true")).splitlines()

    async def command_of_ours(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an operator's command in it."""
        command = ["exec", self.name, "workspace-adapter", *arguments]
        return await anyio.to_thread.run_sync(lambda: attempt(*command))

    async def send(self, text: str, **more: Any) -> httpx.Response:
        return await self.post(self.envelope(text, **more))


@asynccontextmanager
async def container(
    image: str, adapter: str = ENDS, *options: str, start: bool = True, **settings: str
) -> AsyncIterator[Container]:
    """Hold a workspace in a container; nothing is left of it at the end."""
    made = Container(image, adapter, options, settings)
    try:
        if start:
            await made.start()
        yield made
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(made.dispose)
