"""The doctor sees from within a container what that container was given."""

from __future__ import annotations

import json

import pytest

from .conftest import Images
from .container import container
from .engine import attempt

pytestmark = pytest.mark.docker

TIGHT = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--memory", "80m", "--memory-swap", "80m", "--pids-limit", "25", "--ulimit", "nofile=256:256"),
)


def said_by(*command: str) -> dict[str, tuple[str, str]]:
    """Run the doctor; return each finding's check and status, by its words."""
    done = attempt(*command, "workspace-adapter", "doctor", "--json")
    assert done.stderr == ""
    return {
        finding["found"]: (finding["check"], finding["status"])
        for finding in json.loads(done.stdout)["findings"]
    }


async def test_it_tells_what_a_tight_container_lacks_and_nothing_else(images: Images) -> None:
    async with container(images.tested, "echo", *TIGHT) as ws:
        told = said_by("exec", ws.name)
    assert [words for words, (_, status) in told.items() if status == "broken"] == []
    limits = [words for words, found in told.items() if found == ("limits", "warning")]
    assert [words.split(";")[0] for words in limits] == [
        "the memory limit is 80 MiB",
        "the sidecar may open 256 files",
    ]
    assert {check for check, status in told.values() if status == "ok"} >= {
        *("settings", "sidecar", "state directory", "journal", "disk space", "configs directory"),
        *("address", "port", "authentication", "runtime", "init", "limits"),
    }
    assert any("PID 1 (tini) reaped an orphan" in words for words in told)
