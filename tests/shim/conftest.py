from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from workspace_adapter.queueing import Rules
from workspace_adapter.shim.store.sqlite import SqliteStore

RULES = Rules(backoff=0.05, backoff_cap=0.2, busy_wait=0.1, lease=2.0, renewal=0.2, strikes=3)

ON_THE_SHIMS_LOOP = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
"""For what depends on how a loop writes what nobody reads: asyncio's own differs from Python to Python."""


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """A store whose times suit tests."""
    async with SqliteStore(tmp_path / "shim.sqlite", RULES) as opened:
        yield opened
