"""A scraper's walk: through a boot, a kill, a drain and a stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import anyio
import httpx
from prometheus_client.parser import text_string_to_metric_families

from workspace_adapter.testing import FakePlatform
from workspace_adapter.testing.platform import Fault

from ..test_operations import code, rows
from .workspace import Workspace, script, workspace

PREFIX = "workspace_adapter_"

Samples = Mapping[str, float]


def of(name: str, **labels: str) -> str:
    return name + "".join(f" {label}={value}" for label, value in sorted(labels.items()))


def secret(ws: Workspace) -> Path:
    return Path(ws.environ["CONFIGS_DIR"], ".platform_inbound_secret")


def bearer(ws: Workspace) -> dict[str, str]:
    return {"authorization": f"Bearer {secret(ws).read_text().strip()}"}


async def scrape(ws: Workspace) -> Samples:
    async with httpx.AsyncClient(base_url=ws.url, timeout=ws.patience) as client:
        reply = await client.get("/metrics", headers=bearer(ws))
    assert reply.status_code == 200, reply.text
    return {
        of(sample.name.removeprefix(PREFIX), **sample.labels): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


async def until(ws: Workspace, name: str, value: float) -> Samples:
    """Scrape until a sample has a value; a scrape may be a moment old."""
    with anyio.fail_after(ws.patience):
        while (samples := await scrape(ws)).get(name) != value:
            await anyio.sleep(0.1)
    return samples


async def test_a_scraper_sees_the_kill_the_drain_and_the_stop(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with FakePlatform(configs_dir=tmp_path / "configs") as platform:
        platform.fail(Fault.answer(500), on="/heartbeat", times=1)
        async with workspace(tmp_path, PLATFORM_URL=platform.url) as ws:
            await _walk(ws)


async def _walk(ws: Workspace) -> None:
    tool = "echo begun >> effects; test -e go || sleep 60"
    await ws.until(secret(ws).exists, "the platform's secret")
    await ws.send(script({"usage": [7, 2]}, {"answer": "yes"}))
    await ws.send(script({"fail": "no"}))
    body = ws.envelope(script({"tools": [{"tool": "sh", "input": tool}]}, {"answer": "done"}))
    async with anyio.create_task_group() as callers:
        callers.start_soon(_ignored, ws, body)
        await ws.until_effect("begun")
        life = await until(ws, "heartbeats_total result=failed", 1)
        assert life["registrations_total result=ok"] == life["active_tasks"] == 1
        assert life["held_callers"] == 1
        assert life["children"] >= 1
        assert life["attempts_total resumption=new"] == 3
        assert life["turns_ended_total outcome=answered"] == 1
        assert life["turns_ended_total outcome=failed"] == 1
        assert life["turn_seconds_count"] == 2
        assert (life["tokens_total kind=input"], life["tokens_total kind=output"]) == (7, 2)
        assert life["turns state=running"] == life["turn_attempts_max"] == 1
        assert life["journal_commit_seconds_count"] > 9
        assert life["restarts_total after=cut"] == life["restarts_total after=stop"] == 0
        ws.kill_everything()

    (ws.workdir / "go").touch()
    await ws.start()
    life = await until(ws, "turns state=answered", 2)
    assert life["restarts_total after=cut"] == 1
    assert life["attempts_total resumption=continue"] == 1
    assert life["attempts_total resumption=new"] == 0
    assert life["resume_seconds_count"] == 1
    assert 0 < life["resume_seconds_sum"] < ws.patience
    assert life["boot_seconds"] > 0
    assert life["state state=serving"] == life["ready"] == 1

    assert (await ws.signal()).status_code == 200
    async with anyio.create_task_group() as callers:
        callers.start_soon(_ignored, ws, ws.envelope(script({"answer": "later"})))
        life = await until(ws, "turns state=accepted", 1)
        assert life["inbox_oldest_seconds"] >= 0
        assert life["state state=drained"] == life["gate_closed by=drain"] == 1
        assert life["gate_closed by=journal"] == 0
        assert life["drain_seconds_count"] == 1
        ws.terminate()
        assert await ws.exited() == 0

    await ws.start()
    life = await until(ws, "turns state=answered", 3)
    assert life["restarts_total after=stop"] == life["restarts_total after=cut"] == 1
    assert life["drain_seconds_count"] == 1  # signal and SIGTERM were one
    assert life["process_resident_memory_bytes"] > 0
    await _the_page_lists_them(ws)
    await _many_ask_at_once(ws)


async def _ignored(ws: Workspace, body: Mapping[str, object]) -> None:
    try:
        await ws.post(body)
    except httpx.TransportError:
        return


async def _the_page_lists_them(ws: Workspace) -> None:
    """Every metric there is stands on the operator's page, and no other."""
    reply = httpx.get(f"{ws.url}/metrics", headers=bearer(ws))
    families = [f for f in text_string_to_metric_families(reply.text) if f.name.startswith(PREFIX)]
    assert {(f.name.removeprefix(PREFIX) + "_total" * (f.type == "counter"), f.type) for f in families} == {
        (code(row[0])[0], row[1].split(",")[0]) for row in rows("metrics")
    }
    assert [family.name for family in families if not family.documentation] == []


async def _many_ask_at_once(ws: Workspace) -> None:
    replies: list[int] = []

    async def ask(client: httpx.AsyncClient) -> None:
        replies.append((await client.get("/metrics", headers=bearer(ws))).status_code)

    async with httpx.AsyncClient(base_url=ws.url) as client, anyio.create_task_group() as scrapers:
        for _ in range(64):
            scrapers.start_soon(ask, client)
    assert replies == [200] * 64
