"""An open request at the shim while its workspace is restarted, beside the restart and the same undisturbed.

A real shim, and a real sidecar that it runs as a process. *Waiting* is a message sent right after the
restart was asked for; *at work* one whose first tool call runs when it is. What is beyond the restart and the
work itself is what the two halves add: noticing the new life, sending, finding the turn again, answering. At
work, the drain waits for the call, so up to its 0.3 seconds are in the reference twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial

import anyio

from benchmarks.frame import Bench, Figure, at_most
from benchmarks.starting import ENVIRON, PATIENCE
from workspace_adapter.testing.shim import Shim
from workspace_adapter.testing.workspace import answer_of

MORE = 100
"""Milliseconds."""

ENDS = "workspace_adapter.testing.fakes:ScriptedEnds"
SETTINGS = {"SHIM_DRAIN_SECONDS": "10", "SHIM_STOP_GRACE": "5", "SHIM_LOG_LEVEL": "warning"}
WORK = "<<<" + json.dumps(
    [{"tool": "sh", "input": "touch begun; sleep 0.3"}, {"tool": "sh", "input": "true"}, {"answer": "done"}]
) + ">>>"  # fmt: skip


async def measure(bench: Bench) -> list[Figure]:
    """Restart under an open request, in turns."""
    environ = {**ENVIRON, "HOME": str(bench.scratch)}
    shim = Shim(bench.scratch, environ=environ, settings=SETTINGS, patience=PATIENCE)
    try:
        await shim.start()
        await shim.create("w", ENDS)
        sides: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {
            "waiting": partial(waiting, shim),
            "at work": partial(at_work, shim),
        }
        took = await bench.interleave(sides, rounds=7)
    finally:
        shim.kill_everything()
    return [
        Figure(
            what=f"a request {what}",
            unit="ms",
            measured=[held for held, _ in took[what]],
            against="the restart, and the same undisturbed",
            reference=[apart for _, apart in took[what]],
            limit=at_most(MORE, times=1),
        )
        for what in sides
    ]


async def waiting(shim: Shim) -> tuple[float, float]:
    """Send while it restarts; return what that took, and what it would with the restart apart, in ms."""
    undisturbed = await asked(shim, "hello", "hello")
    cycle = await restart(shim)
    sent = time.time()
    held = await asked(shim, "hello", "hello")
    return held, 1e3 * (ended(await shim.until_over("w", cycle)) - sent) + undisturbed


async def at_work(shim: Shim) -> tuple[float, float]:
    """Restart it while it works; return the same."""
    undisturbed = await asked(shim, WORK, "done")
    begun = shim.place("w") / "work" / "begun"
    begun.unlink()
    held: list[float] = []
    async with anyio.create_task_group() as caller:

        async def ask() -> None:
            held.append(await asked(shim, WORK, "done"))

        caller.start_soon(ask)
        await shim.until(begun.exists, "the tool")
        told = time.time()
        cycle = await restart(shim)
    return held[0], 1e3 * (ended(await shim.until_over("w", cycle)) - told) + undisturbed


async def asked(shim: Shim, text: str, wanted: str) -> float:
    """Send a message and wait for its answer; return the ms."""
    began = time.perf_counter()
    reply = await shim.send("w", shim.envelope(text))
    took = 1e3 * (time.perf_counter() - began)
    assert answer_of(reply.json()) == wanted
    return took


async def restart(shim: Shim) -> str:
    cycle: str = (await shim.call("POST", "/workspaces/w/restart"))["cycle"]["id"]
    return cycle


def ended(cycle: dict[str, str]) -> float:
    """Return when a restart was over, on this machine's clock."""
    return datetime.fromisoformat(cycle["ended_at"]).timestamp()
