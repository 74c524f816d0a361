"""The dispatcher with a real store and workspaces made of sockets."""

from __future__ import annotations

import errno
import itertools
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from io import StringIO

import anyio
import pytest

from tests.shim.conftest import RULES
from tests.shim.replica import Platform, answer_of
from tests.shim.scripted import Exchange, Script, Scripted, envelope, scripted, until
from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.queueing import State, Verdict
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.ranges import parse_ranges
from workspace_adapter.shim.store.contract import Beat, Lease, Message, Settlement, Status
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


async def echo(exchange: Exchange) -> None:
    await exchange.result(exchange.request.text)


async def busy(exchange: Exchange) -> None:
    await exchange.answer(503, {"error": "full", "busy": True}, retry_after="0.3")


async def hang(exchange: Exchange) -> None:
    await exchange.gone()


@pytest.fixture
def platform(sqlite: SqliteStore) -> Platform:
    return Platform(sqlite)


@pytest.fixture
async def make() -> AsyncIterator[Callable[[Script], Awaitable[Scripted]]]:
    async with AsyncExitStack() as stack:

        async def make(script: Script) -> Scripted:
            return await stack.enter_async_context(scripted(script))

        yield make


Make = Callable[[Script], Awaitable[Scripted]]


# --- the ordinary way -------------------------------------------------------------------


async def test_a_message_is_sent_and_its_answer_is_stored(platform: Platform, make: Make) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    async with platform.running(sweep=60.0):
        item = await platform.ended(await platform.send("w", "hello"))
    assert (item.state, item.attempt, answer_of(item)) == (State.COMPLETED, 1, "hello")


async def test_a_settlement_makes_room_for_the_next_without_a_sweep(platform: Platform, make: Make) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    ids = [await platform.send("w", str(number)) for number in range(20)]
    async with platform.running(sweep=60.0) as dispatcher:
        dispatcher.ring("w")
        items = [await platform.ended(item_id) for item_id in ids]
    assert workspace.texts == [str(number) for number in range(20)]
    assert workspace.most == 1
    assert all(item.attempt == 1 for item in items)


async def test_defect_8_messages_for_one_workspace_run_in_parallel_up_to_what_it_can_do(
    platform: Platform, make: Make
) -> None:
    gate = anyio.Event()

    async def slow(exchange: Exchange) -> None:
        await gate.wait()
        await echo(exchange)

    workspace = await make(slow)
    await platform.workspace("w", workspace.url, most=3)
    ids = [await platform.send("w", str(number)) for number in range(5)]
    async with platform.running():
        await until(lambda: workspace.running == 3)
        await platform.sweeps()
        assert workspace.running == 3
        gate.set()
        for item_id in ids:
            await platform.ended(item_id)
    assert workspace.most == 3


async def test_one_session_is_sent_one_after_the_other_in_order(platform: Platform, make: Make) -> None:
    async def slow(exchange: Exchange) -> None:
        await anyio.sleep(0.02)
        await echo(exchange)

    workspace = await make(slow)
    await platform.workspace("w", workspace.url, most=3)
    ids = [await platform.send("w", str(number), context_id="one") for number in range(6)]
    async with platform.running():
        for item_id in ids:
            await platform.ended(item_id)
    assert workspace.texts == [str(number) for number in range(6)]
    assert workspace.most == 1


async def test_defect_7_a_workspace_that_hangs_delays_no_other(platform: Platform, make: Make) -> None:
    stuck, quick = await make(hang), await make(echo)
    await platform.workspace("stuck", stuck.url, most=4)
    await platform.workspace("quick", quick.url)
    async with platform.running(deadline=60.0):
        for number in range(4):
            await platform.send("stuck", str(number))
        await until(lambda: stuck.running == 4)
        with anyio.fail_after(5):
            for number in range(10):
                await platform.ended(await platform.send("quick", str(number)))
        assert stuck.running == 4


async def test_defect_7_nothing_new_goes_to_a_workspace_that_says_it_is_at_work(
    platform: Platform, make: Make
) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url, most=2)
    await platform.store.beat([Beat(workspace_id="w", boot_id="w-boot", active_tasks=2)])
    async with platform.running():
        item_id = await platform.send("w", "later")
        await platform.sweeps()
        assert workspace.requests == []
        await platform.store.beat([Beat(workspace_id="w", boot_id="w-boot", active_tasks=0)])
        assert (await platform.ended(item_id)).attempt == 1


async def test_as_many_workspaces_as_may_be_dispatched_to_leave_room_for_the_next(
    platform: Platform, make: Make
) -> None:
    greedy, other = await make(hang), await make(echo)
    await platform.workspace("greedy", greedy.url, most=50)
    await platform.workspace("other", other.url)
    async with platform.running(dispatches=10, deadline=60.0) as dispatcher:
        for number in range(30):
            await platform.send("greedy", str(number))
        await until(lambda: greedy.running >= 5)
        await platform.sweeps()
        assert greedy.running == 5
        for number in range(5):
            await platform.ended(await platform.send("other", str(number)))
        assert len(dispatcher) <= 10


# --- busy, and what else is no answer -----------------------------------------------------


async def test_defect_1_a_message_that_meets_a_busy_workspace_stays_the_same_item_until_it_is_answered(
    platform: Platform, make: Make
) -> None:
    workspace = await make(busy)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        item = await platform.when(item_id, lambda item: item.state is State.QUEUED and item.attempt)
        assert (item.strikes, item.last_error) == (0, "the workspace is busy")
        workspace.script = echo
        item = await platform.ended(item_id)
    assert (item.state, answer_of(item), item.strikes) == (State.COMPLETED, "hello", 0)
    assert len(await platform.store.items("w")) == 1


async def test_review_the_first_busy_answer_ends_the_batch_until_the_time_it_named(
    platform: Platform, make: Make
) -> None:
    workspace = await make(busy)
    await platform.workspace("w", workspace.url, most=2)
    ids = [await platform.send("w", str(number)) for number in range(6)]
    async with platform.running():
        await until(lambda: len(workspace.requests) == 2)
        began = anyio.current_time()
        await until(lambda: len(workspace.requests) > 2)
        assert anyio.current_time() - began > 0.2  # it asked for 0.3 s
        workspace.script = echo
        for item_id in ids:
            await platform.ended(item_id)


async def test_a_beat_that_shows_room_ends_the_wait_after_a_busy_answer(
    platform: Platform, make: Make
) -> None:
    async def long_busy(exchange: Exchange) -> None:
        await exchange.answer(429, {"error": "full"}, retry_after="60")

    workspace = await make(long_busy)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await platform.when(item_id, lambda item: item.state is State.QUEUED and item.attempt)
        workspace.script = echo
        await platform.store.beat([Beat(workspace_id="w", boot_id="w-boot", active_tasks=0)])
        await platform.ended(item_id)


async def accepted(exchange: Exchange) -> None:
    await exchange.answer(202, {"queued": True})


async def empty(exchange: Exchange) -> None:
    await exchange.answer(200)


async def html(exchange: Exchange) -> None:
    await exchange.answer(200, b"<html>welcome</html>")


async def moved(exchange: Exchange) -> None:
    await exchange.answer(302, location="http://127.0.0.1:1/")


async def gateway(exchange: Exchange) -> None:
    await exchange.answer(502, b"<html>bad gateway</html>")


async def reset(exchange: Exchange) -> None:
    exchange.reset()


@pytest.mark.parametrize(
    ("script", "because"),
    [
        pytest.param(accepted, "202 without an answer", id="defect-2-a-202-is-no-answer"),
        pytest.param(html, "200 without an answer that can be read", id="defect-4-nor-is-what-is-no-json"),
        pytest.param(empty, "200 without an answer that can be read", id="nor-is-nothing"),
        pytest.param(moved, "answered 302", id="nor-is-a-redirect"),
        pytest.param(gateway, "answered 502", id="nor-is-a-gateway's-error"),
        pytest.param(reset, "the connection broke before the answer", id="nor-is-a-cut-connection"),
    ],
)
async def test_what_is_no_answer_is_tried_again_until_there_is_one(
    platform: Platform, make: Make, script: Script, because: str
) -> None:
    workspace = await make(script)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        item = await platform.when(item_id, lambda item: item.strikes == 1)
        assert item.last_error is not None
        assert item.last_error.startswith(because)
        workspace.script = echo
        item = await platform.ended(item_id)
    assert (item.state, answer_of(item)) == (State.COMPLETED, "hello")


async def test_defect_5_failures_back_off_and_become_a_dead_letter_that_says_why(
    platform: Platform, make: Make, logged: StringIO
) -> None:
    times = []

    async def failing(exchange: Exchange) -> None:
        times.append(anyio.current_time())
        await exchange.answer(500, {"error": "broken"})

    workspace = await make(failing)
    await platform.workspace("w", workspace.url, most=5)
    async with platform.running():
        item = await platform.ended(await platform.send("w", "hello"))
    assert (item.state, item.attempt, item.strikes) == (State.FAILED, RULES.strikes, RULES.strikes)
    assert item.last_error == "answered 500; 3 failures, given up"
    assert item.answer is not None
    assert item.answer.status == 500
    assert all(later - earlier >= RULES.backoff / 2 for earlier, later in itertools.pairwise(times))
    assert "is a dead letter: answered 500; 3 failures, given up" in logged.getvalue()


async def test_a_refusal_that_repetition_cannot_mend_is_the_answer(platform: Platform, make: Make) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(413, {"error": "too large"})

    workspace = await make(refuse)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item = await platform.ended(await platform.send("w", "hello"))
    assert item.state is State.COMPLETED
    assert item.answer is not None
    assert (item.answer.status, json.loads(item.answer.body)) == (413, {"error": "too large"})


async def test_review_a_dispatch_has_a_deadline_after_which_the_message_is_asked_for_again(
    platform: Platform, make: Make
) -> None:
    workspace = await make(hang)
    await platform.workspace("w", workspace.url)
    async with platform.running(deadline=0.2):
        item_id = await platform.send("w", "hello", expires_in=0.5)
        item = await platform.when(item_id, lambda item: item.strikes == 1)
        assert item.last_error == "no answer before the dispatch's deadline (0.2 s have passed)"
        workspace.script = echo
        item = await platform.ended(item_id)
    assert item.state is State.COMPLETED  # its work may have run: it expires no more


async def test_a_workspace_that_cannot_be_reached_is_suspected(platform: Platform, make: Make) -> None:
    await platform.workspace("w", "http://127.0.0.1:1")
    async with platform.running():
        item_id = await platform.send("w", "hello")
        item = await platform.when(item_id, lambda item: item.last_error)
    assert set(platform.suspected) == {"w"}
    assert (item.state, item.strikes) == (State.QUEUED, 0)  # it saw nothing: nothing is counted
    assert item.last_error is not None
    assert item.last_error.startswith("the workspace could not be reached (ClientConnectorError")


async def test_defect_6_who_waits_for_a_message_is_told_that_it_was_given_up(
    platform: Platform, make: Make
) -> None:
    workspace = await make(accepted)
    await platform.workspace("w", workspace.url)
    ended: list[int] = []
    platform.store.on_ended = ended.append
    async with platform.running():
        item = await platform.ended(await platform.send("w", "hello"))
        assert item.state is State.FAILED
        assert ended == [item.id]
        workspace.script = echo
        assert await platform.store.replay(item.id)
        item = await platform.when(item.id, lambda item: item.state is State.COMPLETED)
    assert answer_of(item) == "hello"


async def test_a_message_that_waited_long_is_not_given_up_at_its_first_failure(
    platform: Platform, make: Make
) -> None:
    workspace = await make(gateway)
    await platform.workspace("w", workspace.url)
    message = Message(workspace_id="w", turn_key="old", content_hash="h", body=envelope("old"))
    item_id = (await platform.store.enqueue(message, now=time.time() - 86400)).id
    async with platform.running():
        await platform.when(item_id, lambda item: item.strikes == 1)
        workspace.script = echo
        assert (await platform.ended(item_id)).state is State.COMPLETED


async def test_defect_10_the_reason_of_a_drop_is_kept(platform: Platform) -> None:
    await platform.workspace("w", "http://127.0.0.1:1")
    item_id = await platform.send("w", "hello")
    assert (await platform.item(item_id)).last_error is None
    assert await platform.store.drop(item_id, "older than an hour")
    assert (await platform.item(item_id)).last_error == "older than an hour"


async def test_a_shim_without_sockets_blames_no_workspace(
    platform: Platform, make: Make, logged: StringIO
) -> None:
    class Starved(Addresses):
        empty = True

        def _socket(self, info: object) -> socket.socket:
            if self.empty:
                raise OSError(errno.EMFILE, "Too many open files")
            return super()._socket(info)

    workspace, addresses = await make(echo), Starved(parse_ranges("loopback"))
    await platform.workspace("w", workspace.url)
    async with platform.running(addresses=addresses):
        item_id = await platform.send("w", "hello")
        item = await platform.when(item_id, lambda item: item.attempt > 2)
        assert (item.strikes, platform.suspected) == (0, [])
        addresses.empty = False
        item = await platform.ended(item_id)
    assert (item.state, item.strikes) == (State.COMPLETED, 0)
    assert logged.getvalue().count("Raise the limit of open files (ulimit -n)") == 1


# --- what rings for nothing -----------------------------------------------------------------


async def test_a_ring_for_nothing_does_nothing(platform: Platform, make: Make) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    async with platform.running(sweep=60.0) as dispatcher:
        for _ in range(1000):
            dispatcher.ring("w")
            dispatcher.ring("nobody")
        await platform.ended(await platform.send("w", "hello"))
    assert len(workspace.requests) == 1


async def test_a_claim_that_fails_is_made_up_for_by_the_sweep(platform: Platform, make: Make) -> None:
    failed: list[str] = []

    class Failing(SqliteStore):
        async def claim(self, workspace_id: str, owner: str, **more: object) -> list[Lease]:
            if len(failed) < 3:
                failed.append(workspace_id)
                raise StoreUnavailable("it is down")
            return await super().claim(workspace_id, owner, **more)  # type: ignore[arg-type]

    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    platform.store.__class__ = Failing
    async with platform.running():
        assert (await platform.ended(await platform.send("w", "hello"))).attempt == 1
    assert failed == ["w", "w", "w"]


# --- restarts -----------------------------------------------------------------------------


async def test_nothing_is_sent_to_a_workspace_that_is_restarting(platform: Platform, make: Make) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    await platform.store.set_restarting("w", True)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await platform.sweeps()
        assert workspace.requests == []
        await platform.store.set_restarting("w", False)
        await platform.ended(item_id)


@pytest.mark.parametrize("script", [reset, gateway])
async def test_what_a_restart_cuts_goes_again_after_it_without_a_strike(
    platform: Platform, make: Make, script: Script
) -> None:
    stop = anyio.Event()

    async def cut(exchange: Exchange) -> None:
        await stop.wait()
        await script(exchange)

    workspace = await make(cut)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await until(lambda: workspace.running)
        await platform.store.set_restarting("w", True)
        stop.set()
        item = await platform.when(item_id, lambda item: item.state is State.QUEUED)
        assert (item.strikes, item.taken) == (0, True)
        workspace.script = echo
        await platform.store.register("w", url=workspace.url, boot_id="next")
        await platform.store.set_restarting("w", False)
        item = await platform.ended(item_id)
    assert (item.state, item.strikes) == (State.COMPLETED, 0)
    assert platform.suspected == []


async def test_a_workspace_that_moved_is_called_where_it_is_now(platform: Platform, make: Make) -> None:
    before, after = await make(reset), await make(echo)
    await platform.workspace("w", before.url)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await platform.when(item_id, lambda item: item.strikes == 1)
        await platform.store.register("w", url=after.url, boot_id="next")
        await platform.ended(item_id)
    assert after.texts == ["hello"]


async def test_what_was_leased_just_before_a_restart_began_is_put_back_unsent(
    platform: Platform, make: Make
) -> None:
    class Between(SqliteStore):
        async def claim(self, workspace_id: str, owner: str, **more: object) -> list[Lease]:
            leases = await super().claim(workspace_id, owner, **more)  # type: ignore[arg-type]
            if leases:
                await self.set_restarting(workspace_id, True)
            return leases

    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    platform.store.__class__ = Between
    async with platform.running():
        item_id = await platform.send("w", "hello")
        item = await platform.when(item_id, lambda item: item.attempt and item.state is State.QUEUED)
    assert workspace.requests == []
    assert (item.strikes, item.taken) == (0, False)


# --- leases -------------------------------------------------------------------------------


async def test_a_dispatch_that_takes_longer_than_a_lease_keeps_it(platform: Platform, make: Make) -> None:
    async def slow(exchange: Exchange) -> None:
        await anyio.sleep(RULES.lease * 1.3)
        await echo(exchange)

    workspace = await make(slow)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item = await platform.ended(await platform.send("w", "hello"))
    assert (item.attempt, item.lapses, len(workspace.requests)) == (1, 0, 1)


async def test_defect_3_what_a_dead_dispatcher_held_is_sent_by_the_next(
    platform: Platform, make: Make
) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    item_id = await platform.send("w", "hello")
    (lease,) = await platform.store.claim("w", "dead")
    async with platform.running():
        item = await platform.ended(item_id)
    assert (item.state, item.attempt) == (State.COMPLETED, 2)
    done = Verdict(state=State.COMPLETED, because="too late")
    assert await platform.store.settle([Settlement(lease=lease, verdict=done)]) == [False]


async def test_an_item_whose_dispatchers_die_one_after_another_is_given_up(
    platform: Platform, make: Make, logged: StringIO
) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    item_id = await platform.send("w", "hello")
    for holder in range(RULES.lapses):
        assert await platform.store.claim("w", f"dead-{holder}", now=time.time() - 1000 + 10 * holder)
    async with platform.running():
        item = await platform.ended(item_id)
    assert (item.state, item.last_error) == (
        State.FAILED,
        "20 dispatchers in a row stopped while they held it, given up",
    )
    assert workspace.requests == []
    assert "is a dead letter: 20 dispatchers" in logged.getvalue()


async def test_a_dispatcher_that_is_stopped_puts_back_what_it_holds(platform: Platform, make: Make) -> None:
    workspace = await make(hang)
    await platform.workspace("w", workspace.url, most=3)
    ids = [await platform.send("w", str(number)) for number in range(3)]
    async with platform.running():
        await until(lambda: workspace.running == 3)
    items = [await platform.item(item_id) for item_id in ids]
    assert [(i.state, i.taken, i.strikes, i.attempt) for i in items] == [(State.QUEUED, True, 0, 1)] * 3
    workspace.script = echo
    async with platform.running(owner="life-2"):
        items = [await platform.ended(item_id) for item_id in ids]
    assert [item.attempt for item in items] == [2, 2, 2]


async def test_what_a_claim_brings_to_a_dispatcher_that_was_stopped_meanwhile_is_put_back(
    platform: Platform, make: Make
) -> None:
    claimed = anyio.Event()

    class Slow(SqliteStore):
        async def claim(self, workspace_id: str, owner: str, **more: object) -> list[Lease]:
            leases = await super().claim(workspace_id, owner, **more)  # type: ignore[arg-type]
            if leases:
                claimed.set()
                await anyio.sleep(0.1)
            return leases

    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    platform.store.__class__ = Slow
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await claimed.wait()
    item = await platform.item(item_id)
    assert (item.state, item.taken, workspace.requests) == (State.QUEUED, False, [])


class Losing(SqliteStore):
    """A store that does not know leases any more when it is asked to."""

    forgotten = False
    settled = 0
    down = False

    async def renew(self, leases: object, **more: object) -> set[int]:
        if self.forgotten:
            return set()
        return await super().renew(leases, **more)  # type: ignore[arg-type]

    async def settle(self, settlements: Sequence[Settlement], **more: object) -> list[bool]:
        self.settled += 1
        if self.down:
            raise StoreUnavailable("it is down")
        return await super().settle(settlements, **more)  # type: ignore[arg-type]


@pytest.fixture
def losing(platform: Platform, sqlite: SqliteStore) -> Losing:
    sqlite.__class__ = Losing
    assert isinstance(sqlite, Losing)
    return sqlite


async def test_a_lost_lease_ends_its_dispatch_and_writes_nothing(
    platform: Platform, make: Make, losing: Losing
) -> None:
    hung_up = anyio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.gone()
        hung_up.set()

    workspace = await make(script)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await until(lambda: workspace.running)
        losing.forgotten = True
        with anyio.fail_after(5):
            await hung_up.wait()
        assert losing.settled == 0
        losing.forgotten = False
        workspace.script = echo
        assert (await platform.ended(item_id)).attempt == 2


async def test_an_answer_is_kept_while_the_store_cannot_be_written(
    platform: Platform, make: Make, losing: Losing
) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    losing.down = True
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await until(lambda: losing.settled >= 2)
        losing.down = False
        item = await platform.ended(item_id)
    assert (item.state, item.attempt, len(workspace.requests)) == (State.COMPLETED, 1, 1)


async def test_a_stopped_dispatcher_still_writes_the_answer_it_has(
    platform: Platform, make: Make, losing: Losing
) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    losing.down = True
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await until(lambda: losing.settled >= 1)
        losing.down = False
    item = await platform.item(item_id)
    assert (item.state, item.attempt) == (State.COMPLETED, 1)


async def test_a_lease_that_lapsed_and_came_back_to_its_own_dispatcher_is_not_sent_twice(
    platform: Platform, make: Make
) -> None:
    go = anyio.Event()

    async def slow(exchange: Exchange) -> None:
        await go.wait()
        await echo(exchange)

    class Forgetful(SqliteStore):
        async def claim(self, workspace_id: str, owner: str, **more: object) -> list[Lease]:
            later = 1e4 if slowed.running else 0.0  # as after an outage longer than a lease
            return await super().claim(workspace_id, owner, now=time.time() + later, **more)  # type: ignore[arg-type]

    slowed = await make(slow)
    await platform.workspace("w", slowed.url)
    platform.store.__class__ = Forgetful
    async with platform.running(sweep=60.0) as dispatcher:
        item_id = await platform.send("w", "hello")
        await until(lambda: slowed.running)
        dispatcher.ring("w")
        await platform.when(item_id, lambda item: item.attempt == 2)
        go.set()
        item = await platform.ended(item_id)
    assert (item.state, item.attempt, len(slowed.requests)) == (State.COMPLETED, 2, 1)


async def test_an_item_leased_again_before_its_settlement_was_heard_of_is_sent_again(
    platform: Platform, make: Make
) -> None:
    async def busy_once(exchange: Exchange) -> None:
        workspace.script = echo
        await exchange.answer(503, {"error": "full", "busy": True}, retry_after="0")

    class Late(SqliteStore):
        async def settle(self, settlements: Sequence[Settlement], **more: object) -> list[bool]:
            settled = await super().settle(settlements, **more)  # type: ignore[arg-type]
            if (lease := settlements[0].lease).attempt == 1:
                await platform.when(lease.id, lambda item: item.attempt == 2)
                await anyio.sleep(0.05)  # for the claim's own answer
            return settled

    workspace = await make(busy_once)
    await platform.workspace("w", workspace.url)
    platform.store.__class__ = Late
    async with platform.running() as dispatcher:
        item = await platform.ended(await platform.send("w", "hello"))
        await until(lambda: len(dispatcher) == 0)
    assert (item.state, item.attempt, item.lapses) == (State.COMPLETED, 2, 0)


# --- streams ------------------------------------------------------------------------------

TASK = {"kind": "task", "id": "t", "contextId": "c", "status": {"state": "working"}}
DONE = {"kind": "status-update", "taskId": "t", "status": {"state": "completed"}, "final": True}


def artifact(text: str) -> dict[str, object]:
    return {"kind": "artifact-update", "taskId": "t", "artifact": {"parts": [{"kind": "text", "text": text}]}}


async def test_a_stream_goes_on_behind_what_was_kept_when_it_broke_off(
    platform: Platform, make: Make
) -> None:
    async def first(exchange: Exchange) -> None:
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "c1")
        await exchange.event(artifact("one"), "c2")
        workspace.script = second
        exchange.close()

    async def second(exchange: Exchange) -> None:
        assert exchange.request.headers["last-event-id"] == "c2"
        await exchange.head(200, content_type="text/event-stream")
        await exchange.event(TASK, "c2")
        await exchange.event(artifact("two"), "c3")
        await exchange.event(DONE, "c4")
        exchange.close()

    workspace = await make(first)
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", "hello", method="message/stream")
        item = await platform.ended(item_id)
    results = [json.loads(event)["result"] for _, event in await platform.store.said(item_id)]
    told = [r["artifact"]["parts"][0]["text"] for r in results if r["kind"] == "artifact-update"]
    assert told == ["one", "two"]
    assert [r["kind"] for r in results].count("task") == 1
    assert item.answer is not None
    assert json.loads(item.answer.body)["result"] == DONE


async def test_nothing_is_sent_to_a_workspace_that_is_offline(platform: Platform, make: Make) -> None:
    workspace = await make(echo)
    await platform.workspace("w", workspace.url)
    await platform.store.set_status("w", Status.OFFLINE, were={Status.ONLINE})
    async with platform.running():
        item_id = await platform.send("w", "hello")
        await platform.sweeps()
        assert workspace.requests == []
        await platform.store.set_status("w", Status.ONLINE, were={Status.OFFLINE})
        await platform.ended(item_id)
