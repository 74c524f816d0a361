"""Who is dead, and who only looks so; and who dies too often to be revived."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from tests.shim.hand import Hand
from tests.shim.scripted import until
from workspace_adapter.shim import deaths
from workspace_adapter.shim.deaths import CRASHES, GIVEN_UP, Deaths, crashes, dead, gives_up, wait
from workspace_adapter.shim.store.contract import Aim, Beat, Cycle, Status, Step, Workspace
from workspace_adapter.shim.store.sqlite import SqliteStore

NOW = 10_000.0


def workspace(beat_at: float | None = None) -> Workspace:
    return Workspace(
        id="w", status=Status.ONLINE, url=None, boot_id="b", restarting=False, card=None, created_at=0.0,
        beat_at=beat_at, active_tasks=0, max_concurrent=1, hold_until=0.0, report={}, provisioner="hand",
        spec={}, secret="",
    )  # fmt: skip


def cycle(aim: Aim, began: float, ended: float | None, number: int = 1, **notes: object) -> Cycle:
    return Cycle(
        id=number, workspace_id="w", aim=aim, reason="", requests=1,
        step=Step.WAIT if ended is None else Step.DONE, attempt=1, owner="o", boot_before=None,
        asked_at=began, began_at=began, ended_at=ended, notes=notes,
    )  # fmt: skip


# --- MaybeMarkContainerDead ------------------------------------------------------------------


def test_recent_heartbeat_does_not_restart() -> None:
    noes = [NOW - 5, NOW]
    assert not dead(noes, workspace(beat_at=NOW - 14), None, certain=False, now=NOW)
    assert dead(noes, workspace(beat_at=NOW - 16), None, certain=False, now=NOW)


def test_no_recent_heartbeat_declares_dead() -> None:
    assert dead([NOW - 5, NOW], workspace(), None, certain=False, now=NOW)


def test_a_beat_of_hours_ahead_says_only_that_the_clock_was_set_back() -> None:
    ahead = NOW + 7200.0
    settled = cycle(Aim.RESTART, ahead - 1, ahead)
    assert dead([NOW - 5, NOW], workspace(beat_at=ahead), settled, certain=False, now=NOW)
    assert not dead([NOW - 5, NOW], workspace(beat_at=NOW + 3), None, certain=False, now=NOW)


def test_one_strike_is_none() -> None:
    assert not dead([NOW], workspace(), None, certain=False, now=NOW)
    assert not dead([NOW], workspace(), None, certain=True, now=NOW)


def test_strikes_too_far_apart_are_one_each() -> None:
    assert not dead([NOW - 31, NOW], workspace(), None, certain=False, now=NOW)


def test_settle_window_needs_more_than_a_flicker() -> None:
    settling = cycle(Aim.RESTART, NOW - 20, NOW - 19)
    assert not dead([NOW - 5, NOW], workspace(), settling, certain=False, now=NOW)
    assert dead([NOW - 16, NOW], workspace(), settling, certain=False, now=NOW)
    settled = cycle(Aim.RESTART, NOW - 40, NOW - 19)
    assert dead([NOW - 5, NOW], workspace(), settled, certain=False, now=NOW)


def test_what_the_kernel_says_no_heartbeat_contradicts() -> None:
    settling = cycle(Aim.RESTART, NOW - 5, NOW - 4)
    assert dead([NOW - 0.6, NOW], workspace(beat_at=NOW), settling, certain=True, now=NOW)


# --- crash loops --------------------------------------------------------------------------------


def row(count: int, *, apart: float = 10.0, until: float = NOW) -> list[Cycle]:
    """Revivals, the latest first, each of which held for a moment."""
    return [cycle(Aim.REVIVE, until - n * apart - 1, until - n * apart, 100 - n) for n in range(count)]


def test_deaths_soon_after_a_revival_are_counted_and_slow_the_next_down() -> None:
    assert [crashes(row(n), now=NOW + 5) for n in range(4)] == [0, 1, 2, 3]
    assert [wait(n) for n in range(9)] == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_a_life_that_held_begins_the_count_anew() -> None:
    assert crashes(row(5), now=NOW + 1000) == 0
    assert crashes([*row(2), *row(5, until=NOW - 1000)], now=NOW + 5) == 2


def test_an_operators_restart_begins_the_count_anew() -> None:
    assert crashes([cycle(Aim.RESTART, NOW - 2, NOW - 1), *row(9)], now=NOW) == 0
    assert crashes([*row(2), cycle(Aim.RESTART, NOW - 40, NOW - 30), *row(9)], now=NOW) == 2


def test_in_the_end_it_is_given_up_with_the_reason() -> None:
    asked = cycle(Aim.REVIVE, NOW + 5, None, 200)
    assert gives_up([asked, *row(CRASHES - 1)]) is None
    assert f"died {CRASHES} times in a row" in str(gives_up([asked, *row(CRASHES)]))


# --- the watch ------------------------------------------------------------------------------------


@asynccontextmanager
async def watch(store: SqliteStore, hand: Hand, *, register: bool = True) -> AsyncIterator[Deaths]:
    await store.create_workspace("w", provisioner="hand")
    if register:
        await store.register("w", url="http://127.0.0.1:1", boot_id="b")
    watcher = Deaths(store, {"hand": hand}, interval=0.02)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watcher.run)
        yield watcher
        tasks.cancel_scope.cancel()


async def asked(store: SqliteStore) -> list[Aim]:
    return [found.aim for found in await store.cycles("w")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths, "_APART", {True: 0.05, False: 0.2})


async def until_asked(store: SqliteStore) -> None:
    with anyio.fail_after(5):
        while not await asked(store):
            await anyio.sleep(0.01)


async def test_a_process_that_is_gone_is_revived_though_it_beat_a_moment_ago(sqlite: SqliteStore) -> None:
    hand = Hand()
    hand.died = ["w"]
    async with watch(sqlite, hand):
        await sqlite.beat([Beat(workspace_id="w", boot_id="b", active_tasks=0)])
        await anyio.sleep(0.2)
        assert await asked(sqlite) == []
        hand.up = False
        await until_asked(sqlite)
        assert await asked(sqlite) == [Aim.REVIVE]
        found = await sqlite.workspace("w")
        assert found is not None
        assert found.status is Status.OFFLINE
        await anyio.sleep(0.3)
        assert await asked(sqlite) == [Aim.REVIVE], "one is enough while it is not over"


async def test_one_whose_suspicion_died_with_another_life_of_the_shim_is_revived(sqlite: SqliteStore) -> None:
    hand = Hand()
    hand.up = False
    for name in (*(f"a{number}" for number in range(500)), "w"):  # on the second page
        await sqlite.create_workspace(name, provisioner="hand" if name == "w" else "external")
        await sqlite.set_status(name, Status.OFFLINE, were=frozenset(Status))
    async with watch(sqlite, hand, register=False):
        await until_asked(sqlite)
        assert await asked(sqlite) == [Aim.REVIVE]


async def test_one_flaky_no_is_nothing(sqlite: SqliteStore) -> None:
    hand = Hand(certain=False)
    noes = iter([False])

    async def flaky(workspace: Workspace) -> bool | None:
        return next(noes, True)

    hand.running = flaky  # type: ignore[method-assign]
    async with watch(sqlite, hand) as watcher:
        watcher.suspect("w")
        await until(lambda: not watcher._suspects)
        assert await asked(sqlite) == []


async def test_a_provisioner_that_cannot_know_assumes_life(sqlite: SqliteStore) -> None:
    hand = Hand()

    async def unknown(workspace: Workspace) -> bool | None:
        return None

    hand.running = unknown  # type: ignore[method-assign]
    async with watch(sqlite, hand) as watcher:
        watcher.suspect("w")
        await until(lambda: not watcher._suspects)
        assert await asked(sqlite) == []


async def test_defect_14_a_workspace_whose_restart_is_under_way_is_not_called_dead(
    sqlite: SqliteStore,
) -> None:
    hand = Hand()
    hand.up, hand.died = False, ["w"]
    await sqlite.create_workspace("w", provisioner="hand")
    by_hand, _ = await sqlite.ask_cycle("w", Aim.RESTART, "a person's button")
    async with watch(sqlite, hand) as watcher:
        for _ in range(10):
            watcher.suspect("w")
            await anyio.sleep(0.03)
        assert await asked(sqlite) == [Aim.RESTART]
        held = await sqlite.claim_cycle("o")
        assert held is not None
        assert held.id == by_hand.id
        await anyio.sleep(0.2)
        assert await asked(sqlite) == [Aim.RESTART]


async def test_dormant_and_unknown_workspaces_are_left_alone(sqlite: SqliteStore) -> None:
    hand = Hand()
    hand.up, hand.died = False, ["w", "nobody"]
    await sqlite.create_workspace("w", provisioner="hand")
    await sqlite.set_status("w", Status.PAUSED, were=frozenset(Status))
    async with watch(sqlite, hand):
        await anyio.sleep(0.3)
        assert await asked(sqlite) == []


async def test_what_was_given_up_stays_so_until_another_cycle_was_asked_for(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deaths, "wait", lambda _: 0.0)
    hand = Hand()
    hand.up, hand.died = False, ["w"]
    await sqlite.create_workspace("w", provisioner="hand")
    await sqlite.ask_cycle("w", Aim.REVIVE, "dead")
    held = await sqlite.claim_cycle("o")
    assert held is not None
    await sqlite.advance_cycle(held, Step.FAILED, notes={GIVEN_UP: True})
    async with watch(sqlite, hand):
        await anyio.sleep(0.3)
        assert len(await asked(sqlite)) == 1
        await sqlite.ask_cycle("w", Aim.RESTART, "mended")
        held = await sqlite.claim_cycle("o")
        assert held is not None
        await sqlite.advance_cycle(held, Step.DONE)
        with anyio.fail_after(5):
            while len(await asked(sqlite)) < 3:
                await anyio.sleep(0.01)
        assert await asked(sqlite) == [Aim.REVIVE, Aim.RESTART, Aim.REVIVE]


async def test_a_clock_set_back_does_not_put_off_a_revival(sqlite: SqliteStore) -> None:
    hand = Hand()
    hand.up, hand.died = False, ["w"]
    await sqlite.create_workspace("w", provisioner="hand")
    await sqlite.ask_cycle("w", Aim.RESTART, "before")
    held = await sqlite.claim_cycle("o")
    assert held is not None
    await sqlite.advance_cycle(held, Step.DONE, now=time.time() + 7200)
    async with watch(sqlite, hand):
        with anyio.fail_after(5):
            while len(await asked(sqlite)) < 2:
                await anyio.sleep(0.01)


async def test_the_next_revival_waits_also_when_another_shim_looks(sqlite: SqliteStore) -> None:
    hand = Hand()
    hand.up, hand.died = False, ["w"]
    await sqlite.create_workspace("w", provisioner="hand")
    await sqlite.ask_cycle("w", Aim.REVIVE, "dead")
    held = await sqlite.claim_cycle("o")
    assert held is not None
    await sqlite.advance_cycle(held, Step.DONE)
    began = time.monotonic()
    async with watch(sqlite, hand):
        with anyio.fail_after(5):
            while len(await asked(sqlite)) < 2:
                await anyio.sleep(0.01)
    assert time.monotonic() - began > 0.9
