"""Where a clause puts an adapter to work and watches what it does.

A clause sees an adapter as the core does: through the gate and the children it is given,
and the events it yields.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import anyio
from anyio.streams.buffered import BufferedByteReceiveStream

from .. import settings
from ..adapter import (
    Part,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    TextPart,
    TurnRequest,
)
from ..errors import AdapterError
from ..events import (
    Activity,
    Artifact,
    Finish,
    SessionBound,
    SessionHandle,
    Text,
    TurnEvent,
    TurnFinished,
    Usage,
)
from ..resume import Resumption
from . import proc
from .recording import Moment, Record, RecordingChildren, RecordingGate

Subject = str | type[RuntimeAdapter] | Callable[[], RuntimeAdapter]
"""An adapter to be tried: ``module:Class``, the class, or a function that makes one."""

_POLL = 0.01


def build(subject: Subject, environ: Mapping[str, str]) -> RuntimeAdapter:
    """Make a fresh adapter, as the sidecar does.

    Raises:
        SettingsError: its settings cannot be parsed from ``environ``.
    """
    made: Any = resolve_name(subject) if isinstance(subject, str) else subject
    wanted = getattr(made, "Settings", None)
    adapter: RuntimeAdapter = made() if wanted is None else made(settings.parse(wanted, environ))
    return adapter


def name_of(subject: Subject) -> str | None:
    """Return the name by which another process can import a subject, if it has one."""
    if isinstance(subject, str):
        return subject
    name = f"{subject.__module__}:{subject.__qualname__}"
    return None if "<" in name else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What a prompt leaves outside the adapter, for a clause to look at."""

    effect: Path
    begun: Path
    word: str

    def fill(self, prompt: str) -> str:
        """Put the paths and the word into a prompt."""
        for name, value in asdict(self).items():
            prompt = prompt.replace(f"{{{name}}}", str(value))
        return prompt

    def effects(self) -> int:
        """Count the lines that tools have written."""
        return len(self.effect.read_text().splitlines()) if self.effect.exists() else 0

    async def until_begun(self) -> None:
        """Wait until the slow tool has begun."""
        while not self.begun.exists():  # noqa: ASYNC110  another process makes it
            await anyio.sleep(_POLL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt at one turn, after it ended."""

    id: str
    text: str
    moments: tuple[Moment, ...]

    @property
    def finish(self) -> str:
        """How it finished; else what it raised; else that it did neither."""
        for moment in self.moments:
            match moment.kind:
                case "finished":
                    return moment.what
                case "raised":
                    return f"with {moment.what}: {moment.detail}"
        return "without TurnFinished"

    @property
    def answer(self) -> str:
        """What the runtime says is the answer, else its text after the last tool call."""
        texts: list[str] = []
        for moment in self.moments:
            match moment.kind:
                case "asked":
                    texts.clear()
                case "text":
                    texts.append(moment.detail)
                case "finished" if moment.detail:
                    return moment.detail
        return "".join(texts)


Drive = Callable[[AsyncGenerator[TurnEvent, None], Callable[[TurnEvent], None]], Awaitable[None]]
"""A way to iterate a turn."""


async def like_the_core(events: AsyncGenerator[TurnEvent, None], see: Callable[[TurnEvent], None]) -> None:
    """Iterate until ``TurnFinished``, then close the generator."""
    async with aclosing(events):
        async for event in events:
            see(event)
            if isinstance(event, TurnFinished):
                return


async def to_the_last(events: AsyncGenerator[TurnEvent, None], see: Callable[[TurnEvent], None]) -> None:
    """Iterate until nothing comes any more."""
    async for event in events:
        see(event)


async def in_many_tasks(events: AsyncGenerator[TurnEvent, None], see: Callable[[TurnEvent], None]) -> None:
    """Take each step in a task of its own, which finds out every scope left open by a ``yield``."""
    going_on = True

    async def step() -> None:
        nonlocal going_on
        try:
            see(await anext(events))
        except StopAsyncIteration:
            going_on = False

    async with aclosing(events):
        while going_on:
            async with anyio.create_task_group() as task:
                task.start_soon(step)


class Scene:
    """One session at work, and what was seen of it."""

    def __init__(
        self, session: RuntimeSession, record: Record, gate: RecordingGate, traces: Traces, patience: float
    ) -> None:
        self.session = session
        self.record = record
        self.gate = gate
        self.traces = traces
        self._patience = patience

    async def run(
        self,
        prompt: str,
        *,
        id: str | None = None,
        attempt: int = 1,
        resumption: Resumption = Resumption.NEW,
        note: str | None = None,
        parts: tuple[Part, ...] = (),
        drive: Drive = like_the_core,
        meanwhile: Callable[[], Coroutine[None, None, None]] | None = None,
    ) -> Attempt:
        """Run one attempt at one turn to its end.

        Args:
            prompt: the message's text, to be filled in.
            parts: of the message, beside its text.
            meanwhile: what somebody else does while the turn runs, and no longer.

        Raises:
            TimeoutError: it does not end.
        """
        request = TurnRequest(
            id=id or secrets.token_hex(8),
            attempt=attempt,
            parts=(TextPart(text=self.traces.fill(prompt)), *parts),
            resumption=resumption,
            note=note,
        )
        first = len(self.record.moments)
        with anyio.fail_after(self._patience):
            if meanwhile is None:
                await self._iterate(request, drive)
            else:
                async with anyio.create_task_group() as others:
                    others.start_soon(meanwhile)
                    await self._iterate(request, drive)
                    others.cancel_scope.cancel()
        return Attempt(id=request.id, text=request.text, moments=tuple(self.record.moments[first:]))

    async def _iterate(self, request: TurnRequest, drive: Drive) -> None:
        try:
            await drive(self.session.run_turn(request), self._see)
        except AdapterError as error:
            self.record.add("raised", type(error).__name__, str(error))

    def _see(self, event: TurnEvent) -> None:
        match event:
            case TurnFinished(finish=Finish() as finish, answer=answer):
                self.record.add("finished", finish, answer or "")
            case SessionBound(handle=handle):
                self.record.add("bound", handle)
            case Text(text=text):
                self.record.add("text", detail=text)
            case Activity(line=line):
                self.record.add("activity", detail=line)
            case Artifact(id=id, text=text):
                self.record.add("artifact", id, text)
            case Usage():
                self.record.add("usage")
            case _:
                self.record.add("other", detail=repr(event))


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a process of its own is to do with an adapter: one attempt at one turn."""

    subject: str
    environ: dict[str, str]
    directory: str
    mark: str
    patience: float
    promptness: float
    session_id: str
    traces: dict[str, str]
    prompt: str
    id: str
    resume: str | None


class Elsewhere:
    """One attempt at one turn in a process of its own, seen from here."""

    def __init__(self, process: anyio.abc.Process, record: Record, traces: Traces, job: Job) -> None:
        self._process = process
        self.record = record
        self.traces = traces
        self._job = job

    @property
    def pid(self) -> int:
        """Of the process that drives the adapter."""
        return self._process.pid

    @property
    def attempt(self) -> Attempt:
        """What was seen so far."""
        return Attempt(
            id=self._job.id,
            text=self.traces.fill(self._job.prompt),
            moments=tuple(self.record.moments),
        )

    async def until_begun(self) -> None:
        """Wait until the slow tool has begun, or the turn is over without it."""
        while not self.traces.begun.exists() and not self.record.over:  # noqa: ASYNC110
            await anyio.sleep(_POLL)

    async def kill(self) -> None:
        """SIGKILL it, and nothing else."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


@dataclass(kw_only=True)
class Stage:
    """The surroundings of one clause: a state directory, a mark, and a limit for every wait."""

    subject: Subject
    environ: Mapping[str, str]
    directory: Path
    patience: float
    """Seconds that any wait may take."""
    promptness: float
    """Seconds that a stopped turn may take to end."""
    mark: str = field(default_factory=lambda: secrets.token_hex(16))
    tell: Callable[[Moment], None] = lambda moment: None
    last: Moment | None = None
    """What was seen last, of any session."""

    def __post_init__(self) -> None:
        self.workdir = self.directory / "work"
        self.state_dir = self.directory / "state"
        for directory in (self.workdir, self.state_dir):
            directory.mkdir(exist_ok=True)

    def traces(self) -> Traces:
        """Make up the names and the word for one session."""
        word = f"word-{secrets.token_hex(4)}"
        return Traces(effect=self.workdir / f"effect-{word}", begun=self.workdir / f"begun-{word}", word=word)

    @asynccontextmanager
    async def adapter(self) -> AsyncGenerator[RuntimeAdapter, None]:
        """Make a fresh adapter and hold its life."""
        adapter = build(self.subject, self.environ)
        children = RecordingChildren(Record(lambda: 0, self._saw), self.environ, self.mark)
        async with adapter.running(children, self.state_dir):
            yield adapter

    @asynccontextmanager
    async def session(
        self,
        adapter: RuntimeAdapter | None = None,
        *,
        session_id: str = "",
        traces: Traces | None = None,
        permits: int | None = None,
        hold: bool = False,
        resume: SessionHandle | None = None,
    ) -> AsyncGenerator[Scene, None]:
        """Open a session, of a fresh adapter unless one is given."""
        traces = traces or self.traces()
        record = Record(traces.effects, self._saw)
        gate = RecordingGate(record, permits=permits, hold=hold)
        async with AsyncExitStack() as stack:
            if adapter is None:
                adapter = await stack.enter_async_context(self.adapter())
            context = SessionContext(
                session_id=session_id or secrets.token_urlsafe(32),
                workdir=self.workdir,
                state_dir=self.state_dir,
                gate=gate,
                children=RecordingChildren(record, self.environ, self.mark),
                resume=resume,
            )
            session = await stack.enter_async_context(adapter.open_session(context))
            yield Scene(session, record, gate, traces, self.patience)

    @asynccontextmanager
    async def elsewhere(
        self,
        prompt: str,
        *,
        session_id: str = "",
        traces: Traces | None = None,
        resume: SessionHandle | None = None,
    ) -> AsyncGenerator[Elsewhere, None]:
        """Run one turn in a process of its own, while the body looks on."""
        traces = traces or self.traces()
        job = Job(
            subject=name_of(self.subject) or "",
            environ=dict(self.environ),
            directory=str(self.directory),
            mark=self.mark,
            patience=self.patience,
            promptness=self.promptness,
            session_id=session_id,
            traces={name: str(value) for name, value in asdict(traces).items()},
            prompt=prompt,
            id=secrets.token_hex(8),
            resume=resume,
        )
        process = await anyio.open_process(
            [sys.executable, "-m", "workspace_adapter.testing.driver"],
            stderr=None,
            env={**self.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        record = Record(lambda: 0, self._saw)
        try:
            assert process.stdin is not None
            await process.stdin.send(json.dumps(asdict(job)).encode())
            await process.stdin.aclose()
            async with anyio.create_task_group() as reader:
                reader.start_soon(_read_moments, process, record)
                other = Elsewhere(process, record, traces, job)
                with anyio.fail_after(self.patience):
                    yield other
                await other.kill()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            with anyio.CancelScope(shield=True):
                await process.aclose()

    async def recovering(self) -> None:
        """End what is left, as the core does before it asks what became of a turn."""
        for process in proc.marked(self.mark):
            process.kill()
        await self.until_gone(lambda: proc.marked(self.mark))

    async def until_gone(self, rest: Callable[[], list[proc.Process]]) -> list[proc.Process]:
        """Give processes a second to disappear; return those that do not."""
        with anyio.move_on_after(1):
            while rest():  # noqa: ASYNC110  the kernel rings no bell
                await anyio.sleep(_POLL)
        return rest()

    def _saw(self, moment: Moment) -> None:
        self.last = moment
        self.tell(moment)


async def _read_moments(process: anyio.abc.Process, record: Record) -> None:
    assert process.stdout is not None
    lines = BufferedByteReceiveStream(process.stdout)
    with suppress(anyio.IncompleteRead, anyio.EndOfStream, anyio.ClosedResourceError):
        while True:
            record.put(Moment(**json.loads(await lines.receive_until(b"\n", 1 << 20))))
    record.add("gone")
