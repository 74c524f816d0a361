"""What a restart costs 50 callers whose messages were accepted, beside servers that do not remember.

The same 50 messages go to every server, of work that takes 0.2 to 4 s in one to four calls, each with an
effect in its middle. All are accepted, which the server says with 200, and all run at once. After 1.2 s each
caller asks for its answer, the server is ended in one of three ways and started anew, and who had no answer
asks again; where it is lost he sends the same message once more, under the same name.

*Lost* is a message whose answer its caller cannot get, or whose answer comes without one of its effects. *Run
twice* is an effect that happened more than once. Our runtime has no memory of its own: it leaves a call out
where the note says that it finished, and where the note calls it unknown and a look shows its effect; any
other call it makes. *At work again* is the time from the new process's ``fork`` until the last turn that was
cut or parked is at work in its runtime.

The peers accept as their documentation shows for long work: the A2A SDK by a call that does not block,
AgentCore by an asynchronous task. AgentCore has no call that gets an answer later; what counts is that the
work came to its end. Neither promises to outlive a restart. A caller whose request is held open instead was
promised nothing yet and sees it break; that is not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from itertools import count
from pathlib import Path

import anyio.to_thread

from benchmarks.effects import Work, World
from benchmarks.frame import Bench, Figure, at_most, never
from benchmarks.starting import PATIENCE, call, free_port, message, posted, running, settings, sidecar

MESSAGES = 50
SHORTEST, LONGEST = 0.2, 4.0
MOST_CALLS = 4
MOMENT = 1.2
"""Seconds after the first message."""

WAYS: Mapping[str, float] = {"SIGTERM, 10 s": 10.0, "SIGTERM, SIGKILL after 2 s": 2.0, "SIGKILL": 0.0}
"""Each way of ending, and the seconds after which SIGKILL comes."""

QUICKLY = 0.25
"""What all these seconds are multiplied by in a quick run."""

OVERDUE = 5.0
"""Seconds beyond the longest work after which a caller gives an answer up."""

PLACES = {
    "WORKSPACE_MAX_CONCURRENT_TURNS": str(MESSAGES),
    "WORKSPACE_SESSIONS_OPEN": str(MESSAGES),
}

Start = Callable[[], AbstractContextManager["subprocess.Popen[bytes]"]]


class Answer(Enum):
    """What a caller finds."""

    THERE = auto()
    DUE = auto()
    GONE = auto()


@dataclass(frozen=True, slots=True)
class Cost:
    """What one restart cost."""

    lost: int
    twice: int
    again: float
    """Seconds until all were at work again; 0 where none was."""


Costs = Mapping[tuple[str, str], Cost]
"""By server and way."""


class Server:
    """One that speaks A2A; ``start`` begins a life of it."""

    def __init__(self, start: Start, port: int, world: World) -> None:
        self.start = start
        self.world = world
        self._port = port
        self._tasks: dict[str, str] = {}

    def accept(self, work: Work) -> None:
        """Send it, and have it accepted."""
        body = message(work.text, name=f"m-{work.name}", configuration={"blocking": False})
        self._tasks[work.name] = json.loads(self._sent(body))["result"]["id"]

    def state(self, work: Work) -> Answer:
        """Ask for what was accepted."""
        told = json.loads(self._sent(call("tasks/get", id=self._tasks[work.name])))
        if "result" not in told:
            return Answer.GONE
        if work.answer in json.dumps(told["result"].get("artifacts")):
            return Answer.THERE
        return Answer.DUE if told["result"]["status"]["state"] in ("submitted", "working") else Answer.GONE

    def _sent(self, body: bytes, path: str = "/") -> bytes:
        """Send until somebody is there."""
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                status, answer = posted(self._port, body, path=path)
                break
            except OSError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
        if status != 200:
            raise RuntimeError(f"HTTP {status}: {answer!r}")
        return answer


class AgentCore(Server):
    """One that speaks AgentCore's contract."""

    def accept(self, work: Work) -> None:
        """Invoke it."""
        self._sent(json.dumps({"prompt": work.text}).encode(), "/invocations")

    def state(self, work: Work) -> Answer:
        """Look whether the work came to its end."""
        return Answer.THERE if work.answer in self.world.answers() else Answer.DUE


async def measure(bench: Bench) -> list[Figure]:
    """Restart them all in every way."""
    scale = QUICKLY if bench.quick else 1.0
    peers = {
        "a2a-sdk": (Server, Path(sys.executable), "benchmarks.peers.working_a2a"),
        "bedrock-agentcore": (AgentCore, bench.peers, "benchmarks.peers.agentcore"),
    }
    works = [
        Work(str(n), 1 + n % MOST_CALLS, scale * (SHORTEST + (LONGEST - SHORTEST) * n / (MESSAGES - 1)))
        for n in range(MESSAGES)
    ]
    numbers = count()

    def fresh() -> tuple[Path, int]:
        root = bench.scratch / str(next(numbers))
        root.mkdir()
        return root, free_port()

    def ours() -> Costs:
        """One way after another, since they are timed."""
        costs = {}
        for way, grace in WAYS.items():
            root, port = fresh()
            environ = settings(port, root, "benchmarks.calling:CallingAdapter", **PLACES)
            server = Server(partial(running, sidecar(), environ=environ), port, World(root / "work"))
            costs["ours", way] = restart(server, works, grace, scale)
        return costs

    def theirs() -> Costs:
        """All at once, since they are only counted."""
        with ThreadPoolExecutor(len(peers) * len(WAYS)) as at_once:
            costs = {}
            for name, (kind, python, module) in peers.items():
                for way, grace in WAYS.items():
                    root, port = fresh()
                    command = ["-m", module, str(port), str(root)]
                    server = kind(partial(running, command, python=python), port, World(root))
                    costs[name, way] = at_once.submit(restart, server, works, grace, scale)
            return {which: future.result() for which, future in costs.items()}

    sides: dict[str, Callable[[], Awaitable[Costs]]] = {
        "ours": partial(anyio.to_thread.run_sync, ours),
        "theirs": partial(anyio.to_thread.run_sync, theirs),
    }
    rounds = await bench.interleave(sides, rounds=1 if bench.quick else 3)
    return [figure for way in WAYS for figure in figures(way, works, tuple(peers), rounds)]


def figures(
    way: str, works: Sequence[Work], peers: Sequence[str], rounds: Mapping[str, Sequence[Costs]]
) -> list[Figure]:
    """What one way of ending did."""
    mine = [costs["ours", way] for costs in rounds["ours"]]
    shown = []
    for peer in peers:
        its = [costs[peer, way] for costs in rounds["theirs"]]
        shown += [
            Figure(
                what=f"{way}: lost of {len(works)} messages",
                unit="",
                measured=[cost.lost for cost in mine],
                against=peer,
                reference=[cost.lost for cost in its],
                limit=never(),
            ),
            Figure(
                what=f"{way}: run twice of {sum(work.calls for work in works)} effects",
                unit="",
                measured=[cost.twice for cost in mine],
                against=peer,
                reference=[cost.twice for cost in its],
                limit=never(),
            ),
        ]
    again = Figure(
        what=f"{way}: all at work again",
        unit="s",
        measured=[cost.again for cost in mine],
        limit=at_most(1.0),
    )
    return [*shown, again]


def restart(server: Server, works: Sequence[Work], grace: float, scale: float) -> Cost:
    """Have all accepted, end the server in the middle, start it anew, and see what came of them."""
    with server.start() as process:
        server.accept(works[0])
        began = time.monotonic()
        for work in works[1:]:
            server.accept(work)
        time.sleep(max(0.0, began + scale * MOMENT - time.monotonic()))
        waiting = [work for work in works if server.state(work) is not Answer.THERE]
        if grace:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(scale * grace)
        process.kill()
        process.wait()
    began = time.monotonic()
    patience = scale * LONGEST + OVERDUE
    with server.start():
        gone = unanswered(server, waiting, patience)
        happened = server.world.happened()
        lost = [work for work in works if work in gone or not happened.keys() >= set(work.effects)]
        for work in lost:
            server.accept(work)
        unanswered(server, lost, patience)
        return Cost(
            lost=len(lost),
            twice=sum(times - 1 for times in server.world.happened().values()),
            again=max(server.world.begun_since(began), default=began) - began,
        )


def unanswered(server: Server, works: Sequence[Work], patience: float) -> list[Work]:
    """Ask for each answer until it is there; return the work whose answer does not come."""
    gone: list[Work] = []
    due = list(works)
    give_up = time.monotonic() + patience
    while due and time.monotonic() < give_up:
        states = {work: server.state(work) for work in due}
        gone += [work for work in due if states[work] is Answer.GONE]
        due = [work for work in due if states[work] is Answer.DUE]
        time.sleep(0.1)
    return gone + due
