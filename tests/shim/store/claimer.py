"""A dispatcher as a child process: it claims, settles what it can, and is killed at any point.

``claimer.py KIND URL SCHEMA OWNER SECONDS_PER_LEASE``. Prints a line for each answer that it
has stored: the item's id, and the attempt.
"""

from __future__ import annotations

import random
import sys

import anyio

from tests.shim.store.conftest import Place
from workspace_adapter.queueing import Rules, State, Verdict
from workspace_adapter.shim.store.contract import Answer, Settlement

DONE = Verdict(state=State.COMPLETED, because="answered")
BUSY = Verdict(state=State.QUEUED, because="busy")
LATER = Verdict(state=State.DELAYED, because="503", wait=0.02)


async def main(kind: str, url: str, schema: str, owner: str, lease: float) -> None:
    rules = Rules(depth_cap=10_000, lease=lease, renewal=lease / 4)
    async with Place(kind, url, schema).open(rules) as store:
        print("ready", flush=True)
        while True:
            await store.promote()
            for workspace_id in await store.due():
                for held in await store.claim(workspace_id, owner, most=3):
                    await anyio.sleep(0.01)  # a turn: most die in one
                    verdict = random.choices((DONE, BUSY, LATER), (8, 1, 1))[0]
                    answer = Answer(status=200, body=f"{held.id}/{held.attempt}".encode())
                    (settled,) = await store.settle([Settlement(lease=held, verdict=verdict, answer=answer)])
                    if settled and verdict is DONE:
                        print(held.id, held.attempt, flush=True)
            await anyio.sleep(0.001)


if __name__ == "__main__":
    _, kind, url, schema, owner, lease = sys.argv
    anyio.run(main, kind, url, schema, owner, float(lease))
