"""What the disk does by itself: one append, one fdatasync."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

_RECORD = b"x" * 1024


class Disk:
    """A file that is appended to."""

    def __init__(self, directory: Path) -> None:
        self._descriptor = os.open(directory / "appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def seconds(self, times: int) -> list[float]:
        """Append 1 KiB and make it durable, so many times; return how long each took."""
        took = []
        for _ in range(times):
            began = time.perf_counter()
            os.write(self._descriptor, _RECORD)
            os.fdatasync(self._descriptor)
            took.append(time.perf_counter() - began)
        return took

    def rate(self, times: int) -> Callable[[], Awaitable[float]]:
        """Return a side that measures how often a second it can be done."""

        async def side() -> float:
            return times / sum(self.seconds(times))

        return side
