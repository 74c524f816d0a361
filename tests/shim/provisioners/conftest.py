from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from workspace_adapter.shim.store.contract import Status, Workspace

Make = Callable[..., Workspace]


@pytest.fixture
def workspace() -> Make:
    """Make the row of a workspace."""

    def make(
        workspace_id: str = "one", provisioner: str = "process", spec: Mapping[str, Any] | None = None
    ) -> Workspace:
        return Workspace(
            id=workspace_id,
            status=Status.PROVISIONING,
            url=None,
            boot_id=None,
            restarting=False,
            card=None,
            created_at=0.0,
            beat_at=None,
            active_tasks=0,
            max_concurrent=1,
            hold_until=0.0,
            report={},
            provisioner=provisioner,
            spec=spec or {},
            secret="",
        )

    return make
