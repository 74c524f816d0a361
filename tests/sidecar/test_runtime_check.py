"""What the agent card says of a runtime that cannot be used, and of one that was mended."""

from __future__ import annotations

from typing import ClassVar

import anyio
import pytest

from workspace_adapter import Capabilities, RuntimeAdapter, RuntimeSession, SettingsError
from workspace_adapter.errors import RuntimeUnusable
from workspace_adapter.runtimes.echo import EchoSession
from workspace_adapter.sidecar.runtime_check import RuntimeCheck


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
def checked(adapter: Mended) -> RuntimeCheck:
    return RuntimeCheck(adapter, again=0.001)


async def test_a_runtime_is_looked_at_until_it_can_be_used_and_said_to_be_unusable_once(
    checked: RuntimeCheck, adapter: Mended, caplog: pytest.LogCaptureFixture
) -> None:
    adapter.troubles = [RuntimeUnusable(""), *[RuntimeUnusable("no program\nsee above")] * 3]
    with anyio.fail_after(10):
        await checked.run()
    assert checked.told == {"configuration_status": "ready"}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == [
        "the runtime mended cannot be used: ",
        "the runtime mended cannot be used: no program\nsee above",
    ]


async def test_a_mistake_of_the_adapters_is_not_waited_for(checked: RuntimeCheck, adapter: Mended) -> None:
    adapter.troubles = [SettingsError(("x" * 5000,)), RuntimeUnusable("x" * 5000)]
    with anyio.fail_after(10):
        await checked.run()
    assert checked.told == {
        "configuration_status": "not_configured",
        "configuration_error": "the adapter failed in check: SettingsError",
    }
    assert len(adapter.troubles) == 1
