"""The product's main job in front of you: the process is killed, the answer still comes.

A real sidecar with the real Claude CLI works on real shell commands. Three scenes kill or
restart it in the middle. What is counted at the end comes from the callers and from the
file the commands wrote, not from our own journal.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .scenes import OpenJournal, Played, Scene, Stage, announce, kill, stay, terminate
from .scripted_model import ScriptedModel
from .timeline import Timeline
from .workspace import Workspace

_TOOL_SECONDS = 3
"""How long the first command of a scene takes: time enough to interrupt it."""


@dataclass(frozen=True, slots=True)
class Errand:
    """Two shell commands that a message asks for; each leaves one line in ``effects``."""

    name: str
    title: str
    at_once: bool
    """Whether the two commands are asked for in one message of the model's."""
    interrupt: Callable[[Stage], Awaitable[None]]

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
    Errand("one", "Scene 1: kill -9 inside the first of two tool calls", False, kill),
    Errand("two", "Scene 2: a restart is announced while one of two calls runs", True, announce),
    Errand("three", "Scene 3: SIGTERM while one of two calls runs", True, terminate),
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
        environ: what the sidecar's environment starts from.
        keep: leave it running afterwards, until Ctrl-C, and say how to talk to it.
        timeline: what is told on.
    """
    with tempfile.TemporaryDirectory(prefix="workspace-adapter-demo-") as root:
        async with _model(environ, timeline) as scripted:
            workspace = Workspace(
                Path(root),
                "claude",
                # A home of its own: what the user's would start is not ours to kill.
                environ={**environ, "HOME": root, **(scripted or {})},
                settings={
                    "WORKSPACE_DRAIN_CAP": str(_TOOL_SECONDS + 5),
                    "WORKSPACE_CLAUDE_SETTING_SOURCES": "none",
                },
                patience=60.0,
            )
            stage = Stage(workspace, timeline, open_journal)
            try:
                await workspace.start()
                timeline.tell("sidecar", f"is ready at {workspace.url}, with the real Claude CLI")
                played = [await stage.play(errand.scene(scripted=scripted is not None)) for errand in ERRANDS]
                summary = _count(workspace.workdir / "effects", played)
                counted = ", ".join(f"{name} {summary[name]}" for name in ("accepted", "answered", "lost"))
                timeline.close(summary, f"{counted}, effects run twice {summary['twice']}")
                if keep:
                    await stay(workspace, timeline)
            finally:
                workspace.kill_everything()
    return 0 if summary["lost"] == 0 and summary["twice"] == 0 else 1


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
