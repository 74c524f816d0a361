from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from workspace_adapter.drain import Drain
from workspace_adapter.ledger import Ledger
from workspace_adapter.runtimes.echo import EchoAdapter
from workspace_adapter.settings import Settings
from workspace_adapter.sidecar.door.waiting import WaitingRoom
from workspace_adapter.sidecar.drainer import Drainer
from workspace_adapter.sidecar.gate import Switch
from workspace_adapter.sidecar.housekeeping import Housekeeping
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.sidecar.runtime_check import RuntimeCheck
from workspace_adapter.sidecar.telemetry.lives import Lives
from workspace_adapter.sidecar.telemetry.metrics import Metrics
from workspace_adapter.sidecar.telemetry.standing import Standing
from workspace_adapter.sidecar.telemetry.tally import Tally


def metrics(journal: Journal | None = None) -> Metrics:
    """Those of a workspace in which nothing has happened yet."""
    ledger, switch, adapter = Ledger(1), Switch(), EchoAdapter()
    return Metrics(
        Standing(
            settings=Settings(workspace_id="ws"),
            adapter=adapter,
            boot_id="one",
            described={},
            runtime=RuntimeCheck(adapter),
            ledger=ledger,
            switch=switch,
            drainer=Drainer(drain=Drain(window=60), ledger=ledger, switch=switch, cap=5),
            room=WaitingRoom(hold_limit=60),
            housekeeping=Housekeeping(switch, retention=60),
            tally=Tally(),
            began=0.0,
            began_at=0.0,
            lives=Lives(stopped=2, cut=3),
            journal=journal,
        )
    )


async def shown(of: Metrics) -> str:
    return (await of.scrape()).body.decode()


@asynccontextmanager
async def journal_in(state_dir: Path) -> AsyncIterator[Journal]:
    journal = await Journal.open(state_dir, boot_id="one", now=time.time())
    try:
        yield journal
    finally:
        await journal.close()


KEPT = ("restarts_total", "drain_seconds", "turns{", "journal_", "inbox_oldest")


async def test_before_the_journal_is_open_no_counter_that_it_keeps_is_said_to_be_zero() -> None:
    told = await shown(metrics())
    assert 'workspace_adapter_state{state="booting"} 1.0' in told
    assert [name for name in KEPT if f"workspace_adapter_{name}" in told.replace("journal_limit", "")] == []


async def test_once_it_is_open_they_go_on_from_where_they_were(tmp_path: Path) -> None:
    async with journal_in(tmp_path) as journal:
        text = await shown(metrics(journal))
    assert [name for name in KEPT if f"workspace_adapter_{name}" not in text] == []
    assert 'workspace_adapter_restarts_total{after="cut"} 3.0' in text


async def test_what_can_be_said_is_said_while_the_journal_cannot_be_read(tmp_path: Path) -> None:
    async with journal_in(tmp_path) as journal:
        pass
    text = await shown(metrics(journal))
    assert "workspace_adapter_turns{" not in text
    assert "workspace_adapter_active_tasks 0.0" in text


async def test_who_asks_at_once_is_told_the_same(tmp_path: Path) -> None:
    told = metrics()
    assert await told.scrape() is await told.scrape()
