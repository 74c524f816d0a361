"""Adapters that break the contract, at least one for every clause.

Each is a scripted runtime with one mistake that authors make. They prove that
``check_adapter`` can fail, and for the right reason.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TypeVar, cast

import anyio

from ..adapter import (
    FilePart,
    ForgottenSession,
    InterruptedTurn,
    Permit,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    StopReason,
    TurnRequest,
)
from ..errors import TurnFailed
from ..events import SessionBound, SessionHandle, Text, ToolCall, TurnEvent, TurnFinished
from ..resume import Evidence, Found, Resumption
from .fakes import ScriptedEnds, ScriptedHolds, ScriptedSession, Transcript

A = TypeVar("A", bound=type[RuntimeAdapter])

BROKEN: list[tuple[type[RuntimeAdapter], str, str]] = []
"""Adapter, the clause it breaks, and a piece of what an author is told about it."""


def breaks(clause: str, told: str) -> Callable[[A], A]:
    """Say which clause an adapter breaks, and what its author must be told."""

    def register(adapter: A) -> A:
        BROKEN.append((adapter, clause, told))
        return adapter

    return register


class _Retold(ScriptedSession):
    """A session that tells its events otherwise."""

    def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
        raise NotImplementedError

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        async with aclosing(super().run_turn(turn)) as events:
            async for event in events:
                for told in self.retell(event):
                    yield told


@breaks("can_be_started", "return the version as text")
class HasNoVersion(ScriptedEnds):
    async def check(self) -> str:
        return cast(str, None)


@breaks("says_whether_it_can_work", "return None, or a text")
class SaysYesItCannot(ScriptedEnds):
    def wedged(self) -> str | None:
        return cast(str, True)


@breaks("says_whether_it_can_work", "look at what is known")
class AsksItsServer(ScriptedEnds):
    def wedged(self) -> str | None:
        time.sleep(0.3)
        return None


# --- one turn ---------------------------------------------------------------------------


@breaks("ends_once", "2 TurnFinished were yielded")
class EndsTwice(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return (event, event) if isinstance(event, TurnFinished) else (event,)


@breaks("ends_once", "0 TurnFinished were yielded")
@breaks("answers", "without TurnFinished")
class NeverEnds(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return () if isinstance(event, TurnFinished) else (event,)


@breaks("ends_once", "after TurnFinished came text")
class TalksOn(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return (event, Text("by the way")) if isinstance(event, TurnFinished) else (event,)


@breaks("ends_once", "'thinking' is no event")
class YieldsAString(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return (cast(TurnEvent, "thinking"), event)


@breaks("answers", "is all of the text yielded?")
class LosesText(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return () if isinstance(event, Text) else (event,)


@breaks("takes_every_part", "TurnFailed: cannot see image/png")
class RefusesImages(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
            for part in turn.parts:
                if isinstance(part, FilePart):
                    raise TurnFailed(f"cannot see {part.mime_type}")
            async with aclosing(super().run_turn(turn)) as events:
                async for event in events:
                    yield event


@breaks("yields_outside_of_scopes", "a `yield` stands inside")
class YieldsInATimeout(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
            with anyio.fail_after(60):
                async with aclosing(super().run_turn(turn)) as events:
                    async for event in events:
                        yield event


@breaks("raises_adapter_errors_only", "OSError came out of the adapter")
class RaisesWhatItLikes(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_tool(self, call: ToolCall) -> bool:
            if not await super().run_tool(call):
                raise OSError("my tool died")
            return True


# --- the gate ---------------------------------------------------------------------------


@breaks("asks_before_the_effect", "the gate was never asked")
@breaks("parked_means_no_effect", "the gate was never asked")
@breaks("holds_at_the_closed_gate", "while its call was held")
class NeverAsks(ScriptedHolds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            await self.run_tool(call)


@breaks("asks_before_the_effect", "ask before the call")
class AsksAfterwards(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            await self.run_tool(call)
            if await self.context.gate.ask(call) is Permit.GRANTED:
                await self.context.gate.ended(call.id)


@breaks("tells_every_end", "never told ended")
class NeverTells(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            await self.context.gate.ask(call)
            await self.run_tool(call)


@breaks("tells_every_end", "before its tool had its effect")
class TellsTooEarly(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_tool(self, call: ToolCall) -> bool:
            await self.context.gate.ended(call.id)
            return await super().run_tool(call)


@breaks("tells_every_end", "the turn ended before its calls were told ended")
class TellsTooLate(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            self.made = call
            await self.context.gate.ask(call)
            await self.run_tool(call)

        async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
            async with aclosing(super().run_turn(turn)) as events:
                async for event in events:
                    try:
                        yield event
                    finally:
                        if isinstance(event, TurnFinished):
                            await self.context.gate.ended(self.made.id)


@breaks("parked_means_no_effect", "do not make the call")
class MakesParkedCalls(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            await super().use(turn, call, after, parked)
            if parked:
                await self.run_tool(call)


@breaks("parked_means_no_effect", "end it with Finish.PARKED")
class AnswersWhenParked(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return (TurnFinished(answer="I may not."),) if isinstance(event, TurnFinished) else (event,)


@breaks("goes_on_after_parking", "0 effects instead of one")
class TakesParkedForDone(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            await super().use(turn, call, after, parked)
            if parked:
                self.transcript.add(turn.id, "ended", call.id)


@breaks("holds_at_the_closed_gate", "while its call was held")
class TiresOfHolding(ScriptedHolds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            parked.append(call.id)
            with anyio.move_on_after(0.05):
                await super().use(turn, call, after, parked)


@breaks("holds_at_the_closed_gate", "wait for the answer")
class RunsWhileHeld(ScriptedHolds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            async with anyio.create_task_group() as both:
                both.start_soon(self.run_tool, call)
                await self.context.gate.ask(call)
            await self.context.gate.ended(call.id)


@breaks("keeps_parallel_calls_apart", "before its tool had its effect")
class SettlesWithItsSibling(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            self.open = getattr(self, "open", [])
            self.open.append(call.id)
            await super().use(turn, call, after, parked)
            if parked:
                for id in self.open:
                    await self.context.gate.ended(id)


@breaks("keeps_parallel_calls_apart", "never told ended")
class CutsItsSibling(ScriptedEnds):
    class Session(ScriptedSession):
        async def use(self, turn: TurnRequest, call: ToolCall, after: float, parked: list[str]) -> None:
            await super().use(turn, call, after, parked)
            if parked and self._work is not None:
                self._work.cancel()


# --- stopping ---------------------------------------------------------------------------


@breaks("cancel_ends_the_turn", "the turn went on")
class DeafToStop(ScriptedEnds):
    class Session(ScriptedSession):
        async def stop(self, why: StopReason) -> None:
            return


@breaks("cancel_ends_the_turn", "stop(CANCEL) waited")
class WaitsInStop(ScriptedEnds):
    class Session(ScriptedSession):
        async def stop(self, why: StopReason) -> None:
            await anyio.sleep_forever()


@breaks("cancel_ends_the_turn", "what was cut is no answer")
@breaks("restart_ends_the_turn", "what was cut is no answer")
class TakesCutForDone(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
            finished = False
            async with aclosing(super().run_turn(turn)) as events:
                async for event in events:
                    finished = isinstance(event, TurnFinished)
                    yield event
            if not finished:
                yield TurnFinished(answer="Interrupted.")


@breaks("can_be_left_in_the_middle", "went on to its effect")
class AbandonsItsTool(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_tool(self, call: ToolCall) -> bool:
            return await super().run_tool(replace(call, arguments=f"setsid sh -c '{call.arguments}' & wait"))


@breaks("leaves_nothing_behind", "still runs")
class LeavesAServer(ScriptedEnds):
    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        subprocess.run(["sh", "-c", "sleep 60 &"], env=context.children.environ(), check=True)  # noqa: ASYNC221
        async with super().open_session(context) as session:
            yield session


@breaks("leaves_nothing_behind", "tasks are left")
class LeavesATask(ScriptedEnds):
    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        reader = anyio.create_task_group()
        await reader.__aenter__()
        reader.start_soon(anyio.sleep, 5)
        async with super().open_session(context) as session:
            yield session


# --- sessions ---------------------------------------------------------------------------


@breaks("sessions_do_not_mix", "a session spoke of")
class HasOneMemory(ScriptedEnds):
    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        self.memory = getattr(self, "memory", None) or Transcript.begin(context.state_dir / "scripted")
        yield self.Session(context, self.memory)


@breaks("sessions_do_not_mix", "the gate of one was asked")
class HasOneGate(ScriptedEnds):
    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        self.gate = getattr(self, "gate", context.gate)
        async with super().open_session(replace(context, gate=self.gate)) as session:
            yield session


@breaks("binds_a_handle", "no SessionBound was yielded")
@breaks("goes_on_after_sigkill", "the handle was not bound before the first tool call")
class BindsNothing(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            return () if isinstance(event, SessionBound) else (event,)


@breaks("binds_a_handle", "SessionBound came after TurnFinished")
class BindsTooLate(ScriptedEnds):
    class Session(_Retold):
        def retell(self, event: TurnEvent) -> Iterable[TurnEvent]:
            match event:
                case SessionBound():
                    return ()
                case TurnFinished():
                    return (event, SessionBound(self.transcript.handle))
            return (event,)


@breaks("unknown_handle_is_lost", "raise SessionLost")
@breaks("remembers_in_another_process", "without word-")
class BeginsAnew(ScriptedEnds):
    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        async with super().open_session(replace(context, resume=None)) as session:
            yield session


@breaks("forgets_one_session_for_good", "still stands in scripted/")
class ForgetsTheHandleOnly(ScriptedEnds):
    async def forget(self, session: ForgottenSession) -> list[str]:
        return []


@breaks("forgets_one_session_for_good", "SessionLost was raised")
class ForgetsEverybody(ScriptedEnds):
    async def forget(self, session: ForgottenSession) -> list[str]:
        for transcript in (session.state_dir / "scripted").iterdir():
            transcript.unlink()
        return []


@breaks("forgets_one_session_for_good", "FileNotFoundError came out of the adapter")
class ForgetsOnlyOnce(ScriptedEnds):
    async def forget(self, session: ForgottenSession) -> list[str]:
        (session.state_dir / "scripted" / f"{session.handle}.jsonl").unlink()
        return []


@breaks("forgets_one_session_for_good", "a line of text each")
class ForgetsInSilence(ScriptedEnds):
    async def forget(self, session: ForgottenSession) -> list[str]:
        await super().forget(session)
        return cast("list[str]", None)


# --- what becomes of an interrupted turn ------------------------------------------------


@breaks("recover_knows_what_it_never_saw", "`recover` said answered")
class GivesAnyAnswer(ScriptedEnds):
    async def recover(self, turn: InterruptedTurn) -> Evidence:
        handle = SessionHandle(turn.handle or "")
        path = turn.state_dir / "scripted" / f"{handle}.jsonl"
        return Evidence.answered("the last one") if path.exists() else Evidence.session_lost()


@breaks("recover_finds_the_answer", "`recover` said seen")
@breaks("recover_misses_a_lost_session", "`recover` said seen")
class NeverLooks(ScriptedEnds):
    async def recover(self, turn: InterruptedTurn) -> Evidence:
        return Evidence.seen()


@breaks("recover_sees_a_killed_turn", "`recover` said unseen")
class OverlooksTheCut(ScriptedEnds):
    async def recover(self, turn: InterruptedTurn) -> Evidence:
        evidence = await super().recover(turn)
        return Evidence.unseen() if evidence.found is Found.SEEN else evidence


@breaks("children_can_be_found", "does not carry the mark")
class HidesItsChildren(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_tool(self, call: ToolCall) -> bool:
            done = await anyio.run_process(
                ["sh", "-c", call.arguments], env={"PATH": "/bin:/usr/bin"}, check=False
            )
            return done.returncode == 0


@breaks("goes_on_after_sigkill", "TurnFailed: a call has no result")
class ChokesOnACutCall(ScriptedEnds):
    class Session(ScriptedSession):
        async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
            if turn.resumption is Resumption.CONTINUE and "unknown" in (turn.note or ""):
                raise TurnFailed("a call has no result")
            async with aclosing(super().run_turn(turn)) as events:
                async for event in events:
                    yield event
