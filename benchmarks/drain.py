"""How soon a drain is acknowledged: of an idle workspace; once the last tool has ended; at the cap.

Fair because the signal goes over a real connection to a real sidecar, and the tool itself, a real
process, writes down when it ends. Runtimes of both kinds are tried: one ends its turn at the closed
gate, one holds its call. Each cap is the sidecar's own setting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from benchmarks.frame import Bench, Figure, at_most
from benchmarks.signalling import Drains

IDLE_DRAINS = 100
"""In one round; the second slowest of them is the 99th percentile."""

IDLE_CAP, CAP = 0.02, 0.5
TOOL = 0.25
"""Seconds a tool takes that ends before the cap."""

FAKES = {
    "ends its turn": "workspace_adapter.testing.fakes:ScriptedEnds",
    "holds its call": "workspace_adapter.testing.fakes:ScriptedHolds",
}


async def measure(bench: Bench) -> list[Figure]:
    """Drain an idle workspace, and those of both fakes while a tool runs."""
    async with AsyncExitStack() as stack:
        idle = Drains(bench.scratch / "idle", "echo", cap=IDLE_CAP)
        stack.callback(idle.kill_everything)
        await idle.start()
        sides: dict[str, Callable[[], Awaitable[float]]] = {"idle": partial(drained_idle, idle)}
        for what, fake in FAKES.items():
            workspace = Drains(bench.scratch / fake.rpartition(":")[2], fake, cap=CAP)
            stack.callback(workspace.kill_everything)
            await workspace.start()
            sides[f"after the last tool's end, {what}"] = partial(drained_busy, workspace, TOOL)
            sides[f"after the cap, {what}"] = partial(drained_busy, workspace, 2 * CAP)
        took = await bench.interleave(sides, rounds=9)
    figures = [Figure(what="idle, 99th percentile", unit="ms", measured=took["idle"], limit=at_most(10))]
    for when, limit in (("after the last tool's end", at_most(50)), ("after the cap", at_most(100))):
        for what in FAKES:
            measured = took[f"{when}, {what}"]
            figures.append(
                Figure(what=f"{when}, a runtime that {what}", unit="ms", measured=measured, limit=limit)
            )
    return figures


async def drained_idle(workspace: Drains) -> float:
    """Drain so often; return the 99th percentile of what the acknowledgements took, in ms."""
    took = []
    for _ in range(IDLE_DRAINS):
        took.append(workspace.drain().ms)
        await workspace.until_reopened()
    return sorted(took)[round(0.99 * (len(took) - 1))]


async def drained_busy(workspace: Drains, tool: float) -> float:
    """Drain while a tool runs; return how long after its end or the cap that was acknowledged, in ms."""
    begun, ended = workspace.workdir / "begun", workspace.workdir / "ended"
    for file in (begun, ended):
        file.unlink(missing_ok=True)
    # After the pause the next call meets the closed gate.
    script = [
        {"tool": "sh", "input": f"touch begun; sleep {tool}; date +%s.%N > ended.new; mv ended.new ended"},
        {"tool": "sh", "input": "true"},
        {"answer": "done"},
    ]
    message = workspace.envelope(f"<<<{json.dumps(script)}>>>", configuration={"blocking": False})
    (await workspace.post(message)).raise_for_status()
    await workspace.until(begun.exists, "the tool")
    offset = time.time() - time.monotonic()
    drained = workspace.drain()
    await workspace.until(lambda: ended.exists() and ended.read_text(), "the tool's end")
    await workspace.until_reopened()
    answered = await workspace.ask_until_answered(
        {**message, "params": {"message": message["params"]["message"]}}
    )
    assert answered["result"]["parts"][0]["text"] == "done"
    due = min(float(ended.read_text()) - offset, drained.signalled + CAP)
    return 1e3 * (drained.acknowledged - due)
