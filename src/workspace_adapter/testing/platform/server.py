"""An HTTP server that can leave its port and come back to it, as a platform that is replaced does."""

from __future__ import annotations

import socket
import struct
from typing import Any

import anyio
import anyio.lowlevel
import uvicorn
from starlette.types import ASGIApp

_KEPT_ALIVE = 120
"""Seconds an idle connection is kept: clients that keep theirs for less meet no closed one."""


_TICKS = 5
"""Turns of the event loop within which a connection is accepted, or closed once it is reset."""


class _Uvicorn(uvicorn.Server):
    """uvicorn that stops at once when an event says so: it would look ten times a second, and then wait."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.asked_to_stop = anyio.Event()

    async def main_loop(self) -> None:
        await self.asked_to_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            for listening in server.sockets:
                server.get_loop().remove_reader(listening.fileno())
        await _ticks()  # asyncio loses a connection whose server is closed while it is being accepted
        for closing in (*self.servers, *(sockets or ())):
            closing.close()
        for connection in list(self.server_state.connections):
            _reset(connection)
        await _ticks()


async def _ticks() -> None:
    """Let the event loop do what it has begun."""
    for _ in range(_TICKS):
        await anyio.lowlevel.checkpoint()


class Server:
    """uvicorn on 127.0.0.1; made and used in one event loop.

    Args:
        port: 0 takes a free one.
    """

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        # Bound and never listening: the port stays ours also while connections are refused.
        self._place = _bound(port)
        self.port: int = self._place.getsockname()[1]
        self._listener: socket.socket | None = self._listening()
        self._uvicorn: _Uvicorn | None = None
        self._here = anyio.Event()
        self._here.set()
        self._gone = anyio.Event()
        self._gone.set()
        self._over = False

    async def run(self) -> None:
        """Serve until it is closed."""
        listener: socket.socket | None = None
        try:
            while True:
                await self._here.wait()
                listener, self._listener = self._listener, None
                if self._over:
                    break
                if listener is None:
                    continue  # it left before it was there
                self._uvicorn = _Uvicorn(
                    uvicorn.Config(
                        self._app,
                        interface="asgi3",
                        lifespan="off",
                        log_config=None,
                        access_log=False,
                        server_header=False,
                        timeout_keep_alive=_KEPT_ALIVE,
                        ws="none",
                    )
                )
                self._gone = anyio.Event()
                await self._uvicorn.serve(sockets=[listener])
                self._gone.set()
        finally:
            self._gone.set()
            self._place.close()
            if listener is not None:
                listener.close()

    async def leave(self) -> None:
        """Refuse connections, and reset those that are open; return when that is done."""
        if self._here.is_set():
            self._here = anyio.Event()
            self._stop()
            await self._gone.wait()

    def come_back(self) -> None:
        """Listen again."""
        if not self._here.is_set():
            self._listener = self._listening()
            self._here.set()

    def close(self) -> None:
        """End for good."""
        self._over = True
        self._here.set()
        self._stop()

    def reset(self, client: object) -> None:
        """Reset the connection of one client."""
        for connection in self._connections():
            if connection.client == client:
                _reset(connection)

    def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._uvicorn is not None:
            self._uvicorn.asked_to_stop.set()

    def _connections(self) -> list[Any]:
        return list(self._uvicorn.server_state.connections) if self._uvicorn is not None else []

    def _listening(self) -> socket.socket:
        listener = _bound(self.port)
        listener.listen(1024)
        return listener


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it
    made.bind(("127.0.0.1", port))
    return made


def _reset(connection: Any) -> None:
    open_socket = connection.transport.get_extra_info("socket")
    if open_socket is not None:
        # Linger for no time: closing sends a reset.
        open_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.transport.abort()
