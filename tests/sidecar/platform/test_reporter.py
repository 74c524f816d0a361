"""When the platform hears what the agent does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from workspace_adapter.errors import PlatformError
from workspace_adapter.sidecar.platform.reporter import Reporter
from workspace_adapter.telling import Doing, Work

BUSY = Work(
    doing=[
        Doing(turn_id="a", session_id="a", since=None, quiet=0, line="running Bash"),
        Doing(turn_id="b", session_id="b", since=None, quiet=0, line="reading"),
    ]
)


class Scene:
    """A workspace that works or not, and a platform that listens or not."""

    def __init__(self) -> None:
        self.work = Work()
        self.away = False
        self.heard: list[tuple[float, str]] = []

    def post(self, line: str) -> None:
        self.heard.append((time.monotonic(), line))
        if self.away:
            raise PlatformError("away")

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(10):
            while not condition():  # threads set no event
                await anyio.sleep(0.005)


@asynccontextmanager
async def scene(*, after: float, every: float) -> AsyncIterator[Scene]:
    made = Scene()
    async with anyio.create_task_group() as tasks:
        reporter = Reporter(lambda: made.work, clock=time.time, after=after, every=every)
        tasks.start_soon(reporter.run, made.post)
        yield made
        tasks.cancel_scope.cancel()


async def test_one_word_for_all_that_runs_and_another_when_it_is_old() -> None:
    async with scene(after=0.05, every=0.3) as it:
        it.work = BUSY
        await it.until(lambda: len(it.heard) == 3)
    assert {line for _, line in it.heard} == {"running Bash (starting); reading (starting)"}
    (first, _), (second, _), (third, _) = it.heard
    assert second - first >= 0.29
    assert third - second >= 0.29


async def test_idle_and_short_work_are_not_worth_a_word() -> None:
    async with scene(after=0.4, every=10) as it:
        for _ in range(3):
            it.work = BUSY
            await anyio.sleep(0.1)
            it.work = Work()
            await anyio.sleep(0.5)
    assert it.heard == []


async def test_a_platform_that_is_away_is_told_again_and_harms_nothing() -> None:
    async with scene(after=0.02, every=0.1) as it:
        it.work, it.away = BUSY, True
        await it.until(lambda: len(it.heard) >= 2)
        it.away = False
        count = len(it.heard)
        await it.until(lambda: len(it.heard) > count)
