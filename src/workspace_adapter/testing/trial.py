"""The kill walk with an author's own adapter, which may do anything."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx

from ..turns import Call, State
from .scenes import OpenJournal, Played, Scene, SidecarStage, announce, excerpt, kill, stay, terminate
from .timeline import Timeline
from .workspace import NotInTime, Workspace

PROMPT = "Count from one to fifty, one number a line, then say which of them are prime and why."
"""What is sent where the author gives no message: something that takes an agent a while."""

EXIT_NOT_INTERRUPTED = 3

_INTERRUPTIONS = (
    ("kill -9", kill),
    ("a restart is announced", announce),
    ("SIGTERM", terminate),
)

_GUIDE = "see docs/write-an-adapter.md"

_LOG_LINES = 8
_LINE = 200
"""How much of the sidecar's log is shown when something failed: lines, and characters of each."""


async def attempt(
    environ: Mapping[str, str],
    open_journal: OpenJournal,
    *,
    adapter: str,
    prompts: Sequence[str],
    patience: float,
    keep: bool,
    timeline: Timeline,
) -> int:
    """Interrupt an adapter's turns three ways, and say what became of them.

    Args:
        environ: the author's environment; the adapter's own settings are parsed from it.
        adapter: as in ``WORKSPACE_ADAPTER``; its module may lie in the current directory.
        prompts: the messages to send, one a scene, in turn.
        patience: seconds that any single step may take.
        keep: leave it running afterwards, until Ctrl-C, and say how to talk to it.
        timeline: what is told on.

    Returns:
        0 when every turn was interrupted and answered once; 1 when one was not answered, or
        the adapter broke its contract; 2 when it could not be started; 3 when all were answered
        but one had ended before it could be interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="workspace-adapter-try-") as root:
        workspace = Workspace(
            Path(root),
            adapter,
            environ=environ,
            settings={
                "WORKSPACE_REQUIRE_AUTH": "false",
                "WORKSPACE_A2A_REPLY": "auto",
                "WORKSPACE_LOG_FORMAT": "text",
                "WORKSPACE_LOG_LEVEL": "info",
            },
            patience=patience,
            directory=Path.cwd(),
        )
        try:
            problem = await _problem(workspace)
            if not problem:
                problem = await _started(workspace)
            if problem:
                timeline.tell("you", problem)
                timeline.close({"accepted": 0, "problem": problem}, f"{adapter} could not be started")
                return 2
            timeline.tell("sidecar", f"is ready at {workspace.url}, with {adapter}")
            stage = SidecarStage(workspace, timeline, open_journal, gated=_gated(workspace))
            played: list[Played] = []
            for number, (how, interrupt) in enumerate(_INTERRUPTIONS):
                prompt = prompts[number % len(prompts)]
                title = f"Scene {number + 1}: {how}"
                played.append(await stage.play(Scene(title=title, prompt=prompt, interrupt=interrupt)))
                if not answered(played[-1]):
                    await _explain(stage)
                    break
            timeline.title("What came of it")
            for number, scene in enumerate(played, 1):
                timeline.tell(f"scene {number}", verdict(scene))
            code, words = conclusion(played)
            timeline.close(_summary(played), words)
            if keep:
                await stay(workspace, timeline)
        finally:
            workspace.kill_everything()
    return code


# --- before anything is sent ----------------------------------------------------------


async def _problem(workspace: Workspace) -> str:
    """Say why the adapter cannot be loaded or its settings are wrong, if it is so."""
    try:
        # In a thread: an import that hangs is no reason to be deaf to Ctrl-C.
        said = await anyio.to_thread.run_sync(workspace.command, "config", "--json", abandon_on_cancel=True)
    except subprocess.TimeoutExpired:
        return f"the adapter's module was not imported within {workspace.patience:g} s"
    if said.returncode == 0:
        return ""
    lines = said.stderr.strip().splitlines()
    named = [line for line in lines if re.match("[A-Z][A-Z0-9_]+(=| is required| must)", line)]
    return "\n".join(named or lines[-1:] or [f"the adapter's module ended Python with {said.returncode}"])


async def _started(workspace: Workspace) -> str:
    """Start the sidecar; say why it could not be, if it is so."""
    try:
        await workspace.start()
    except NotInTime as late:
        return f"{late.what}; its log:\n{_complaints(workspace) or 'says nothing of it'}"
    return ""


def _gated(workspace: Workspace) -> bool:
    """Whether the adapter says that its tool calls ask the gate."""
    try:
        said = workspace.command("status", "--json")
    except subprocess.TimeoutExpired:
        return False
    return said.returncode == 0 and json.loads(said.stdout).get("at_closed_gate") is not None


# --- after the scenes -----------------------------------------------------------------


async def _explain(stage: SidecarStage) -> None:
    """Say what can be found out about a scene that did not come to its end."""
    workspace = stage.workspace
    process = workspace.process
    if process is not None and process.poll() is None and not await _hears(workspace):
        stage.timeline.tell(
            "sidecar",
            f"runs, but answers nobody: does the adapter call something that blocks? {_GUIDE}",
        )
    if complaints := _complaints(workspace):
        stage.timeline.tell("log", complaints)


async def _hears(workspace: Workspace) -> bool:
    """Whether the sidecar's event loop still turns."""
    try:
        async with httpx.AsyncClient(base_url=workspace.url, timeout=2.0) as client:
            await client.get("/healthz")
    except httpx.TransportError:
        return False
    return True


def _complaints(workspace: Workspace) -> str:
    """The last warnings and errors of the sidecar's log, each traceback as its last line."""
    told = []
    for line in workspace.logged().splitlines():
        first, *rest = line.replace("\\n", "\n").splitlines()
        if re.match(r"\S+ (warning|error) ", first):
            told.append(first[:_LINE])
            told += [last.strip(" |")[:_LINE] for last in rest if re.match(r"[ |]*[\w.]+(: .+)?$", last)][-1:]
    return "\n".join(told[-_LOG_LINES:])


def verdict(played: Played) -> str:
    """Say in words what came of one scene."""
    if played.trouble:
        return f"not answered: {played.trouble}"
    lines = []
    turn = played.turn
    if turn is None:
        return f"not taken: {excerpt(played.answer)}"
    attempts = f"in attempt {turn.attempt}" if turn.attempt > 1 else "in its first attempt"
    match turn.state, turn.cause:
        case State.ANSWERED, _:
            lines.append(f"answered once, {attempts}")
        case State.FAILED, "TurnFailed":
            lines.append(f"told {attempts} that the agent failed: {excerpt(played.answer)}")
        case _:
            lines.append(f"not answered: {turn.state} ({turn.cause}) {attempts}: {excerpt(played.answer)}")
    if not played.met and answered(played):
        lines.append(
            "never interrupted, it was over too soon: with --prompt, send something that takes a second"
            " or longer, and uses a tool where there is one"
        )
    last = max((call.attempt for call in played.cut), default=0)
    for call in played.cut:
        if call.attempt == last:
            lines.append(f"when it was cut, {call.name} {call.excerpt}: {call.fate}{_since(call, played)}")
    if played.repeated:
        names = ", ".join(sorted({f"{call.name} {call.excerpt}" for call in played.repeated}))
        lines.append(f"made again although it had finished: {names}")
    return "\n".join(lines)


def _since(call: Call, played: Played) -> str:
    """Say what a later attempt did about a call."""
    later = [c for c in played.calls if c.same == call.same and c.attempt > call.attempt and c.started]
    return f"; made in attempt {later[-1].attempt}: {later[-1].fate}" if later else ""


def conclusion(played: Sequence[Played]) -> tuple[int, str]:
    """Return the exit code, and what it means in words."""
    summary = _summary(played)
    if summary["answered"] < len(_INTERRUPTIONS):
        left = len(_INTERRUPTIONS) - len(played)
        unplayed = f"; {left} not played" if left else ""
        return 1, f"{summary['answered']} of {len(played)} callers were answered{unplayed}: mend that first"
    if summary["interrupted"] < len(_INTERRUPTIONS):
        return EXIT_NOT_INTERRUPTED, (
            f"every caller was answered, but {summary['interrupted']} of {len(played)} turns were"
            " interrupted: nothing is proved of the others"
        )
    return 0, f"{len(played)} turns were interrupted, {summary['answered']} callers answered, each once"


def _summary(played: Sequence[Played]) -> dict[str, Any]:
    return {
        "accepted": sum(scene.turn is not None for scene in played),
        "interrupted": sum(bool(scene.met) for scene in played),
        "answered": sum(answered(scene) for scene in played),
        "repeated": sum(len(scene.repeated) for scene in played),
        "calls": [
            {"scene": number, "attempt": call.attempt, "name": call.name, "fate": call.fate}
            for number, scene in enumerate(played, 1)
            for call in scene.calls
        ],
    }


def answered(played: Played) -> bool:
    """Whether the caller got what the agent had to say, be it that it failed."""
    turn = played.turn
    if turn is None or played.trouble:
        return False
    return turn.state is State.ANSWERED or (turn.state is State.FAILED and turn.cause == "TurnFailed")
