from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import inherited
from workspace_adapter.testing.shim import Shim

TIMES = {
    "SHIM_DRAIN_SECONDS": "5",
    "SHIM_STOP_GRACE": "4",
    "SHIM_START_TIMEOUT": "15",
    "SHIM_LEASE": "1.5",
    "SHIM_LEASE_RENEWAL": "0.3",
    "SHIM_SWEEP_INTERVAL": "0.2",
    "SHIM_OFFLINE_AFTER": "25",
    "SHIM_LOG_LEVEL": "debug",
}


@pytest.fixture
async def shim(tmp_path: Path) -> AsyncIterator[Shim]:
    """A shim that serves; at the end nothing is left of it or its workspaces."""
    environ = inherited()
    made = Shim(tmp_path, environ=environ | {"HOME": str(tmp_path)}, settings=TIMES, patience=20.0)
    try:
        await made.start()
        yield made
    finally:
        made.kill_everything()
