"""Cycles: asked for by many, run by one, finished by whoever is left; tried on each store."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from tests.shim.store.conftest import RULES, Place
from tests.shim.store.test_contract import online
from workspace_adapter.errors import UnknownWorkspace
from workspace_adapter.shim.store.contract import Aim, Cycle, Status, Step, Store

pytestmark = pytest.mark.anyio

LATER = 100.0 + RULES.lease


async def asked(store: Store, aim: Aim = Aim.RESTART, workspace_id: str = "w", now: float = 10.0) -> Cycle:
    cycle, _ = await store.ask_cycle(workspace_id, aim, f"to {aim}", now=now)
    return cycle


async def claimed(store: Store, owner: str = "p", now: float = 20.0) -> Cycle:
    cycle = await store.claim_cycle(owner, now=now)
    assert cycle is not None
    return cycle


async def test_any_number_of_requests_are_two_cycles(store: Store) -> None:
    await online(store)
    first, new = await store.ask_cycle("w", Aim.RESTART, "secrets", now=10.0)
    assert new
    assert (first.aim, first.reason, first.requests, first.step) == (Aim.RESTART, "secrets", 1, Step.ASKED)
    assert (first.attempt, first.owner, first.began_at, first.ended_at) == (0, None, None, None)
    again, new = await store.ask_cycle("w", Aim.RESTART, "files", now=11.0)
    assert (again.id, again.requests, again.asked_at, new) == (first.id, 2, 10.0, False)
    running = await claimed(store)
    assert (running.id, running.attempt, running.began_at) == (first.id, 1, 20.0)
    second, new = await store.ask_cycle("w", Aim.RESTART, "plugins", now=21.0)
    assert new
    for number in range(5):
        assert (await asked(store)).id == second.id, number
    assert await store.claim_cycle("q", now=22.0) is None  # one at a time
    assert await store.advance_cycle(running, Step.DONE, now=23.0)
    assert (await claimed(store, now=24.0)).id == second.id
    assert [cycle.requests for cycle in await store.cycles("w")] == [6, 2]


async def test_requests_at_once_are_one_cycle(store: Store) -> None:
    await online(store)
    told: list[tuple[int, bool]] = []

    async def ask() -> None:
        cycle, new = await store.ask_cycle("w", Aim.RESTART, "all at once")
        told.append((cycle.id, new))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ask)
    assert len({cycle_id for cycle_id, _ in told}) == 1
    assert sum(new for _, new in told) == 1
    assert [cycle.requests for cycle in await store.cycles("w")] == [20]


async def test_a_cycle_is_claimed_once_however_many_try(store: Store) -> None:
    for name in "vwx":
        await online(store, name)
        await asked(store, workspace_id=name)
        await asked(store, workspace_id=name)
    got: list[Cycle | None] = []

    async def claim(number: int) -> None:
        got.append(await store.claim_cycle(f"p{number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(claim, number)
    assert sorted(cycle.workspace_id for cycle in got if cycle is not None) == ["v", "w", "x"]


async def test_the_cycle_that_waits_takes_the_stronger_aim(store: Store) -> None:
    await online(store)
    first = await asked(store, Aim.RESTART)
    for aim, then in (
        (Aim.REVIVE, Aim.RESTART),
        (Aim.PAUSE, Aim.PAUSE),
        (Aim.RESUME, Aim.PAUSE),
        (Aim.REMOVE, Aim.REMOVE),
        (Aim.PAUSE, Aim.REMOVE),
    ):
        cycle = await asked(store, aim)
        assert (cycle.id, cycle.aim, cycle.reason) == (first.id, then, f"to {then}")


async def test_the_oldest_cycle_comes_first(store: Store) -> None:
    for name in "wv":
        await online(store, name)
        await asked(store, workspace_id=name)
    assert [(await claimed(store)).workspace_id for _ in range(2)] == ["w", "v"]


async def test_each_step_is_written_and_what_was_noted_stays(store: Store) -> None:
    await online(store)
    await asked(store)
    cycle = await claimed(store)
    assert cycle.step is Step.ASKED
    for step, boot, notes in (
        (Step.SIGNAL, "b1", {"signal": "200"}),
        (Step.STOP, None, {"signal": "again", "parked": 2}),
        (Step.START, None, None),
        (Step.DONE, None, {"text": "\0 \U0001f600"}),
    ):
        advanced = await store.advance_cycle(cycle, step, boot_before=boot, notes=notes, now=25.0)
        assert advanced is not None
        assert (advanced.step, advanced.boot_before) == (step, "b1")
    known = await store.cycle(cycle.id)
    assert known is not None
    assert known == advanced
    assert known.notes == {"signal": "again", "parked": 2, "text": "\0 \U0001f600"}
    assert known.ended_at == 25.0
    assert await store.cycle(cycle.id + 1) is None


async def test_another_goes_on_where_a_dead_owner_stood(store: Store) -> None:
    await online(store)
    await asked(store)
    dead = await claimed(store, "dead")
    assert await store.advance_cycle(dead, Step.STOP, boot_before="b1", now=30.0)
    assert await store.claim_cycle("heir", now=30.0 + RULES.lease - 1) is None
    heir = await claimed(store, "heir", now=30.0 + RULES.lease)
    assert (heir.id, heir.step, heir.boot_before, heir.attempt) == (dead.id, Step.STOP, "b1", 2)
    assert heir.began_at == 20.0
    assert await store.advance_cycle(dead, Step.DONE, now=70.0) is None
    assert not await store.renew_cycle(dead, now=70.0)
    assert await store.advance_cycle(heir, Step.DONE, now=71.0)
    assert await store.advance_cycle(heir, Step.START, now=72.0) is None  # it is over


async def test_an_owner_that_releases_its_cycle_leaves_it_at_once(store: Store) -> None:
    await online(store)
    await asked(store)
    cycle = await claimed(store, "leaving")
    assert await store.release_cycle(cycle)
    heir = await claimed(store, "heir", now=21.0)
    assert (heir.id, heir.attempt) == (cycle.id, 2)
    assert not await store.release_cycle(cycle)
    assert await store.claim_cycle("thief", now=22.0) is None


async def test_an_owner_that_renews_keeps_its_cycle(store: Store) -> None:
    await online(store)
    await asked(store)
    cycle = await claimed(store)
    for now in (40.0, 60.0, 80.0):
        assert await store.renew_cycle(cycle, now=now)
        assert await store.claim_cycle("thief", now=now + RULES.lease - 1) is None


async def test_no_cycle_is_asked_for_a_workspace_that_is_not_there(store: Store) -> None:
    await online(store)
    with pytest.raises(UnknownWorkspace):
        await asked(store, workspace_id="nobody")
    await asked(store)
    removal = await claimed(store)
    waiting = await asked(store)
    assert await store.set_status("w", Status.REMOVED, were=list(Status))
    with pytest.raises(UnknownWorkspace):
        await asked(store)
    over = await store.cycle(waiting.id)
    assert over is not None
    assert (over.step, over.ended_at is None, over.notes) == (
        Step.FAILED,
        False,
        {"because": "the workspace was removed"},
    )
    assert await store.claim_cycle("p", now=21.0) is None
    assert await store.advance_cycle(removal, Step.DONE)  # who removed it ends its own work
    assert await store.create_workspace("w")
    assert (await asked(store)).id > waiting.id


async def test_who_listens_hears_that_a_cycle_was_asked_and_that_it_ended(place: Place) -> None:
    async with place.open() as store:
        heard: list[str] = []
        store.on_cycle = heard.append

        async def hear() -> None:
            with anyio.fail_after(10):
                while not heard:
                    await anyio.sleep(0.005)
            assert set(heard) == {"w"}
            heard.clear()

        await online(store)
        await asked(store)
        await hear()
        cycle = await claimed(store)
        assert await store.advance_cycle(cycle, Step.FAILED)
        await hear()


async def test_cycles_that_ended_are_forgotten_after_the_retention(store: Store) -> None:
    await online(store)
    await asked(store)
    cycle = await claimed(store)
    await store.advance_cycle(cycle, Step.DONE, now=25.0)
    open_one = await asked(store)
    await store.forget(now=24.0 + RULES.retention)
    assert len(await store.cycles("w")) == 2
    await store.forget(now=26.0 + RULES.retention)
    assert [left.id for left in await store.cycles("w")] == [open_one.id]


async def test_whoever_lost_a_cycle_changes_nothing_of_its_workspace(store: Store) -> None:
    await online(store)
    await asked(store)
    lost = await claimed(store, "p")
    assert await store.set_restarting("w", True, of=lost)
    taken = await claimed(store, "q", now=LATER)
    assert not await store.set_restarting("w", False, of=lost)
    assert not await store.set_status("w", Status.PAUSED, were=set(Status), of=lost)
    assert await store.set_restarting("w", False, of=taken)
    assert await store.set_status("w", Status.OFFLINE, were=set(Status), of=taken)
    assert await store.advance_cycle(taken, Step.DONE, now=LATER + 1)
    assert not await store.set_restarting("w", True, of=taken)
    assert not await store.set_status("w", Status.FAILED, were=set(Status), of=taken)
    workspace = await store.workspace("w")
    assert workspace is not None
    assert (workspace.status, workspace.restarting) == (Status.OFFLINE, False)


async def test_what_was_asked_of_a_removed_workspace_does_not_happen_to_the_one_made_anew(
    store: Store,
) -> None:
    await online(store)
    await asked(store, Aim.REMOVE)
    removing = await claimed(store)
    assert await store.advance_cycle(removing, Step.STOP, now=21.0)
    assert await store.set_status("w", Status.REMOVED, were=set(Status), of=removing)
    assert await store.create_workspace("w", now=22.0)
    anew = await asked(store, Aim.REVIVE)
    assert (await claimed(store, "q", now=LATER)).id == anew.id
    assert not await store.set_status("w", Status.REMOVED, were=set(Status), of=removing)
    over = await store.cycle(removing.id)
    assert over is not None
    assert (over.step, over.notes["because"]) == (Step.FAILED, "the workspace was made anew")


async def test_a_cycle_that_ended_or_is_anothers_is_neither_renewed_nor_released_nor_moved(
    store: Store,
) -> None:
    await online(store)
    await asked(store)
    cycle = await claimed(store)
    for other in (replace(cycle, attempt=cycle.attempt + 1), replace(cycle, owner="q")):
        assert not await store.renew_cycle(other, now=25.0)
        assert not await store.release_cycle(other)
        assert await store.advance_cycle(other, Step.STOP, now=25.0) is None
        assert not await store.set_restarting("w", True, of=other)
    assert await store.claim_cycle("q", now=20.0 + RULES.lease - 0.1) is None
    assert await store.advance_cycle(cycle, Step.DONE, now=26.0)
    assert not await store.renew_cycle(cycle, now=27.0)
    assert not await store.release_cycle(cycle)
    assert await store.advance_cycle(cycle, Step.STOP, now=27.0) is None
