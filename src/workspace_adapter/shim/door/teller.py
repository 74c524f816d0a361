"""Tells the reader of a stream what its workspace said, from the rows and on any replica.

Each event carries its number as ``id``, so a reader that comes back with it as
``Last-Event-ID`` misses none and sees none twice, whatever was restarted meanwhile. What
is told only to this reader (why its stream ends though the work goes on, that a message
was given up) has no number: it would take that of an event to come.

Nothing is read ahead: a reader that is slow costs one batch of events.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import anyio
from starlette.types import Send

from ...errors import StoreUnavailable
from ...queueing import ENDED, State
from ..store.contract import Item, Store
from ..streams import CONTENT_TYPE, KEEP_ALIVE, encode, interruption, whole, with_request_id
from . import answers
from .answers import Told
from .envelope import STREAMED, Call
from .waiting import Ring, Stopping, Waiters

T = TypeVar("T")

_BATCH = 50
"""Events read at once."""

_UNDECIDED = 1.0
"""Seconds for which the head of the response waits for something to tell: then it is a stream."""

_PAUSE = 1.0
"""Seconds until a store that could not be read is read again."""

_HEAD = [
    (b"content-type", CONTENT_TYPE.encode()),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Telling:
    """One stream to one reader.

    Until there is something to tell, or a second has passed, nothing is decided: what ends before is an
    ordinary answer.

    Args:
        after: the number of the last event that the reader has.
        hold: seconds of silence after which it is sent away.
        over: makes the answer for a reader whose hold is over.
        keep_alive: seconds of silence that are filled with a comment.
    """

    def __init__(
        self,
        store: Store,
        waiters: Waiters,
        send: Send,
        *,
        item_id: int,
        call: Call,
        after: int,
        hold: float,
        over: Callable[[], Awaitable[Told]],
        keep_alive: float,
    ) -> None:
        self._store = store
        self._waiters = waiters
        self._send = send
        self._id = item_id
        self._call = call
        self._number = after
        self._hold = hold
        self._over = over
        self._keep_alive = keep_alive
        self._begun = False
        self._task: bytes | None = None
        """An event that names the task, for what we have to say ourselves."""

    async def run(self, *, new: bool) -> None:
        """Tell everything, until the item has ended or the reader is sent away.

        Args:
            new: it was queued a moment ago, and nothing is known of it yet.
        """
        with self._waiters.listen(self._id, of_stream=True) as ring:
            try:
                if new or not await self._has_everything():
                    ring.ended = not new
                    if self._number:
                        await self._write(KEEP_ALIVE)  # it goes on: its reader need not wait to hear that
                    await self._tell_until_it_ends(ring)
            except Stopping:
                await self._leave(answers.stopping(self._id))

    async def _tell_until_it_ends(self, ring: Ring) -> None:
        told_at = spoke_at = anyio.current_time()
        while True:
            ended = ring.ended and await self._ended(ring)
            if told := await self._tell():
                told_at = spoke_at = anyio.current_time()
            if told == _BATCH:
                ring.ended = ring.ended or bool(ended)
                continue
            if ended:
                await self._end(ended)
                return
            self._waiters.check()
            now = anyio.current_time()
            if now - told_at >= self._hold:
                await self._leave(await self._over())
                return
            silence = self._keep_alive if self._begun else min(self._keep_alive, _UNDECIDED)
            await ring.wait(min(told_at + self._hold, spoke_at + silence) - now)
            if (now := anyio.current_time()) - spoke_at >= silence:
                await self._write(KEEP_ALIVE)
                spoke_at = now

    async def _tell(self) -> int:
        """Tell the next events; return how many there were."""
        events = await self._insist(lambda: self._store.said(self._id, after=self._number, most=_BATCH))
        if events:
            self._number = events[-1][0]
            self._task = self._task or events[0][1]
            request_id = self._call.request_id
            await self._write(b"".join(encode(with_request_id(data, request_id), n) for n, data in events))
        return len(events)

    async def _ended(self, ring: Ring) -> Item | None:
        ring.ended = False
        item = await self._insist(lambda: self._store.item(self._id))
        return item if item is not None and item.state in ENDED else None

    async def _has_everything(self) -> bool:
        """Find the reader's place; say whether it was told everything, the answer too."""
        place = self._number
        if not place:
            return False
        if await self._insist(lambda: self._store.said(self._id, after=place - 1, most=1)):
            return False
        item = await self._insist(lambda: self._store.item(self._id))
        if item is None or item.state is not State.COMPLETED:
            self._number = 0  # no place of ours
            return False
        await self._write(b"")
        await self._close()
        return True

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store until it can be read."""
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                self._waiters.check()
                await anyio.sleep(_PAUSE)

    # --- ends -----------------------------------------------------------------------------

    async def _end(self, item: Item) -> None:
        """Tell how the item ended."""
        told = answers.of_item(item, self._call.method, self._call.request_id)
        if not self._begun and told.status != 200:
            await told.send(self._send)
            return
        if item.answer is not None and told.status == 200:
            final = item.state is State.COMPLETED
            await self._write(encode(told.body, self._number + 1 if final else None))
        else:
            await self._say(told)
        await self._close()

    async def _leave(self, told: Told) -> None:
        """Send the reader away; the work goes on."""
        if not self._begun:
            await told.send(self._send)
            return
        text = f"{_text(told)} (go on with Last-Event-ID)"
        event = None if self._task is None else interruption(self._task, text, now=time.time())
        if event is None:
            await self._say(told)
        else:
            await self._write(encode(with_request_id(event, self._call.request_id)))
        await self._close()

    async def _say(self, told: Told) -> None:
        """Tell what is no answer in the protocol's words, as its error."""
        data = {"status": told.status, "queue_id": str(self._id)}
        error = {"code": -32603, "message": _text(told), "data": data}
        event = {"jsonrpc": "2.0", "id": self._call.request_id, "error": error}
        await self._write(encode(json.dumps(event, ensure_ascii=False).encode()))

    # --- bytes ----------------------------------------------------------------------------

    async def _write(self, data: bytes) -> None:
        if not self._begun:
            self._begun = True
            head = [*_HEAD, (answers.QUEUE_ID.encode(), b"%d" % self._id)]
            await self._send({"type": "http.response.start", "status": 200, "headers": head})
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _close(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


async def without_stream(store: Store, item: Item) -> Item:
    """Return an item with the answer that its whole stream amounts to, where its message was streamed."""
    answer = item.answer
    if item.method not in STREAMED or answer is None or answer.status != 200:
        return item
    events: list[bytes] = []
    number = 0
    while said := await store.said(item.id, after=number):
        events += [data for _, data in said]
        number = said[-1][0]
    return replace(item, answer=replace(answer, body=whole(events, answer.body))) if events else item


def _text(told: Told) -> str:
    """Return what a response says to people."""
    try:
        body = json.loads(told.body)
    except ValueError:
        body = None
    said = (body.get("error") or body.get("message")) if isinstance(body, dict) else None
    return said if isinstance(said, str) else f"refused with {told.status}"
