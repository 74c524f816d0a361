"""What an import costs: the lists of what is loaded, by whom."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from workspace_adapter.sidecar.app import MetricsMissing
from workspace_adapter.sidecar.telemetry import scrape

from .walks.workspace import workspace

HEAVY = frozenset(
    {
        "argparse",
        "asyncio",
        "email",
        "http",
        "multiprocessing",
        "sqlite3",
        "ssl",
        "subprocess",
        "unittest",
        "xml",
    }
)
"""Of the standard library, what a test should notice."""

PACKAGE: frozenset[str] = frozenset()
"""What ``import workspace_adapter`` loads."""

ROOMS = PACKAGE | {
    *("a2a-sdk", "anyio", "click", "googleapis-common-protos", "protobuf", "starlette", "uvicorn"),
    *("argparse", "asyncio", "email", "http", "multiprocessing", "sqlite3", "ssl", "subprocess"),
}
"""What has to be there before interrupted work goes on."""

DOOR = ROOMS | {
    *("annotated-types", "h11", "httpx", "idna", "json-rpc", "opentelemetry-api", "packaging", "pydantic"),
    *("pydantic-core", "sse-starlette", "typing-inspection"),
}
"""What an idle sidecar has loaded: beside the rooms, what the A2A SDK's server imports."""

IF_INSTALLED = frozenset({"markdown-it-py", "mdurl", "pygments", "python-multipart", "rich", "setuptools"})
"""What those load where it happens to be there; a workspace's image has no reason to hold it."""

OF_THE_PYTHON = frozenset({"aiologic", "culsans", "sniffio", "typing-extensions", "wrapt"})
"""What some versions of Python need, so that they have what newer ones have."""

WHAT_TO_DO = (
    "the lists in tests/test_imports.py say what is loaded and when. Something more costs every boot its"
    " import: import it where it is used, or, where it must be there, add it to the list and say why in the"
    " commit. Something less: take it off."
)


def noticed(modules: set[str]) -> set[str]:
    """Name the distributions behind modules, and the heavy ones of the standard library."""
    owners = packages_distributions()
    found = {module.partition(".")[0] for module in modules} & HEAVY
    for module in (
        {m.partition(".")[0] for m in modules} - sys.stdlib_module_names - {"google", "opentelemetry"}
    ):
        found |= {owner.lower().replace("_", "-") for owner in owners.get(module, ())}
    for prefix, owner in (
        ("google.protobuf", "protobuf"),
        ("google._upb", "protobuf"),
        ("google.api.", "googleapis-common-protos"),
        ("google.rpc.", "googleapis-common-protos"),
        ("google.api_core", "google-api-core"),
        ("opentelemetry.trace", "opentelemetry-api"),
        ("opentelemetry.sdk", "opentelemetry-sdk"),
        ("opentelemetry.exporter", "opentelemetry-exporter-otlp-proto-http"),
    ):
        if any(module.startswith(prefix) for module in modules):
            found.add(owner)
    return found - IF_INSTALLED - OF_THE_PYTHON - {"workspace-adapter"}


def loaded_by(module: str) -> set[str]:
    """Return the modules that importing one loads into a new process."""
    script = f"import sys; before = set(sys.modules); import {module}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_package_loads_nothing_but_the_light_part_of_the_standard_library() -> None:
    assert noticed(loaded_by("workspace_adapter")) == PACKAGE, WHAT_TO_DO


def test_what_is_resumed_waits_for_nothing_that_only_messages_need() -> None:
    loaded = loaded_by("workspace_adapter.sidecar.serve, workspace_adapter.cli")
    assert noticed(loaded) == ROOMS, WHAT_TO_DO
    assert not {module for module in loaded if module.startswith("a2a.server")}, WHAT_TO_DO


async def test_an_idle_sidecar_has_loaded_what_the_a2a_sdk_needs_and_nothing_else(tmp_path: Path) -> None:
    async with workspace(tmp_path, "echo", start=False) as ws:
        ws.program = (sys.executable, "-X", "importtime", "-m", "workspace_adapter")
        await ws.start()
        told = re.findall(r"import time:\s+\d+ \|\s+\d+ \|\s+(\S+)", ws.logged())
    assert noticed(set(told)) == DOOR, WHAT_TO_DO
    assert "workspace_adapter.sidecar.platform.client" not in told, "there is no platform"


@pytest.mark.parametrize("module", ["workspace_adapter.runtimes.claude", "workspace_adapter.cli"])
def test_a_vendor_sdk_waits_until_it_is_needed(module: str) -> None:
    assert not noticed(loaded_by(module)) & {"claude-agent-sdk", "a2a-sdk", "mcp"}


def test_without_its_extra_the_metrics_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "workspace_adapter.sidecar.telemetry.metrics", raising=False)
    with pytest.raises(MetricsMissing, match=r"workspace-adapter\[metrics\]"):
        scrape._load()
