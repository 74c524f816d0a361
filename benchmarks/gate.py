"""How soon the gate refuses after the signal's first byte, and if it ever permits once that is acknowledged.

Fair because eight sessions of a real sidecar ask all the time, so that one is always on its way to a
permit when the signal comes, and times are taken by whoever asked, not by the gate: its refusal is
written down before it is told. Both processes read one clock.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.frame import Bench, Figure, at_most, never
from benchmarks.signalling import Drains

SESSIONS = 8
CAP = 0.2


async def measure(bench: Bench) -> list[Figure]:
    """Signal while all ask."""
    workspace = Drains(
        bench.scratch / "workspace", "benchmarks.asking:AskingAdapter", cap=CAP, turns=SESSIONS
    )
    try:
        await workspace.start()
        for _ in range(SESSIONS):
            message = workspace.envelope("ask", configuration={"blocking": False})
            (await workspace.post(message)).raise_for_status()

        async def drained() -> tuple[float, float, float]:
            def written(suffix: str) -> list[Path]:
                return list(workspace.workdir.glob(f"*.{suffix}"))

            await workspace.until(lambda: len(written("asking")) == SESSIONS, "every session's first permit")
            drain = workspace.drain()
            await workspace.until(lambda: len(written("told")) == SESSIONS, "the refusal of every session")
            told = [json.loads(file.read_text()) for file in written("told")]
            for file in written("*"):
                file.unlink()
            await workspace.until_reopened()
            refused = min(session["refused"] for session in told)
            late = sum(session["last_granted"] > drain.acknowledged for session in told)
            return 1e3 * (refused - drain.signalled), drain.ms, late

        drains = (await bench.interleave({"drain": drained}, rounds=31))["drain"]
    finally:
        workspace.kill_everything()
    refused, acknowledged, late = zip(*drains, strict=True)
    what = f"{SESSIONS} sessions ask"
    return [
        Figure(what=f"{what}: first refusal", unit="ms", measured=refused, limit=at_most(5)),
        Figure(what=f"{what}: acknowledgement", unit="ms", measured=acknowledged),
        Figure(what="permits after the acknowledgement", unit="", measured=late, limit=never()),
    ]
