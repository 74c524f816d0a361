"""The kill walk in scenes: one message each, and what happens to the workspace meanwhile.

The moment to interrupt is found in the journal, so it is the same for every runtime: a tool
call has its permit and has not ended; where no call can be gated, the turn is under way.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import anyio
import httpx

from ..errors import JournalError
from ..resume import Resumption, recovery_note
from ..turns import TOLD, Call, State, Turn
from .timeline import Timeline
from .workspace import NotInTime, Workspace, answer_of

_INSIDE = 0.2
"""Seconds that a call, or a turn without calls, has run when it is interrupted."""

_EXCERPT = 400
"""Characters of an answer that are told."""

_ALL = 1_000_000
"""More entries than a turn's log has."""


class Entry(Protocol):
    """One entry of a turn's log."""

    @property
    def attempt(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def body(self) -> dict[str, Any]: ...


class Journal(Protocol):
    """What is read of the workspace's journal."""

    def turns(self, *, limit: int) -> list[Turn]: ...
    def calls(self, turn_id: str) -> list[Call]: ...
    def events(self, turn_id: str, *, limit: int) -> Sequence[Entry]: ...


OpenJournal = Callable[[Path], AbstractContextManager[Journal]]
"""Opens the journal of a state directory for reading, whether a sidecar runs or not."""


class Site(Protocol):
    """A workspace that is played on, wherever it runs."""

    @property
    def patience(self) -> float: ...
    @property
    def state_dir(self) -> Path: ...
    def envelope(self, text: str) -> dict[str, Any]: ...
    def logged(self) -> str: ...


W = TypeVar("W", bound=Site)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One message and what happens to the workspace meanwhile."""

    title: str
    prompt: str
    interrupt: Callable[[Any], Awaitable[None]]
    """Told the stage."""


@dataclass(slots=True, kw_only=True)
class Played:
    """What came of a scene."""

    scene: Scene
    met: str = ""
    """What was interrupted; empty while nothing was."""
    turn: Turn | None = None
    """As the journal had it last."""
    cut: tuple[Call, ...] = ()
    """Its calls, as the journal had them after the interruption."""
    calls: tuple[Call, ...] = ()
    """Its calls in the end."""
    answer: str | None = None
    """What the caller was told in the end."""
    trouble: str = ""
    """Why the scene could not be played to its end."""

    @property
    def repeated(self) -> list[Call]:
        """Calls that were made again although an earlier attempt had seen them finish."""
        done = {(c.same, c.attempt) for c in self.calls if c.started and not c.unknown}
        return [
            call
            for call in self.calls
            if call.started and any(call.same == same and call.attempt > attempt for same, attempt in done)
        ]


class Stage(ABC, Generic[W]):
    """A workspace, its caller and what they tell.

    Args:
        gated: whether its tool calls ask the gate.
    """

    def __init__(
        self, workspace: W, timeline: Timeline, open_journal: OpenJournal, *, gated: bool = True
    ) -> None:
        self.workspace = workspace
        self.timeline = timeline
        self._open_journal = open_journal
        self._gated = gated

    @abstractmethod
    async def ask(self, played: Played, body: Mapping[str, Any], message_id: str) -> None:
        """Ask as any caller does, until ``played.answer`` is there."""

    @abstractmethod
    async def ask_again(self, body: Mapping[str, Any]) -> str:
        """Send the same message once more; return what is told.

        Raises:
            NotInTime: nothing is.
        """

    @abstractmethod
    async def serve_again(self) -> None:
        """Have the workspace serve after what was done to it."""

    @abstractmethod
    def must_run(self) -> None:
        """Look whether what is waited for can still come.

        Raises:
            NotInTime: it cannot.
        """

    async def play(self, scene: Scene) -> Played:
        """Play one scene to its answer, or as far as it goes within the workspace's patience."""
        played = Played(scene=scene)
        self.timeline.title(scene.title)
        body = self.workspace.envelope(scene.prompt)
        message_id = body["params"]["message"]["messageId"]
        async with anyio.create_task_group() as caller:
            caller.start_soon(self.ask, played, body, message_id)
            try:
                await self._play(played, body, message_id)
            except NotInTime as late:
                played.trouble = late.what
                self._look(played, message_id)
                self.timeline.tell("you", f"{late.what}: the scene is over")
            caller.cancel_scope.cancel()
        return played

    async def _play(self, played: Played, body: Mapping[str, Any], message_id: str) -> None:
        async with self.timeline.progress("the agent works"):
            played.met = await self._moment(played, message_id)
        stood = None
        if not played.met:
            self.timeline.tell("you", "too late to interrupt: the turn has ended")
        else:
            self.timeline.tell("agent", played.met)
            await played.scene.interrupt(self)
            self._look(played, message_id)
            played.cut = played.calls
            self._show(played)
            stood = played.turn
            await self.serve_again()
        async with self.timeline.progress("the caller waits for its answer"):
            await self._until(lambda: played.answer is not None, "the caller's answer")
        self._look(played, message_id)
        self._show_resumption(played, stood)
        again = await self.ask_again(body)
        same = "the same" if again == played.answer else f"something else: {excerpt(again)}"
        self.timeline.tell("caller", f"asks once more, and is told {same}")
        if again != played.answer:
            raise NotInTime("the same message got two answers", self.workspace.logged())

    # --- the journal ------------------------------------------------------------------

    async def _moment(self, played: Played, message_id: str) -> str:
        """Wait until there is something to interrupt; say what, or nothing when the turn ended."""
        began = time.monotonic()
        while played.answer is None:
            self.must_run()
            self._look(played, message_id)
            overdue = time.monotonic() - began > self.workspace.patience
            turn = played.turn
            if turn is not None and turn.state is State.RUNNING and turn.started_at is not None:
                for call in played.calls:
                    if call.unknown and time.time() - (call.permitted_at or 0) > _INSIDE:
                        return f"its call of {call.name} runs: {call.excerpt}"
                if not self._gated and time.time() - turn.started_at > _INSIDE:
                    return "it works"
                if overdue:
                    return f"it has called no tool for {self.workspace.patience:g} s"
            elif overdue:
                raise self.late("no turn began")
            await anyio.sleep(0.01)
        return ""

    def _look(self, played: Played, message_id: str) -> None:
        """See how the turn stands on disk; what cannot be read now stays as it was."""
        try:
            with self._open_journal(self.workspace.state_dir) as journal:
                for turn in journal.turns(limit=1):
                    if turn.message_id == message_id:
                        played.turn, played.calls = turn, tuple(journal.calls(turn.id))
        except JournalError:
            return

    def _show(self, played: Played) -> None:
        """Tell what an operator finds in the journal now, with the sidecar down."""
        if played.turn is not None:
            self.timeline.tell("journal", f"the turn is {played.turn.state}, attempt {played.turn.attempt}")
        for call in played.calls:
            self.timeline.tell("journal", f"its call of {call.name}: {call.fate}")

    def _show_resumption(self, played: Played, stood: Turn | None) -> None:
        """Tell how the turn was resumed, and word again what the runtime was told then.

        The journal has of every attempt how it was begun, and of every call what was known;
        the rest is the policy, which decides the same from the same.
        """
        turn, prompt = played.turn, played.scene.prompt
        if turn is None:
            return
        with self._open_journal(self.workspace.state_dir) as journal:
            log = journal.events(turn.id, limit=_ALL)
        begun = [entry for entry in log if entry.kind == "status" and "resumption" in entry.body]
        for entry in begun:
            self.timeline.tell("sidecar", f"{entry.body['resumption']}s it: {entry.body['because']}")
            if entry.body["noted"]:
                note = recovery_note(
                    [call for call in played.calls if call.attempt < entry.attempt],
                    prompt,
                    resumption=Resumption(entry.body["resumption"]),
                    lost=entry.body["fresh_session"],
                )
                quoted = f"\n\nThe request was:\n{prompt}"
                self.timeline.tell("agent", f"is told: {note.removesuffix(quoted)}")
        if not begun and stood is not None and stood.state not in TOLD:
            self.timeline.tell("sidecar", f"began it no second time: {turn.state}, because {turn.cause}")

    # --- waiting ----------------------------------------------------------------------

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        with anyio.move_on_after(self.workspace.patience):
            while not condition():
                self.must_run()
                await anyio.sleep(0.01)
            return
        raise self.late(f"{what} did not come")

    def late(self, what: str) -> NotInTime:
        """Return the error that says what did not come."""
        return NotInTime(f"{what} within {self.workspace.patience:g} s", self.workspace.logged())


class SidecarStage(Stage[Workspace]):
    """A workspace that stands alone: who plays on it starts it again."""

    async def ask(self, played: Played, body: Mapping[str, Any], message_id: str) -> None:
        self.timeline.tell("caller", f"sends message {message_id[:8]}…")
        told = ""
        while True:
            try:
                reply = await self.workspace.post(body)
                if reply.status_code not in (502, 503):
                    break
                lost = f"is told {reply.status_code}: {reply.json()['error']}"
            except httpx.TransportError:
                lost = "loses its connection"
            if lost != told:
                self.timeline.tell("caller", f"{lost}; sends the same message again")
                told = lost
            await anyio.sleep(0.1)
        played.answer = told_by(reply)
        self.timeline.tell("caller", f"is answered: {excerpt(played.answer)}")

    async def ask_again(self, body: Mapping[str, Any]) -> str:
        try:
            return told_by(await self.workspace.post(body))
        except httpx.TransportError:
            raise self.late("the same message sent once more was not answered") from None

    async def serve_again(self) -> None:
        await self.workspace.start()
        self.timeline.tell("sidecar", "started again")

    def must_run(self) -> None:
        process = self.workspace.process
        if process is not None and process.poll() is not None:
            why = f"the sidecar ended by itself, with code {process.returncode}"
            raise NotInTime(why, self.workspace.logged())


def excerpt(answer: str | None) -> str:
    """Return the beginning of an answer; agents may have much to say."""
    text = answer or ""
    return text if len(text) <= _EXCERPT else f"{text[:_EXCERPT]}… ({len(text)} characters)"


def told_by(reply: httpx.Response) -> str:
    """Return what a caller reads from a reply that is final."""
    body = reply.json()
    if "result" in body:
        return answer_of(body)
    return f"HTTP {reply.status_code}: {json.dumps(body.get('error', body))}"


# --- what happens to a workspace ------------------------------------------------------


async def kill(stage: SidecarStage) -> None:
    """Lose the container: SIGKILL to everything in it."""
    killed = stage.workspace.kill_everything()
    stage.timeline.tell("you", f"kill -9 of everything: {killed} {'process' if killed == 1 else 'processes'}")


async def announce(stage: SidecarStage) -> None:
    """Restart it as the platform does: say so, await the acknowledgement, stop it.

    Raises:
        NotInTime: it does not acknowledge, or does not end.
    """
    workspace, timeline = stage.workspace, stage.timeline
    timeline.tell("platform", "POST /signals/restart_pending")
    try:
        async with timeline.progress("the drain waits for what runs"):
            reply = await workspace.signal()
    except httpx.TransportError:
        raise NotInTime(
            f"the signal was not acknowledged within {workspace.patience:g} s", workspace.logged()
        ) from None
    if reply.status_code != 200:
        raise NotInTime(f"the signal was refused with {reply.status_code}", workspace.logged())
    result = reply.json()["result"]
    timeline.tell(
        "sidecar",
        f"acknowledges after {result['took_ms']} ms: drained {str(result['drained']).lower()},"
        f" {len(result['parked'])} parked, {len(result['held'])} held,"
        f" {len(result['running'])} still running",
    )
    workspace.terminate()
    await workspace.exited()
    timeline.tell("platform", "the container is stopped")


async def terminate(stage: SidecarStage) -> None:
    """Stop it without a word before.

    Raises:
        NotInTime: it does not end.
    """
    stage.timeline.tell("platform", "SIGTERM, and nothing before it")
    stage.workspace.terminate()
    async with stage.timeline.progress("the drain waits for what runs"):
        code = await stage.workspace.exited()
    stage.timeline.tell("sidecar", f"drained and exited with code {code}")


async def stay(workspace: Workspace, timeline: Timeline) -> None:
    """Leave it running until Ctrl-C, and say how to talk to it."""
    body = json.dumps(workspace.envelope("hello"), separators=(",", ":"))
    curl = f"curl -s {workspace.url} -H 'content-type: application/json' -d '{body}'"
    timeline.tell("you", f"talk to it, then press Ctrl-C:\n{curl}")
    timeline.tell("you", f"journal, transcripts, log and files: {workspace.root}")
    await anyio.sleep_forever()
