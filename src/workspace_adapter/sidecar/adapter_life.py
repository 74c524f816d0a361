"""The adapter's own life: what it holds for all its sessions, and the end of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio

from ..adapter import RuntimeAdapter
from .children import LifeChildren
from .fence import fence


@asynccontextmanager
async def running(adapter: RuntimeAdapter, children: LifeChildren, adapter_dir: Path) -> AsyncIterator[None]:
    """Hold what lives as long as the adapter; nothing of it is left behind."""
    stack = AsyncExitStack()
    try:
        with fence("running"):
            await stack.enter_async_context(adapter.running(children, adapter_dir))
        try:
            yield
        finally:
            with fence("leaving running"):
                await stack.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await children.reap()
