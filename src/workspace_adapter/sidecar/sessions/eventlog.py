"""One attempt's entries in its turn's event log, text coalesced."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import anyio

from ...events import Activity, Artifact, Text, ToolCall
from ...resume import Resumption, Verdict
from ..insist import insist
from ..journal import Journal, NewEvent

BEGUN = "working"
"""The state that the first entry of every attempt says."""

COALESCE = 0.25
"""Seconds a piece of text may wait for the next one."""

_LIMIT = 64 * 1024
"""Characters that may wait; more are written at once."""


class EventLog:
    """Gathers what the runtime says until it is written, and remembers the answer so far.

    Its first entry says how the attempt was begun: that of one that resumes ``verdict`` too, from
    which the note that its runtime was given can be worded again; ``begun`` is what else it says.
    """

    def __init__(
        self,
        journal: Journal,
        turn_id: str,
        attempt: int,
        verdict: Verdict,
        *,
        clock: Callable[[], float],
        begun: Mapping[str, object] | None = None,
    ) -> None:
        self._journal = journal
        self._turn_id = turn_id
        self._attempt = attempt
        self._clock = clock
        first: dict[str, object] = {"state": BEGUN, "attempt": attempt, **(begun or {})}
        if verdict.resumption is not Resumption.NEW:
            first |= {
                "resumption": str(verdict.resumption),
                "because": verdict.because,
                "fresh_session": verdict.fresh_session,
                "noted": verdict.note is not None,
            }
        self._buffer = [NewEvent(kind="status", body=first)]
        self._buffered = 0
        self._something = anyio.Event()
        self._something.set()
        self._ended = anyio.Event()
        self._tools: dict[str, str] = {}
        self._answer: list[str] = []
        self._activity = ""
        self._writing = anyio.Lock()

    @property
    def answer(self) -> str:
        """The text since the last tool call, or since the attempt began."""
        return "".join(self._answer)

    @property
    def doing(self) -> str:
        """What the agent does now, in one line."""
        if self._tools:
            return f"running {', '.join(self._tools.values())}"
        return self._activity or "working"

    async def say(self, event: Text | Activity | Artifact) -> None:
        """Take one event of the runtime.

        Raises:
            TypeError: it is none.
        """
        match event:
            case Text(text=text):
                if not text:
                    return
                self._add_text(text)
            case Activity(line=line):
                self._activity = line
                self._add("activity", {"line": line})
            case Artifact():
                self._add(
                    "artifact",
                    {
                        "id": event.id,
                        "name": event.name,
                        "text": event.text,
                        "mime_type": event.mime_type,
                    },
                )
                self._buffered += len(event.text)
            case _:
                raise TypeError(f"run_turn yielded {type(event).__name__}, which is no event")
        if self._buffered > _LIMIT:
            await self.flush()

    def tool_started(self, call: ToolCall) -> None:
        """A call got its permit: what the agent said before it was not the answer."""
        self._tools[call.id] = call.name
        self._answer = []
        self._add("tool", {"name": call.name, "phase": "started"})

    def tool_ended(self, call_id: str, ok: bool) -> None:
        """A permitted call ended."""
        self._add("tool", {"name": self._tools.pop(call_id, ""), "phase": "ended", "ok": ok})

    async def flush(self) -> None:
        """Write what waits."""
        async with self._writing:
            events = self.take()
            if events:
                await insist(
                    lambda: self._journal.append(self._turn_id, self._attempt, events, now=self._clock())
                )

    def end(self) -> None:
        """Let :meth:`write` return, once nothing of it is under way."""
        self._ended.set()
        self._something.set()

    def take(self) -> list[NewEvent]:
        """Hand over what waits, to be written with the turn's end."""
        events, self._buffer, self._buffered = self._buffer, [], 0
        self._something = anyio.Event()
        return events

    async def write(self) -> None:
        """Go on writing until :meth:`end`, at most one entry of text every ``COALESCE`` seconds."""
        while not self._ended.is_set():  # the end may come while something is written
            await self._something.wait()
            if self._ended.is_set():
                return
            await self.flush()
            with anyio.move_on_after(COALESCE):
                await self._ended.wait()

    def _add(self, kind: str, body: dict[str, object]) -> None:
        self._buffer.append(NewEvent(kind=kind, body=body))
        self._something.set()

    def _add_text(self, text: str) -> None:
        opens = not self._answer
        self._answer.append(text)
        self._buffered += len(text)
        if self._buffer and self._buffer[-1].kind == "text" and not opens:
            last = self._buffer.pop().body
            self._add("text", {"text": last["text"] + text, "append": last["append"]})
        else:
            self._add("text", {"text": text, "append": not opens})
