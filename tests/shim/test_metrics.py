"""What a scraper is told of the shim."""

from __future__ import annotations

import re
from pathlib import Path

from workspace_adapter.shim.metrics import Metrics, Now
from workspace_adapter.shim.store.contract import Message
from workspace_adapter.shim.store.sqlite import SqliteStore

PAGE = (Path(__file__).parent.parent.parent / "docs" / "shim.md").read_text()


async def test_what_waits_and_who_is_there_is_counted_when_a_scraper_asks(sqlite: SqliteStore) -> None:
    now = Now(dispatching=2, held=3, stranded=4, heartbeats={"ok": 5, "refused": 0})
    metrics = Metrics(sqlite, "boot", lambda: now)
    await sqlite.create_workspace("w")
    await sqlite.enqueue(Message(workspace_id="w", turn_key="k", content_hash="h", body=b"{}"))

    told = (await metrics.scrape()).decode()

    for line in (
        'workspace_shim_workspaces{status="provisioning"} 1.0',
        'workspace_shim_queue_items{state="queued"} 1.0',
        'workspace_shim_queue_items{state="leased"} 0.0',
        "workspace_shim_dead_letters 0.0",
        "workspace_shim_stranded_items 4.0",
        "workspace_shim_dispatches 2.0",
        "workspace_shim_held_callers 3.0",
        'workspace_shim_heartbeats_total{result="ok"} 5.0',
    ):
        assert line in told.splitlines()
    assert await metrics.scrape() == told.encode(), "within a second everybody is told the same"


async def test_every_metric_is_on_the_page(sqlite: SqliteStore) -> None:
    metrics = Metrics(sqlite, "boot", lambda: Now(0, 0, 0, {"ok": 1}))
    told = (await metrics.scrape()).decode()
    assert set(re.findall(r"^(workspace_shim_\w+)", told, re.M)) == set(
        re.findall(r"workspace_shim_\w+", PAGE)
    )
