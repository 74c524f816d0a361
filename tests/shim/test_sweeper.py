from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import StringIO

import anyio
import pytest

from tests.shim.conftest import RULES
from tests.shim.scripted import until
from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.queueing import State, Verdict
from workspace_adapter.settings import Settings
from workspace_adapter.shim.settings import ShimSettings
from workspace_adapter.shim.store.contract import Beat, Message, Settlement, Status
from workspace_adapter.shim.store.sqlite import SqliteStore
from workspace_adapter.shim.sweeper import Sweeper

pytestmark = pytest.mark.anyio


class Swept:
    """What a sweep rang, and how often it looked for what is stranded."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.looks = 0

    async def look(self) -> None:
        self.looks += 1


@asynccontextmanager
async def sweeping(
    store: SqliteStore, *, interval: float = 0.02, offline_after: float = 30.0
) -> AsyncIterator[Swept]:
    swept = Swept()
    sweeper = Sweeper(
        store, ring=swept.rung.append, stranded=swept.look, interval=interval, offline_after=offline_after
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sweeper.run)
        yield swept
        tasks.cancel_scope.cancel()


async def made(store: SqliteStore, workspace_id: str = "w", *, most: int = 1) -> None:
    await store.create_workspace(workspace_id, max_concurrent=most)
    await store.register(workspace_id, url="http://w", boot_id="b")


async def sent(store: SqliteStore, key: str, workspace_id: str = "w", **more: float) -> int:
    message = Message(workspace_id=workspace_id, turn_key=key, content_hash="h", body=b"{}", **more)  # type: ignore[arg-type]
    return (await store.enqueue(message)).id


async def becomes(store: SqliteStore, item_id: int, state: State) -> None:
    with anyio.fail_after(5):
        while (item := await store.item(item_id)) is None or item.state is not state:
            await anyio.sleep(0.005)


async def status(store: SqliteStore, workspace_id: str = "w") -> Status:
    workspace = await store.workspace(workspace_id)
    assert workspace is not None
    return workspace.status


async def test_what_waits_and_nobody_rang_for_is_rung_for(sqlite: SqliteStore) -> None:
    await made(sqlite)
    await made(sqlite, "idle")
    await sent(sqlite, "a")
    async with sweeping(sqlite) as swept:
        await until(lambda: len(swept.rung) >= 3)
    assert set(swept.rung) == {"w"}


async def test_a_delayed_item_comes_back_when_its_time_has_come(sqlite: SqliteStore) -> None:
    await made(sqlite)
    item_id = await sent(sqlite, "a")
    (lease,) = await sqlite.claim("w", "o")
    later = Verdict(state=State.DELAYED, because="500", wait=0.2)
    began = time.monotonic()
    await sqlite.settle([Settlement(lease=lease, verdict=later)])
    async with sweeping(sqlite):
        await becomes(sqlite, item_id, State.QUEUED)
    assert time.monotonic() - began >= 0.2


async def test_defect_9_an_item_nobody_wants_any_more_ends_and_counts_no_longer(
    sqlite: SqliteStore,
) -> None:
    await made(sqlite)
    item_id = await sent(sqlite, "a", expires_in=0.05)
    assert await sqlite.depth("w") == 1
    async with sweeping(sqlite):
        await becomes(sqlite, item_id, State.EXPIRED)
    assert await sqlite.depth("w") == 0


async def test_a_workspace_that_fell_silent_is_offline_and_its_next_beat_brings_it_back(
    sqlite: SqliteStore, logged: StringIO
) -> None:
    await made(sqlite)
    await made(sqlite, "beating")
    async with sweeping(sqlite, offline_after=0.3):
        with anyio.fail_after(5):
            while await status(sqlite) is not Status.OFFLINE:
                await sqlite.beat([Beat(workspace_id="beating", boot_id="b", active_tasks=0)])
                await anyio.sleep(0.02)
        assert await status(sqlite, "beating") is Status.ONLINE
        await sqlite.beat([Beat(workspace_id="w", boot_id="b", active_tasks=0)])
        assert await status(sqlite) is Status.ONLINE
    assert "workspace w counts as offline: it has not beaten for 0.3 s" in logged.getvalue()


async def test_nobody_is_silent_to_a_shim_that_could_not_hear(sqlite: SqliteStore) -> None:
    await sqlite.create_workspace("w")
    await sqlite.register("w", url="http://w", boot_id="b", now=1.0)
    began = time.monotonic()
    async with sweeping(sqlite, offline_after=0.5):
        with anyio.fail_after(5):
            while await status(sqlite) is not Status.OFFLINE:
                await anyio.sleep(0.01)
    assert time.monotonic() - began >= 0.5


async def test_what_is_older_than_the_retention_is_forgotten(sqlite: SqliteStore) -> None:
    await made(sqlite)
    item_id = await sent(sqlite, "a")
    long_ago = time.time() - RULES.retention - 10
    await sqlite.drop(item_id, "by hand", now=long_ago)
    async with sweeping(sqlite, interval=0.001):
        with anyio.fail_after(5):
            while await sqlite.item(item_id) is not None:
                await anyio.sleep(0.01)


class Sick(SqliteStore):
    """A store of which parts hang or fail."""

    hanging = False
    failing = False

    async def promote(self, **more: object) -> int:
        if self.hanging:
            await anyio.sleep_forever()
        return await super().promote(**more)  # type: ignore[arg-type]

    async def expire(self, **more: object) -> int:
        if self.failing:
            raise StoreUnavailable("it is down")
        return await super().expire(**more)  # type: ignore[arg-type]


async def test_defect_7_a_part_that_hangs_or_fails_holds_up_no_other(
    sqlite: SqliteStore, logged: StringIO
) -> None:
    await made(sqlite)
    await sent(sqlite, "a")
    sqlite.__class__ = Sick
    assert isinstance(sqlite, Sick)
    sqlite.hanging = sqlite.failing = True
    async with sweeping(sqlite) as swept:
        await until(lambda: len(swept.rung) >= 5 and swept.looks >= 2)
        sqlite.failing = False
        await until(lambda: "the store can be used again" in logged.getvalue())
    assert logged.getvalue().count("the store cannot be used, nothing is dispatched: it is down") == 1


async def test_two_that_sweep_at_once_do_what_one_does(sqlite: SqliteStore) -> None:
    await made(sqlite)
    expiring = [await sent(sqlite, f"e{n}", expires_in=0.05) for n in range(20)]
    ended: list[int] = []
    sqlite.on_ended = ended.append
    async with sweeping(sqlite), sweeping(sqlite):
        for item_id in expiring:
            await becomes(sqlite, item_id, State.EXPIRED)
    assert sorted(ended) == expiring


def test_defect_12_a_workspace_that_beats_as_ours_do_may_miss_two_beats() -> None:
    ours = Settings.from_env({"WORKSPACE_ID": "w"}).heartbeat_interval
    assert ShimSettings.from_env({}).offline_after >= 3 * ours
