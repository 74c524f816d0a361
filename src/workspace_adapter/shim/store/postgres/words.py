"""Short words from each replica to all others, over the one connection that listens.

A ``NOTIFY`` inside a transaction would make commits queue up, so words are said after it, together,
on a connection that does not wait for the disk. One that is lost costs until the next sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import anyio
import anyio.abc
import asyncpg

PASSING = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)
"""What another try may not meet again: the database restarts or another takes its place, a connection
was cut, two met."""

PAUSE = 0.1
"""Seconds between two tries."""

GAP = 0.01
"""Seconds for which words are gathered after some were said: what comes in a rush goes together."""

PULSE = 10.0
"""Seconds after which the connection is used though nothing is to be said: a dead one is noticed so."""

MOST = 10_000
"""Words that wait; what comes after them is for the sweep to find."""


class Words:
    """Says words to the other replicas, and hears theirs."""

    def __init__(
        self, url: str, channel: str, settings: Mapping[str, str], hear: Callable[[str], None]
    ) -> None:
        """Name the database and whom to tell; nothing is said before ``run``."""
        self._url = url
        self._channel = channel
        self._settings = {**settings, "synchronous_commit": "off"}
        self._tell = hear
        self._waiting: dict[str, None] = {}
        self._wake = anyio.Event()
        self._pid = 0
        """Who we are to the server; a connection that is closed may still have words to give, but no name."""

    def say(self, word: str) -> None:
        """Have a word said soon; what was committed before is seen by whoever hears it."""
        if len(self._waiting) < MOST:
            self._waiting[word] = None
            self._wake.set()

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the connection, and another whenever one is lost. Started once it listens."""
        listened = False
        while True:
            try:
                connection = await asyncpg.connect(
                    self._url, timeout=PULSE, command_timeout=PULSE, server_settings=self._settings
                )
            except (*PASSING, asyncpg.PostgresError):
                await anyio.sleep(PAUSE)
                continue
            try:
                connection.add_termination_listener(lambda _: self._wake.set())
                self._pid = connection.get_server_pid()
                await connection.add_listener(self._channel, self._hear)
                if not listened:
                    task_status.started()
                    listened = True
                await self._speak(connection)
            except (*PASSING, asyncpg.PostgresError):
                await anyio.sleep(PAUSE)
            finally:
                connection.terminate()

    async def _speak(self, connection: Any) -> None:
        while True:
            self._wake = anyio.Event()
            words, self._waiting = self._waiting, {}
            try:
                # Always, also without words: asyncpg's word for a connection that ended may never come.
                await connection.execute(
                    "SELECT pg_notify($1, line) FROM unnest($2::text[]) AS line", self._channel, _lines(words)
                )
            except BaseException:
                self._waiting = words | self._waiting
                raise
            await anyio.sleep(GAP)
            with anyio.move_on_after(PULSE):
                await self._wake.wait()

    def _hear(self, _connection: Any, pid: int, _channel: str, line: object) -> None:
        if pid != self._pid:  # what this replica said it was told at once
            for word in str(line).split():
                self._tell(word)


def _lines(words: Iterable[str]) -> list[str]:
    """Write many words in few lines: a notification holds 8,000 bytes, and costs as much as many words."""
    lines = [""]
    for word in words:
        if len(lines[-1]) + len(word) > 7000:
            lines.append("")
        lines[-1] += f"{word} "
    return lines if words else []
