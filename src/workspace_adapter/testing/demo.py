"""The product's main job in front of you: the process is killed, the answer still comes.

A real sidecar with the real Claude CLI works on real shell commands. Three scenes kill or
restart it in the middle. What is counted at the end comes from the callers and from the
file the commands wrote, not from our own journal.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx

from .scripted_model import ScriptedModel
from .workspace import Workspace, answer_of

_TOOL_SECONDS = 3
"""How long the first command of a scene takes: time enough to interrupt it."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One message and what happens to the workspace meanwhile."""

    name: str
    title: str
    at_once: bool
    """Whether the two commands are asked for in one message of the model's."""
    interrupt: Callable[[Stage], Awaitable[None]]

    @property
    def commands(self) -> tuple[str, str]:
        """The two commands; each leaves one line in ``effects``."""
        begun, first, second = f"begun-{self.name}", f"{self.name}-first", f"{self.name}-second"
        slow = f"touch {begun}; sleep {_TOOL_SECONDS}; echo {first} >> effects"
        return slow, f"echo {second} >> effects"

    def prompt(self, *, scripted: bool) -> str:
        """The message; a scripted model finds its script at the end of it."""
        slow, quick = self.commands
        how = "at once, as two calls in one message" if self.at_once else "one after the other"
        text = (
            f"Run these two shell commands with the Bash tool, {how}, exactly as they stand:\n"
            f"{slow}\n{quick}\nThen answer with the single word done."
        )
        if not scripted:
            return text
        calls = [{"tool": "Bash", "input": {"command": command}} for command in (slow, quick)]
        steps: list[dict[str, Any]] = [{"tools": calls}] if self.at_once else list(calls)
        return f"{text}\n<<<{json.dumps([*steps, {'text': 'done'}])}>>>"


class Timeline:
    """What happened when, as lines for people or as JSON lines for machines."""

    def __init__(self, *, machine: bool) -> None:
        self._machine = machine
        self._began = time.monotonic()
        self._waiting = False

    def tell(self, who: str, what: str) -> None:
        """Add one line."""
        at = time.monotonic() - self._began
        if self._machine:
            self._print(json.dumps({"at": round(at, 3), "who": who, "what": what}))
        else:
            first, *rest = what.splitlines()
            self._print("\n".join([f"{at:7.2f} s  {who:<9} {first}", *(f"{'':20} {r}" for r in rest)]))

    def title(self, text: str) -> None:
        """Begin a scene."""
        if self._machine:
            self.tell("scene", text)
        else:
            self._print(f"\n{text}\n{'─' * len(text)}")

    def close(self, summary: Mapping[str, Any]) -> None:
        """End with the count."""
        if self._machine:
            self._print(json.dumps(summary))
        else:
            counted = ", ".join(f"{name} {summary[name]}" for name in ("accepted", "answered", "lost"))
            self._print(f"\n{counted}, effects run twice {summary['twice']} ({summary['seconds']:.0f} s)")

    @asynccontextmanager
    async def progress(self, what: str) -> AsyncIterator[None]:
        """Show that something is being waited for."""
        if self._machine or not sys.stdout.isatty():
            yield
            return
        async with anyio.create_task_group() as ticking:
            ticking.start_soon(self._tick, what)
            try:
                yield
            finally:
                ticking.cancel_scope.cancel()

    async def _tick(self, what: str) -> None:
        began = time.monotonic()
        while True:
            sys.stdout.write(f"\r\x1b[2m           … {what}, {time.monotonic() - began:.0f} s\x1b[0m\x1b[K")
            sys.stdout.flush()
            self._waiting = True
            await anyio.sleep(0.5)

    def _print(self, text: str) -> None:
        if self._waiting:
            sys.stdout.write("\r\x1b[K")
            self._waiting = False
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class Stage:
    """The workspace, its caller and what they tell."""

    def __init__(self, workspace: Workspace, timeline: Timeline) -> None:
        self.workspace = workspace
        self.timeline = timeline
        self.answers: dict[str, str] = {}

    async def play(self, scene: Scene, *, scripted: bool) -> None:
        """Play one scene to its answer."""
        self.timeline.title(scene.title)
        async with anyio.create_task_group() as caller:
            caller.start_soon(self._call, scene.name, scene.prompt(scripted=scripted))
            async with self.timeline.progress("the agent reaches its first command"):
                begun = self.workspace.workdir / f"begun-{scene.name}"
                await self.workspace.until(
                    lambda: begun.exists() or scene.name in self.answers, "the first command"
                )
            if scene.name in self.answers:
                self.timeline.tell("you", "too late to interrupt: the agent did not run the commands")
                return
            self.timeline.tell("tool", f"the first command runs ({_TOOL_SECONDS} s before its effect)")
            await scene.interrupt(self)
            self.show_disk()
            await self.workspace.start()
            self.timeline.tell("sidecar", "started again")
        self.show_note()

    async def _call(self, name: str, text: str) -> None:
        """Ask as any caller does: the same message again until it is answered."""
        workspace, body = self.workspace, self.workspace.envelope(text)
        self.timeline.tell("caller", f"sends message {body['params']['message']['messageId'][:8]}…")
        told = ""
        while True:
            try:
                async with self.timeline.progress("the caller waits for its answer"):
                    reply = await workspace.post(body)
                if reply.status_code == 200:
                    break
                lost = f"is told {reply.status_code}: {reply.json()['error']}"
            except httpx.TransportError:
                lost = "loses its connection"
            if lost != told:
                self.timeline.tell("caller", f"{lost}; sends the same message again")
                told = lost
            await anyio.sleep(0.1)
        self.answers[name] = answer_of(reply.json())
        self.timeline.tell("caller", f"is answered: {self.answers[name]}")

    def show_disk(self) -> None:
        """Tell what an operator finds in the journal now, with the sidecar down."""
        for listed in self._operator("turns", "list"):
            if listed["state"] not in ("running", "parked"):
                continue
            turn = self._operator("turns", "show", listed["id"])
            self.timeline.tell("journal", f"the turn is {turn['state']}, attempt {turn['attempts']}")
            for call in turn["calls"]:
                self.timeline.tell("journal", f"its call of {call['name']}: {call['state']}")

    def _operator(self, *command: str) -> Any:
        return json.loads(self.workspace.command(*command, "--json").stdout)

    def show_note(self) -> None:
        """Tell what the model was told on resume, from its own transcript."""
        notes = []
        for transcript in self.workspace.state_dir.rglob("projects/**/*.jsonl"):
            for line in transcript.read_text(errors="replace").splitlines():
                if '"type":"user"' in line and "[workspace notice" in line:
                    notes.append((transcript.stat().st_mtime, line))
        if notes:
            content = json.loads(max(notes)[1])["message"]["content"]
            text = content if isinstance(content, str) else content[-1]["text"]
            self.timeline.tell("model", f"was told: {text.partition(']')[0]}]")


async def _kill(stage: Stage) -> None:
    killed = stage.workspace.kill_everything()
    stage.timeline.tell("you", f"kill -9 of everything: {killed} processes")


async def _signal(stage: Stage) -> None:
    stage.timeline.tell("platform", "POST /signals/restart_pending")
    async with stage.timeline.progress("the drain waits for the first command"):
        result = (await stage.workspace.signal()).json()["result"]
    stage.timeline.tell(
        "sidecar",
        f"acknowledges after {result['took_ms']} ms: drained {str(result['drained']).lower()},"
        f" {len(result['parked'])} parked, {len(result['running'])} still running",
    )
    stage.workspace.terminate()
    await stage.workspace.exited()
    stage.timeline.tell("platform", "the container is stopped")


async def _terminate(stage: Stage) -> None:
    stage.timeline.tell("platform", "SIGTERM, and nothing before it")
    stage.workspace.terminate()
    async with stage.timeline.progress("the drain waits for the first command"):
        code = await stage.workspace.exited()
    stage.timeline.tell("sidecar", f"drained and exited with code {code}")


SCENES = (
    Scene("one", "Scene 1: kill -9 inside the first of two tool calls", False, _kill),
    Scene("two", "Scene 2: a restart is announced while one of two calls runs", True, _signal),
    Scene("three", "Scene 3: SIGTERM while one of two calls runs", True, _terminate),
)


@asynccontextmanager
async def _model(environ: Mapping[str, str], timeline: Timeline) -> AsyncIterator[dict[str, str] | None]:
    """Yield the variables that lead to a scripted model, or ``None`` for the real one."""
    if environ.get("ANTHROPIC_API_KEY"):
        timeline.tell("model", "ANTHROPIC_API_KEY is set: the real API; what it does is the model's own")
        yield None
        return
    async with ScriptedModel() as scripted:
        timeline.tell("model", f"no ANTHROPIC_API_KEY: a scripted model answers at {scripted.url}")
        yield {"ANTHROPIC_BASE_URL": scripted.url, "ANTHROPIC_API_KEY": "scripted"}


async def demonstrate(environ: Mapping[str, str], *, keep: bool, machine: bool) -> int:
    """Play the scenes; return 0 only when nothing was lost and nothing ran twice.

    Args:
        environ: what the sidecar's environment starts from.
        keep: leave it running afterwards, until Ctrl-C, and say how to talk to it.
        machine: JSON lines instead of a timeline.
    """
    timeline = Timeline(machine=machine)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="workspace-adapter-demo-") as root:
        async with _model(environ, timeline) as scripted:
            workspace = Workspace(
                Path(root),
                "claude",
                environ={**environ, **(scripted or {})},
                settings={
                    "WORKSPACE_DRAIN_CAP": str(_TOOL_SECONDS + 5),
                    "WORKSPACE_CLAUDE_SETTING_SOURCES": "none",
                },
                patience=60.0,
            )
            stage = Stage(workspace, timeline)
            try:
                await workspace.start()
                timeline.tell("sidecar", f"is ready at {workspace.url}, with the real Claude CLI")
                for scene in SCENES:
                    await stage.play(scene, scripted=scripted is not None)
                summary = _count(stage, time.monotonic() - began)
                timeline.close(summary)
                if keep:
                    await _stay(workspace, timeline)
            finally:
                workspace.kill_everything()
    return 0 if summary["lost"] == 0 and summary["twice"] == 0 else 1


def _count(stage: Stage, seconds: float) -> dict[str, Any]:
    """Count from the callers' answers and from the commands' own file."""
    effects = stage.workspace.workdir / "effects"
    lines = Counter(effects.read_text().splitlines() if effects.exists() else ())
    wanted = {f"{scene.name}-{which}" for scene in SCENES for which in ("first", "second")}
    return {
        "accepted": len(SCENES),
        "answered": len(stage.answers),
        "lost": len(SCENES) - len(stage.answers) + len(wanted - lines.keys()),
        "twice": sum(count - 1 for count in lines.values()),
        "seconds": round(seconds, 1),
    }


async def _stay(workspace: Workspace, timeline: Timeline) -> None:
    body = json.dumps(workspace.envelope("hello"), separators=(",", ":"))
    curl = f"curl -s {workspace.url} -H 'content-type: application/json' -d '{body}'"
    timeline.tell("you", f"talk to it, then press Ctrl-C:\n{curl}")
    timeline.tell("you", f"journal, transcripts, log and files: {workspace.root}")
    await anyio.sleep_forever()
