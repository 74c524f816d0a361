"""What the agent card says of a runtime that cannot be used, and of one that was mended."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import ClassVar

import anyio
import pytest

from workspace_adapter import Capabilities, RuntimeAdapter, RuntimeSession, SettingsError
from workspace_adapter.errors import RuntimeUnusable
from workspace_adapter.runtimes.echo import EchoSession
from workspace_adapter.settings import Settings
from workspace_adapter.sidecar import serve


class Mended(RuntimeAdapter):
    """One that works from a certain look on."""

    name: ClassVar[str] = "mended"
    capabilities: ClassVar[Capabilities] = Capabilities(gate=None)
    Session: ClassVar[type[RuntimeSession]] = EchoSession
    troubles: list[Exception]

    async def check(self) -> str:
        if self.troubles:
            raise self.troubles.pop(0)
        return "1.0"


@pytest.fixture
def adapter() -> Mended:
    return Mended()


@pytest.fixture
async def sidecar(tmp_path: Path, adapter: Mended, monkeypatch: pytest.MonkeyPatch) -> serve.Sidecar:
    monkeypatch.setattr(serve, "_CHECK_AGAIN", 0.001)
    settings = Settings(workspace_id="one", state_dir=str(tmp_path), configs_dir=str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return serve.Sidecar(settings, adapter, listener, {})


async def test_a_runtime_is_looked_at_until_it_can_be_used_and_said_to_be_unusable_once(
    sidecar: serve.Sidecar, adapter: Mended, caplog: pytest.LogCaptureFixture
) -> None:
    adapter.troubles = [RuntimeUnusable(""), *[RuntimeUnusable("no program\nsee above")] * 3]
    with anyio.fail_after(10):
        await sidecar._check()
    assert sidecar._agent_card()["configuration_status"] == "ready"
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the runtime mended cannot be used: ",
        "the runtime mended cannot be used: no program\nsee above",
    ]


async def test_a_mistake_of_the_adapters_is_not_waited_for(sidecar: serve.Sidecar, adapter: Mended) -> None:
    adapter.troubles = [SettingsError(("x" * 5000,)), RuntimeUnusable("x" * 5000)]
    with anyio.fail_after(10):
        await sidecar._check()
    card = sidecar._agent_card()
    assert card["configuration_status"] == "not_configured"
    assert card["configuration_error"] == "the adapter failed in check: SettingsError"
    assert len(adapter.troubles) == 1
