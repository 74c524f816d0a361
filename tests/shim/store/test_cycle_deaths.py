"""Owners of cycles that are killed: another finishes what each began, and no cycle ends twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from tests.shim.store.conftest import Place
from tests.shim.store.cycler import STEPS
from tests.shim.store.test_contract import online
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.store.contract import Aim, Step

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
LEASE = 0.3
RULES = Rules(lease=LEASE, renewal=0.1)
WORKSPACES = [f"w{number}" for number in range(12)]


def started(place: Place, owner: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.shim.store.cycler", place.kind, place.url, place.schema]
    child = subprocess.Popen([*command, owner, str(LEASE)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def killed(child: subprocess.Popen[str]) -> list[tuple[int, int, Step]]:
    """Kill it; return what it said it had written, a line cut short left out."""
    child.kill()
    said, _ = child.communicate()
    lines = [line.split() for line in said.splitlines(keepends=True) if line.endswith("\n")]
    return [(int(cycle_id), int(attempt), Step(step)) for cycle_id, attempt, step in lines]


async def test_each_cycle_is_finished_whoever_is_killed_in_it(place: Place) -> None:
    async with place.open(RULES) as store:
        for name in WORKSPACES:
            await online(store, name)
            await store.ask_cycle(name, Aim.RESTART, "all of them")
    rng = random.Random(5)
    written: list[tuple[int, int, Step]] = []
    deadline = time.monotonic() + 60
    kills = 0
    while True:
        children = [started(place, f"life{kills}-{n}") for n in range(1 if place.kind == "sqlite" else 2)]
        await anyio.sleep(rng.uniform(0.0, 0.15) if kills < 6 else 1.5)
        for child in children:
            written += killed(child)
        kills += 1
        async with place.open(RULES) as store:
            cycles = [cycle for name in WORKSPACES for cycle in await store.cycles(name)]
            if all(cycle.ended_at is not None for cycle in cycles):
                break
        assert time.monotonic() < deadline, cycles
    assert len(cycles) == len(WORKSPACES)
    assert max(cycle.attempt for cycle in cycles) > 1
    assert {cycle.step for cycle in cycles} == {Step.DONE}
    for cycle in cycles:
        steps = [step for _, step in sorted((a, STEPS.index(s)) for c, a, s in written if c == cycle.id)]
        assert steps == sorted(steps), cycle  # nobody that was replaced goes on
        assert set(cycle.notes) == set(STEPS)
