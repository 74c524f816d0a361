from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from io import StringIO

import pytest

from workspace_adapter.logs import set_up


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: the others run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests recorded as their ``report``, whichever process they ran in."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in report.user_properties:
                if name == "report":
                    terminalreporter.write_line(str(text))


@pytest.fixture
def anyio_backend() -> str:
    """The product runs on asyncio: uvicorn and the A2A SDK do."""
    return "asyncio"


def require(condition: bool, reason: str) -> None:
    """Skip what this machine cannot run; fail where WORKSPACE_TEST_REQUIRE says it must."""
    if condition:
        return
    if os.environ.get("WORKSPACE_TEST_REQUIRE") == "all":
        pytest.fail(f"required here: {reason}")
    pytest.skip(reason)


def inherited() -> dict[str, str]:
    """Return what a child process gets of our environment.

    CI_MARK is how a run of CI finds what it left.
    """
    return {name: os.environ[name] for name in ("PATH", "CI_MARK") if name in os.environ}


@pytest.fixture
def logged() -> Iterator[StringIO]:
    """Log as the product does at its most talkative; yield what was written."""
    root, names = logging.getLogger(), ("", "uvicorn", "workspace_adapter")
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    stream = StringIO()
    set_up("debug", "json", stream)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)
