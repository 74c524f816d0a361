from __future__ import annotations

import logging
from collections.abc import Iterator
from io import StringIO

import pytest

from workspace_adapter.sidecar.logs import set_up


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
