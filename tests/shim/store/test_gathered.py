"""Requests that travel together."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import pytest

from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.shim.store.postgres.gathered import Gathered

pytestmark = pytest.mark.anyio


async def test_a_bug_in_one_request_leaves_nobody_waiting_for_ever() -> None:
    told: list[str] = []

    async def send(requests: list[int]) -> Sequence[int | Exception]:
        if 0 in requests:
            raise ZeroDivisionError
        return requests

    async def ask(number: int) -> None:
        try:
            told.append(f"{await gathered(number)}")
        except (StoreUnavailable, ZeroDivisionError) as error:
            told.append(type(error).__name__)

    async with anyio.create_task_group() as tasks:
        gathered: Gathered[int, int] = Gathered(send, tasks)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as callers:
                for number in (1, 0, 2):
                    callers.start_soon(ask, number)
            assert sorted(told) == ["StoreUnavailable", "StoreUnavailable", "ZeroDivisionError"]
            await ask(3)
            assert told[-1] == "3"
