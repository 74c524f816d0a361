"""A real workspace for the walks: a sidecar as a child process, killed for real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

ENDS = "workspace_adapter.testing.fakes:ScriptedEnds"
HOLDS = "workspace_adapter.testing.fakes:ScriptedHolds"
DEADLINE = 20.0
"""Seconds any single step of a walk may take; only a failing walk takes that long."""


def script(*steps: dict[str, Any]) -> str:
    """Write a message that carries a script for a scripted fake."""
    return f"please do this: <<<{json.dumps(list(steps))}>>>"


class Workspace:
    """One workspace: its directories survive, its processes do not."""

    def __init__(self, root: Path, adapter: str = ENDS, **environ: str) -> None:
        self.root = root
        self.workdir = root / "work"
        self.state_dir = root / "state"
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.effects = self.workdir / "effects"
        self.log = root / "sidecar.log"
        self.run_id = uuid.uuid4().hex
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            "WORKSPACE_TEST_RUN": self.run_id,
            "WORKSPACE_ID": "ws-test",
            "WORKSPACE_ADAPTER": adapter,
            "WORKSPACE_HOST": "127.0.0.1",
            "WORKSPACE_PORT": str(self.port),
            "WORKSPACE_STATE_DIR": str(self.state_dir),
            "WORKSPACE_WORKDIR": str(self.workdir),
            "CONFIGS_DIR": str(root / "configs"),
            "WORKSPACE_LOG_LEVEL": "debug",
            **environ,
        }
        self.process: subprocess.Popen[bytes] | None = None

    # --- processes ------------------------------------------------------------------

    def spawn(self) -> None:
        """Start the sidecar and return at once."""
        assert self.process is None or self.process.poll() is not None
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workspace_adapter", "serve"],
                env=self.environ,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def start(self) -> None:
        """Start the sidecar and wait until it accepts messages."""
        self.spawn()
        await self.until_ready()

    async def until_ready(self) -> None:
        async with httpx.AsyncClient(base_url=self.url) as client:
            with anyio.fail_after(DEADLINE):
                while True:
                    assert self.process is not None
                    assert self.process.poll() is None, self.logged()
                    try:
                        if (await client.get("/readyz")).status_code == 200:
                            return
                    except httpx.TransportError:
                        pass
                    await anyio.sleep(0.01)

    def kill_sidecar(self) -> None:
        """SIGKILL the sidecar alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_everything(self) -> None:
        """SIGKILL everything that runs in the workspace, as a lost container does."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if self.process is not None:
                self.process.poll()
            time.sleep(0.002)
        if self.process is not None:
            self.process.wait()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.terminate()

    async def exited(self) -> int:
        """Wait for the sidecar's exit; return its code."""
        assert self.process is not None
        with anyio.fail_after(DEADLINE):
            while self.process.poll() is None:
                await anyio.sleep(0.01)
        return self.process.returncode

    def pids(self) -> list[int]:
        """Every live process of this workspace, found by a mark of the test's own."""
        mark = f"WORKSPACE_TEST_RUN={self.run_id}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def logged(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # --- messages -------------------------------------------------------------------

    def envelope(
        self,
        text: str,
        *,
        message_id: str | None = None,
        context_id: str | None = None,
        method: str = "message/send",
        **params: Any,
    ) -> dict[str, Any]:
        """Build a 0.3 envelope as the existing platform sends it."""
        message: dict[str, Any] = {
            "role": "user",
            "messageId": message_id or uuid.uuid4().hex,
            "parts": [{"kind": "text", "text": text}],
        }
        if context_id is not None:
            message["contextId"] = context_id
        return {
            "jsonrpc": "2.0",
            "id": uuid.uuid4().hex,
            "method": method,
            "params": {"message": message, **params},
        }

    async def post(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.url, timeout=DEADLINE) as client:
            return await client.post("/", json=body, headers=headers)

    async def send(self, text: str, **more: Any) -> httpx.Response:
        return await self.post(self.envelope(text, **more))

    async def ask_until_answered(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send one message, again and again with the same id, until it is answered."""
        with anyio.fail_after(DEADLINE * 2):
            while True:
                try:
                    response = await self.post(body)
                    if response.status_code == 200:
                        answer: dict[str, Any] = response.json()
                        return answer
                    assert response.status_code in (502, 503), response.text
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.02)

    async def signal(self, **params: Any) -> httpx.Response:
        body = {
            "jsonrpc": "2.0",
            "method": "signals/restart_pending",
            "params": {"drain_seconds": 20, "workspace_id": "ws-test", **params},
            "id": None,
        }
        async with httpx.AsyncClient(base_url=self.url, timeout=DEADLINE) as client:
            return await client.post(
                "/signals/restart_pending", json=body, headers={"X-Restart-Signal": "true"}
            )

    def command(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run an operator's command against this workspace."""
        return subprocess.run(
            [sys.executable, "-m", "workspace_adapter", *arguments],
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    # --- what happened --------------------------------------------------------------

    def lines(self) -> list[str]:
        """The effects the tools themselves wrote."""
        return self.effects.read_text().splitlines() if self.effects.exists() else []

    async def until_effect(self, line: str) -> None:
        await self.until(lambda: line in self.lines(), f"effect {line!r}")

    async def until(self, condition: Any, what: str = "the condition") -> None:
        try:
            with anyio.fail_after(DEADLINE):
                while not condition():
                    await anyio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{what} did not come; log:\n{self.logged()}") from None

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


def answer_of(reply: dict[str, Any]) -> str:
    """Return the text that the existing platform reads from an answer."""
    result = reply["result"]
    assert result["kind"] == "message", reply
    text: str = result["parts"][0]["text"]
    return text


@asynccontextmanager
async def workspace(
    root: Path, adapter: str = ENDS, *, start: bool = True, **environ: str
) -> AsyncIterator[Workspace]:
    """Hold a workspace; whatever is left of it at the end is killed."""
    made = Workspace(root, adapter, **environ)
    try:
        if start:
            await made.start()
        yield made
    finally:
        made.kill_everything()
