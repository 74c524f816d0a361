"""The product's main job in front of you: workspace and shim are killed, the answer still comes.

A real shim and a real sidecar with the real Claude CLI, which works on real shell commands.
Three scenes restart or kill one of them in the middle. The caller is plain curl, started
once. What is counted at the end comes from it and from the file the commands wrote, not
from our own journal or queue.
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from .scenes import OpenJournal, Played, Scene, Stage, excerpt
from .scripted_model import ScriptedModel
from .shim import Guest, Shim
from .timeline import Timeline
from .workspace import NotInTime, answer_of

_TOOL_SECONDS = 3
"""How long the first command of a scene takes: time enough to interrupt it."""

_NAME = "demo"

_INHERITED = ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "IS_SANDBOX")
"""What of the user's environment the workspace is started with."""

_CURL = ("curl", "-sSf", "--retry", "1000", "--retry-all-errors", "--retry-delay", "1")


class _Behind(Stage[Guest]):
    """A workspace behind a shim, which starts it again by itself."""

    async def ask(self, played: Played, body: Mapping[str, Any], message_id: str) -> None:
        file = self.workspace.shim.root / f"{message_id[:8]}.json"
        file.write_text(json.dumps(body))
        command = self._curl(file)
        self.timeline.tell("caller", shlex.join(command))
        played.answer = await self._told(command)
        if played.answer is not None:
            self.timeline.tell("caller", f"is answered: {excerpt(played.answer)}")

    async def ask_again(self, body: Mapping[str, Any]) -> str:
        message_id: str = body["params"]["message"]["messageId"]
        with anyio.move_on_after(self.workspace.patience):
            told = await self._told(self._curl(self.workspace.shim.root / f"{message_id[:8]}.json"))
            if told is not None:
                return told
        raise self.late("the same message sent once more was not answered")

    async def serve_again(self) -> None:
        await self.workspace.shim.until_online(self.workspace.id)

    def must_run(self) -> None:
        if not self.workspace.shim.alive():
            raise NotInTime("the shim ended by itself", self.workspace.logged())

    def _curl(self, file: Path) -> Sequence[str]:
        return (*_CURL, "-H", "content-type: application/json", "-d", f"@{file}", self.workspace.url)

    async def _told(self, command: Sequence[str]) -> str | None:
        """Run curl; return the answer that it prints."""
        done = await anyio.run_process(command, check=False)
        try:
            return answer_of(json.loads(done.stdout))
        except (ValueError, KeyError):
            said = (done.stdout + done.stderr).decode(errors="replace")
            self.timeline.tell(
                "caller", f"has no answer, curl exited with {done.returncode}: {excerpt(said)}"
            )
            return None


async def _restarted(stage: _Behind) -> None:
    """Have the shim restart the workspace."""
    shim, timeline = stage.workspace.shim, stage.timeline
    timeline.tell("you", f"POST /workspaces/{_NAME}/restart")
    asked = (await shim.call("POST", f"/workspaces/{_NAME}/restart"))["cycle"]["id"]
    async with timeline.progress("the shim restarts the workspace"):
        cycle = await shim.until_over(_NAME, asked)
    notes = cycle["notes"]
    if "took_ms" in (signal := notes.get("signal", {})):
        timeline.tell(
            "sidecar",
            f"acknowledges the signal after {signal['took_ms']} ms: drained {str(signal['drained']).lower()},"
            f" {len(signal['parked'])} parked, {len(signal['held'])} held,"
            f" {len(signal['running'])} still running",
        )
    times = ", ".join(
        f"{step} {notes[step]['took_ms']} ms" for step in ("stop", "start", "wait") if step in notes
    )
    timeline.tell("shim", f"restart {cycle['step']}: {notes['because']} ({times})")


async def _killed(stage: _Behind) -> None:
    """Lose the workspace: SIGKILL to everything in it."""
    before = (await stage.workspace.shim.call("GET", f"/workspaces/{_NAME}"))["boot_id"]
    killed = stage.workspace.kill_everything()
    stage.timeline.tell("you", f"kill -9 of everything in the workspace: {killed} processes")
    async with stage.timeline.progress("the shim revives it"):
        await stage.workspace.shim.until_online(_NAME, other_than=before)
    stage.timeline.tell("shim", "has found it dead, and started it again")


async def _shim_killed(stage: _Behind) -> None:
    """Lose the shim, with its caller's connection; the workspace works on."""
    shim = stage.workspace.shim
    shim.kill()
    stage.timeline.tell("you", "kill -9 of the shim; curl loses its connection")
    await shim.start()
    stage.timeline.tell("shim", "started again")


@dataclass(frozen=True, slots=True)
class Errand:
    """Two shell commands that a message asks for; each leaves one line in ``effects``."""

    name: str
    title: str
    at_once: bool
    """Whether the two commands are asked for in one message of the model's."""
    interrupt: Callable[[_Behind], Awaitable[None]]

    @property
    def lines(self) -> tuple[str, str]:
        """What the commands leave."""
        return f"{self.name}-first", f"{self.name}-second"

    def scene(self, *, scripted: bool) -> Scene:
        """Make a scene of it; a scripted model finds its script at the end of the message."""
        first, second = self.lines
        commands = (f"sleep {_TOOL_SECONDS}; echo {first} >> effects", f"echo {second} >> effects")
        how = "at once, as two calls in one message" if self.at_once else "one after the other"
        text = (
            f"Run these two shell commands with the Bash tool, {how}, exactly as they stand:\n"
            f"{commands[0]}\n{commands[1]}\nThen answer with the single word done."
        )
        if scripted:
            calls = [{"tool": "Bash", "input": {"command": command}} for command in commands]
            steps: list[dict[str, Any]] = [{"tools": calls}] if self.at_once else list(calls)
            text = f"{text}\n<<<{json.dumps([*steps, {'text': 'done'}])}>>>"
        return Scene(title=self.title, prompt=text, interrupt=self.interrupt)


ERRANDS = (
    Errand("one", "Scene 1: the workspace is restarted while one of two calls runs", True, _restarted),
    Errand("two", "Scene 2: kill -9 of the workspace inside the first of two calls", False, _killed),
    Errand("three", "Scene 3: kill -9 of the shim while a call runs", False, _shim_killed),
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


async def demonstrate(
    environ: Mapping[str, str], open_journal: OpenJournal, *, keep: bool, timeline: Timeline
) -> int:
    """Play the scenes; return 0 only when nothing was lost and nothing ran twice.

    Args:
        environ: what the shim's environment starts from.
        keep: leave it running afterwards, until Ctrl-C, and say how to talk to it.
        timeline: what is told on.
    """
    if shutil.which("curl", path=environ.get("PATH")) is None:
        timeline.tell("you", "the demo's caller is curl, which is not there: apt-get install curl")
        return 2
    with tempfile.TemporaryDirectory(prefix="workspace-adapter-demo-") as root:
        async with _model(environ, timeline) as scripted:
            shim = Shim(
                Path(root),
                environ={**environ, **(scripted or {})},
                settings={
                    "SHIM_DRAIN_SECONDS": str(_TOOL_SECONDS + 5),
                    # One process on one machine: what it held when it was killed is soon taken up again.
                    "SHIM_LEASE": "2",
                    "SHIM_LEASE_RENEWAL": "0.5",
                },
                patience=60.0,
            )
            try:
                await shim.start()
                timeline.tell("shim", f"is ready at {shim.url}")
                await shim.create(_NAME, "claude", *_INHERITED, WORKSPACE_CLAUDE_SETTING_SOURCES="none")
                guest = Guest(shim, _NAME)
                timeline.tell("shim", f"has started the workspace {_NAME}, with the real Claude CLI")
                stage = _Behind(guest, timeline, open_journal)
                played = [await stage.play(errand.scene(scripted=scripted is not None)) for errand in ERRANDS]
                summary = _count(guest.workdir / "effects", played)
                counted = ", ".join(f"{name} {summary[name]}" for name in ("accepted", "answered", "lost"))
                timeline.close(summary, f"{counted}, effects run twice {summary['twice']}")
                if keep:
                    await _stay(guest, timeline)
            finally:
                shim.kill_everything()
    return 0 if summary["lost"] == 0 and summary["twice"] == 0 else 1


async def _stay(guest: Guest, timeline: Timeline) -> None:
    """Leave it running until Ctrl-C, and say how to talk to it."""
    body = json.dumps(guest.envelope("hello"), separators=(",", ":"))
    curl = f"curl -s {guest.url} -H 'content-type: application/json' -d '{body}'"
    timeline.tell("you", f"talk to it, then press Ctrl-C:\n{curl}")
    timeline.tell("you", f"queue, journal, transcripts, logs and files: {guest.shim.root}")
    await anyio.sleep_forever()


def _count(effects: Path, played: Sequence[Played]) -> dict[str, Any]:
    """Count from the callers' answers and from the commands' own file."""
    lines = Counter(effects.read_text().splitlines() if effects.exists() else ())
    wanted = {line for errand in ERRANDS for line in errand.lines}
    answered = sum(scene.answer is not None for scene in played)
    return {
        "accepted": len(played),
        "answered": answered,
        "lost": len(played) - answered + len(wanted - lines.keys()),
        "twice": sum(count - 1 for count in lines.values()),
    }
