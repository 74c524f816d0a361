"""procrastinate, asked on standard input to empty a queue with its worker, which claims them one by one.

``python -m benchmarks.peers.procrastinate_queue URL AT_ONCE BATCHES``; prints items a second, a line each.
"""

from __future__ import annotations

import asyncio
import sys
import time

import procrastinate  # type: ignore[import-not-found]  # of the peers' environment

BODY = "x" * 1024


async def main(url: str, at_once: int, batches: int) -> None:
    """Answer each line."""
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    @app.task(name="work")  # type: ignore[untyped-decorator]
    async def work(body: str) -> None:
        """Do nothing."""

    items = at_once * batches // 4  # it is slow
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        while await asyncio.to_thread(sys.stdin.readline):
            await work.batch_defer_async(*({"body": BODY} for _ in range(items)))
            began = time.perf_counter()
            await app.run_worker_async(wait=False, concurrency=at_once, install_signal_handlers=False)
            print(items / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
