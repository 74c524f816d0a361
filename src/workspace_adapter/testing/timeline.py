"""What happened when, told line by line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio


class Timeline:
    """What happened when, as lines for people or as JSON lines for machines.

    Args:
        machine: JSON lines.
        printable: escapes what a terminal would obey in what an agent or a tool said.
    """

    def __init__(self, *, machine: bool, printable: Callable[[str], str]) -> None:
        self._machine = machine
        self._printable = printable
        self._began = time.monotonic()
        self._waiting = False

    def tell(self, who: str, what: str) -> None:
        """Add one line."""
        at = time.monotonic() - self._began
        if self._machine:
            self._print(json.dumps({"at": round(at, 3), "who": who, "what": what}))
        else:
            first, *rest = map(self._printable, what.splitlines())
            self._print("\n".join([f"{at:7.2f} s  {who:<9} {first}", *(f"{'':20} {r}" for r in rest)]))

    def title(self, text: str) -> None:
        """Begin a scene."""
        if self._machine:
            self.tell("scene", text)
        else:
            self._print(f"\n{text}\n{'─' * len(text)}")

    def close(self, summary: Mapping[str, Any], *words: str) -> None:
        """End with the count: machines get the summary, people the words."""
        summary = {**summary, "seconds": round(time.monotonic() - self._began, 1)}
        if self._machine:
            self._print(json.dumps(summary))
        else:
            self._print("\n" + "\n".join(words) + f" ({summary['seconds']:.0f} s)")

    @asynccontextmanager
    async def progress(self, what: str) -> AsyncIterator[None]:
        """Show that something is being waited for."""
        if self._machine or not sys.stdout.isatty():
            yield
            return
        async with anyio.create_task_group() as ticking:
            ticking.start_soon(self._tick, what)
            try:
                yield
            finally:
                ticking.cancel_scope.cancel()

    async def _tick(self, what: str) -> None:
        began = time.monotonic()
        while True:
            sys.stdout.write(f"\r\x1b[2m           … {what}, {time.monotonic() - began:.0f} s\x1b[0m\x1b[K")
            sys.stdout.flush()
            self._waiting = True
            await anyio.sleep(0.5)

    def _print(self, text: str) -> None:
        if self._waiting:
            sys.stdout.write("\r\x1b[K")
            self._waiting = False
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
