"""A door with a real journal behind it, where the test plays the sessions."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn
from starlette.types import ASGIApp

from workspace_adapter.drain import Report
from workspace_adapter.settings import Settings
from workspace_adapter.sidecar.app import MetricsMissing, Scraped, create_app
from workspace_adapter.sidecar.bell import Bell
from workspace_adapter.sidecar.door.card import card
from workspace_adapter.sidecar.door.codec import create_codec
from workspace_adapter.sidecar.door.door import Door
from workspace_adapter.sidecar.door.parts import Uploads
from workspace_adapter.sidecar.door.waiting import WaitingRoom
from workspace_adapter.sidecar.drainer import SignalTooSoon
from workspace_adapter.sidecar.journal import Journal, NewEvent
from workspace_adapter.sidecar.secret_file import Secrets
from workspace_adapter.telling import Work
from workspace_adapter.turns import ENDED, Outcome, OutcomeKind, State, Turn
from workspace_adapter.wire import RestartSignal

DEADLINE = 10.0
"""Seconds any single step may take; only a failing test takes that long."""

SECRET = "s3cret-of-the-platform"


class Played:
    """Stands where the sessions stand; the test says what happens to the turns."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.submitted: list[tuple[str, bool]] = []
        self.fault: Exception | None = None
        self.does = Work()

    def submit(self, turn: Turn, *, asked_again: bool = False) -> None:
        if self.fault is not None:
            raise self.fault
        self.submitted.append((turn.id, asked_again))

    def work(self) -> Work:
        return self.does

    async def cancel(self, turn_id: str) -> Turn | None:
        return await self.journal.change(
            turn_id,
            expect=set(State) - ENDED,
            to=State.CANCELED,
            cause="canceled by its asker",
            outcome=Outcome(kind=OutcomeKind.CANCELED, reason="canceled by its asker"),
            now=time.time(),
        )


class HeardSignals:
    """Stands where the drainer stands."""

    def __init__(self) -> None:
        self.heard: list[tuple[RestartSignal, bool]] = []
        self.too_soon: float | None = None

    async def signal(self, signal: RestartSignal, *, signed: bool) -> Report:
        if self.too_soon is not None:
            raise SignalTooSoon(self.too_soon)
        self.heard.append((signal, signed))
        return Report(finished=1, parked=("p",), held=(), running=("r",), took=0.25)


class Stage:
    """One life of a workspace, as its callers meet it."""

    def __init__(self, root: Path, settings: Settings, journal: Journal, bell: Bell) -> None:
        self.root = root
        self.settings = settings
        self.journal = journal
        self.sessions = Played(journal)
        self.drainer = HeardSignals()
        self.ready = (True, "ready")
        self.metrics: bytes | None = b"ready 1"
        self.room = WaitingRoom(hold_limit=settings.hold_limit)
        self.door = Door(
            journal=journal,
            bell=bell,
            sessions=self.sessions,
            uploads=Uploads(workdir=Path(settings.workdir), state_dir=Path(settings.state_dir)),
            room=self.room,
            settings=settings,
            clock=time.time,
        )
        self.app: ASGIApp = create_app(
            codec=create_codec(self.door),
            drainer=self.drainer,
            status=lambda: {"state": "serving"},
            metrics=self.scraped,
            ready=lambda: self.ready,
            settings=settings,
            secrets=Secrets(Path(settings.configs_dir)),
            card=lambda: card(settings, adapter_name="played"),
            runtime="played",
            delivered=self.door.delivered,
            boot_id="boot-1",
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://workspace",
            timeout=DEADLINE,
        )

    async def scraped(self) -> Scraped:
        """What ``/metrics`` shows."""
        if self.metrics is None:
            raise MetricsMissing("install the extra")
        return Scraped(self.metrics, "text/plain")

    # --- callers --------------------------------------------------------------------

    async def rpc(
        self, method: str, params: Any, *, request_id: Any = "r-1", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Call a method, in the dialect it belongs to."""
        body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        return await self.http.post("/", json=body, headers=_versioned(method, headers))

    async def send(self, text: str, **changes: Any) -> httpx.Response:
        """Send a message as the existing platform does."""
        return await self.rpc("message/send", {"message": message(text, **changes)})

    # --- the agent ------------------------------------------------------------------

    async def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait for something to come true."""
        end = time.monotonic() + DEADLINE
        while not (found := condition()):
            assert time.monotonic() < end, f"{what} did not come"
            await anyio.sleep(0.002)
        return found

    async def taken(self, count: int = 1) -> Turn:
        """Wait until that many turns were submitted; return the last."""
        await self.until(lambda: len(self.sessions.submitted) >= count, f"turn {count}")
        return self.turn(self.sessions.submitted[count - 1][0])

    def turn(self, turn_id: str) -> Turn:
        turn = self.journal.turn(turn_id)
        assert turn is not None
        return turn

    async def start(self, turn: Turn) -> Turn:
        turn = self.turn(turn.id)
        started = await self.journal.start(
            turn.id, expect=turn.state, attempt=turn.attempt, strikes=0, cut=None, now=time.time()
        )
        await self.log(started, ("status", {"state": "working", "attempt": started.attempt}))
        return started

    async def log(self, turn: Turn, *entries: tuple[str, dict[str, Any]]) -> None:
        events = [NewEvent(kind=kind, body=body) for kind, body in entries]
        await self.journal.append(turn.id, turn.attempt, events, now=time.time())

    async def finish(
        self,
        turn: Turn,
        answer: str | None = None,
        *,
        to: State = State.ANSWERED,
        kind: OutcomeKind = OutcomeKind.ANSWERED,
        reason: str = "",
        retryable: bool = False,
        events: Sequence[tuple[str, dict[str, Any]]] = (),
    ) -> None:
        """End a running attempt."""
        ended = await self.journal.finish(
            turn.id,
            attempt=turn.attempt,
            to=to,
            cause=reason or str(to),
            outcome=Outcome(kind=kind, reason=reason, retryable=retryable, input_tokens=3, output_tokens=5),
            answer=answer,
            events=[NewEvent(kind=entry, body=body) for entry, body in events],
            now=time.time(),
        )
        assert ended is not None

    async def fail(self, turn: Turn, reason: str, *, retryable: bool = False) -> None:
        await self.finish(turn, to=State.FAILED, kind=OutcomeKind.FAILED, reason=reason, retryable=retryable)

    async def interrupt(self, turn: Turn) -> None:
        """Let the runtime of a running attempt die."""
        body = {"state": "interrupted", "attempt": turn.attempt}
        await self.journal.finish(
            turn.id,
            attempt=turn.attempt,
            to=State.INTERRUPTED,
            cause="its runtime died",
            events=[NewEvent(kind="status", body=body)],
            now=time.time(),
        )

    async def give_up(self, turn: Turn, to: State, reason: str) -> None:
        """Suspend or expire a turn that was interrupted."""
        await self.interrupt(turn)
        kind = OutcomeKind.SUSPENDED if to is State.SUSPENDED else OutcomeKind.EXPIRED
        await self.journal.change(
            turn.id,
            expect={State.INTERRUPTED},
            to=to,
            cause=reason,
            outcome=Outcome(kind=kind, reason=reason, retryable=to is State.EXPIRED),
            now=time.time(),
        )

    async def answer(self, turn: Turn, text: str) -> None:
        """Run a turn from its start to its answer."""
        started = await self.start(turn)
        await self.finish(started, text, events=[("text", {"text": text, "append": False})])

    async def answer_next(self, text: str, count: int = 1) -> Turn:
        turn = await self.taken(count)
        await self.answer(turn, text)
        return self.turn(turn.id)

    def journalled(self) -> list[Turn]:
        return self.journal.turns(limit=1000)


def message(text: str, **changes: Any) -> dict[str, Any]:
    """Return a 0.3 message; ``...`` leaves a member out."""
    made = {
        "role": "user",
        "messageId": "m-1",
        "contextId": "c-1",
        "parts": [{"kind": "text", "text": text}],
        **changes,
    }
    return {key: value for key, value in made.items() if value is not ...}


def message10(text: str, **changes: Any) -> dict[str, Any]:
    """Return a 1.0 message."""
    return message(text, **{"role": "ROLE_USER", "parts": [{"text": text}], **changes})


def _versioned(method: str, headers: Mapping[str, str] | None) -> dict[str, str]:
    return ({} if "/" in method else {"A2A-Version": "1.0"}) | dict(headers or {})


def settings_in(root: Path, **changes: Any) -> Settings:
    return Settings(
        workspace_id="ws-1",
        state_dir=str(root / "state"),
        workdir=str(root / "work"),
        configs_dir=str(root / "configs"),
        **changes,
    )


@asynccontextmanager
async def stage(root: Path, *, open_door: bool = True, **changes: Any) -> AsyncIterator[Stage]:
    """Hold one life; another may follow on the same root."""
    for directory in ("state", "work", "configs"):
        (root / directory).mkdir(exist_ok=True)
    settings = settings_in(root, **changes)
    bell = Bell()
    journal = await Journal.open(
        Path(settings.state_dir), boot_id=secrets.token_hex(8), now=time.time(), on_change=bell.ring
    )
    try:
        made = Stage(root, settings, journal, bell)
        if open_door:
            made.room.open()
        async with made.http:
            yield made
    finally:
        await journal.close()


def know_secret(root: Path) -> dict[str, str]:
    """Put the platform's secret in place; return the header that carries it."""
    (root / "configs").mkdir(exist_ok=True)
    (root / "configs" / ".platform_inbound_secret").write_text(SECRET + "\n")
    return {"Authorization": f"Bearer {SECRET}"}


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the signals to the test's own process."""
        yield


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncIterator[str]:
    """Serve an app on a real socket; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
        )
        server = _Server(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True


class Stream:
    """What a subscriber received."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.raw: list[bytes] = []
        self._lines = response.aiter_lines()

    async def next(self) -> dict[str, Any] | None:
        """Return the next event's result; ``None`` at the end."""
        lines: list[str] = []
        with anyio.fail_after(DEADLINE):
            async for line in self._lines:
                if line.startswith(":"):
                    continue
                if line:
                    lines.append(line)
                elif lines:
                    break
        if not lines:
            return None
        self.raw.append("\n".join(lines).encode())
        fields = dict(line.split(": ", 1) for line in lines)
        result: dict[str, Any] = json.loads(fields["data"])["result"]
        assert fields["id"] == cursor_of(result)
        return result

    async def rest(self) -> list[dict[str, Any]]:
        """Return every event to come, until the stream ends."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


def cursor_of(result: dict[str, Any]) -> str:
    """Return the cursor of an event, in either dialect."""
    inner = result if "kind" in result else next(iter(result.values()))
    cursor: str = inner["metadata"]["cursor"]
    return cursor


@asynccontextmanager
async def streaming(
    url: str,
    method: str,
    params: dict[str, Any],
    *,
    headers: Mapping[str, str] | None = None,
    request_id: str = "r-1",
) -> AsyncIterator[Stream]:
    """Call a streaming method over a real connection."""
    body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    async with (
        httpx.AsyncClient(timeout=DEADLINE) as client,
        client.stream("POST", url, json=body, headers=_versioned(method, headers)) as response,
    ):
        yield Stream(response)
