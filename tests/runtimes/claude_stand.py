"""What the tests of the Claude runtime stand on: the real CLI, a scripted model, recording doubles."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from workspace_adapter.adapter import (
    InterruptedTurn,
    Part,
    Permit,
    RuntimeSession,
    SessionContext,
    TextPart,
    TurnRequest,
)
from workspace_adapter.events import SessionBound, SessionHandle, Text, ToolCall, TurnEvent, TurnFinished
from workspace_adapter.resume import Evidence, Resumption
from workspace_adapter.runtimes.claude import ClaudeAdapter, ClaudeSettings
from workspace_adapter.testing import ScriptedModel

from ..conftest import require

MARK = "WORKSPACE_TEST_MARK"


def script(*steps: dict[str, Any]) -> str:
    """A message that has the model do these steps."""
    return f"Please do this. <<<{json.dumps(steps)}>>>"


def bash(command: str, **options: Any) -> dict[str, Any]:
    """A step: one command."""
    return {"tool": "Bash", "input": {"command": command}} | options


@dataclass
class RecordingGate:
    """A gate that remembers; what it was asked, what it permitted, what it was told."""

    closed: bool = False
    reopens: bool = False
    """It opens again as soon as it has refused a call."""
    asked: list[ToolCall] = field(default_factory=list)
    permits: list[str] = field(default_factory=list)
    ends: list[tuple[str, bool]] = field(default_factory=list)
    on_ask: Callable[[ToolCall], None] = lambda call: None

    async def ask(self, call: ToolCall) -> Permit:
        self.asked.append(call)
        self.on_ask(call)
        if self.closed:
            self.closed = not self.reopens
            return Permit.PARKED
        self.permits.append(call.id)
        return Permit.GRANTED

    async def ended(self, call_id: str, *, ok: bool = True) -> None:
        self.ends.append((call_id, ok))

    def opened(self) -> bool:
        return not self.closed

    @property
    def open(self) -> list[str]:
        """Permitted and not ended."""
        return [id for id in self.permits if id not in {ended for ended, _ in self.ends}]


@dataclass
class MarkedChildren:
    """Children known by a mark in their environment, and the tools they start by the same."""

    base: dict[str, str]
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    pids: list[int] = field(default_factory=list)

    def environ(self) -> dict[str, str]:
        return {**self.base, MARK: self.mark}

    async def started(self, pid: int, what: str) -> None:
        self.pids.append(pid)

    def alive(self) -> dict[int, str]:
        """Every process with the mark, with its command line."""
        return {pid: command for pid, command in processes() if self.mark in environ_of(pid)}

    def kill(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Signal them all."""
        for pid in self.alive():
            with suppress(ProcessLookupError):
                os.kill(pid, sig)


def processes() -> list[tuple[int, str]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append((int(entry.name), command))
    return found


def environ_of(pid: int) -> str:
    """The environment a process was started with; empty for zombies and strangers."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


@dataclass
class Stand:
    """One workspace's worth of directories and doubles; open as many sessions as you like."""

    root: Path
    model: ScriptedModel
    environ: dict[str, str]
    gate: RecordingGate = field(default_factory=RecordingGate)

    def __post_init__(self) -> None:
        for directory in (self.home, self.workdir, self.state):
            directory.mkdir(exist_ok=True)
        self.children = MarkedChildren(self.environ)
        self.adapter = ClaudeAdapter()

    def use(self, settings: ClaudeSettings) -> None:
        """Have an adapter with these settings from now on."""
        self.adapter = ClaudeAdapter(settings)

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def workdir(self) -> Path:
        return self.root / "work"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def effects(self) -> list[str]:
        """Lines the tools appended to the file ``effects``."""
        file = self.workdir / "effects"
        return file.read_text().split() if file.exists() else []

    @asynccontextmanager
    async def session(
        self, name: str = "ctx-1", *, resume: SessionHandle | None = None
    ) -> AsyncGenerator[RuntimeSession, None]:
        context = SessionContext(
            session_id=name,
            workdir=self.workdir,
            state_dir=self.state,
            gate=self.gate,
            children=self.children,
            resume=resume,
        )
        async with self.adapter.open_session(context) as session:
            yield session

    async def recover(
        self,
        *,
        id: str = "turn-1",
        attempts: int = 1,
        name: str = "ctx-1",
        handle: SessionHandle | None = None,
    ) -> Evidence:
        return await self.adapter.recover(
            InterruptedTurn(
                id=id,
                attempts=attempts,
                session_id=name,
                handle=handle,
                workdir=self.workdir,
                state_dir=self.state,
                text="",
            )
        )

    def transcript(self) -> Path:
        """The only transcript."""
        (path,) = (self.state / "config" / "projects").glob("*/*.jsonl")
        return path

    def told(self) -> str:
        """What the model was sent last, as text."""
        return json.dumps(self.model.requests[-1]["messages"], ensure_ascii=False)


def turn(
    text: str,
    *,
    id: str = "turn-1",
    attempt: int = 1,
    resumption: Resumption = Resumption.NEW,
    note: str | None = None,
    parts: tuple[Part, ...] = (),
) -> TurnRequest:
    return TurnRequest(
        id=id,
        attempt=attempt,
        parts=(TextPart(text=text), *parts),
        resumption=resumption,
        note=note,
    )


@dataclass
class Run:
    """What a turn yielded."""

    events: list[TurnEvent] = field(default_factory=list)

    @property
    def finished(self) -> TurnFinished:
        assert isinstance(self.events[-1], TurnFinished)
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Text))

    @property
    def handle(self) -> SessionHandle:
        (handle,) = [event.handle for event in self.events if isinstance(event, SessionBound)]
        return handle


async def follow(session: RuntimeSession, request: TurnRequest, into: Run | None = None) -> Run:
    """Run a turn to its end."""
    run = into or Run()
    async for event in session.run_turn(request):
        run.events.append(event)
    return run


async def until(condition: Callable[[], object], *, within: float = 10.0, what: str = "") -> None:
    """Poll a condition with a deadline."""
    with anyio.move_on_after(within):
        while not condition():
            await anyio.sleep(0.01)
        return
    pytest.fail(f"not within {within:g} s: {what or condition}")


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    require(importlib.util.find_spec("claude_agent_sdk") is not None, "claude-agent-sdk is not installed")
    async with ScriptedModel() as model:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": "key-of-the-test",
            "CLAUDE_CODE_MAX_RETRIES": "1",
        }
        stand = Stand(tmp_path, model, environ)
        try:
            yield stand
        finally:
            left = stand.children.alive()
            stand.children.kill()
        assert not left, f"left behind: {left}"
