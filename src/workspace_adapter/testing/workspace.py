"""A real workspace to try things on: a sidecar as a child process, killed for real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx

MARK = "WORKSPACE_TEST_RUN"
"""The variable by which everything that was started is found again."""


class NotInTime(AssertionError):
    """What was waited for did not come; the text says what, and quotes the sidecar's log."""

    def __init__(self, what: str, log: str) -> None:
        super().__init__(f"{what}; the sidecar's log:\n{log}")
        self.what = what


class Asker(ABC):
    """Whoever asks a workspace at ``url``, wherever that runs.

    Args:
        url: where it listens, without a slash at the end.
        patience: seconds any single step may take.
    """

    def __init__(self, url: str, *, patience: float) -> None:
        self.url = url
        self.patience = patience

    @abstractmethod
    def alive(self) -> bool:
        """Whether there is anybody to wait for."""

    @abstractmethod
    def logged(self) -> str:
        """Everything the sidecar has logged in all its lives."""

    async def until_ready(self) -> None:
        """Wait until the sidecar accepts messages.

        Raises:
            NotInTime: it does not, or has ended.
        """
        async with httpx.AsyncClient(base_url=self.url) as client:
            with anyio.move_on_after(self.patience):
                while True:
                    if not self.alive():
                        raise NotInTime("the sidecar is not running", self.logged())
                    try:
                        if (await client.get("/readyz")).status_code == 200:
                            return
                    except httpx.TransportError:
                        pass
                    await anyio.sleep(0.01)
        raise NotInTime(f"the sidecar was not ready within {self.patience:g} s", self.logged())

    def envelope(
        self,
        text: str,
        *,
        message_id: str | None = None,
        context_id: str | None = None,
        method: str = "message/send",
        **params: Any,
    ) -> dict[str, Any]:
        """Build an A2A 0.3 envelope as the existing platform sends it."""
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

    async def post(self, body: Mapping[str, Any], **headers: str) -> httpx.Response:
        """Send an envelope once.

        Raises:
            httpx.TransportError: the connection was lost.
        """
        async with httpx.AsyncClient(base_url=self.url, timeout=self.patience) as client:
            return await client.post("/", json=body, headers=headers)

    async def ask_until_answered(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send one message, again and again with the same id, until it is answered."""
        with anyio.fail_after(self.patience * 2):
            while True:
                try:
                    response = await self.post(body)
                    if response.status_code == 200:
                        answer: dict[str, Any] = response.json()
                        return answer
                    if response.status_code not in (502, 503):
                        raise AssertionError(f"HTTP {response.status_code}: {response.text}")
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.05)

    async def signal(self, **params: Any) -> httpx.Response:
        """Say that a restart is pending, as the existing platform does."""
        body = {
            "jsonrpc": "2.0",
            "method": "signals/restart_pending",
            "params": {"drain_seconds": 20, "workspace_id": "ws-test", **params},
            "id": None,
        }
        async with httpx.AsyncClient(base_url=self.url, timeout=self.patience) as client:
            return await client.post(
                "/signals/restart_pending", json=body, headers={"X-Restart-Signal": "true"}
            )

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until a condition holds.

        Raises:
            NotInTime: it did not.
        """
        try:
            with anyio.fail_after(self.patience):
                while not condition():  # noqa: ASYNC110  # files and processes set no event
                    await anyio.sleep(0.005)
        except TimeoutError:
            raise NotInTime(f"{what} did not come within {self.patience:g} s", self.logged()) from None


def carrying(mark: str) -> list[int]:
    """Return every live process that has this line in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def end_all(find: Callable[[], list[int]]) -> int:
    """SIGKILL processes until none is found, all at once so that nobody sees another go; return how many."""
    killed: set[int] = set()
    while pids := find():
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        killed.update(pids)
        time.sleep(0.002)
    return len(killed)


class Child(Asker):
    """One of our servers as a child process: its directories survive, its processes do not.

    Args:
        root: an empty directory of its own.
        command: of ours, such as ``("serve",)``.
        log: where its output goes; its name without the ending is what errors call it.
        directory: where its processes start, and so from where modules are imported.
        patience: seconds any single step may take.
    """

    environ: dict[str, str]

    def __init__(
        self, root: Path, command: Sequence[str], *, log: Path, directory: Path, patience: float
    ) -> None:
        self.root = root
        self.directory = directory
        self.log = log
        self._command = command
        self._run_id = uuid.uuid4().hex
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        super().__init__(f"http://127.0.0.1:{self.port}", patience=patience)
        self.program: Sequence[str] = (sys.executable, "-m", "workspace_adapter")
        """What is run; a test may put a tracer before it."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def mark(self) -> dict[str, str]:
        """The variable by which everything it starts is found."""
        return {MARK: self._run_id}

    def spawn(self) -> None:
        """Start it and return at once."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, *self._command],
                env=self.environ,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def start(self) -> None:
        """Start it and wait until it accepts messages."""
        self.spawn()
        await self.until_ready()

    def kill(self) -> None:
        """SIGKILL it alone; what it started may survive it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill_everything(self) -> int:
        """SIGKILL it and everything it started, as a lost container does.

        Returns how many processes that were.
        """
        killed = end_all(self.pids)
        if self.process is not None:
            self.process.wait()
        return killed

    def terminate(self) -> None:
        """Send SIGTERM to it."""
        if self.process is not None:
            self.process.terminate()

    async def exited(self) -> int:
        """Wait for its exit; return its code, negative for a signal.

        Raises:
            NotInTime: it did not come.
        """
        process = self.process
        if process is None:
            raise AssertionError(f"the {self.log.stem} was never started")
        await self.until(lambda: process.poll() is not None, f"the {self.log.stem}'s exit")
        return process.returncode

    def alive(self) -> bool:
        """Whether it runs."""
        return self.process is not None and self.process.poll() is None

    def pids(self) -> list[int]:
        """Every live process of it, found by a mark in its environment."""
        if self.process is not None:
            self.process.poll()  # so that it is no zombie
        return carrying(f"{MARK}={self._run_id}")

    def logged(self) -> str:
        """Everything it has logged in all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Workspace(Child):
    """One workspace with its sidecar.

    Args:
        root: an empty directory of its own; the journal, the working directory and the
            log lie beneath it.
        adapter: as in ``WORKSPACE_ADAPTER``.
        environ: what the sidecar's environment starts from, such as this process's.
        settings: variables for the sidecar.
        patience: seconds any single step may take.
        directory: where its processes start, and so from where modules are imported;
            ``root`` by default.
    """

    def __init__(
        self,
        root: Path,
        adapter: str,
        *,
        environ: Mapping[str, str],
        settings: Mapping[str, str],
        patience: float = 30.0,
        directory: Path | None = None,
    ) -> None:
        super().__init__(
            root, ("serve",), log=root / "sidecar.log", directory=directory or root, patience=patience
        )
        self.workdir = root / "work"
        self.state_dir = root / "state"
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.environ = {
            **environ,
            **self.mark,
            "WORKSPACE_ID": "ws-test",
            "WORKSPACE_ADAPTER": adapter,
            "WORKSPACE_HOST": "127.0.0.1",
            "WORKSPACE_PORT": str(self.port),
            "WORKSPACE_STATE_DIR": str(self.state_dir),
            "WORKSPACE_WORKDIR": str(self.workdir),
            "CONFIGS_DIR": str(root / "configs"),
            # Whoever tries something in a container of a platform's does it without that platform.
            "PLATFORM_URL": "",
            "WORKSPACE_CONFIG_PATH": "",
            **settings,
        }

    def kill_sidecar(self) -> None:
        """SIGKILL the sidecar alone; what it started may survive it."""
        self.kill()

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an operator's command against this workspace."""
        return subprocess.run(
            [sys.executable, "-m", "workspace_adapter", *arguments],
            env=self.environ,
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=self.patience,
            check=False,
        )


def answer_of(reply: Mapping[str, Any]) -> str:
    """Return the text that the existing platform reads from an answer."""
    text: str = reply["result"]["parts"][0]["text"]
    return text
