"""Scripted runtimes: real adapters with real child processes, and no model.

``ScriptedEnds`` ends its turn at the closed gate, ``ScriptedHolds`` leaves the call
waiting; in everything else they are one runtime. They work in a real sidecar::

    WORKSPACE_ADAPTER=workspace_adapter.testing.fakes:ScriptedEnds

The script rides in the message, as JSON between ``<<<`` and ``>>>``; a message without
one is answered with itself::

    Please. <<<[{"tool": "sh", "input": "echo one >> log"}, {"answer": "done"}]>>>

Steps, each an object with one of these keys:

``tool``
    One tool call; the only tool is ``sh``, its ``input`` a command. ``after``: seconds
    before the gate is asked.
``tools``
    Several calls at once: a list of objects as above.
``say``, ``activity``, ``artifact``, ``usage``
    Yield a piece of text, a line of activity, an artifact with this text (its id is the
    step's number), or ``[input, output]`` tokens.
``sleep``
    Think for so many seconds.
``recall``
    Say what this session was told in its earlier turns. The value is ``true``.
``answer``, ``ask``, ``reject``
    End the turn: answered, asked back, rejected. Without one of them it ends answered
    when the script does, with what was said after the last tool call.
``fail``, ``crash``, ``unusable``, ``raise``
    Raise ``TurnFailed`` (``retryable``), ``RuntimeLost``, ``RuntimeUnusable``, or an
    error outside the contract, with this reason.
``hang``
    Be silent for ever, deaf to ``stop``. The value is ``true``.

The last five take ``times``: so often in this session, then the script goes on; without
it, always.

A transcript, one file a session, remembers what happened: a call is noted before its
tool starts and again when it has ended. A later attempt repeats no call that ended. One
whose end was never seen it makes again only when the note of the interruption lists it
as unknown or never started, and in a new session it makes no call that the note lists
as finished; so let the commands of one script differ.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar
from uuid import uuid4

import anyio

from ..adapter import (
    AtClosedGate,
    Capabilities,
    ForgottenSession,
    InterruptedTurn,
    Permit,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    StopReason,
    TurnRequest,
)
from ..errors import RuntimeLost, RuntimeUnusable, SessionLost, TurnFailed
from ..events import (
    Activity,
    Artifact,
    Finish,
    SessionBound,
    SessionHandle,
    Text,
    ToolCall,
    TurnEvent,
    TurnFinished,
    Usage,
)
from ..resume import Evidence

T = TypeVar("T")
Step = dict[str, Any]


class Transcript:
    """What one session went through, one fact a line.

    Nothing is fsynced: what was written outlives the process, not the machine.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.handle = SessionHandle(path.stem)

    @classmethod
    def begin(cls, directory: Path) -> Self:
        """Begin the transcript of a new session."""
        directory.mkdir(exist_ok=True)
        path = directory / f"{uuid4().hex}.jsonl"
        path.touch()
        return cls(path)

    @classmethod
    def find(cls, directory: Path, handle: SessionHandle) -> Self:
        """Open the transcript of a known session.

        Raises:
            SessionLost: there is none of that name.
        """
        path = directory / f"{handle}.jsonl"
        if not re.fullmatch("[0-9a-f]{32}", handle) or not path.exists():
            raise SessionLost(f"there is no transcript {path}")
        return cls(path)

    def remove(self) -> Path:
        """Erase it, and return where it was."""
        self._path.unlink(missing_ok=True)
        return self._path

    def add(self, turn_id: str, fact: str, of: str = "", text: str = "") -> None:
        """Write a fact down; of two that say the same both are kept."""
        line = json.dumps({"turn": turn_id, "fact": fact, "of": of, "text": text})
        with self._path.open("a") as file:
            # The line break comes first: a line cut short by SIGKILL spoils no other.
            file.write(f"\n{line}")

    def texts(self, turn_id: str, fact: str, of: str = "") -> list[str]:
        """Return the texts of a turn's facts of this kind, oldest first."""
        return [
            str(entry["text"])
            for entry in self._entries()
            if (entry["turn"], entry["fact"], entry["of"]) == (turn_id, fact, of)
        ]

    def told_before(self, turn_id: str) -> list[str]:
        """Return every message of the session's other turns."""
        entries = self._entries()
        return [str(e["text"]) for e in entries if e["fact"] == "given" and e["turn"] != turn_id]

    def _entries(self) -> Iterator[dict[str, str]]:
        for line in self._path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


class ScriptedSession(RuntimeSession):
    """One conversation with a script."""

    def __init__(self, context: SessionContext, transcript: Transcript) -> None:
        super().__init__(context)
        self.transcript = transcript
        self._stopped = False
        self._work: anyio.CancelScope | None = None

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        """Play the script of one turn, as far as it was not played before."""
        self._stopped = False
        yield SessionBound(self.transcript.handle)
        self.transcript.add(turn.id, "given", text=turn.prompt)
        said: list[str] = []
        finish: Finish | None = None
        answer: str | None = None
        for index, step in enumerate(_script(turn.prompt)):
            match step:
                case {"tool": _} | {"tools": _}:
                    said.clear()
                    if await self._unless_stopped(partial(self._use_all, turn, index, step)):
                        finish = Finish.PARKED
                case {"sleep": int() | float() as seconds}:
                    await self._unless_stopped(partial(anyio.sleep, seconds))
                case {"say": str(text)}:
                    said.append(text)
                    yield Text(text)
                case {"recall": True}:
                    said.append("\n".join(self.transcript.told_before(turn.id)))
                    yield Text(said[-1])
                case {"activity": str(line)}:
                    yield Activity(line)
                case {"artifact": str(text)}:
                    yield Artifact(id=str(index), name=f"artifact-{index}", text=text)
                case {"usage": [int(tokens_in), int(tokens_out)]}:
                    yield Usage(input_tokens=tokens_in, output_tokens=tokens_out)
                case {"answer": str(text)}:
                    finish, answer = Finish.ANSWERED, text
                case {"ask": str(text)}:
                    finish, answer = Finish.ASKED_BACK, text
                case {"reject": str(text)}:
                    finish, answer = Finish.REJECTED, text
                case _:
                    if self._still(turn, index, step):
                        await self._mishap(step)
            if self._stopped:
                return
            if finish is not None:
                break
        else:
            finish = Finish.ANSWERED
        if finish is Finish.ANSWERED:
            self.transcript.add(turn.id, "answered", text="".join(said) if answer is None else answer)
        yield TurnFinished(finish=finish, answer=answer)

    async def stop(self, why: StopReason) -> None:
        """End the turn where it is; a tool that runs is killed."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()

    async def _unless_stopped(self, work: Callable[[], Awaitable[T]]) -> T | None:
        with anyio.CancelScope() as self._work:
            if self._stopped:
                self._work.cancel()
            return await work()
        return None

    # --- tools ------------------------------------------------------------------------

    async def _use_all(self, turn: TurnRequest, index: int, step: Step) -> bool:
        """Make a step's calls at once; return whether one was parked, when none runs any more."""
        parked: list[str] = []
        due = tuple(self._due(turn, index, step))
        async with anyio.create_task_group() as at_once:
            for call, after in due:
                at_once.start_soon(self.use, turn, call, after, parked)
        return bool(parked)

    def _due(self, turn: TurnRequest, index: int, step: Step) -> Iterator[tuple[ToolCall, float]]:
        """The calls of a step that must be made in this attempt, with their delays."""
        for which, one in enumerate(step.get("tools", [step])):
            if one.get("tool") != "sh":
                raise TurnFailed(f"step {index} of the script: the only tool is `sh`")
            id = f"{turn.id}:{index}.{which}" if "tools" in step else f"{turn.id}:{index}"
            call = ToolCall(id=id, name="sh", arguments=str(one["input"]))
            if self._wanted(turn, call):
                yield call, float(one.get("after", 0))

    def _wanted(self, turn: TurnRequest, call: ToolCall) -> bool:
        """Whether a sensible model would make this call, after what it saw and was told."""
        told = _told(turn.note or "", call)
        if self.transcript.texts(turn.id, "ended", call.id) or told == "finished":
            return False
        return told is not None or not self.transcript.texts(turn.id, "started", call.id)

    async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
        """Make one call, if the gate permits it."""
        await anyio.sleep(after)
        if await self.context.gate.ask(call) is Permit.PARKED:
            parked.append(call.id)
            return
        self.transcript.add(turn.id, "started", call.id)
        ok = await self.run_tool(call)
        self.transcript.add(turn.id, "ended", call.id)
        await self.context.gate.ended(call.id, ok=ok)

    async def run_tool(self, call: ToolCall) -> bool:
        """Run a command; return whether it succeeded. It dies with whoever waits for it."""
        process = await anyio.open_process(
            ["sh", "-c", call.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.context.workdir,
            env=self.context.children.environ(),
            start_new_session=True,
        )
        try:
            await self.context.children.started(process.pid, f"sh -c {call.arguments}")
            return await process.wait() == 0
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):  # it has ended and nobody was told yet
                    os.killpg(process.pid, signal.SIGKILL)
            with anyio.CancelScope(shield=True):
                await process.wait()

    # --- mishaps ----------------------------------------------------------------------

    def _still(self, turn: TurnRequest, index: int, step: Step) -> bool:
        """Count one more time that a step is met; return whether it still acts."""
        self.transcript.add(turn.id, "met", str(index))
        return "times" not in step or len(self.transcript.texts(turn.id, "met", str(index))) <= step["times"]

    async def _mishap(self, step: Step) -> None:
        match step:
            case {"hang": True}:
                await anyio.sleep_forever()
            case {"fail": str(reason)}:
                raise TurnFailed(reason, retryable=bool(step.get("retryable")))
            case {"crash": reason}:
                raise RuntimeLost(f"the script says so: {reason}")
            case {"unusable": reason}:
                raise RuntimeUnusable(f"the script says so: {reason}")
            case {"raise": reason}:
                raise LookupError(f"the script says so: {reason}")
            case _:
                raise TurnFailed(f"the script has a step nobody knows: {json.dumps(step)}")


class ScriptedEnds(RuntimeAdapter):
    """A scripted runtime that ends its turn at the closed gate."""

    name = "scripted-ends"
    capabilities = Capabilities(gate=AtClosedGate.END, resumes=True, cancels=True)
    Session: ClassVar[type[ScriptedSession]] = ScriptedSession

    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        """Begin a transcript, or go on with the one that ``context.resume`` names."""
        directory = context.state_dir / "scripted"
        if context.resume is None:
            transcript = Transcript.begin(directory)
        else:
            transcript = Transcript.find(directory, context.resume)
        yield self.Session(context, transcript)

    async def recover(self, turn: InterruptedTurn) -> Evidence:
        """Read it off the transcript."""
        if turn.handle is None:
            return Evidence.unseen()  # the handle is bound before the message is given
        try:
            transcript = Transcript.find(turn.state_dir / "scripted", turn.handle)
        except SessionLost:
            return Evidence.session_lost()
        if answers := transcript.texts(turn.id, "answered"):
            return Evidence.answered(answers[-1])
        return Evidence.seen() if transcript.texts(turn.id, "given") else Evidence.unseen()

    async def forget(self, session: ForgottenSession) -> list[str]:
        """Remove its transcript."""
        if session.handle is None:
            return []  # the handle is bound before the message is given
        try:
            transcript = Transcript.find(session.state_dir / "scripted", session.handle)
        except SessionLost:
            return []
        return [str(transcript.remove())]


class ScriptedHolds(ScriptedEnds):
    """A scripted runtime that leaves its call waiting at the closed gate."""

    name = "scripted-holds"
    capabilities = Capabilities(gate=AtClosedGate.HOLD, resumes=True, cancels=True)


def _script(prompt: str) -> list[Step]:
    """The steps of a prompt's last script."""
    scripts = re.findall(r"<<<(\[.*?\])>>>", prompt, re.DOTALL)
    if not scripts:
        return [{"answer": prompt}]
    try:
        steps: list[Step] = json.loads(scripts[-1])
    except json.JSONDecodeError as error:
        raise TurnFailed(f"the script is not JSON: {error}") from None
    return steps


def _told(note: str, call: ToolCall) -> str | None:
    """What the note of an interruption says about a call, which it quotes by its beginning."""
    whole = f"{call.name} {call.arguments}".replace("\r", "\\r").replace("\n", "\\n").rstrip()
    told = None
    for line in note.splitlines():
        quoted = line.removeprefix("- ").removesuffix("…")
        if line == quoted:
            words = ("unknown", "finished", "never started")
            told = next((word for word in words if line.startswith("These") and word in line), told)
        elif whole == quoted or (len(quoted) > _CUT and whole.startswith(quoted)):
            return told
    return None


_CUT = 100
"""A longer quotation may be the beginning of a call only."""
