from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import anyio
import pytest

from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.queueing import State
from workspace_adapter.shim.door.waiting import Stopping, Waiters, patience
from workspace_adapter.shim.store.contract import Item

pytestmark = pytest.mark.anyio

ITEM = Item(
    id=1,
    workspace_id="w",
    turn_key="k",
    context_id=None,
    caller=None,
    method="message/send",
    priority=50,
    state=State.QUEUED,
    attempt=0,
    strikes=0,
    lapses=0,
    taken=False,
    enqueued_at=1.0,
    leased_at=None,
    due_at=None,
    expires_at=None,
    ended_at=None,
    last_error=None,
    answer=None,
)


class Rows:
    """The two verbs that are waited with."""

    def __init__(self) -> None:
        self.items = {1: ITEM}
        self.reads = 0
        self.down = False

    def end(self, item_id: int = 1) -> None:
        self.items[item_id] = replace(ITEM, state=State.COMPLETED)

    async def item(self, item_id: int) -> Item | None:
        self.reads += 1
        if self.down:
            raise StoreUnavailable("it is down")
        return self.items.get(item_id)

    async def ended(self, item_ids: Collection[int]) -> set[int]:
        if self.down:
            raise StoreUnavailable("it is down")
        return {i for i in item_ids if i not in self.items or self.items[i].state is State.COMPLETED}


def waiters(rows: Any, *, most: int = 10, glance: float = 60.0) -> Waiters:
    return Waiters(rows, most=most, glance=glance)


async def until_waiting(waiting: Waiters) -> None:
    with anyio.fail_after(5):
        while 1 not in waiting._rings:
            await anyio.sleep(0)


async def test_a_word_wakes_whoever_waits_for_that_item() -> None:
    rows = Rows()
    waiting = waiters(rows)
    found: list[Item | None] = []

    async def wait() -> None:
        found.append(await waiting.until_ended(1, 5))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await until_waiting(waiting)
        await anyio.wait_all_tasks_blocked()
        waiting.ended(2)
        await anyio.wait_all_tasks_blocked()
        assert not found
        rows.end()
        waiting.ended(1)
    assert [item.state for item in found if item] == [State.COMPLETED, State.COMPLETED]
    assert not waiting._rings


async def test_one_that_has_ended_is_there_at_once() -> None:
    rows = Rows()
    rows.end()
    item = await waiters(rows).until_ended(1, 0)
    assert item is not None


async def test_a_new_one_is_not_read_before_it_rings() -> None:
    rows = Rows()
    assert await waiters(rows).until_ended(1, 0.01, new=True) is None
    assert rows.reads == 0
    assert await waiters(rows).until_ended(1, 0.01) is None
    assert rows.reads == 1


async def test_a_lost_word_costs_no_more_than_a_glance() -> None:
    rows = Rows()
    waiting = waiters(rows, glance=0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiting.run)
        tasks.start_soon(until_waiting, waiting)
        with anyio.fail_after(5):
            rows.end()
            assert await waiting.until_ended(1, 5, new=True)
        tasks.cancel_scope.cancel()


async def test_one_that_is_gone_is_not_waited_for() -> None:
    rows = Rows()
    rows.items.clear()
    with anyio.fail_after(5):
        assert await waiters(rows).until_ended(1, 60) is None


async def test_a_store_that_cannot_be_read_is_waited_for() -> None:
    rows = Rows()
    rows.down = True
    waiting = waiters(rows, glance=0.01)

    async def recover() -> None:
        while rows.reads < 1:
            await anyio.sleep(0.01)
        rows.end()
        rows.down = False

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(waiting.run)
        tasks.start_soon(recover)
        with anyio.fail_after(5):
            assert await waiting.until_ended(1, 5)
        tasks.cancel_scope.cancel()


async def test_nobody_waits_once_the_shim_stops() -> None:
    rows = Rows()
    waiting = waiters(rows)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop_when_waited, waiting)
        with pytest.raises(Stopping):
            await waiting.until_ended(1, 60)
    with pytest.raises(Stopping):
        await waiting.until_ended(1, 60)
    rows.end()
    assert await waiting.until_ended(1, 60)


async def stop_when_waited(waiting: Waiters) -> None:
    await until_waiting(waiting)
    waiting.stop()


async def test_places_are_bounded() -> None:
    waiting = waiters(Rows(), most=1)
    with waiting.hold() as first, waiting.hold() as second:
        assert (first, second, waiting.held) == (True, False, 1)
    with waiting.hold() as third:
        assert third
    assert waiting.held == 0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 600.0),
        ({"prefer": "wait=5"}, 5.0),
        ({"prefer": "handling=lenient, wait=7"}, 7.0),
        ({"prefer": "respond-async, wait=10"}, 10.0),
        ({"prefer": "respond-async"}, 0.0),
        ({"prefer": "wait=9000"}, 600.0),
        ({"prefer": "wait=-1"}, 600.0),
        ({"prefer": "await=3"}, 600.0),
        ({"x-timeout": "2.5"}, 2.5),
        ({"x-timeout": "nan"}, 600.0),
        ({"x-timeout": "-1"}, 600.0),
        ({"x-timeout": "soon"}, 600.0),
        ({"x-timeout": "0"}, 0.0),
        ({"x-timeout": "30", "prefer": "wait=20"}, 20.0),
    ],
)
def test_a_caller_says_how_long_it_waits(headers: dict[str, str], seconds: float) -> None:
    assert patience(headers, 600.0) == seconds


async def test_who_stops_knows_when_everybody_has_left() -> None:
    waiting = waiters(Rows())
    with waiting.hold(), waiting.hold():
        waiting.stop()
        with anyio.move_on_after(0.01) as waited:
            await waiting.left()
        assert waited.cancelled_caught
    with anyio.fail_after(5):
        await waiting.left()


async def test_nobody_to_send_away_has_left_at_once() -> None:
    waiting = waiters(Rows())
    waiting.stop()
    with anyio.fail_after(5):
        await waiting.left()


async def test_only_who_reads_a_stream_hears_that_it_has_more() -> None:
    waiting = waiters(Rows())
    with waiting.listen(1, of_stream=True) as reads, waiting.listen(1, of_stream=False) as waits:
        waiting.said(1)
        assert [await reads.wait(0), await waits.wait(0)] == [True, False]
        waiting.ended(1)
        assert [await reads.wait(0), await waits.wait(0)] == [True, True]
