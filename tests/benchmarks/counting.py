"""A row that measures nothing: counting up against counting up, and what never happened."""

from __future__ import annotations

from itertools import count

from benchmarks.frame import Bench, Figure, at_least, at_most, never


async def measure(bench: Bench) -> list[Figure]:
    """Return a figure of every kind, none of them short."""
    ours, theirs = count(2.0), count(2.0)

    async def one() -> float:
        return next(ours)

    async def other() -> float:
        return next(theirs)

    seen = await bench.interleave({"ours": one, "theirs": other}, rounds=2)
    (bench.scratch / "written").touch()
    return [
        Figure(
            what="counted",
            unit="/s",
            measured=seen["ours"],
            limit=at_least(2),
            against="<&>",
            reference=seen["theirs"],
        ),
        Figure(
            what="seconds",
            unit="s",
            measured=[0.5],
            limit=at_most(0.1, times=1),
            against="it",
            reference=[0.4],
        ),
        Figure(what="lost", unit="", measured=[0, 0, 0], limit=never()),
        Figure(what="shown beside", unit="MiB", measured=[1234.5]),
    ]
