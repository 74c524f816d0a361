"""Streams, kept where any replica can tell them, tried on each store."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from tests.shim.store.conftest import RULES, Place
from tests.shim.store.test_contract import ANSWER, DEAD, DONE, online, sent, settle
from workspace_adapter.shim.store.contract import Lease, Store

pytestmark = pytest.mark.anyio


async def leased(store: Store) -> Lease:
    await online(store)
    await sent(store, "a")
    (lease,) = await store.claim("w", "p", now=20.0)
    return lease


async def test_events_are_kept_in_order_with_their_numbers(store: Store) -> None:
    lease = await leased(store)
    assert lease.cursor is None
    assert await store.said(lease.id) == []
    assert await store.say(lease, [b"one", b"two"], "7.2")
    assert await store.say(lease, [b"three"], None)
    assert await store.said(lease.id) == [(1, b"one"), (2, b"two"), (3, b"three")]
    assert await store.said(lease.id, after=1, most=1) == [(2, b"two")]
    assert await store.said(lease.id, after=3) == []


async def test_whoever_takes_an_item_over_goes_on_behind_what_was_kept(store: Store) -> None:
    lease = await leased(store)
    assert await store.say(lease, [b"one"], "7.1")
    assert await store.say(lease, [b"two"], None)
    (heir,) = await store.claim("w", "q", now=99.0)
    assert heir.cursor == "7.1"
    assert not await store.say(lease, [b"late"], "7.9")
    assert await store.say(heir, [b"three"], "7.3")
    assert [event for _, event in await store.said(lease.id)] == [b"one", b"two", b"three"]


async def test_nothing_is_added_to_a_stream_once_its_item_ended(store: Store) -> None:
    lease = await leased(store)
    assert await store.say(lease, [b"one"], None)
    assert await settle(store, lease, DONE, answer=ANSWER)
    assert not await store.say(lease, [b"late"], None)
    assert await store.said(lease.id) == [(1, b"one")]


async def test_an_item_that_is_tried_anew_begins_its_stream_anew_and_counts_on(store: Store) -> None:
    lease = await leased(store)
    assert await store.say(lease, [b"one", b"gave up"], "7.2")
    assert await settle(store, lease, DEAD)
    assert await store.replay(lease.id, now=40.0)
    assert await store.said(lease.id) == []
    (again,) = await store.claim("w", "p", now=41.0)
    assert again.cursor is None
    assert await store.say(again, [b"once more"], "8.1")
    assert await store.said(lease.id, after=2) == [(3, b"once more")]


async def test_a_stream_goes_with_its_item(store: Store) -> None:
    lease = await leased(store)
    assert await store.say(lease, [b"one"], None)
    assert await settle(store, lease, DONE, answer=ANSWER)
    assert await store.forget(now=31.0 + RULES.retention) == 1
    assert await store.said(lease.id) == []


async def test_a_stream_beyond_its_limit_loses_its_oldest_events_and_shows_it(place: Place) -> None:
    async with place.open(replace(RULES, stream_limit=1000)) as store:
        lease = await leased(store)
        for number in range(100):
            assert await store.say(lease, [bytes([number]) * 100], str(number))
            kept = await store.said(lease.id)
            assert kept[-1] == (number + 1, bytes([number]) * 100)
            assert sum(len(event) for _, event in kept) <= 1000
            assert [n for n, _ in kept] == list(range(number + 2 - len(kept), number + 2))
        assert kept[0][0] == 91
        assert await store.say(lease, [b"x" * 5000], None)  # what is said is never lost on the way
        assert await store.said(lease.id) == [(101, b"x" * 5000)]
        assert await store.say(lease, [b"y"], None)
        assert await store.said(lease.id) == [(102, b"y")]


async def test_who_listens_hears_that_a_stream_has_more(place: Place) -> None:
    async with place.open() as store:
        said: list[int] = []
        store.on_said = said.append
        lease = await leased(store)
        assert await store.say(lease, [b"one"], None)
        with anyio.fail_after(10):
            while not said:
                await anyio.sleep(0.005)
    assert said == [lease.id]
