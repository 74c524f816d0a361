"""Whoever runs cycles, as a child process: it takes each through its steps, and is killed at any point.

``cycler.py KIND URL SCHEMA OWNER SECONDS_PER_LEASE``. Prints a line for each step that it has
written: the cycle's id, the attempt, the step. It ends when there was nothing to take for two leases.
"""

from __future__ import annotations

import sys

import anyio

from tests.shim.store.conftest import Place
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.store.contract import Step

STEPS = (Step.SIGNAL, Step.STOP, Step.START, Step.WAIT, Step.DONE)


async def main(kind: str, url: str, schema: str, owner: str, lease: float) -> None:
    async with Place(kind, url, schema).open(Rules(lease=lease, renewal=lease / 4)) as store:
        print("ready", flush=True)
        idle_since = anyio.current_time()
        while anyio.current_time() < idle_since + 2 * lease:
            cycle = await store.claim_cycle(owner)
            if cycle is None:
                await anyio.sleep(0.005)
                continue
            idle_since = anyio.current_time()
            left = STEPS if cycle.step is Step.ASKED else STEPS[STEPS.index(cycle.step) :]
            for step in left:
                if await store.advance_cycle(cycle, step, notes={step: owner}) is None:
                    break
                print(cycle.id, cycle.attempt, step, flush=True)
                await anyio.sleep(0.01)  # its work: most die in one


if __name__ == "__main__":
    _, kind, url, schema, owner, lease = sys.argv
    anyio.run(main, kind, url, schema, owner, float(lease))
