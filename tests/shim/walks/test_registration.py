"""A workspace that nobody made: its sidecar registers and beats by itself, whatever becomes of the shim."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx

from tests.conftest import inherited
from tests.walks.workspace import Workspace
from workspace_adapter.testing.shim import Shim
from workspace_adapter.testing.workspace import answer_of

LOUD = {"SHIM_LOG_LEVEL": "debug"}


@asynccontextmanager
async def on_shim(root: Path) -> AsyncIterator[tuple[Shim, Workspace]]:
    """A shim, and a workspace that was started on its own."""
    environ = inherited()
    shim = Shim(root, environ=environ | {"HOME": str(root)}, settings=LOUD, patience=20.0)
    ws = Workspace(root / "ws", "echo", PLATFORM_URL=shim.url, WORKSPACE_HEARTBEAT_INTERVAL="0.3")
    ws.environ["WORKSPACE_URL"] = ws.url
    (ws.root / "configs").mkdir()
    try:
        await shim.start()
        await ws.start()
        await shim.until_online("ws-test")
        yield shim, ws
    finally:
        ws.kill_everything()
        shim.kill_everything()


async def answered(shim: Shim, text: str) -> str:
    reply = await shim.send("ws-test", shim.envelope(text))
    assert reply.status_code == 200, reply.text
    return answer_of(reply.json())


async def heard_since(shim: Shim, before: str) -> None:
    """Wait for a heartbeat after a moment."""
    with anyio.fail_after(shim.patience):
        while (await shim.call("GET", "/workspaces/ws-test"))["last_heartbeat_at"] <= before:
            await anyio.sleep(0.05)


async def test_its_first_registration_makes_it_and_then_only_the_shim_is_heard(
    tmp_path: Path,
) -> None:
    async with on_shim(tmp_path) as (shim, ws):
        assert await answered(shim, "hello") == "hello"

        unsigned = await ws.post(ws.envelope("from somebody else"))
        assert unsigned.status_code == 401

        seen = await shim.call("GET", "/workspaces/ws-test")
        await heard_since(shim, seen["last_heartbeat_at"])
        assert ws.logged().count("registered with the platform") == 1


async def test_a_shim_that_is_started_anew_knows_it_without_a_registration(tmp_path: Path) -> None:
    async with on_shim(tmp_path) as (shim, ws):
        seen = await shim.call("GET", "/workspaces/ws-test")
        shim.kill()
        await shim.start()
        await heard_since(shim, seen["last_heartbeat_at"])
        assert await answered(shim, "still there?") == "still there?"
        assert ws.logged().count("registered with the platform") == 1


async def test_a_shim_that_lost_its_store_is_told_everything_anew(tmp_path: Path) -> None:
    async with on_shim(tmp_path) as (shim, ws):
        token = (ws.root / "configs" / ".auth_token").read_text()
        shim.kill()
        for file in shim.state_dir.glob("shim.sqlite*"):
            file.unlink()
        await shim.start()
        await shim.until_online("ws-test")
        assert await answered(shim, "who are you?") == "who are you?"
        assert (ws.root / "configs" / ".auth_token").read_text() != token


async def test_a_life_that_was_replaced_gets_nothing_and_takes_nothing(tmp_path: Path) -> None:
    async with on_shim(tmp_path) as (shim, ws):
        stranger = {"id": "ws-test", "url": "http://127.0.0.1:9", "agent_card": {}, "boot_id": "another life"}
        bearer = {"authorization": f"Bearer {(ws.root / 'configs' / '.auth_token').read_text().strip()}"}
        async with httpx.AsyncClient(base_url=shim.url, headers=bearer) as client:
            assert (await client.post("/registry/register", json=stranger)).status_code == 200
        await ws.until(lambda: "409" in ws.logged(), "word that another life has registered")
        found = await shim.call("GET", "/workspaces/ws-test")
        assert (found["boot_id"], found["url"]) == ("another life", "http://127.0.0.1:9")
