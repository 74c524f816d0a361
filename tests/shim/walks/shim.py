"""The shim that the walks walk through: a child process, killed for real, before a real workspace."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from tests.conftest import inherited
from tests.walks.workspace import DEADLINE, ENDS, Workspace


class Shim:
    """One replica: its state survives, its processes do not."""

    def __init__(self, root: Path, **settings: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.log = root / "shim.log"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = inherited() | {
            "HOME": str(root),
            "SHIM_PORT": str(self.port),
            "SHIM_STATE_DIR": str(root / "state"),
            "SHIM_LOG_LEVEL": "debug",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workspace_adapter", "platform", "serve"],
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        await self.until(self._is_ready, "the shim's start")

    async def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.logged()
        async with httpx.AsyncClient() as client:
            try:
                return (await client.get(f"{self.url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False

    def kill(self) -> None:
        """End it as a lost machine does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def stop(self) -> int:
        """Send SIGTERM; return its exit code."""
        assert self.process is not None
        process = self.process
        process.send_signal(signal.SIGTERM)
        with anyio.fail_after(DEADLINE):
            return await anyio.to_thread.run_sync(process.wait)

    def logged(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until something holds; return what it gave."""
        try:
            with anyio.fail_after(DEADLINE):
                while not (found := await condition()):
                    await anyio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{what} did not come; the shim's log:\n{self.logged()}") from None
        return found

    async def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        async with httpx.AsyncClient(timeout=DEADLINE) as client:
            return await client.request(method, f"{self.url}{path}", json=body)

    async def post(self, body: Mapping[str, Any], *, to: str = "ws-test", **headers: str) -> httpx.Response:
        """Send a call to a workspace."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(timeout=DEADLINE) as client:
            return await client.post(f"{self.url}/workspaces/{to}/a2a", json=body, headers=names)

    async def adopt(self, workspace: Workspace) -> None:
        """Make a workspace known, start it, and wait until messages are sent to it."""
        made = (await self.call("POST", "/workspaces", {"id": "ws-test"})).json()
        configs = workspace.root / "configs"
        configs.mkdir(exist_ok=True)
        (configs / ".auth_token").write_text(made["auth_token"])
        workspace.environ |= {"PLATFORM_URL": self.url, "WORKSPACE_URL": workspace.url}
        await workspace.start()

        async def online() -> bool:
            found = (await self.call("GET", "/workspaces/ws-test")).json()
            return bool(found["status"] == "online")

        await self.until(online, "the workspace's registration")


@asynccontextmanager
async def house(root: Path, adapter: str = ENDS, **settings: str) -> AsyncIterator[tuple[Shim, Workspace]]:
    """Hold a shim with a workspace behind it; whatever is left of them at the end is killed."""
    shim = Shim(
        root / "shim", **{name: value for name, value in settings.items() if name.startswith("SHIM_")}
    )
    workspace = Workspace(
        root / "workspace",
        adapter,
        **{n: value for n, value in settings.items() if n.startswith("WORKSPACE_")},
    )
    try:
        await shim.start()
        await shim.adopt(workspace)
        yield shim, workspace
    finally:
        workspace.kill_everything()
        shim.kill()
