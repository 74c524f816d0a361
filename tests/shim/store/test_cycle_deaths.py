"""Owners of cycles that are killed: another finishes what each began."""

from __future__ import annotations

import subprocess
import sys
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
    return subprocess.Popen([*command, owner, str(LEASE)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def killed(child: subprocess.Popen[str], after: int) -> None:
    """Kill it in the middle of a cycle, once it has written so many steps."""
    assert child.stdout is not None
    for number, line in enumerate(child.stdout):
        if number > after and not line.endswith(f" {Step.DONE}\n"):
            break
    child.kill()


def said(child: subprocess.Popen[str]) -> list[tuple[int, int, Step]]:
    """Wait for its end, and return what it said it had written."""
    text, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    lines = [line.split() for line in text.splitlines() if line != "ready"]
    return [(int(cycle_id), int(attempt), Step(step)) for cycle_id, attempt, step in lines]


async def test_each_cycle_is_finished_whoever_is_killed_in_it(place: Place) -> None:
    async with place.open(RULES) as store:
        for name in WORKSPACES:
            await online(store, name)
            await store.ask_cycle(name, Aim.RESTART, "all of them")
    at_once = 1 if place.kind == "sqlite" else 2
    for after in (0, 2, 5):
        children = [started(place, f"life{after}-{n}") for n in range(at_once)]
        await anyio.to_thread.run_sync(killed, children[0], after)
        for child in children:
            child.kill()
            child.communicate()
    last = [started(place, f"last-{n}") for n in range(at_once)]
    written = [line for child in last for line in await anyio.to_thread.run_sync(said, child)]
    async with place.open(RULES) as store:
        cycles = [cycle for name in WORKSPACES for cycle in await store.cycles(name)]
    assert len(cycles) == len(WORKSPACES)
    assert {cycle.step for cycle in cycles} == {Step.DONE}
    assert max(cycle.attempt for cycle in cycles) > 1
    for cycle in cycles:
        assert set(cycle.notes) == set(STEPS)
        steps = [STEPS.index(step) for cycle_id, _, step in written if cycle_id == cycle.id]
        assert steps == sorted(steps)
