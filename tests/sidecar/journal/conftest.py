from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from workspace_adapter.sidecar.journal import Journal

from .made import NOW


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def journal(state_dir: Path) -> AsyncIterator[Journal]:
    opened = await Journal.open(state_dir, boot_id="boot-1", now=NOW)
    yield opened
    await opened.close()
