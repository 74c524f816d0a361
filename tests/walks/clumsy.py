"""An adapter that makes every mistake its author can make, on demand.

The text of the message says which mistake its turn makes; the ``contextId`` says which
its session makes, up to the first full stop. Whatever else is said is echoed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio

from workspace_adapter.adapter import (
    AtClosedGate,
    Capabilities,
    InterruptedTurn,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    StopReason,
    TurnRequest,
)
from workspace_adapter.errors import RuntimeLost
from workspace_adapter.events import (
    SessionBound,
    SessionHandle,
    Text,
    ToolCall,
    TurnEvent,
    TurnFinished,
    Usage,
)
from workspace_adapter.resume import Evidence


def anything(value: object) -> Any:
    """Pass a value for what it is not."""
    return value


class Surprise(BaseException):
    """Not an ``Exception``."""


async def deaf() -> None:
    """Wait for ever, whatever is asked."""
    while True:
        with suppress(BaseException):
            await anyio.sleep_forever()


async def cancelled_by_a_friend() -> None:
    """Wait for something of the vendor's that was cancelled."""
    friend = asyncio.get_running_loop().create_future()
    friend.cancel()
    await friend


class ClumsySession(RuntimeSession):
    def __init__(self, context: SessionContext) -> None:
        super().__init__(context)
        self.crashed = False

    async def run_turn(self, turn: TurnRequest) -> AsyncGenerator[TurnEvent, None]:
        # What is yielded and passed here is wrong on purpose, in its types too.
        gate: Any = self.context.gate
        match turn.text:
            case "hang":
                await anyio.sleep_forever()
            case "deaf":
                await deaf()
            case "block":
                import time

                time.sleep(60)
            case "shielded":
                with anyio.CancelScope(shield=True):
                    process = await anyio.open_process(["sleep", "60"], env=self.context.children.environ())
                    await process.wait()
                raise RuntimeLost("its process ended")
            case "surprise":
                raise Surprise
            case "exit":
                sys.exit(3)
            case "interrupt":
                raise KeyboardInterrupt
            case "friend":
                await cancelled_by_a_friend()
            case "no end":
                yield Text("and")
                return
            case "hang after the end":
                yield TurnFinished(answer="before it hung")
                await anyio.sleep_forever()
            case "hang at the end":
                try:
                    yield TurnFinished(answer="before it hung")
                finally:
                    await anyio.sleep_forever()
            case "two ends":
                try:
                    yield TurnFinished(answer="first")
                finally:
                    yield TurnFinished(answer="second")
            case "answer of bytes":
                yield TurnFinished(answer=anything(b"bytes"))
            case "text of numbers":
                yield Text(anything(7))
            case "usage of text":
                yield Usage(input_tokens=anything("many"), output_tokens=anything(object()))
            case "handle of lists":
                yield SessionBound(SessionHandle(anything(["a"])))
            case "not an event":
                yield anything("hello")
            case "arguments of objects":
                call = ToolCall(id="1", name="tool", arguments=anything({"a": 1}))
                await gate.ask(call)
            case "id of numbers":
                await gate.ask(ToolCall(id=anything(["x"]), name="tool", arguments=""))
            case "question of objects":
                await gate.ask({"id": "1", "name": "tool", "arguments": ""})
            case "end of numbers":
                await gate.ask(ToolCall(id="1", name="tool", arguments=""))
                await gate.ended("1", ok=anything(object()))
            case "crash in a tool, then hang":
                if turn.attempt > 1:
                    await anyio.sleep_forever()
                await gate.ask(ToolCall(id="1", name="tool", arguments=""))
                raise RuntimeLost("in the tool")
            case "recover nothing" | "recover numbers" if turn.attempt == 1:
                raise RuntimeLost("so that recover is asked")
        yield TurnFinished(answer=turn.text)

    async def stop(self, why: StopReason) -> None:
        match self.context.session_id.split(".")[0]:
            case "stop hangs":
                await anyio.sleep_forever()
            case "stop is deaf":
                await deaf()
            case "stop raises":
                raise Surprise


class Clumsy(RuntimeAdapter):
    name = "clumsy"
    capabilities = Capabilities(gate=AtClosedGate.END, cancels=True)

    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        mistake = context.session_id.split(".")[0]
        match mistake:
            case "open hangs":
                await anyio.sleep_forever()
            case "open is deaf":
                await deaf()
            case "open exits":
                sys.exit(3)
            case "open has a friend":
                await cancelled_by_a_friend()
            case "open gives nothing":
                yield anything(None)
                return
        yield ClumsySession(context)
        match mistake:
            case "leaving hangs":
                await anyio.sleep_forever()
            case "leaving is deaf":
                await deaf()
            case "leaving is surprising":
                raise Surprise
            case "leaving has a friend":
                await cancelled_by_a_friend()

    async def recover(self, turn: InterruptedTurn) -> Evidence:
        found = Evidence.unseen()
        match turn.text:
            case "recover nothing":
                found = anything(None)
            case "recover numbers":
                found = Evidence.answered(anything(7))
        return found


class NoCancel(Clumsy):
    capabilities = Capabilities(gate=None, cancels=False)


class RunningHangs(Clumsy):
    @asynccontextmanager
    async def running(self, *_: object) -> AsyncGenerator[None, None]:
        await anyio.sleep_forever()
        yield


class LeavingRunningHangs(Clumsy):
    @asynccontextmanager
    async def running(self, *_: object) -> AsyncGenerator[None, None]:
        yield
        await anyio.sleep_forever()


class LeavingRunningIsDeaf(Clumsy):
    @asynccontextmanager
    async def running(self, *_: object) -> AsyncGenerator[None, None]:
        yield
        await deaf()


class RunningFails(Clumsy):
    """Its server ends when it is given its first session."""

    @asynccontextmanager
    async def running(self, *_: object) -> AsyncGenerator[None, None]:
        self.asked = anyio.Event()

        async def fail() -> None:
            await self.asked.wait()
            raise LookupError("the server ended")

        async with anyio.create_task_group() as server:
            server.start_soon(fail)
            yield

    @asynccontextmanager
    async def open_session(self, context: SessionContext) -> AsyncGenerator[RuntimeSession, None]:
        self.asked.set()
        async with super().open_session(context) as session:
            yield session
