"""The work of benchmarks/loss.py, the same in every server: calls that take time, each with an effect.

Effects, beginnings and ends are lines of one file; a line that was written is there whatever then becomes of
the process.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import anyio


@dataclass(frozen=True, slots=True)
class Work:
    """What one message asks for."""

    name: str
    calls: int
    seconds: float
    """Of all calls together."""

    @classmethod
    def read(cls, text: str) -> Self:
        """Take it from a message."""
        name, calls, seconds = text.split()
        return cls(name, int(calls), float(seconds))

    @property
    def text(self) -> str:
        """The message."""
        return f"{self.name} {self.calls} {self.seconds}"

    @property
    def effects(self) -> list[str]:
        """What it leaves behind, a name for each call."""
        return [f"{self.name}.{number}" for number in range(self.calls)]

    @property
    def answer(self) -> str:
        """What is said at the end."""
        return f"done:{self.name}:"


class World:
    """What the work leaves behind."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "world"

    async def call(self, work: Work, effect: str) -> None:
        """Take the time of one call; the effect happens in the middle of it."""
        half = work.seconds / work.calls / 2
        await anyio.sleep(half)
        self._write("effect", effect)
        await anyio.sleep(half)

    async def perform(self, work: Work) -> str:
        """Make all calls, as a server does that knows of no restart; return the answer."""
        for effect in work.effects:
            await self.call(work, effect)
        self._write("answer", work.answer)
        return work.answer

    def begin(self, work: Work) -> None:
        """Say that it is begun, or begun again."""
        self._write("begun", f"{work.name}@{time.monotonic()}")

    def happened(self) -> Counter[str]:
        """How often each effect happened."""
        return Counter(self._read("effect"))

    def answers(self) -> set[str]:
        """What was said, whether somebody heard it or not."""
        return set(self._read("answer"))

    def begun_since(self, moment: float) -> list[float]:
        """When work was begun from then on, in seconds of the monotonic clock, which all processes share."""
        times = [float(line.partition("@")[2]) for line in self._read("begun")]
        return [time for time in times if time >= moment]

    def _write(self, kind: str, what: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{kind} {what}\n")

    def _read(self, kind: str) -> list[str]:
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [what for found, _, what in (line.partition(" ") for line in lines) if found == kind]
