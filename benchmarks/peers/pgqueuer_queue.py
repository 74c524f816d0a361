"""pgqueuer, asked on standard input to empty a queue: ``batch`` by its queries, ``worker`` by its worker.

``python -m benchmarks.peers.pgqueuer_queue URL AT_ONCE BATCHES``; prints items a second, a line each.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from datetime import timedelta

import asyncpg
from pgqueuer.db import AsyncpgDriver  # type: ignore[import-not-found]  # of the peers' environment
from pgqueuer.domain.types import QueueExecutionMode  # type: ignore[import-not-found]
from pgqueuer.qm import QueueManager  # type: ignore[import-not-found]
from pgqueuer.queries import EntrypointExecutionParameter, Queries  # type: ignore[import-not-found]

BODY = b"x" * 1024


async def main(url: str, at_once: int, batches: int) -> None:
    """Answer each line."""
    driver = AsyncpgDriver(await asyncpg.connect(url))
    queries = Queries(driver)
    await queries.install()
    items = at_once * batches
    for line in iter(sys.stdin.readline, ""):
        await queries.enqueue(["work"] * items, [BODY] * items, [0] * items)
        began = time.perf_counter()
        if line.strip() == "worker":
            manager = QueueManager(queries)

            @manager.entrypoint("work")  # type: ignore[untyped-decorator]
            async def work(job: object) -> None:
                """Do nothing."""

            await manager.run(mode=QueueExecutionMode.drain)
        else:
            me, work_is = uuid.uuid4(), {"work": EntrypointExecutionParameter(0)}
            for _ in range(batches):
                jobs = await queries.dequeue(at_once, work_is, me, None, timedelta(seconds=30))
                assert len(jobs) == at_once
                await queries.log_jobs([(job, "successful", None) for job in jobs])
        print(items / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
