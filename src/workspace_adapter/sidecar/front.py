"""Stands where the codec will stand, until the door is open."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from .door.edge import FULL_HOUSE_RETRY, KEY, Exchange
from .door.refusal import Refusal, busy
from .door.waiting import WaitingRoom


class Front:
    """Lets every A2A request wait that comes before the door is open.

    Args:
        places: how many may.
    """

    def __init__(self, room: WaitingRoom, *, places: int) -> None:
        self._room = room
        self._places = places
        self._codec: ASGIApp | None = None

    def show(self, codec: ASGIApp) -> None:
        """Hand over to the codec, also who waits; the room is opened next."""
        self._codec = codec

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._codec is None:
            exchange: Exchange = scope[KEY]
            try:
                await self._wait()
            except Refusal as refusal:
                exchange.refusal = refusal
                await send({"type": "http.response.start", "status": refusal.status, "headers": []})
                await send({"type": "http.response.body", "body": b""})  # the edge writes the refusal
                return
        assert self._codec is not None
        await self._codec(scope, receive, send)

    async def _wait(self) -> None:
        if not self._places:
            raise busy("booting: too many requests are waiting already", FULL_HOUSE_RETRY)
        self._places -= 1
        try:
            await self._room.enter(self._room.deadline())
        finally:
            self._places += 1
