"""What is seen of a session: a gate and children that write everything down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import anyio
import anyio.lowlevel

from ..adapter import Permit
from ..events import SessionHandle, ToolCall

MARK = "WORKSPACE_ADAPTER_BOOT"
"""The variable that marks a child; the core uses the same."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that was seen."""

    kind: str
    """``asked``, ``held``, ``parked``, ``permitted``, ``ended``; ``child``; ``bound``,
    ``text``, ``activity``, ``artifact``, ``usage``, ``finished``, ``other``; ``raised``;
    ``gone``, of the process that ran it."""
    what: str = ""
    """The call's id, the child's pid, the handle, how it finished, the error's class."""
    detail: str = ""
    """Tool and arguments, the answer, the error's text, a piece of text."""
    effects: int = 0
    """Lines that tools had written to the effect file by then."""


class Record:
    """Everything seen of one session, in order."""

    def __init__(self, effects: Callable[[], int], tell: Callable[[Moment], None]) -> None:
        self.moments: list[Moment] = []
        self._effects = effects
        self._tell = tell
        self._news = anyio.Event()

    def add(self, kind: str, what: str = "", detail: str = "") -> None:
        """Write down what happens now."""
        self.put(Moment(kind, what, detail, self._effects()))

    def put(self, moment: Moment) -> None:
        """Write down what happened."""
        self.moments.append(moment)
        self._tell(moment)
        self._news.set()
        self._news = anyio.Event()

    def all(self, kind: str) -> list[Moment]:
        """Return the moments of one kind."""
        return [moment for moment in self.moments if moment.kind == kind]

    @property
    def handle(self) -> SessionHandle | None:
        """What was bound last."""
        bound = self.all("bound")
        return SessionHandle(bound[-1].what) if bound else None

    @property
    def over(self) -> bool:
        """Whether nothing more can come: the turn ended, or the process that ran it did."""
        return any(moment.kind in ("finished", "raised", "gone") for moment in self.moments)

    async def until(self, *kinds: str) -> None:
        """Wait for the first moment of one of these kinds; of any kind, when none is given."""
        while not any(moment.kind in kinds or not kinds for moment in self.moments):
            await self._news.wait()


class RecordingGate:
    """A gate that gives a number of permits and then is closed; ``None`` gives them all."""

    def __init__(self, record: Record, *, permits: int | None = None, hold: bool = False) -> None:
        self._record = record
        self._permits = permits
        self._hold = hold
        self._opens = anyio.Event()

    async def ask(self, call: ToolCall) -> Permit:
        """Answer as the core does, and write it down."""
        self._record.add("asked", call.id, f"{call.name} {call.arguments}")
        await anyio.lowlevel.checkpoint()
        if not self.opened() and self._hold:
            self._record.add("held", call.id)
            await self._opens.wait()
        if not self.opened():
            self._record.add("parked", call.id)
            return Permit.PARKED
        if self._permits is not None:
            self._permits -= 1
        self._record.add("permitted", call.id)
        return Permit.GRANTED

    async def ended(self, call_id: str, *, ok: bool = True) -> None:
        """Write it down."""
        self._record.add("ended", call_id, "ok" if ok else "error")

    def opened(self) -> bool:
        """Whether a permit would be given now."""
        return self._permits != 0

    def open(self) -> None:
        """Give permits from now on; held calls go on."""
        self._permits = None
        self._opens.set()


class RecordingChildren:
    """Hands out the mark, and writes down who was started."""

    def __init__(self, record: Record, environ: Mapping[str, str], mark: str) -> None:
        self._record = record
        self._environ = environ
        self._mark = mark

    def environ(self) -> dict[str, str]:
        """Return the environment with the mark."""
        return {**self._environ, MARK: self._mark}

    async def started(self, pid: int, what: str) -> None:
        """Write it down."""
        self._record.add("child", str(pid), what)
