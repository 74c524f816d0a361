"""One message on its way to the workspace, and what the platform makes of the answer."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http.client import responses
from typing import Any

import anyio
import anyio.to_thread
import httpx

from .answers import judge_answer, parsed
from .container import Container
from .envelope import SYSTEM, Unusable, message_of, normalised
from .gojson import encode
from .queue import CannotEnqueue, Queue
from .row import Row, Status
from .times import Times
from .tokens import Tokens

GATEWAY = frozenset({502, 503, 504, 521, 522, 523, 524})
"""What a gateway in front of a workspace answers, or a workspace that cannot just now."""

_KEPT = 20_000
"""Deliveries remembered."""

_RESTARTING = {
    "error": "workspace agent restarting - retry after a short backoff",
    "busy": True,
    "retry_after": 30,
}
_BUSY = {"error": "workspace agent busy - retry after a short backoff", "busy": True, "retry_after": 30}
_DEAD = {
    "error": "workspace agent unreachable - container restart triggered",
    "restarting": True,
    "retry_after": 15,
}
_WAKING = {
    "error": "workspace is waking from hibernation - retry in ~15 seconds",
    "waking": True,
    "retry_after": 15,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What whoever sent a message is told."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    dead: bool = False
    """Whether the container was declared dead."""
    empty: bool = False
    """Whether the workspace answered 200 with nothing, which only a queue takes for a failure."""

    @classmethod
    def of(cls, status: int, body: Mapping[str, Any], **more: Any) -> Outcome:
        """Make one of an object, with the header that goes with its ``retry_after``."""
        headers = {"Retry-After": str(body["retry_after"])} if "retry_after" in body else {}
        return cls(status, json.dumps(body).encode(), headers, **more)

    @property
    def error(self) -> str | None:
        """What went wrong; ``None`` when nothing did."""
        if self.status < 300 and not self.empty:
            return None
        told = parsed(self.body)
        return str(told.get("error")) if isinstance(told, dict) else f"status {self.status}"


@dataclass(slots=True)
class Delivery:
    """One POST to the workspace."""

    at: float
    """On the monotonic clock."""
    sent: bytes
    """The body, byte by byte."""
    message_id: str | None
    caller: str | None
    """``None`` for the canvas, and for whatever the queue holds for it."""
    status: int | None = None
    """What was answered; ``None`` while nothing is."""
    answer: bytes = b""
    lost: str | None = None
    """How the connection ended that brought no answer."""


class _Life(Enum):
    ALIVE = auto()
    LATELY = auto()
    """Gone, with a beat so young that the message is queued."""
    DEAD = auto()


class Proxy:
    """The way from a caller to the workspace.

    Args:
        scale: of the seconds that the workspace itself names.
        always_auth: whether messages carry the inbound secret; the platform's default is no.
        container: what is looked at when the workspace does not answer; ``None`` where
            nobody can look.
        restart: asked to restart a workspace that was declared dead.
        complain: told of each answer that the contract does not allow.
    """

    def __init__(
        self,
        *,
        workspace_id: str,
        row: Row,
        queue: Queue,
        tokens: Tokens,
        times: Times,
        scale: float,
        always_auth: bool,
        container: Container | None,
        restart: Callable[[], None],
        complain: Callable[[str], None],
    ) -> None:
        self._workspace_id = workspace_id
        self._row = row
        self._queue = queue
        self._tokens = tokens
        self._times = times
        self._scale = scale
        self._always_auth = always_auth
        self._container = container
        self._restart = restart
        self._complain = complain
        self._client: httpx.AsyncClient | None = None
        self._waiting: set[anyio.CancelScope] = set()
        self._strike_at: float | None = None
        self.deliveries: deque[Delivery] = deque(maxlen=_KEPT)

    def beat(self) -> None:
        """Note a heartbeat: whatever is under way may take as long again."""
        for scope in self._waiting:
            scope.deadline = anyio.current_time() + self._idle()

    async def send(self, sent: Mapping[str, Any], *, caller: str | None) -> Outcome:
        """Bring a message to the workspace, or keep it.

        Args:
            caller: the sending workspace, ``system:…`` for the platform itself, ``None`` for
                the canvas.
        """
        try:
            body = normalised(sent, canvas_of=self._workspace_id if caller is None else None)
        except Unusable as error:
            return Outcome.of(400, {"error": str(error), "hint": "send params.message.parts"})
        ours = caller is not None and caller.startswith(SYSTEM)
        row = self._row
        if row.boot_turn and body.get("method") == "message/send" and not ours:
            return self._queued(body, caller, keyed=False)
        if not row.url:
            if row.status in (Status.PROVISIONING, Status.AWAITING_AGENT):
                return self._queued(body, caller)
            if row.status is Status.HIBERNATED:
                return Outcome.of(503, _WAKING)
            return Outcome.of(503, {"error": "workspace has no URL", "status": row.status})
        return await self._forward(row.url, body, caller)

    def _queued(self, body: Mapping[str, Any], caller: str | None, *, keyed: bool = True) -> Outcome:
        named = None if caller is None or caller.startswith(SYSTEM) else caller
        try:
            item = self._queue.enqueue(body, caller=named, now=time.monotonic(), keyed=keyed)
        except CannotEnqueue:
            return Outcome.of(503, _BUSY)
        told = {"queued": True, "queue_id": item.id, "queue_depth": self._queue.depth()}
        if not keyed:
            return Outcome.of(200, {"status": "queued", "method": "message/send", **told})
        text = "workspace agent busy - request queued, will dispatch when capacity available"
        return Outcome.of(202, {**told, "message": text})

    # --- to the workspace -----------------------------------------------------------

    async def _forward(self, url: str, body: Mapping[str, Any], caller: str | None) -> Outcome:
        entry = Delivery(time.monotonic(), encode(dict(body)), message_of(body).get("messageId"), caller)
        self.deliveries.append(entry)
        self._row.active_at = entry.at
        ceiling = self._times.ceiling if caller is not None else float("inf")
        try:
            with anyio.fail_after(ceiling), self._idling():
                response = await self._post(url, entry.sent)
        except (TimeoutError, httpx.ReadTimeout) as error:
            entry.lost = type(error).__name__
            return self._queued(body, caller)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            entry.lost = "refused"
            return await self._not_reached(body, caller, error)
        except httpx.TransportError as error:
            entry.lost = "dropped"
            return await self._not_reached(body, caller, error)
        entry.status, entry.answer = response.status_code, response.content
        if body.get("method") == "message/send":
            for sentence in judge_answer(response.status_code, response.content):
                self._complain(f"answer to {entry.message_id}: {sentence}")
        return await self._read(response.status_code, response.content, body, caller)

    async def _post(self, url: str, body: bytes) -> httpx.Response:
        if self._client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=2)
            timeout = httpx.Timeout(None, connect=self._times.connect)
            self._client = httpx.AsyncClient(verify=False, trust_env=False, limits=limits, timeout=timeout)
        headers = {"Content-Type": "application/json", "User-Agent": "Go-http-client/1.1"}
        if self._always_auth:
            headers["Authorization"] = f"Bearer {self._tokens.inbound_secret}"
        request = self._client.build_request("POST", url, content=body, headers=headers)
        del request.headers["accept"]
        return await self._client.send(request)

    async def close(self) -> None:
        """Close the connections to the workspace."""
        if self._client is not None:
            await self._client.aclose()

    def _idling(self) -> _Idling:
        return _Idling(self._waiting, self._idle())

    def _idle(self) -> float:
        asked = self._row.runtime_metadata.get("idle_timeout_seconds")
        return asked * self._scale if isinstance(asked, int) else self._times.idle

    # --- what becomes of the answer -------------------------------------------------

    async def _read(
        self, status: int, content: bytes, body: Mapping[str, Any], caller: str | None
    ) -> Outcome:
        if status in GATEWAY:
            match await self._look():
                case _Life.DEAD:
                    return self._declared_dead()
                case _Life.LATELY:
                    return self._queued(body, caller)
        if status < 300:
            if not content:
                empty = {"error": "agent returned empty response body"}
                return Outcome.of(status, empty, empty=True)
            return Outcome(status, content)
        told = parsed(content)
        error = told.get("error") if isinstance(told, dict) and status >= 400 else None
        phrase = responses.get(status, str(status))
        return Outcome.of(status, {"error": error if isinstance(error, str) else phrase})

    async def _not_reached(self, body: Mapping[str, Any], caller: str | None, error: Exception) -> Outcome:
        match await self._look():
            case _Life.DEAD:
                return self._declared_dead()
            case _Life.LATELY:
                return self._queued(body, caller)
        if self._container is not None:
            return Outcome.of(503, _RESTARTING)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return Outcome.of(502, {"error": "failed to reach workspace agent"})
        return self._queued(body, caller)

    def _declared_dead(self) -> Outcome:
        row = self._row
        if row.status not in (Status.REMOVED, Status.PROVISIONING, Status.PAUSED, Status.HIBERNATED):
            row.status = Status.OFFLINE
        self._restart()
        return Outcome.of(503, _DEAD, dead=True)

    async def _look(self) -> _Life:
        """Decide whether the container is dead, as carefully as the platform does."""
        row, times = self._row, self._times
        if self._container is None or row.restarting or await self._running():
            return _Life.ALIVE
        began = row.restart_started_at
        settling = began is not None and time.monotonic() - began < times.settle_window
        recent = row.recently_alive(time.monotonic())
        if began is not None and settling and not recent:
            with anyio.move_on_after(times.fresh_beat):
                while row.heartbeat_at is None or row.heartbeat_at < began:  # noqa: ASYNC110  # as it does
                    await anyio.sleep(times.poll / 10)
                recent = True
        if recent or settling:
            await anyio.sleep(times.probe_again)
            if await self._running():
                return _Life.ALIVE
        if recent:
            return _Life.LATELY
        if settling:
            now, before = time.monotonic(), self._strike_at
            self._strike_at = now
            if before is None or now - before > times.settle_window:
                return _Life.ALIVE
        return _Life.DEAD

    async def _running(self) -> bool:
        if self._container is None:
            return True
        return await anyio.to_thread.run_sync(self._container.running)


class _Idling:
    """A time limit that every heartbeat sets anew.

    Raises:
        TimeoutError: on leaving, when it has passed.
    """

    def __init__(self, waiting: set[anyio.CancelScope], seconds: float) -> None:
        self._waiting = waiting
        self._scope = anyio.CancelScope(deadline=anyio.current_time() + seconds)

    def __enter__(self) -> None:
        self._waiting.add(self._scope)
        self._scope.__enter__()

    def __exit__(self, *exc_info: Any) -> bool:
        self._waiting.discard(self._scope)
        swallowed = self._scope.__exit__(*exc_info)
        if self._scope.cancelled_caught:
            raise TimeoutError("no heartbeat for too long")
        return bool(swallowed)
