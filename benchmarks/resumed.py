"""From the start of the process to a Claude turn's request at the model, beside a bare script of the SDK.

Ours finds a turn that a SIGKILL cut, ends what its life left, reads the transcript, and has the CLI resume
the session with a note. The bare script imports the SDK, connects and asks: once with a new session, and
once resuming the very same one. All three start the same program on the same files against the same scripted
model on 127.0.0.1, and count from their ``fork`` to the first request that the model is sent.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import anyio
import anyio.to_thread

from benchmarks.frame import Bench, Figure, Unmeasurable, at_most
from benchmarks.starting import ENVIRON, running
from workspace_adapter.testing.scripted_model import ScriptedModel
from workspace_adapter.testing.workspace import Workspace

PATIENCE = 60.0
REPOSITORY = Path(__file__).parents[1]


def script(*steps: Mapping[str, object]) -> str:
    """A message that has the model do this."""
    return f"Please do this. <<<{json.dumps(steps)}>>>"


CUT = script({"tool": "Bash", "input": {"command": "true"}}, {"hang": True})
ASKED = script({"hang": True})


async def measure(bench: Bench) -> list[Figure]:
    """Resume, and ask, in turns."""
    if find_spec("claude_agent_sdk") is None:
        raise Unmeasurable("claude-agent-sdk is not installed: pip install '.[claude]'")
    async with ScriptedModel() as model:
        environ = {
            **ENVIRON,
            "HOME": str(bench.scratch),
            "ANTHROPIC_BASE_URL": model.url,
            "ANTHROPIC_API_KEY": "of-the-benchmark",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        workspace = Workspace(bench.scratch / "live", "claude", environ=environ, settings={})
        kept = bench.scratch / "kept"
        try:
            await prepare(workspace, model, kept)
            (transcript,) = (kept / "state").rglob("projects/*/*.jsonl")
            config = workspace.root / transcript.relative_to(kept).parents[2]
            bare = partial(asked, workspace, model, kept, {**environ, "CLAUDE_CONFIG_DIR": str(config)})
            sides: dict[str, Callable[[], Awaitable[float]]] = {
                "ours": partial(resumed, workspace, model, kept),
                "bare": partial(bare, ASKED),
                "bare, resuming": partial(bare, ASKED, transcript.stem),
            }
            took = await bench.interleave(sides, rounds=9)
        finally:
            workspace.kill_everything()
    return [
        Figure(
            what="a cut turn's request at the model",
            unit="ms",
            measured=took["ours"],
            against=against,
            reference=took[side],
            limit=limit,
        )
        for side, against, limit in (
            ("bare", "a bare script's first request", at_most(times=1.3)),
            ("bare, resuming", "a bare script that resumes the session", None),
        )
    ]


async def prepare(workspace: Workspace, model: ScriptedModel, kept: Path) -> None:
    """Have a turn cut while it waits for the model, after its first tool; keep what is on disk then."""
    await workspace.start()
    async with anyio.create_task_group() as callers:
        callers.start_soon(workspace.ask_until_answered, workspace.envelope(CUT))
        await until(lambda: len(model.requests) >= 2, "the request after the tool")
        workspace.kill_everything()
        callers.cancel_scope.cancel()
    shutil.copytree(workspace.root, kept, ignore=shutil.ignore_patterns("*.sock"), symlinks=True)


async def resumed(workspace: Workspace, model: ScriptedModel, kept: Path) -> float:
    """Start the sidecar on what was kept; return the ms to the model's first request."""
    await restore(workspace, model, kept)
    began = time.perf_counter()
    workspace.spawn()
    try:
        return await first_request(model, began)
    finally:
        workspace.kill_everything()


async def asked(
    workspace: Workspace, model: ScriptedModel, kept: Path, environ: Mapping[str, str], *arguments: str
) -> float:
    """Run the bare script on the same files; return the ms to the model's first request."""
    await restore(workspace, model, kept)
    began = time.perf_counter()
    command = ["-m", "benchmarks.peers.bare_claude", *arguments]
    with running(command, environ=environ, directory=workspace.workdir):
        return await first_request(model, began)


async def restore(workspace: Workspace, model: ScriptedModel, kept: Path) -> None:
    """Put everything back; the transcript knows its directory by name, so in the same place."""
    shutil.rmtree(workspace.root)
    shutil.copytree(kept, workspace.root, symlinks=True)
    model.reset()


async def first_request(model: ScriptedModel, began: float) -> float:
    """Wait for it."""
    await until(lambda: model.requests, "a request")
    return 1e3 * (time.perf_counter() - began)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that sets no event."""
    try:
        with anyio.fail_after(PATIENCE):
            while not condition():  # noqa: ASYNC110
                await anyio.sleep(0.001)
    except TimeoutError:
        raise RuntimeError(f"{what} did not come within {PATIENCE:g} s") from None
