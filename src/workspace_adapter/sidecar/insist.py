"""A write that is repeated until the journal takes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..errors import JournalUnavailable

T = TypeVar("T")

RETRY = 0.25
"""Seconds between two tries while the journal cannot write."""


async def insist(write: Callable[[], Awaitable[T]]) -> T:
    """Write; while the journal is unavailable keep what is to be written and try again."""
    while True:
        try:
            return await write()
        except JournalUnavailable:
            await anyio.sleep(RETRY)
