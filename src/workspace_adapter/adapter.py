"""The extension point: teach the sidecar a new agent runtime.

Write two small classes. A :class:`RuntimeAdapter` opens sessions; a
:class:`RuntimeSession` runs turns. Put them on the image's ``PYTHONPATH``, set
``WORKSPACE_ADAPTER=your_package.your_module:YourAdapter``, and prove them with
``workspace_adapter.testing.check_adapter``.

What you do **not** write: HTTP, the journal, draining, queueing, retries,
recovery notes, auto-resume. Nothing in this file performs I/O.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from .events import SessionHandle, ToolCall, TurnEvent
from .resume import Evidence, Resumption

TurnEvents = AsyncGenerator[TurnEvent, None]
"""What ``run_turn`` returns: write it as an ``async def`` with ``yield``."""


class AtClosedGate(StrEnum):
    """What this runtime does with a tool call while the gate is closed."""

    END = "end"  #: it ends the turn at the tool boundary, transcript well formed
    HOLD = "hold"  #: the call waits, unanswered, until the gate opens or the process ends


class Permit(StrEnum):
    """The gate's answer to one tool call."""

    GRANTED = "granted"  #: on disk; make the call, and say when it ended
    PARKED = "parked"  #: do not make this call; end the turn here


class StopReason(StrEnum):
    """Why a running turn is asked to stop."""

    CANCEL = "cancel"  #: the asker withdrew it; it will not be continued
    RESTART = "restart"  #: the container is about to stop; it will be continued


class ToolGate(Protocol):
    """Asked before every tool call. Closed while the workspace drains."""

    async def ask(self, call: ToolCall) -> Permit:
        """Say whether ``call`` may start; the permit is on disk before this returns.

        With ``AtClosedGate.HOLD`` this waits while the gate is closed. With
        ``AtClosedGate.END`` it answers ``PARKED`` at once. ``PARKED`` comes in either
        case when the turn was canceled. On ``PARKED`` the session must not make the
        call, must leave its transcript well formed (a refused result, not a missing
        one), and ends the turn with ``TurnFinished(finish=Finish.PARKED)``.
        """

    async def ended(self, call_id: str, *, ok: bool = True) -> None:
        """Say that a permitted call ended; on disk before this returns.

        A call that failed has ended, too (``ok=False``); one that was cut off has not:
        say nothing of it, since nobody knows what it did. Harmless to repeat, and for calls
        that never got a permit. Neither this nor :meth:`ask` raises anything an adapter
        could act on: let what comes pass.
        """

    def opened(self) -> bool:
        """Whether the gate is open now, for runtimes that can stop between calls."""


class Children(Protocol):
    """What a session's child processes must carry so that no other life meets them."""

    def environ(self) -> dict[str, str]:
        """Return the environment for a child: the container's, with the mark of this life.

        The platform's secrets are not in it.
        """

    async def started(self, pid: int, what: str) -> None:
        """Record a child; on disk before this returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Mechanisms this runtime has, each one proved by ``check_adapter``.

    These say what the adapter *can do*, never who owns a platform feature.
    """

    gate: AtClosedGate | None
    """How it treats a closed gate. ``None``: its tool calls cannot be gated, so a
    drain can only wait for turns to end, and an interruption leaves every call unknown."""

    covers: str = "every tool call"
    """Which tool calls ask the gate, in words for operators; of no meaning without one."""

    resumes: bool = False
    """``SessionContext.resume`` is honoured: a session can be reopened by its handle
    in a later process. Without it interrupted work starts anew, with a note."""

    cancels: bool = False
    """``RuntimeSession.stop(CANCEL)`` ends the turn and leaves the session good.
    Without it the session is closed instead."""

    images: bool = False
    """Image parts are given to the model as images; without it, as paths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """A part of a message: text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """A part of a message: a file, already on this machine's disk."""

    path: Path
    """Beneath the workdir, or beneath our own uploads."""
    name: str
    mime_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPart:
    """A part of a message: structured data, as JSON text."""

    json: str


Part = TextPart | FilePart | DataPart


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One attempt at one turn, as a session is given it."""

    id: str
    """Our id of the turn; the same over all its attempts."""

    attempt: int
    """1 for the first. ``(id, attempt)`` is unique: derive the runtime's own ids from it."""

    parts: tuple[Part, ...]
    """The message, as sent."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The message's own metadata, as sent; where there are traces, ``traceparent`` is this attempt."""

    resumption: Resumption = Resumption.NEW
    """``NEW`` and ``REPLAY``: give the runtime the message. ``CONTINUE``: the
    conversation already holds it; give the note alone, which quotes it."""

    note: str | None = None
    """What the agent must be told of an interruption, or by the platform. Put it before the message."""

    @property
    def text(self) -> str:
        """The message as one text: files as their paths, data as JSON."""
        lines = []
        for part in self.parts:
            match part:
                case TextPart(text=text):
                    lines.append(text)
                case FilePart(path=path, name=name, mime_type=mime_type):
                    lines.append(f"[file {name} ({mime_type}): {path}]")
                case DataPart(json=json):
                    lines.append(json)
        return "\n".join(lines)

    @property
    def prompt(self) -> str:
        """What a runtime that takes only text is given: note and message, as due."""
        if self.note is None:
            return self.text
        if self.resumption is Resumption.CONTINUE:
            return self.note
        return f"{self.note}\n\n{self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionContext:
    """What a session is given when it opens."""

    session_id: str
    """Our name for the conversation (the A2A ``contextId``). Stable for ever."""

    workdir: Path
    """Where the agent works."""

    state_dir: Path
    """A directory of this adapter's own that outlives the container; it exists. All its
    sessions share it."""

    gate: ToolGate
    children: Children

    resume: SessionHandle | None = None
    """Reattach to this session instead of starting one: a handle this adapter once
    yielded in ``SessionBound``, perhaps in an earlier container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedTurn:
    """What ``recover`` is asked about: a turn whose runtime is gone."""

    id: str
    attempts: int
    """Starts so far, at least 1: its attempts were ``1 … attempts``."""
    session_id: str
    handle: SessionHandle | None
    workdir: Path
    state_dir: Path
    text: str
    """The message as one text, as ``TurnRequest.text`` gave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgottenSession:
    """What ``forget`` is to erase: a conversation that nobody has open."""

    session_id: str
    handle: SessionHandle | None
    """``None`` where the core knows none, or no longer; the runtime may know the session all the same."""
    workdir: Path
    state_dir: Path


class RuntimeSession(ABC):
    """One conversation with one agent.

    A session belongs to one task, which opens it, runs its turns one after another
    and closes it; vendor clients that own a task group are safe to hold. Only
    :meth:`stop` is called from another task.
    """

    def __init__(self, context: SessionContext) -> None:
        """Keep what the session is given; who needs something else need not call this."""
        self.context = context

    @abstractmethod
    def run_turn(self, turn: TurnRequest) -> TurnEvents:
        """Run one attempt at one turn, yielding events as they happen.

        Write this as an ``async def`` with ``yield``. The contract:

        * Yield ``SessionBound`` as soon as the runtime's own session id is known; it is on
          disk before the next event is asked for.
        * Await ``context.gate.ask(call)`` before every tool call, and
          ``context.gate.ended(call.id)`` after it.
        * End with exactly one ``TurnFinished``. Yield nothing after it.
        * Do not ``yield`` inside a task group, a cancel scope or a timeout.

        Raises:
            TurnFailed: this turn failed; the session is still good.
            SessionLost: the runtime does not know the session it should continue.
            RuntimeLost: the runtime died; the turn is resumed by the plan.
            RuntimeUnusable: it cannot be started at all.
        """

    async def stop(self, why: StopReason) -> None:  # noqa: B027  optional: the session is closed next
        """Ask the running turn to stop soon; return without waiting for it.

        Called from another task, only while :meth:`run_turn` is iterated, and it goes
        on being iterated, possibly before the runtime has seen the prompt; the turn may
        then end in any way, also without ``TurnFinished``. For ``CANCEL`` leave the session good when
        ``capabilities.cancels``. For ``RESTART`` end the runtime the way it resumes
        best; the default leaves that to the session's context, which is left next.
        """


class RuntimeAdapter:
    """Opens sessions on one kind of agent runtime. One instance per process."""

    name: ClassVar[str]
    """How this runtime is called in logs, heartbeats and the agent card."""

    capabilities: ClassVar[Capabilities]
    """What the mechanism below can do."""

    Session: ClassVar[type[RuntimeSession]]
    """What a session is, where opening one takes no more than ``Session(context)``;
    else write :meth:`open_session`."""

    Settings: ClassVar[type | None] = None
    """A frozen dataclass of ``settings.setting`` fields, or ``None``. It is parsed from
    the container's environment with ours and handed to the constructor."""

    credentials: ClassVar[tuple[str, ...]] = ()
    """Variables of which one lets the runtime reach its model. ``workspace-adapter doctor``
    says when none is set; it prints no value."""

    session_bytes: ClassVar[int] = 0
    """What one open session takes outside this process, as a rule; the doctor compares
    it with the memory there is."""

    def __init__(self, settings: Any = None) -> None:
        """Keep the settings; do nothing slow here."""
        if type(self).open_session is RuntimeAdapter.open_session and not hasattr(self, "Session"):
            raise TypeError(f"{type(self).__name__} needs a `Session`, or an `open_session` of its own")
        self.settings = settings

    async def check(self) -> str:
        """Say whether the runtime can be started, and return its version.

        Called at a start-up that resumes nothing; never on a turn's path.

        Raises:
            RuntimeUnusable: saying what to install or to set.
        """
        return ""

    def wedged(self) -> str | None:
        """Say why the runtime cannot work although it was started; ``None`` while it can.

        Asked on the event loop every few seconds while heartbeats are sent, and said to the
        platform: return at once. Say only what no turn can get around, such as a server that
        does not answer; what one turn met is that turn's failure.
        """
        return None

    @asynccontextmanager
    async def running(self, children: Children, state_dir: Path) -> AsyncGenerator[None, None]:
        """Hold what lives as long as the adapter, such as one server for many sessions."""
        yield

    def open_session(self, context: SessionContext) -> AbstractAsyncContextManager[RuntimeSession]:
        """Open a session, or reattach to ``context.resume``.

        Entered and left by the task that drives the session. Leaving it must stop
        whatever it started: processes, connections, tasks. The default makes a
        ``Session``, and has nothing to stop.

        Raises:
            SessionLost: ``context.resume`` no longer opens.
            RuntimeUnusable: the runtime cannot be started.
        """
        return nullcontext(self.Session(context))

    async def recover(self, turn: InterruptedTurn) -> Evidence:
        """Report what the runtime's own records say about an interrupted turn.

        Called within :meth:`running`, after everything of the runtime's earlier life was
        ended, and before the turn is continued. Report evidence only; what becomes of the turn is not the
        adapter's to decide. Late or raising counts as ``Evidence.seen()``.
        """
        return Evidence.seen()

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Erase what the runtime keeps of a conversation for good; return what that was, for people.

        Called within :meth:`running`, while the session is not open and nothing of it
        runs. Other sessions may be open. Doing it again is harmless, and so is a session
        that the runtime never knew. Of an adapter that does not write this, the operator
        is told that the runtime's records are still there.

        Raises:
            RuntimeUnusable: it cannot be done now; nothing else of the session is erased then.
        """
        return []
