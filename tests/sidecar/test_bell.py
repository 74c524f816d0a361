"""The bell wakes who listens, and forgets who left."""

from __future__ import annotations

import anyio

from workspace_adapter.sidecar.bell import Bell


async def test_everyone_who_listens_is_woken_once() -> None:
    bell = Bell()
    first, second = bell.listen("t"), bell.listen("t")
    bell.ring("another")
    assert not first.is_set()
    bell.ring("t")
    with anyio.fail_after(1):
        await first.wait()
        await second.wait()
    assert not bell.listen("t").is_set()


async def test_nothing_is_kept_for_those_who_left() -> None:
    bell = Bell()
    listening = bell.listen("t")
    assert bell.heard("t")
    del listening
    assert not bell.heard("t")
    bell.ring("t")
