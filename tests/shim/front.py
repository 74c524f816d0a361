"""The shim's front without sockets: routes, edge and registry on a store of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests.shim.hand import Hand
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.app import create_routes
from workspace_adapter.shim.front.edge import Edge
from workspace_adapter.shim.front.identity import Identity
from workspace_adapter.shim.front.protocol import ShortCut
from workspace_adapter.shim.front.rates import Rates
from workspace_adapter.shim.front.refusal import write
from workspace_adapter.shim.operator import Operator
from workspace_adapter.shim.ranges import THIS_MACHINE_TOO
from workspace_adapter.shim.registry import Registry
from workspace_adapter.shim.store.contract import Store, Workspace
from workspace_adapter.shim.store.sqlite import SqliteStore

ADMIN = "an-admin-token-for-tests"


@dataclass
class FrontOfShim:
    """What a test asks and looks at."""

    client: httpx.AsyncClient
    store: Store
    stop: Callable[[], None]
    """Ends what runs behind the routes, as a stop of the shim does."""
    take: ShortCut
    """The short cut for heartbeats."""
    heartbeats: Mapping[str, int]
    """How many came, by what came of them."""
    rung: list[str] = field(default_factory=list)
    registered: list[str] = field(default_factory=list)

    async def call(
        self, method: str, path: str, body: Any = None, *, bearer: str | None = None, **headers: str
    ) -> httpx.Response:
        if bearer is not None:
            headers["authorization"] = f"Bearer {bearer}"
        return await self.client.request(
            method,
            path,
            json=body,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    async def register(self, name: str = "w", *, boot: str = "b1", **more: Any) -> httpx.Response:
        bearer = more.pop("bearer", None)
        body = {"id": name, "url": "http://127.0.0.1:9", "agent_card": {"name": "W"}, "boot_id": boot, **more}
        return await self.call("POST", "/registry/register", body, bearer=bearer)

    async def beat(
        self, bearer: str | None, name: str = "w", *, boot: str = "b1", **more: Any
    ) -> httpx.Response:
        body = {
            "workspace_id": name,
            "active_tasks": 0,
            "error_rate": 0.0,
            "runtime_state": "",
            "runtime_metadata": {"capabilities": {}},
            "boot_id": boot,
            **more,
        }
        body = {name: value for name, value in body.items() if value is not None}
        return await self.call("POST", "/registry/heartbeat", body, bearer=bearer)

    async def workspace(self, name: str = "w") -> Workspace:
        found = await self.store.workspace(name)
        assert found is not None
        return found


@asynccontextmanager
async def front(
    root: Path, *, admin_token: str | None = None, rate_limit: int = 0, store: Store | None = None
) -> AsyncIterator[FrontOfShim]:
    """Open a front on a store in ``root``, or on the one given."""
    rung: list[str] = []
    registered: list[str] = []

    async def ready(request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        await write(send, 200, {"door": scope["path"]})

    async with SqliteStore(root / "shim.sqlite", Rules()) as opened, anyio.create_task_group() as rooms:
        kept = store or opened
        identity = Identity(kept.tokens, admin_token)
        registry = Registry(
            kept,
            vet=Addresses(THIS_MACHINE_TOO).vet,
            open=identity.open,
            rings=rung.append,
            registered=registered.append,
        )
        operator = Operator(kept, identity, provisioners={"process": Hand()}, ring=rung.append)
        routes = create_routes(
            registry=registry, operator=operator, door=door, further=[], ready=ready, metrics=ready
        )
        edge = Edge(routes, identity=identity, rates=Rates(rate_limit))
        life = anyio.CancelScope()

        async def run() -> None:
            with life:
                await registry.run()

        rooms.start_soon(run)
        transport = httpx.ASGITransport(app=edge)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
            yield FrontOfShim(client, kept, life.cancel, registry.take, registry.heartbeats, rung, registered)
        rooms.cancel_scope.cancel()
