"""The door with its dispatcher behind it and a real server before it, as one replica has them."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
from starlette.types import Receive, Scope, Send

from tests.shim.conftest import RULES
from workspace_adapter.port import bind
from workspace_adapter.server import Server
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.app import create_routes, health
from workspace_adapter.shim.dispatcher import Dispatcher
from workspace_adapter.shim.door.door import Door
from workspace_adapter.shim.door.waiting import Waiters
from workspace_adapter.shim.front.edge import Edge
from workspace_adapter.shim.front.identity import KEY, Caller, Identity
from workspace_adapter.shim.front.protocol import Protocol
from workspace_adapter.shim.front.rates import Rates
from workspace_adapter.shim.operator import Operator
from workspace_adapter.shim.ranges import parse_ranges
from workspace_adapter.shim.registry import Registry
from workspace_adapter.shim.store.contract import Role, Store
from workspace_adapter.shim.sweeper import Sweeper
from workspace_adapter.shim.upstream import Upstream

NOBODY = Caller()
OPERATOR = Caller(role=Role.OPERATOR)
CALLER = Caller(role=Role.CALLER, name="ci")
PEER = Caller(role=Role.WORKSPACE, workspace_id="peer")


@dataclass
class House:
    """One replica: what is before the door is left out, so ``who`` says who asks."""

    store: Store
    door: Door
    waiters: Waiters
    dispatcher: Dispatcher
    url: str
    who: Caller = NOBODY
    client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=20))

    async def workspace(self, name: str, url: str | None, *, most: int = 1) -> None:
        await self.store.create_workspace(name, max_concurrent=most, secret="s3cret")
        if url is not None:
            await self.store.register(name, url=url, boot_id=f"{name}-boot")

    async def post(self, body: Any, *, to: str = "w", **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        names.setdefault("content-type", "application/json")
        return await self.client.post(f"{self.url}/workspaces/{to}/a2a", headers=names, **content)

    async def ask(self, text: str, *, to: str = "w", **headers: str) -> httpx.Response:
        return await self.post(message(text), to=to, **headers)

    async def standing(self, queue_id: str, *, of: str = "w") -> httpx.Response:
        return await self.client.get(f"{self.url}/workspaces/{of}/a2a/queue/{queue_id}")


def message(
    text: str,
    *,
    message_id: str | None = None,
    method: str = "message/send",
    request_id: Any = 1,
    **params: Any,
) -> dict[str, Any]:
    sent = {
        "role": "user",
        "messageId": message_id or uuid.uuid4().hex,
        "parts": [{"kind": "text", "text": text}],
    }
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {"message": sent, **params}}


def text_of(answer: Mapping[str, Any]) -> str:
    text: str = answer["result"]["parts"][0]["text"]
    return text


@asynccontextmanager
async def house(
    store: Store,
    *,
    hold: float = 10.0,
    most: int = 100,
    body_limit: int = 16 << 20,
    keep_alive: float = 5.0,
    sweep: float = 0.05,
    glance: float = 1.0,
    dispatching: bool = True,
    owner: str = "life-1",
) -> AsyncIterator[House]:
    """Run one replica on a store, until the block ends."""
    waiters = Waiters(store, most=most, glance=glance)
    async with (
        Upstream(Addresses(parse_ranges("loopback")), connect_timeout=2.0, deadline=10.0) as upstream,
        anyio.create_task_group() as tasks,
    ):
        dispatcher = Dispatcher(store, upstream, owner=owner, rules=RULES)
        door = Door(store, upstream, waiters, hold=hold, body_limit=body_limit, keep_alive=keep_alive)
        store.on_due, store.on_ended, store.on_said = dispatcher.ring, waiters.ended, waiters.said

        ring = dispatcher.ring
        edge = Edge(
            create_routes(
                registry=Registry(
                    store, vet=_all, open=True, rings=dispatcher.ring, registered=dispatcher.ring
                ),
                operator=Operator(store, Identity(store.tokens, None), provisioners={}, ring=ring),
                door=door,
                further=[],
                ready=health,
                metrics=health,
            ),
            identity=None,
            rates=Rates(0),
        )

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[KEY] = built.who
            await edge(scope, receive, send)

        with bind("127.0.0.1", 0) as listener:
            server = Server(app, listener, http=Protocol)
            built = House(store, door, waiters, dispatcher, f"http://127.0.0.1:{listener.getsockname()[1]}")
            if dispatching:
                tasks.start_soon(dispatcher.run)
                tasks.start_soon(Sweeper(store, ring=dispatcher.ring, stranded=_nothing, interval=sweep).run)
            tasks.start_soon(waiters.run)
            tasks.start_soon(server.run)
            try:
                async with built.client:
                    yield built
            finally:
                waiters.stop()
                await server.end()
                tasks.cancel_scope.cancel()


async def _all(workspace: object, url: str) -> None:
    """Any address will do."""


async def _nothing() -> None:
    """There are no alerts."""
