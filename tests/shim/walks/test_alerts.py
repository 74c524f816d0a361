from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.shim.scripted import envelope
from tests.shim.walks.shim import Shim

pytestmark = pytest.mark.anyio


async def test_a_person_is_told_of_what_waits_for_a_workspace_that_is_not_there(tmp_path: Path) -> None:
    hook, told = tmp_path / "hook", tmp_path / "told"
    hook.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(told)!r}, 'a').write(sys.stdin.read() + ' ' + str('SHIM_PORT' in os.environ) + '\\n')\n"
    )
    hook.chmod(0o755)
    shim = Shim(
        tmp_path / "shim",
        SHIM_ALERT_COMMAND=str(hook),
        SHIM_STRANDED_AFTER="0",
        SHIM_SWEEP_INTERVAL="0.05",
    )
    try:
        await shim.start()
        await shim.call("POST", "/workspaces", {"id": "ws-test"})
        answer = await shim.post(json.loads(envelope("hello")), prefer="wait=0")
        assert answer.status_code == 202

        async def read() -> str:
            return told.read_text() if told.exists() and told.read_text().endswith("\n") else ""

        alert, inherits = (await shim.until(read, "the alert")).rsplit(" ", 1)
    finally:
        shim.kill()
    assert json.loads(alert) == {
        "alert": "stranded",
        "workspace_id": "ws-test",
        "status": "provisioning",
        "waiting": 1,
        "oldest_seconds": 0,
    }
    assert inherits == "False\n"
    assert "1 messages wait for workspace ws-test, which is provisioning" in shim.logged()
