"""One replica of the shim as far as it dispatches: a store, a dispatcher, a sweep."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from tests.shim.conftest import RULES
from tests.shim.scripted import envelope
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.dispatcher import Dispatcher
from workspace_adapter.shim.ranges import parse_ranges
from workspace_adapter.shim.store.contract import Item, Message
from workspace_adapter.shim.store.sqlite import SqliteStore
from workspace_adapter.shim.sweeper import Sweeper
from workspace_adapter.shim.upstream import Upstream


class Platform:
    """A dispatcher with a sweep, as one replica has them."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.suspected: list[str] = []
        self._numbers = itertools.count(1)
        self._looks = 0

    @asynccontextmanager
    async def running(
        self,
        *,
        deadline: float = 5.0,
        dispatches: int = 1000,
        owner: str = "life-1",
        sweep: float = 0.05,
        addresses: Addresses | None = None,
    ) -> AsyncIterator[Dispatcher]:
        reached = addresses or Addresses(parse_ranges("loopback"))
        async with (
            Upstream(reached, connect_timeout=2.0, deadline=deadline) as upstream,
            anyio.create_task_group() as tasks,
        ):
            dispatcher = Dispatcher(
                self.store,
                upstream,
                owner=owner,
                rules=RULES,
                dispatches=dispatches,
                suspect=self.suspected.append,
            )
            self.store.on_due = dispatcher.ring
            sweeper = Sweeper(self.store, ring=dispatcher.ring, stranded=self._look, interval=sweep)
            tasks.start_soon(dispatcher.run)
            tasks.start_soon(sweeper.run)
            try:
                yield dispatcher
            finally:
                tasks.cancel_scope.cancel()

    async def _look(self) -> None:
        self._looks += 1

    async def sweeps(self) -> None:
        """Wait until the queue was looked through several times: what could be sent was."""
        looks = self._looks
        with anyio.fail_after(10):
            while self._looks < looks + 2:
                await anyio.sleep(0.01)

    async def workspace(self, name: str, url: str, *, most: int = 1) -> None:
        await self.store.create_workspace(name, max_concurrent=most)
        await self.store.register(name, url=url, boot_id=f"{name}-boot")

    async def send(self, name: str, text: str, *, method: str = "message/send", **more: object) -> int:
        number = next(self._numbers)
        body = envelope(text, message_id=f"m-{number}", method=method)
        message = Message(
            workspace_id=name,
            turn_key=f"k-{number}",
            content_hash=text,
            body=body,
            method=method,
            **more,  # type: ignore[arg-type]
        )
        return (await self.store.enqueue(message)).id

    async def item(self, item_id: int) -> Item:
        item = await self.store.item(item_id)
        assert item is not None
        return item

    async def ended(self, item_id: int, *, within: float = 10.0) -> Item:
        return await self.when(item_id, lambda item: item.ended_at is not None, within=within)

    async def when(self, item_id: int, what: Callable[[Item], object], *, within: float = 10.0) -> Item:
        with anyio.fail_after(within):
            while not what(item := await self.item(item_id)):
                await anyio.sleep(0.005)
        return item


def answer_of(item: Item) -> str:
    assert item.answer is not None
    text: str = json.loads(item.answer.body)["result"]["parts"][0]["text"]
    return text
