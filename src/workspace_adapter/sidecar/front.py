"""What answers while the journal is being opened."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

_PATIENCE = 60.0
"""Seconds a request that came too early is held."""


class Front:
    """Says that the process is up, and holds everything else until the app is there."""

    def __init__(self, *, held_limit: int) -> None:
        self._room = held_limit
        self._app: ASGIApp | None = None
        self._there = anyio.Event()

    def show(self, app: ASGIApp) -> None:
        """Hand over to the app."""
        self._app = app
        self._there.set()

    def shut(self) -> None:
        """Send away whoever waits for the app: the stop has come before it."""
        self._there.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None and scope["path"] not in ("/healthz", "/readyz") and self._room:
            self._room -= 1
            try:
                with anyio.move_on_after(_PATIENCE):
                    await self._there.wait()
            finally:
                self._room += 1
        if self._app is not None:
            await self._app(scope, receive, send)
            return
        up = scope["path"] == "/healthz"
        body = b'{"status":"ok"}' if up else b'{"error":"booting: the journal is not open yet"}'
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"5")]
        await send({"type": "http.response.start", "status": 200 if up else 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
