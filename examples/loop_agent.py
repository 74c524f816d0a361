"""An agent with a loop and tools of its own: it parks at the closed gate, and resumes where it was.

It delivers letters to mailboxes, which are files. Its conversation is a file, too, in which every call
gets a result, whatever happened to it: one the gate refused is "not made", one that a kill cut off is
"cut off". So a model can always go on from it. The one here is a few rules; told that it was
interrupted, it looks before it delivers.

$ python examples/interrupt.py loop_agent:LoopAgent 'deliver hello to ann bob cyd'
kill -9 in the middle of the turn, and a new start
deliver hello to ann bob cyd: cut off, nobody knows how far it came
look hello in ann bob cyd: found in ann
deliver hello to bob cyd: done
ann holds: hello
bob holds: hello
cyd holds: hello

$ python examples/interrupt.py --restart loop_agent:LoopAgent 'deliver hello to ann bob; deliver bye to ann'
a restart in the middle of the turn: 1 parked, 0 held, 0 running
deliver hello to ann bob: done
deliver bye to ann: not made, the workspace is about to restart
look bye in ann: found in none
deliver bye to ann: done
ann holds: hello, bye
bob holds: hello
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import anyio
import workspace_adapter as wa

PACE = 2.0
"""Seconds from one mailbox to the next."""


# --- the conversation -----------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    turn: str
    kind: str
    """`message`, `call`, `result` or `answer`; after a call comes its result, always."""
    text: str


class Conversation:
    """What was said and done in one session, a line each, in a file that outlives the container.

    It need not be fsynced: every permit is, so what a power cut takes from this file is in the note.
    """

    def __init__(self, directory: Path, handle: wa.SessionHandle | None) -> None:
        self.handle = handle or wa.SessionHandle(uuid4().hex)
        self.entries: list[Entry] = []
        self._path = directory / f"{self.handle}.jsonl"
        if handle is None:
            self._path.touch()
        elif not self._path.exists():
            raise wa.SessionLost(f"there is no {self._path}")
        for line in self._path.read_text().splitlines():
            with suppress(ValueError):  # a line that was cut short
                self.entries.append(Entry(**json.loads(line)))

    def add(self, turn: str, kind: str, text: str) -> None:
        entry = Entry(turn, kind, text)
        self.entries.append(entry)
        with self._path.open("a") as file:
            file.write(f"\n{json.dumps(asdict(entry))}")  # behind a break: one cut short spoils no other

    def mend(self) -> None:
        """Give a call that was cut off its result."""
        if self.entries and self.entries[-1].kind == "call":
            self.add(self.entries[-1].turn, "result", "cut off, nobody knows how far it came")

    def of(self, turn: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.turn == turn]

    def remove(self) -> str:
        self._path.unlink(missing_ok=True)
        return str(self._path)


# --- the tools ------------------------------------------------------------------------------


async def deliver(letter: str, boxes: Sequence[str], workdir: Path) -> str:
    for number, box in enumerate(boxes):
        if number:
            await anyio.sleep(PACE)
        with (workdir / box).open("a") as file:
            file.write(f"{letter}\n")
    return "done"


async def look(letter: str, boxes: Sequence[str], workdir: Path) -> str:
    there = [box for box in boxes if (workdir / box).exists()]
    found = [box for box in there if letter in (workdir / box).read_text().splitlines()]
    return f"found in {' '.join(found) or 'none'}"


TOOLS = {"deliver": deliver, "look": look}


async def use(call: str, workdir: Path) -> str:
    """Make a call, `deliver LETTER to BOX …` or `look LETTER in BOX …`; return its result."""
    tool, letter, _, *boxes = call.split()
    try:
        return await TOOLS[tool](letter, boxes, workdir)
    except OSError as error:
        return f"failed: {error}"


# --- the model ------------------------------------------------------------------------------


def think(turn: str, entries: Sequence[Entry]) -> tuple[str, str]:
    """Stand for a model: read the conversation, and say the next `call`, or the `answer`."""
    mine = [entry for entry in entries if entry.turn == turn]
    asked = mine[0].text
    if "what did I tell you?" in asked:
        told = [entry.text for entry in entries if entry.kind == "message" and entry.turn != turn]
        return "answer", f"you told me: {', '.join(told)}"
    for letter, boxes in re.findall(r"(?:^|; )deliver (\S+) to ([^;\n]+)", asked, re.MULTILINE):
        missing = without(letter, boxes.split(), mine)
        if missing is None:
            return "call", f"look {letter} in {boxes}"
        if missing:
            return "call", f"deliver {letter} to {' '.join(missing)}"
    report = [f"{call.text}: {result.text}" for call, result in pairwise(mine) if result.kind == "result"]
    return "answer", "\n".join(report) or f"noted: {asked}"


def without(letter: str, boxes: list[str], mine: Sequence[Entry]) -> list[str] | None:
    """Return the boxes that still want the letter; `None` where only a look can tell."""
    known, call = True, ""
    for entry in mine:
        match entry.kind:
            case "message" if "[workspace notice" in entry.text:
                known = False
            case "call":
                call = entry.text
            case "result" if call.startswith(f"deliver {letter} ") and entry.text.startswith("failed"):
                return []
            case "result" if call.startswith(f"deliver {letter} ") and entry.text == "done":
                boxes = [box for box in boxes if box not in call.split()]
            case "result" if call.startswith(f"look {letter} "):
                boxes = [box for box in boxes if box not in entry.text.split()]
                known = True
    return boxes if known or not boxes else None


# --- the agent ------------------------------------------------------------------------------


class LoopSession(wa.RuntimeSession):
    def __init__(self, context: wa.SessionContext) -> None:
        super().__init__(context)
        self.conversation = Conversation(context.state_dir, context.resume)
        self._stopped = False
        self._step = anyio.CancelScope()

    async def run_turn(self, turn: wa.TurnRequest) -> wa.TurnEvents:
        self._stopped = False
        yield wa.SessionBound(self.conversation.handle)  # on disk when we go on; `recover` relies on it
        self.conversation.mend()
        self.conversation.add(turn.id, "message", turn.prompt)
        while not self._stopped:
            kind, text = think(turn.id, self.conversation.entries)
            self.conversation.add(turn.id, kind, text)
            if kind == "answer":
                yield wa.TurnFinished(answer=text)
                return
            made = True
            with anyio.CancelScope() as self._step:  # what `stop` cuts; no `yield` may stand in it
                made = await self._make(turn, text)
            if not made:
                yield wa.TurnFinished(finish=wa.Finish.PARKED)
                return

    async def _make(self, turn: wa.TurnRequest, text: str) -> bool:
        """Make a call and note its result; false where the gate is closed."""
        name, _, arguments = text.partition(" ")
        call = wa.ToolCall(id=f"{turn.id}.{len(self.conversation.entries)}", name=name, arguments=arguments)
        if await self.context.gate.ask(call) is wa.Permit.PARKED:
            self.conversation.add(turn.id, "result", "not made, the workspace is about to restart")
            return False
        result = await use(text, self.context.workdir)
        self.conversation.add(turn.id, "result", result)
        await self.context.gate.ended(call.id, ok=not result.startswith("failed"))
        return True

    async def stop(self, why: wa.StopReason) -> None:
        self._stopped = True
        self._step.cancel()


class LoopAgent(wa.RuntimeAdapter):
    name = "loop"
    capabilities = wa.Capabilities(gate=wa.AtClosedGate.END, resumes=True, cancels=True)
    Session = LoopSession

    async def recover(self, turn: wa.InterruptedTurn) -> wa.Evidence:
        """Read it off the conversation."""
        if turn.handle is None:
            return wa.Evidence.unseen()
        try:
            mine = Conversation(turn.state_dir, turn.handle).of(turn.id)
        except wa.SessionLost:
            return wa.Evidence.session_lost()
        if not mine:
            return wa.Evidence.unseen()
        return wa.Evidence.answered(mine[-1].text) if mine[-1].kind == "answer" else wa.Evidence.seen()

    async def forget(self, session: wa.ForgottenSession) -> list[str]:
        """Remove the conversation."""
        if session.handle is None:
            return []
        with suppress(wa.SessionLost):
            return [Conversation(session.state_dir, session.handle).remove()]
        return []
