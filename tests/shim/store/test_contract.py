"""What any store does, tried on each."""

from __future__ import annotations

import json
from dataclasses import replace

import anyio
import pytest

from tests.shim.store.conftest import RULES, Place
from workspace_adapter.errors import (
    BadMessage,
    ContentConflict,
    InvalidTransition,
    QueueFull,
    UnknownWorkspace,
)
from workspace_adapter.queueing import State, Verdict
from workspace_adapter.shim.store.contract import (
    Aim,
    Answer,
    Beat,
    Heard,
    Lease,
    Message,
    Role,
    Settlement,
    Status,
    Store,
)
from workspace_adapter.shim.store.postgres import schema as postgres_schema
from workspace_adapter.shim.store.postgres import workspaces as postgres_workspaces
from workspace_adapter.shim.store.sqlite import schema as sqlite_schema
from workspace_adapter.shim.store.sqlite import workspaces as sqlite_workspaces

pytestmark = pytest.mark.anyio

DONE = Verdict(state=State.COMPLETED, because="answered")
BUSY = Verdict(state=State.QUEUED, because="busy", wait=5.0)
LATER = Verdict(state=State.DELAYED, because="503", wait=7.0, strike=True)
DEAD = Verdict(state=State.FAILED, because="given up", strike=True)
ANSWER = Answer(status=200, body=b'{"result":{}}')


def message(key: str, *, workspace_id: str = "w", context_id: str | None = None, **more: object) -> Message:
    values = {"content_hash": f"hash-{key}", "body": f"body-{key}".encode(), **more}
    return Message(workspace_id=workspace_id, turn_key=key, context_id=context_id, **values)  # type: ignore[arg-type]


async def online(store: Store, workspace_id: str = "w", *, max_concurrent: int = 3, boot: str = "b1") -> None:
    assert await store.create_workspace(workspace_id, max_concurrent=max_concurrent, now=0.0)
    assert await store.register(workspace_id, url="http://w", boot_id=boot, now=0.0)


async def sent(store: Store, *keys: str, now: float = 10.0, **more: object) -> list[int]:
    return [(await store.enqueue(message(key, **more), now=now + n)).id for n, key in enumerate(keys)]  # type: ignore[arg-type]


async def settle(
    store: Store, lease: Lease, verdict: Verdict, now: float = 30.0, answer: Answer | None = None
) -> bool:
    (done,) = await store.settle([Settlement(lease=lease, verdict=verdict, answer=answer)], now=now)
    return done


async def state(store: Store, item_id: int) -> State | None:
    item = await store.item(item_id)
    return None if item is None else item.state


# --- enqueue ------------------------------------------------------------------------------


async def test_a_message_is_there_when_the_store_is_opened_again(place: Place) -> None:
    async with place.open() as store:
        await online(store)
        (item_id,) = await sent(store, "a", headers={"traceparent": "00-1"}, caller="c", context_id="s")
    async with place.open() as store:
        (lease,) = await store.claim("w", "owner", now=20.0)
    assert (lease.id, lease.body, lease.context_id, lease.caller) == (item_id, b"body-a", "s", "c")
    assert lease.headers == {"traceparent": "00-1"}
    assert lease.attempt == 1


async def test_of_many_items_those_that_ended_or_are_gone_can_be_asked_for(store: Store) -> None:
    await online(store)
    waits, ends, drops = await sent(store, "a", "b", "c")
    await store.drop(drops, "gone", now=15.0)
    for lease in await store.claim("w", "owner", now=20.0):
        if lease.id == ends:
            await settle(store, lease, DONE, answer=ANSWER)
    assert await store.ended([waits, ends, drops, 999]) == {ends, drops, 999}
    assert await store.ended([]) == set()


async def test_a_message_sent_again_joins_its_item(store: Store) -> None:
    await online(store)
    first = await store.enqueue(message("a"), now=10.0)
    again = await store.enqueue(message("a"), now=11.0)
    assert (again.id, again.joined, first.joined) == (first.id, True, False)
    (lease,) = await store.claim("w", "owner", now=12.0)
    assert (await store.enqueue(message("a"), now=13.0)).state is State.LEASED
    await settle(store, lease, DONE, answer=ANSWER)
    assert (await store.enqueue(message("a"), now=14.0)).state is State.COMPLETED
    assert await store.claim("w", "owner", now=15.0) == []


async def test_the_same_identity_with_other_content_is_refused(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    with pytest.raises(ContentConflict):
        await store.enqueue(message("a", content_hash="other"), now=11.0)


async def test_one_identity_at_two_workspaces_is_two_messages(store: Store) -> None:
    await online(store)
    await online(store, "v")
    first = await store.enqueue(message("a"), now=1.0)
    second = await store.enqueue(message("a", workspace_id="v"), now=1.0)
    assert first.id != second.id


async def test_the_same_message_sent_at_once_is_queued_once(store: Store) -> None:
    await online(store)
    got = []

    async def send() -> None:
        got.append(await store.enqueue(message("a")))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(send)
    assert len({enqueued.id for enqueued in got}) == 1
    assert sum(not enqueued.joined for enqueued in got) == 1


async def test_a_full_queue_refuses_and_says_how_many_wait(store: Store) -> None:
    await online(store)
    await sent(store, *"abcde")
    with pytest.raises(QueueFull, match="5 messages wait") as refused:
        await store.enqueue(message("f"), now=11.0)
    assert refused.value.depth == 5
    assert (await store.enqueue(message("a"), now=11.0)).joined
    (lease, *_) = await store.claim("w", "owner", most=1, now=20.0)
    await store.enqueue(message("f"), now=21.0)
    await settle(store, lease, LATER)
    with pytest.raises(QueueFull):
        await store.enqueue(message("g"), now=31.0)


async def test_messages_that_arrive_at_once_do_not_overfill_the_queue(store: Store) -> None:
    await online(store)
    outcomes: list[int | None] = []

    async def send(key: int) -> None:
        try:
            outcomes.append((await store.enqueue(message(str(key)))).id)
        except QueueFull:
            outcomes.append(None)

    async with anyio.create_task_group() as tasks:
        for key in range(30):
            tasks.start_soon(send, key)
    kept = [item_id for item_id in outcomes if item_id is not None]
    # Two statements under way at once each see only what was committed before: no more than two fills.
    assert RULES.depth_cap <= len(kept) <= 2 * RULES.depth_cap
    assert len(await store.items("w")) == len(kept)


async def test_a_full_queue_is_no_other_workspaces_matter(store: Store) -> None:
    await online(store)
    await online(store, "v")
    await sent(store, *"abcde")
    await store.enqueue(message("a", workspace_id="v"), now=1.0)
    assert (await store.depth("w"), await store.depth("v")) == (5, 1)


async def test_nothing_is_queued_for_a_workspace_that_is_not_there(store: Store) -> None:
    with pytest.raises(UnknownWorkspace):
        await store.enqueue(message("a"), now=1.0)
    await online(store)
    await store.set_status("w", Status.REMOVED, were=[Status.ONLINE])
    with pytest.raises(UnknownWorkspace):
        await store.enqueue(message("a"), now=1.0)


async def test_a_caller_that_hangs_up_takes_nothing_back(store: Store) -> None:
    await online(store)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.enqueue, message("a"))
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            scope.cancel()
    with anyio.fail_after(10):
        while not await store.items("w"):
            await anyio.sleep(0.01)


@pytest.mark.parametrize("odd", ["a\0b", "half \ud800"])
def test_what_no_store_can_keep_is_refused_before_it_gets_there(odd: str) -> None:
    with pytest.raises(BadMessage, match="context_id holds a character"):
        message("a", context_id=odd)
    with pytest.raises(BadMessage, match="workspace_id holds a character"):
        message("a", workspace_id=odd)
    with pytest.raises(BadMessage, match="priority must be between"):
        message("a", priority=10**6)


async def test_one_message_that_is_refused_leaves_those_beside_it_alone(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    outcomes: list[str] = []

    async def send(one: Message) -> None:
        try:
            await store.enqueue(one)
            outcomes.append("kept")
        except (ContentConflict, UnknownWorkspace) as refusal:
            outcomes.append(type(refusal).__name__)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send, message("a", content_hash="other"))
        tasks.start_soon(send, message("b"))
        tasks.start_soon(send, message("c", workspace_id="nobody"))
        tasks.start_soon(send, message("d"))
    assert sorted(outcomes) == ["ContentConflict", "UnknownWorkspace", "kept", "kept"]


# --- claim --------------------------------------------------------------------------------


async def test_items_come_by_priority_then_arrival_and_age_catches_up(store: Store) -> None:
    await online(store, max_concurrent=9)
    for key, priority, at in (("old", 50, 10.0), ("new", 50, 20.0), ("urgent", 90, 20.0), ("late", 90, 71.0)):
        await store.enqueue(message(key, priority=priority), now=at)
    leases = await store.claim("w", "owner", now=100.0)
    assert [lease.turn_key for lease in leases] == ["urgent", "old", "new", "late"]


async def test_items_that_arrive_at_once_come_as_they_were_sent(store: Store) -> None:
    await online(store, max_concurrent=9)
    async with anyio.create_task_group() as tasks:
        for key in "edcba":
            tasks.start_soon(store.enqueue, message(key))
    assert [lease.turn_key for lease in await store.claim("w", "owner")] == list("edcba")


async def test_no_more_is_leased_than_the_workspace_has_room_for(store: Store) -> None:
    await online(store, max_concurrent=3)
    await sent(store, *"abcde")
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1)], now=15.0)
    leases = await store.claim("w", "owner", now=20.0)
    assert len(leases) == 2
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=3)], now=21.0)
    assert await store.claim("w", "other", now=22.0) == []
    for lease in leases:
        await settle(store, lease, DONE)
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=0)], now=31.0)
    assert len(await store.claim("w", "other", now=32.0)) == 3
    assert await store.claim("w", "owner", now=32.0) == []


async def test_a_thousand_active_tasks_mean_not_now(store: Store) -> None:
    await online(store, max_concurrent=5000)
    await sent(store, "a")
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1000)], now=15.0)
    assert await store.claim("w", "owner", now=20.0) == []
    assert await store.due(now=20.0) == []


async def test_two_items_of_one_session_are_never_leased_at_once(store: Store) -> None:
    await online(store, max_concurrent=9)
    await sent(store, "a", "b", context_id="s")
    await sent(store, "c", context_id="t", now=12.0)
    await sent(store, "d", now=13.0)
    first, *others = await store.claim("w", "owner", now=20.0)
    assert [lease.turn_key for lease in (first, *others)] == ["a", "c", "d"]
    assert await store.claim("w", "owner", now=20.0) == []
    await settle(store, first, DONE)
    assert [lease.turn_key for lease in await store.claim("w", "owner", now=31.0)] == ["b"]


async def test_a_session_keeps_its_order_while_its_first_item_waits_for_a_time(store: Store) -> None:
    await online(store)
    await sent(store, "a", "b", context_id="s")
    (lease,) = await store.claim("w", "owner", now=20.0)
    await settle(store, lease, LATER, now=30.0)
    assert await store.claim("w", "owner", now=31.0) == []
    assert await store.promote(now=36.9) == 0
    assert await store.promote(now=37.0) == 1
    assert [lease.turn_key for lease in await store.claim("w", "owner", now=38.0)] == ["a"]


@pytest.mark.parametrize("status", [Status.PROVISIONING, Status.OFFLINE, Status.FAILED, Status.PAUSED])
async def test_nothing_is_leased_for_a_workspace_that_cannot_be_reached(store: Store, status: Status) -> None:
    await online(store)
    await sent(store, "a")
    assert await store.set_status("w", status, were=[Status.ONLINE])
    assert await store.claim("w", "owner", now=20.0) == []
    assert await store.due(now=20.0) == []
    (stranded,) = await store.stranded()
    assert (stranded.workspace_id, stranded.status, stranded.waiting, stranded.oldest) == (
        "w",
        status,
        1,
        10.0,
    )


async def test_nothing_is_leased_for_a_workspace_that_is_restarting(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    assert await store.set_restarting("w", True)
    assert not await store.set_restarting("w", True)
    assert await store.claim("w", "owner", now=20.0) == []
    assert await store.due(now=20.0) == []
    assert await store.set_restarting("w", False)
    assert len(await store.claim("w", "owner", now=20.0)) == 1


async def test_many_claimers_at_once_share_the_items_between_them(store: Store) -> None:
    await online(store, max_concurrent=5)
    await sent(store, *"abcde")
    got: list[int] = []

    async def claim(n: int) -> None:
        got.extend(lease.id for lease in await store.claim("w", f"owner{n}", most=1))

    async with anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(claim, n)
    assert len(got) == len(set(got)) == 5


# --- leases -------------------------------------------------------------------------------


async def test_a_lease_is_taken_over_when_its_renewals_were_missed_however_old_it_is(store: Store) -> None:
    await online(store, max_concurrent=1)
    await sent(store, "a")
    (lease,) = await store.claim("w", "dead", now=20.0)
    for now in range(30, 3000, 25):
        assert await store.renew([lease], now=float(now)) == {lease.id}
        assert await store.claim("w", "other", now=float(now)) == []
    assert await store.due(now=3009.0) == []
    assert await store.due(now=3036.0) == ["w"]
    (taken,) = await store.claim("w", "other", now=3036.0)
    assert (taken.id, taken.attempt, taken.lapses) == (lease.id, 2, 1)


async def test_only_the_holder_is_told_that_it_settled_though_another_tried_at_the_same_time(
    store: Store,
) -> None:
    await online(store)
    await sent(store, "a")
    (former,) = await store.claim("w", "dead", now=20.0)
    (lease,) = await store.claim("w", "other", now=1000.0)
    told: dict[str, bool] = {}

    async def tell(of: Lease) -> None:
        told[of.owner.partition("/")[0]] = await settle(store, of, DONE, now=1001.0, answer=ANSWER)

    async with anyio.create_task_group() as tasks:
        for each in (former, lease):
            tasks.start_soon(tell, each)
    assert told == {"dead": False, "other": True}


async def test_a_holder_that_lost_its_lease_changes_nothing(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lost,) = await store.claim("w", "dead", now=20.0)
    (lease,) = await store.claim("w", "other", now=60.0)
    assert await store.renew([lost], now=61.0) == set()
    for verdict in (DONE, BUSY, LATER, DEAD):
        assert not await settle(store, lost, verdict, now=62.0, answer=ANSWER)
    assert not await settle(store, lease._replace(owner="somebody"), DONE, now=62.0)
    assert not await settle(store, lease._replace(attempt=1), DONE, now=62.0)
    assert await state(store, lease.id) is State.LEASED
    assert await settle(store, lease, DONE, now=63.0, answer=ANSWER)
    assert not await settle(store, lease, DONE, now=64.0, answer=Answer(status=500, body=b""))
    item = await store.item(lease.id)
    assert item is not None
    assert item.answer == ANSWER


async def test_of_what_is_settled_together_each_stands_for_itself(store: Store) -> None:
    await online(store)
    await sent(store, "a", "b")
    lost, other = await store.claim("w", "dead", now=20.0)
    assert await settle(store, other, DONE, now=21.0, answer=ANSWER)
    (lease,) = await store.claim("w", "other", now=60.0)
    answers = (Answer(status=200, body=b"lost"), Answer(status=200, body=b"held"))
    settlements = [
        Settlement(lease=of, verdict=DONE, answer=answer)
        for of, answer in zip((lost, lease, other), (*answers, ANSWER), strict=True)
    ]
    assert await store.settle(settlements, now=61.0) == [False, True, False]
    item = await store.item(lease.id)
    assert item is not None
    assert item.answer == answers[1]
    assert await store.settle([], now=62.0) == []


async def test_a_new_life_takes_over_at_once_what_nobody_else_can_hold(place: Place, store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "dead", now=20.0)
    cycle, _ = await store.ask_cycle("w", Aim.RESTART, "asked", now=20.0)
    await store.claim_cycle("dead", now=20.0)
    await store.disown()
    alone = place.kind == "sqlite"
    assert [taken.id for taken in await store.claim("w", "new", now=21.0)] == [lease.id] * alone
    taken_over = await store.claim_cycle("new", now=21.0)
    assert (taken_over is not None and taken_over.id == cycle.id) is alone


async def test_what_a_dead_holder_left_is_taken_over_without_room(store: Store) -> None:
    await online(store, max_concurrent=1)
    await sent(store, "a", "b")
    await store.claim("w", "dead", now=20.0)
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1)], now=55.0)
    assert [lease.turn_key for lease in await store.claim("w", "other", now=60.0)] == ["a"]


async def test_a_settlement_forgets_the_holders_that_died(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    for now in (20.0, 60.0, 100.0):
        (lease,) = await store.claim("w", "dead", now=now)
    assert lease.lapses == 2
    await settle(store, lease, replace(BUSY, wait=0.0), now=101.0)
    (lease,) = await store.claim("w", "owner", now=102.0)
    assert (lease.lapses, lease.attempt) == (0, 4)


# --- what becomes of it -------------------------------------------------------------------


async def test_an_answer_is_kept_with_the_item(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "owner", now=20.0)
    assert await settle(store, lease, DONE, answer=ANSWER)
    item = await store.item(lease.id)
    assert item is not None
    assert (item.state, item.answer, item.ended_at, item.last_error) == (State.COMPLETED, ANSWER, 30.0, None)


async def test_a_busy_answer_puts_the_same_row_back_in_its_place_and_holds_the_workspace(
    store: Store,
) -> None:
    await online(store, max_concurrent=1)
    first, _ = await sent(store, "a", "b")
    (lease,) = await store.claim("w", "owner", now=20.0)
    assert await settle(store, lease, BUSY, now=30.0)
    assert await store.claim("w", "owner", now=34.9) == []
    assert await store.due(now=34.9) == []
    assert await store.due(now=35.0) == ["w"]
    (lease,) = await store.claim("w", "owner", now=35.0)
    assert (lease.id, lease.strikes) == (first, 0)
    assert len(await store.items("w")) == 2


async def test_a_beat_that_shows_room_ends_the_hold(store: Store) -> None:
    await online(store, max_concurrent=2)
    await sent(store, "a")
    (lease,) = await store.claim("w", "owner", now=20.0)
    await settle(store, lease, BUSY, now=30.0)
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=2)], now=31.0)
    assert await store.claim("w", "owner", now=31.0) == []
    assert await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1)], now=31.0) == {
        "w": Heard(1, 2, "")
    }
    assert len(await store.claim("w", "owner", now=31.0)) == 1


async def test_strikes_are_counted_on_the_row(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    now = 20.0
    for strikes in range(3):
        (lease,) = await store.claim("w", "owner", now=now)
        assert lease.strikes == strikes
        await settle(store, lease, LATER, now=now + 1)
        now += 10
        assert await store.promote(now=now) == 1


async def test_an_item_that_the_workspace_may_have_expires_no_more_and_needs_no_room(store: Store) -> None:
    await online(store, max_concurrent=1)
    await sent(store, "a", expires_in=60.0)
    (lease,) = await store.claim("w", "owner", now=20.0)
    await settle(store, lease, replace(BUSY, taken=True, wait=0.0), now=30.0)
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1)], now=31.0)
    assert await store.expire(now=1000.0) == 0
    assert await store.due(now=1000.0) == ["w"]
    (lease,) = await store.claim("w", "owner", now=1000.0)
    assert lease.taken


async def test_what_nobody_wants_any_longer_is_not_sent(store: Store) -> None:
    await online(store)
    item_id, _ = await sent(store, "a", "b", expires_in=60.0, context_id="s")
    assert await store.expire(now=69.9) == 0
    assert await store.claim("w", "owner", now=70.0) == []
    assert await store.expire(now=70.0) == 1
    assert await state(store, item_id) is State.EXPIRED
    assert [lease.turn_key for lease in await store.claim("w", "owner", now=70.5)] == ["b"]
    assert await store.expire(now=5000.0) == 0  # leased: its workspace is at work


async def test_a_dead_letter_is_tried_anew_when_its_asker_sends_it_again(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "owner", now=20.0)
    await settle(store, lease, DEAD, answer=Answer(status=500, body=b"no"))
    item = await store.item(lease.id)
    assert item is not None
    assert (item.state, item.last_error, item.answer) == (
        State.FAILED,
        "given up",
        Answer(status=500, body=b"no"),
    )
    again = await store.enqueue(message("a", expires_in=60.0), now=40.0)
    assert (again.id, again.state, again.joined) == (lease.id, State.QUEUED, True)
    item = await store.item(lease.id)
    assert item is not None
    assert (item.strikes, item.answer, item.expires_at, item.ended_at) == (0, None, 100.0, None)
    (lease,) = await store.claim("w", "owner", now=41.0)
    assert (lease.body, lease.attempt) == (b"body-a", 2)


async def test_an_operator_replays_and_drops(store: Store) -> None:
    await online(store)
    first, second = await sent(store, "a", "b")
    assert await store.drop(first, "poison", now=11.0)
    assert not await store.drop(first, "poison", now=11.0)
    assert (await store.enqueue(message("a"), now=12.0)).state is State.DROPPED
    assert [lease.id for lease in await store.claim("w", "owner", now=20.0)] == [second]
    assert await store.replay(first, now=21.0)
    assert not await store.replay(first, now=21.0)
    (lease,) = await store.claim("w", "owner", now=22.0)
    assert lease.id == first
    assert await store.drop(first, "poison", now=23.0)
    assert not await settle(store, lease, DONE)
    assert not await store.replay(10**9, now=1.0)


async def test_an_answer_is_neither_replayed_nor_dropped(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "owner", now=20.0)
    await settle(store, lease, DONE, answer=ANSWER)
    assert not await store.replay(lease.id, now=31.0)
    assert not await store.drop(lease.id, "no", now=31.0)
    assert await state(store, lease.id) is State.COMPLETED


async def test_a_verdict_that_a_lease_cannot_come_to_is_refused(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "owner", now=20.0)
    with pytest.raises(InvalidTransition):
        await settle(store, lease, Verdict(state=State.EXPIRED, because="no"))
    assert await state(store, lease.id) is State.LEASED


async def test_ended_items_are_forgotten_after_the_retention_and_live_ones_never(store: Store) -> None:
    await online(store)
    await sent(store, "a", "b")
    (lease,) = await store.claim("w", "owner", most=1, now=20.0)
    await settle(store, lease, DONE, answer=ANSWER)
    assert await store.forget(now=30.0 + RULES.retention - 1) == 0
    assert await store.forget(now=30.0 + RULES.retention) == 1
    assert [item.turn_key for item in await store.items("w")] == ["b"]
    assert await store.item(lease.id) is None
    assert not (await store.enqueue(message("a"), now=5000.0)).joined


async def test_items_are_listed_in_pages(store: Store) -> None:
    await online(store)
    ids = await sent(store, *"abcd")
    await store.drop(ids[2], "no", now=20.0)
    page = await store.items("w", most=2)
    assert [item.id for item in page] == ids[:2]
    assert [item.id for item in await store.items("w", after=page[-1].id)] == ids[2:]
    assert [item.id for item in await store.items("w", state=State.DROPPED)] == [ids[2]]


# --- workspaces ---------------------------------------------------------------------------


async def test_a_workspace_is_what_it_registered(store: Store) -> None:
    assert await store.workspace("w") is None
    await online(store)
    assert not await store.create_workspace("w", now=1.0)
    assert await store.register("w", url="http://x", boot_id="b1", card={"name": "n"}, now=2.0)
    workspace = await store.workspace("w")
    assert workspace is not None
    assert (workspace.url, workspace.status, workspace.card) == ("http://x", Status.ONLINE, {"name": "n"})
    assert [one.id for one in await store.workspaces()] == ["w"]


async def test_a_registration_of_a_life_that_was_replaced_changes_nothing(store: Store) -> None:
    await online(store, boot="b1")
    assert await store.register("w", url="http://new", boot_id="b2", now=5.0)
    assert not await store.register("w", url="http://old", boot_id="b1", now=6.0)
    workspace = await store.workspace("w")
    assert workspace is not None
    assert (workspace.url, workspace.boot_id) == ("http://new", "b2")
    assert await store.register("w", url="http://newer", boot_id="b2", now=7.0)


async def test_a_beat_of_a_life_that_was_replaced_changes_nothing(store: Store) -> None:
    await online(store, boot="b1")
    await store.register("w", url="http://new", boot_id="b2", now=5.0)
    assert await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=7)], now=6.0) == {}
    assert await store.beat([Beat(workspace_id="w", boot_id=None, active_tasks=7)], now=6.0) == {}
    assert await store.beat([Beat(workspace_id="nobody", boot_id=None, active_tasks=7)], now=6.0) == {}
    workspace = await store.workspace("w")
    assert workspace is not None
    assert workspace.active_tasks == 0


async def test_a_new_life_begins_with_no_tasks_and_no_hold(store: Store) -> None:
    await online(store, max_concurrent=1)
    await sent(store, "a")
    (lease,) = await store.claim("w", "owner", now=20.0)
    await settle(store, lease, BUSY, now=30.0)
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1001)], now=30.0)
    await store.register("w", url="http://w", boot_id="b2", now=31.0)
    assert len(await store.claim("w", "owner", now=31.0)) == 1


async def test_beats_are_kept_whole_and_the_last_one_counts(store: Store) -> None:
    await online(store)
    await online(store, "v", boot="c1")
    beats = [
        Beat(workspace_id="w", boot_id="b1", active_tasks=1),
        Beat(workspace_id="v", boot_id="c1", active_tasks=0, degraded=True),
        Beat(workspace_id="w", boot_id="b1", active_tasks=2, max_concurrent=4, report='{"uptime": 5}'),
    ]
    assert await store.beat(beats, now=9.0) == {"w": Heard(0, 4, ""), "v": Heard(0, 3, "")}
    workspace, other = await store.workspace("w"), await store.workspace("v")
    assert workspace is not None
    assert other is not None
    assert (workspace.active_tasks, workspace.max_concurrent, workspace.beat_at) == (2, 4, 9.0)
    assert workspace.report == {"uptime": 5}
    assert (other.status, other.max_concurrent) == (Status.DEGRADED, 3)


async def test_a_new_life_gets_at_once_what_the_one_before_was_cut_off_from(store: Store) -> None:
    await online(store)
    cut, _ = await sent(store, "cut", "failed")
    for lease in await store.claim("w", "o", now=30.0):
        assert await settle(store, lease, replace(LATER, taken=lease.id == cut))
    assert await store.register("w", url="http://w", boot_id="b1", now=31.0)
    assert await store.claim("w", "o", now=31.0) == []
    assert await store.register("w", url="http://w", boot_id="b2", now=31.0)
    (again,) = await store.claim("w", "o", now=31.0)
    assert (again.id, again.strikes) == (cut, 1)


async def test_thousands_beat_at_once(store: Store) -> None:
    names = [f"w{number}" for number in range(1_200)]
    for name in names:
        await store.create_workspace(name)
        await store.register(name, url="http://w", boot_id=name)
    beats = [
        Beat(workspace_id=name, boot_id=name, active_tasks=number, whole=number % 2 == 0)
        for number, name in enumerate(names)
    ]
    assert set(await store.beat(beats, now=9.0)) == set(names)
    last = await store.workspace(names[-1])
    assert last is not None
    assert (last.active_tasks, last.beat_at) == (1_199, 9.0)


async def test_a_beat_counts_only_with_its_workspaces_own_token(store: Store) -> None:
    await online(store)
    await online(store, "v", boot="c1")
    await store.add_token("own", role=Role.WORKSPACE, workspace_id="w")
    await store.add_token("other", role=Role.WORKSPACE, workspace_id="v")
    await store.add_token("caller", role=Role.CALLER, workspace_id="w")
    for bearer, counts in (("own", True), ("other", False), ("caller", False), ("none", False)):
        beat = Beat(workspace_id="w", boot_id="b1", active_tasks=2, bearer=bearer)
        assert ("w" in await store.beat([beat], now=9.0)) is counts


async def test_a_beat_that_says_less_leaves_the_rest_as_it_was(store: Store) -> None:
    await online(store)
    whole = {"state": "serving", "capabilities": {"retry": True}, "metadata": {"a": 1, "b": 2}}
    await store.beat(
        [Beat(workspace_id="w", boot_id="b1", active_tasks=0, degraded=True, report=json.dumps(whole))]
    )
    await store.beat(
        [
            Beat(
                workspace_id="w",
                boot_id="b1",
                active_tasks=1,
                degraded=None,
                report='{"state": "draining", "metadata": {"a": 3}}',
                whole=False,
            )
        ]
    )
    workspace = await store.workspace("w")
    assert workspace is not None
    assert workspace.status is Status.DEGRADED
    kept = {"state": "draining", "capabilities": {"retry": True}, "metadata": {"a": 3}}
    assert workspace.report == kept, "a member is said whole, or not at all"
    await store.set_status("w", Status.OFFLINE, were=[Status.DEGRADED])
    await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=1, degraded=None)])
    workspace = await store.workspace("w")
    assert workspace is not None
    assert workspace.status is Status.ONLINE


@pytest.mark.parametrize("status", [Status.OFFLINE, Status.PROVISIONING, Status.FAILED, Status.DEGRADED])
async def test_a_beat_brings_a_workspace_back(store: Store, status: Status) -> None:
    await online(store)
    await store.set_status("w", status, were=[Status.ONLINE])
    assert "w" in await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=0)], now=9.0)
    workspace = await store.workspace("w")
    assert workspace is not None
    assert workspace.status is Status.ONLINE


async def test_what_has_not_beaten_for_long_is_offline_unless_it_restarts_or_is_paused(store: Store) -> None:
    for name in ("silent", "beating", "restarts", "paused"):
        await online(store, name)
    await store.create_workspace("new", now=0.0)
    await store.create_workspace("stranger", now=0.0)
    await store.register("stranger", url="http://w", boot_id=None, now=0.0)
    await store.set_restarting("restarts", True)
    await store.set_status("paused", Status.PAUSED, were={Status.ONLINE})
    await store.beat([Beat(workspace_id="beating", boot_id="b1", active_tasks=0)], now=10.0)
    assert await store.fell_silent(30.0, now=29.0) == []
    assert await store.fell_silent(30.0, now=31.0) == ["silent"]
    assert await store.fell_silent(30.0, now=31.0) == []
    found = await store.workspace("silent")
    assert found is not None
    assert found.status is Status.OFFLINE
    await store.beat([Beat(workspace_id="silent", boot_id="b1", active_tasks=0)], now=32.0)
    found = await store.workspace("silent")
    assert found is not None
    assert found.status is Status.ONLINE


async def test_neither_beat_nor_registration_ends_a_pause(store: Store) -> None:
    await online(store)
    await store.set_status("w", Status.PAUSED, were=[Status.ONLINE])
    assert await store.beat([Beat(workspace_id="w", boot_id="b1", active_tasks=0)], now=9.0) == {}
    assert not await store.register("w", url="http://late", boot_id="b2", now=9.0)
    workspace = await store.workspace("w")
    assert workspace is not None
    assert (workspace.status, workspace.url) == (Status.PAUSED, "http://w")


async def test_a_status_changes_only_from_where_it_was_thought_to_be(store: Store) -> None:
    await online(store)
    assert not await store.set_status("w", Status.OFFLINE, were=[Status.DEGRADED])
    assert await store.set_status("w", Status.OFFLINE, were=[Status.DEGRADED, Status.ONLINE])


async def test_a_workspace_that_is_removed_takes_its_tokens_and_messages_with_it(store: Store) -> None:
    await online(store)
    (item_id,) = await sent(store, "a")
    await store.add_token("digest", role=Role.WORKSPACE, workspace_id="w", label="l", now=1.0)
    await store.add_token("admin", role=Role.OPERATOR, now=1.0)
    assert await store.set_status("w", Status.REMOVED, were=list(Status))
    assert not await store.tokens(["digest"])
    assert await state(store, item_id) is State.DROPPED
    assert await store.workspaces() == []
    with pytest.raises(UnknownWorkspace):
        await store.register("w", url="http://w", boot_id="b9", now=9.0)
    assert await store.create_workspace("w", now=10.0)
    assert await store.register("w", url="http://w", boot_id="b1", now=11.0)


async def test_what_is_sent_to_a_workspace_made_anew_is_not_what_was_sent_to_the_former(store: Store) -> None:
    await online(store)
    (done, dropped) = await sent(store, "a", "b")
    (lease,) = await store.claim("w", "p", most=1, now=20.0)
    assert await settle(store, lease, DONE, answer=ANSWER)
    for _ in range(2):
        assert await store.set_status("w", Status.REMOVED, were=list(Status))
        await online(store)
        again = await store.enqueue(message("a"), now=40.0)
        assert not again.joined
        assert (await store.enqueue(message("a"), now=41.0)).joined
        assert [held.id for held in await store.claim("w", "p", now=42.0)] == [again.id]
    former = await store.item(done)
    assert former is not None
    assert former.answer == ANSWER
    assert await state(store, dropped) is State.DROPPED


async def test_a_token_is_known_by_its_digest_until_it_is_revoked(store: Store) -> None:
    await store.add_token("digest", role=Role.WORKSPACE, workspace_id="w", label="laptop", now=1.0)
    await store.add_token("admin", role=Role.OPERATOR, now=2.0)
    known = await store.tokens(["digest", "unknown"])
    assert set(known) == {"digest"}
    token = known["digest"]
    assert await store.tokens_of("w") == [token]
    assert [t.digest for t in await store.tokens_of(None)] == ["admin"]
    assert token.role is Role.WORKSPACE
    assert (token.workspace_id, token.label, token.created_at) == ("w", "laptop", 1.0)
    assert await store.revoke_token("digest")
    assert not await store.revoke_token("digest")
    assert not await store.tokens(["digest"])


# --- telling ------------------------------------------------------------------------------


async def test_who_listens_hears_of_what_is_due_and_what_ended(place: Place) -> None:
    async with place.open() as store:
        due: list[str] = []
        ended: list[int] = []
        store.on_due, store.on_ended = due.append, ended.append
        await online(store)
        with anyio.fail_after(10):
            while not due:
                await anyio.sleep(0.005)
        due.clear()
        await sent(store, "a")
        (lease,) = await store.claim("w", "owner", now=20.0)
        await settle(store, lease, DONE, answer=ANSWER)
        with anyio.fail_after(10):
            while not (due and ended):
                await anyio.sleep(0.005)
    assert (set(due), ended) == ({"w"}, [lease.id])


async def test_what_holds_of_a_short_queue_holds_while_there_is_plenty_of_room(place: Place) -> None:
    async with place.open(replace(RULES, depth_cap=1000)) as store:
        await online(store)
        first, second = await sent(
            store, "a", "b", expires_in=60.0, priority=70, headers={"traceparent": "00-1"}
        )
        assert (await store.enqueue(message("b"), now=12.0)).id == second
        with pytest.raises(ContentConflict):
            await store.enqueue(message("b", content_hash="other"), now=12.0)
        with pytest.raises(UnknownWorkspace):
            await store.enqueue(message("b", workspace_id="nobody"), now=12.0)
        assert [item.expires_at for item in await store.items("w")] == [70.0, 71.0]
        leases = await store.claim("w", "owner", now=20.0)
        assert [(lease.id, lease.headers) for lease in leases] == [
            (first, {"traceparent": "00-1"}),
            (second, {"traceparent": "00-1"}),
        ]


async def test_what_dead_holders_left_is_taken_over_first_in_order_first(store: Store) -> None:
    await online(store, max_concurrent=3)
    for key, priority in (("c", 10), ("b", 50), ("a", 90)):
        await store.enqueue(message(key, priority=priority), now=10.0)
    assert len(await store.claim("w", "dead", now=20.0)) == 3
    assert [lease.turn_key for lease in await store.claim("w", "p", most=2, now=60.0)] == ["a", "b"]
    assert [lease.turn_key for lease in await store.claim("w", "p", most=2, now=60.0)] == ["c"]


async def test_workspaces_are_listed_by_id_in_pages(store: Store) -> None:
    for name in ("b", "a", "c"):
        await store.create_workspace(name)
    assert [one.id for one in await store.workspaces(most=2)] == ["a", "b"]
    assert [one.id for one in await store.workspaces(after="b")] == ["c"]


async def test_a_card_can_be_replaced_and_nothing_else_changes(store: Store) -> None:
    await online(store)
    before = await store.workspace("w")
    assert before is not None
    assert await store.set_card("w", {"name": "other"})
    assert await store.workspace("w") == replace(before, card={"name": "other"})
    assert not await store.set_card("nobody", {})


async def test_what_an_operator_said_of_a_workspace_can_be_changed_and_nothing_else_does(
    store: Store,
) -> None:
    await online(store)
    before = await store.workspace("w")
    assert before is not None
    assert await store.change_workspace("w", max_concurrent=3)
    assert await store.change_workspace("w", spec={"image": "two"})
    assert await store.change_workspace("w", provisioner="docker")
    changed = replace(before, max_concurrent=3, provisioner="docker", spec={"image": "two"})
    assert await store.workspace("w") == changed
    assert not await store.change_workspace("nobody", max_concurrent=2)
    await store.set_status("w", Status.REMOVED, were=frozenset(Status))
    assert not await store.change_workspace("w", spec={})


async def test_workspaces_and_what_waits_is_counted(store: Store) -> None:
    await online(store)
    await online(store, "v", boot="c1")
    await store.create_workspace("u")
    await store.set_status("u", Status.REMOVED, were=[Status.PROVISIONING])
    await sent(store, "a", "b", "c")
    (lease, *_) = await store.claim("w", "o", most=1, now=20.0)
    delayed = Verdict(state=State.DELAYED, because="later", wait=9.0, strike=True)
    await settle(store, lease, delayed, now=20.0)
    await store.claim("w", "o", most=1, now=20.0)

    counts = await store.counts()
    assert counts.workspaces == {Status.ONLINE: 2}
    assert counts.items == {State.QUEUED: 1, State.DELAYED: 1, State.LEASED: 1, State.FAILED: 0}


async def test_dead_letters_of_all_workspaces_are_listed_and_counted(store: Store) -> None:
    given_up = Verdict(state=State.FAILED, because="in vain", strike=True)
    for name in ("w", "v"):
        await online(store, name, boot=f"{name}1")
        await store.enqueue(Message(workspace_id=name, turn_key="k", content_hash="h", body=b"{}"), now=10.0)
        (lease,) = await store.claim(name, "o", now=20.0)
        assert await settle(store, lease, given_up, now=20.0)
    letters = await store.dead_letters()
    assert [(item.workspace_id, item.last_error) for item in letters] == [("w", "in vain"), ("v", "in vain")]
    assert await store.dead_letters(most=1) == letters[:1]
    assert await store.dead_letters(after=letters[0].id) == letters[1:]
    assert (await store.counts()).items[State.FAILED] == 2
    assert await store.replay(letters[0].id, now=30.0)
    assert await store.dead_letters() == letters[1:]


async def test_what_a_dead_holder_left_for_a_workspace_that_is_gone_is_stranded(store: Store) -> None:
    await online(store)
    await sent(store, "a", "b")
    first, second = await store.claim("w", "p", now=20.0)
    assert await store.set_status("w", Status.OFFLINE, were=set(Status))
    assert await store.renew([second], now=30.0)
    (stranded,) = await store.stranded(now=20.0 + RULES.lease)
    assert (stranded.waiting, stranded.oldest) == (1, 10.0)
    assert await store.renew([first], now=30.0)
    assert await store.stranded(now=20.0 + RULES.lease) == []


async def test_nothing_is_replayed_to_a_workspace_that_was_removed(store: Store) -> None:
    await online(store)
    (item_id,) = await sent(store, "a")
    assert await store.drop(item_id, "a test")
    assert await store.set_status("w", Status.REMOVED, were=set(Status))
    assert not await store.replay(item_id)
    assert await state(store, item_id) is State.DROPPED


async def test_a_clock_set_back_puts_nothing_off_for_longer_than_anything_ever_is(store: Store) -> None:
    await online(store)
    await sent(store, "a", "b")
    first, second = await store.claim("w", "p", now=10_000.0)
    assert await settle(store, first, LATER, now=10_000.0)
    back = 10_000.0 - 7200.0
    assert await store.renew([second], now=back) == {second.id}
    assert await store.promote(now=back) == 1
    assert await state(store, first.id) is State.QUEUED
    left = await store.claim("w", "q", now=back + RULES.lease)
    assert {lease.id for lease in left} == {first.id, second.id}


async def test_the_longest_delay_is_waited_for(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "p", now=20.0)
    assert await settle(store, lease, replace(LATER, wait=RULES.longest_wait), now=20.0)
    assert await store.promote(now=20.0) == 0
    assert await store.promote(now=20.0 + RULES.longest_wait) == 1


async def test_no_more_lives_are_remembered_than_can_come_late(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_workspaces, postgres_workspaces):
        monkeypatch.setattr(module, "LIVES", 3)
    assert await store.create_workspace("w", now=0.0)
    for number in range(6):
        assert await store.register("w", url="http://w", boot_id=f"b{number}", now=float(number))
    for late in ("b3", "b4"):
        assert not await store.register("w", url="http://w", boot_id=late, now=10.0)
    # A clock that was set back forgets neither who is there nor, at once, who was.
    assert await store.register("w", url="http://w", boot_id="b6", now=1.0)
    assert await store.register("w", url="http://w", boot_id="b6", now=2.0)
    assert not await store.register("w", url="http://w", boot_id="b5", now=3.0)


async def test_a_store_of_the_first_schema_is_brought_up_to_date_with_what_it_holds(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        for module in (sqlite_schema, postgres_schema):
            before.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
        async with place.open() as store:
            await online(store)
            (item_id,) = await sent(store, "a")
            await store.add_token("d", role=Role.WORKSPACE, workspace_id="w", now=1.0)
    async with place.open() as store:
        assert [token.digest for token in await store.tokens_of("w")] == ["d"]
        assert await store.tokens_of(None) == []
        assert [lease.id for lease in await store.claim("w", "p", now=20.0)] == [item_id]
    async with place.open() as store:
        assert await state(store, item_id) is State.LEASED


async def test_a_lease_of_another_attempt_or_owner_is_not_renewed(store: Store) -> None:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "p", now=20.0)
    for other in (lease._replace(attempt=lease.attempt + 1), lease._replace(owner="q")):
        assert await store.renew([other], now=30.0) == set()
        assert not await store.say(other, [b"late"], None)
        assert not await settle(store, other, DONE)
    (again,) = await store.claim("w", "q", now=20.0 + RULES.lease)
    assert (again.id, again.attempt) == (lease.id, 2)


async def test_the_longest_of_what_a_busy_workspace_asks_for_counts(store: Store) -> None:
    await online(store)
    await sent(store, "a", "b")
    first, second = await store.claim("w", "p", now=20.0)
    assert await settle(store, first, replace(BUSY, wait=50.0), now=30.0)
    assert await settle(store, second, BUSY, now=30.0)
    assert await store.claim("w", "p", now=79.0) == []
    assert len(await store.claim("w", "p", now=80.0)) == 2
