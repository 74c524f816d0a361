"""uvicorn, told when to stop by others than itself."""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import uvicorn
from starlette.types import ASGIApp

_GRACE = 0.3
"""Seconds it gets to write out what was answered."""


class Server:
    """Serves HTTP on one socket until it is ended.

    Args:
        http: which of uvicorn's parsers: ``h11``, which is always there, or a protocol of one's own.
        keep_alive: seconds for which an idle connection is kept.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        http: Literal["h11"] | type[Any] = "h11",
        keep_alive: int = 5,
    ) -> None:
        self._listener = listener
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=http,
                timeout_keep_alive=keep_alive,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
            )
        )
        self._over = anyio.Event()

    async def run(self) -> None:
        """Serve until ended."""
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        finally:
            self._over.set()

    async def end(self) -> None:
        """Take no more connections, and wait a moment for what was answered to be written out."""
        self._uvicorn.stop()
        with anyio.move_on_after(_GRACE):
            await self._over.wait()


class _Uvicorn(uvicorn.Server):
    """Without its signal handling, which would stop listening before the drain."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        """Wake once a second for the ``Date`` header; its own looks ten times whether to stop."""
        while not await self.on_tick(0):
            with anyio.move_on_after(1):
                await self._told.wait()

    def stop(self) -> None:
        self.should_exit = True
        self._told.set()
