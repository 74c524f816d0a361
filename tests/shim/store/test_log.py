"""Activity and delegations, tried on each store."""

from __future__ import annotations

import anyio
import pytest

from tests.shim.store.conftest import RULES
from tests.shim.store.test_contract import ANSWER, DEAD, DONE, online, sent, settle
from workspace_adapter.errors import UnknownWorkspace
from workspace_adapter.shim.store.contract import Status, Store

pytestmark = pytest.mark.anyio

AFTER_ALL = 1000.0 + RULES.retention


async def logged(store: Store, *types: str, workspace_id: str = "w", now: float = 10.0) -> list[int]:
    return [
        await store.log(workspace_id, kind, {"summary": kind}, now=now + n) for n, kind in enumerate(types)
    ]


async def test_activity_is_read_from_either_end(store: Store) -> None:
    await online(store)
    await online(store, "v")
    seqs = await logged(store, "a", "b", "a", "c")
    await logged(store, "a", workspace_id="v")
    assert seqs == sorted(set(seqs))

    async def read(**asked: object) -> list[int]:
        return [one.seq for one in await store.activity("w", **asked)]  # type: ignore[arg-type]

    assert await read() == seqs[::-1]
    assert await read(most=2) == [seqs[3], seqs[2]]
    assert await read(after=seqs[0]) == seqs[1:]
    assert await read(after=seqs[0], most=1) == [seqs[1]]
    assert await read(activity_type="a") == [seqs[2], seqs[0]]
    assert await read(since=12.0) == [seqs[3], seqs[2]]
    assert await read(before=12.0) == [seqs[1], seqs[0]]
    (latest,) = await store.activity("w", most=1)
    assert (latest.workspace_id, latest.activity_type, latest.created_at) == ("w", "c", 13.0)
    assert latest.entry == {"summary": "c"}


async def test_activity_tells_what_an_agent_did_from_what_a_person_did(store: Store) -> None:
    await online(store)
    own = await store.log("w", "a2a_receive", {"source_id": None})
    peers = await store.log("w", "a2a_receive", {"source_id": "v", "text": "\0"})
    assert [one.seq for one in await store.activity("w", by_agent=True)] == [peers]
    assert [one.seq for one in await store.activity("w", by_agent=False)] == [own]


async def test_no_number_comes_late_to_whoever_follows(store: Store) -> None:
    await online(store)
    seen: list[int] = []

    async def write() -> None:
        for _ in range(15):
            await logged(store, "a")

    async with anyio.create_task_group() as tasks, anyio.create_task_group() as writers:
        for _ in range(8):
            writers.start_soon(write)

        async def follow() -> None:
            with anyio.fail_after(30):
                while len(seen) < 120:
                    seen.extend(
                        one.seq for one in await store.activity("w", after=seen[-1] if seen else 0, most=7)
                    )

        tasks.start_soon(follow)
    assert seen == sorted(one.seq for one in await store.activity("w", most=500))


async def test_nothing_is_logged_for_a_workspace_that_is_not_there(store: Store) -> None:
    with pytest.raises(UnknownWorkspace):
        await logged(store, "a", workspace_id="nobody")


async def test_a_workspace_that_was_removed_leaves_what_it_reported(store: Store) -> None:
    await online(store)
    (seq,) = await logged(store, "a")
    await store.delegate("d", source_id="w", target_id="v", task="t")
    assert await store.set_status("w", Status.REMOVED, were=list(Status))
    assert [one.seq for one in await store.activity("w")] == [seq]
    assert [one.id for one in await store.delegations("w")] == ["d"]
    with pytest.raises(UnknownWorkspace):
        await logged(store, "b")


async def test_what_was_read_is_never_taken_back(store: Store) -> None:
    await online(store)
    assert await store.acknowledge("w", 7) == 7
    assert await store.acknowledge("w", 3) == 7
    assert await store.acknowledge("w", 9) == 9
    assert await store.acknowledge("v", 1) == 1


async def test_activity_is_kept_for_the_retention(store: Store) -> None:
    await online(store)
    _, young = await logged(store, "a", "b")
    await store.forget(now=10.5 + RULES.retention)
    assert [one.seq for one in await store.activity("w")] == [young]


async def test_a_delegation_is_kept_once(store: Store) -> None:
    given, new = await store.delegate("d", source_id="v", target_id="w", task="t", item_id=5, now=10.0)
    assert new
    assert (given.id, given.source_id, given.target_id, given.task) == ("d", "v", "w", "t")
    assert (given.item_id, given.created_at, given.updated_at, given.status) == (5, 10.0, 10.0, None)
    again, new = await store.delegate("d", source_id="v", target_id="x", task="u", now=11.0)
    assert (again, new) == (given, False)
    await store.delegate("e", source_id="v", target_id="w", task="t", now=11.0)
    assert [one.id for one in await store.delegations("v")] == ["e", "d"]
    assert [one.id for one in await store.delegations("v", most=1)] == ["e"]
    assert await store.delegations("w") == []


async def test_only_its_source_says_how_a_delegation_without_an_item_ended(store: Store) -> None:
    await store.delegate("d", source_id="v", target_id="w", task="t", status="dispatched", now=10.0)
    await store.delegate("queued", source_id="v", target_id="w", task="t", item_id=5, now=10.0)
    assert not await store.report_delegation("d", "w", "completed")
    assert not await store.report_delegation("queued", "v", "completed")
    assert not await store.report_delegation("nothing", "v", "completed")
    assert await store.report_delegation("d", "v", "failed", error="no", response_preview="p", now=20.0)
    (told,) = [one for one in await store.delegations("v") if one.id == "d"]
    assert (told.status, told.error, told.response_preview, told.updated_at) == ("failed", "no", "p", 20.0)


async def test_what_became_of_a_delegation_is_told_once_for_each_try(store: Store) -> None:
    await online(store)
    await online(store, "v")
    dead, done, waits = await sent(store, "a", "b", "c")
    for name, item_id in (("dead", dead), ("done", done), ("waits", waits), ("own", None)):
        await store.delegate(name, source_id="v", target_id="w", task="t", item_id=item_id, now=10.0)
    assert await store.untold("v") == []
    first, second, _ = await store.claim("w", "p", now=20.0)
    assert await settle(store, second, DONE, now=30.0, answer=ANSWER)
    assert await settle(store, first, DEAD, now=31.0)
    assert await store.report_delegation("own", "v", "completed", now=32.0)
    assert [one.id for one in await store.untold("v")] == ["done", "dead", "own"]
    for name in ("done", "dead", "own"):
        assert await store.tell(name, "delegation", {"delegation_id": name}, now=40.0)
        assert not await store.tell(name, "delegation", {"delegation_id": name}, now=40.0)
    assert await store.untold("v") == []
    told = await store.activity("v", after=0)
    assert [one.entry["delegation_id"] for one in told] == ["done", "dead", "own"]
    assert {one.activity_type for one in told} == {"delegation"}
    assert await store.replay(dead, now=50.0)
    assert await store.untold("v") == []
    (again,) = [lease for lease in await store.claim("w", "p", now=51.0) if lease.id == dead]
    assert await settle(store, again, DONE, now=52.0, answer=ANSWER)
    assert [one.id for one in await store.untold("v")] == ["dead"]


async def test_a_delegation_is_kept_as_long_as_its_item(store: Store) -> None:
    await online(store)
    done, _ = await sent(store, "a", "b")
    live = (await sent(store, "c"))[0]
    for name, item_id in (("done", done), ("live", live), ("own", None)):
        await store.delegate(name, source_id="v", target_id="w", task="t", item_id=item_id, now=10.0)
    await store.report_delegation("own", "v", "completed", now=500.0)
    (lease,) = await store.claim("w", "p", most=1, now=20.0)
    assert await settle(store, lease, DONE, now=600.0, answer=ANSWER)
    await store.forget(now=400.0 + RULES.retention)
    assert {one.id for one in await store.delegations("v")} == {"done", "live", "own"}
    await store.forget(now=550.0 + RULES.retention)
    assert {one.id for one in await store.delegations("v")} == {"done", "live"}
    await store.forget(now=AFTER_ALL)
    assert {one.id for one in await store.delegations("v")} == {"live"}
