from __future__ import annotations

import os

import pytest


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
