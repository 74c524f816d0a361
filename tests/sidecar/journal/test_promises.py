"""The journal against what it promises, whatever is asked of it in whatever order.

The model knows only what was acknowledged to a caller. P1: it is there, after a restart and
after a crash too. P2: one message is one turn, and other content is a conflict. P3 and P4: so
are permits and answers. P5: attempts and charges are made by starts alone. P11: what comes
late changes nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import anyio
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from workspace_adapter.errors import ContentConflict, InvalidTransition
from workspace_adapter.sidecar.journal import Accepted, Journal, NewEvent, NewTurn
from workspace_adapter.turns import State, Turn

from .made import ANSWERED, FINAL, NOW, RETRYABLE, accept, call, message

T = TypeVar("T")

LARGE = 300_000
RETENTION = 40.0


@dataclass
class Known:
    """What the callers of one turn were told."""

    name: str
    content: str
    body: bytes
    turn_id: str
    starts: int = 0
    charges: int = 0
    running: bool = False
    final: bool = False
    """Answered, canceled or failed for good: it runs no more."""
    suspended: bool = False
    free: bool = False
    """A drain was acknowledged while it was settled."""
    parked: bool = False
    user_told: bool = False
    """The platform took its end for the user, or never will."""
    answer: str | None = None
    ended_at: float | None = None
    delivered_at: float | None = None
    calls: dict[tuple[int, str], str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)


names = st.sampled_from(["m1", "m2", "m3"])
attempts = st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1])
"""Relative to the one that runs, or ran last; mostly that one."""
call_ids = st.sampled_from(["a", "b"])
ends = st.sampled_from(["answered", "largely", "final", "again", "parked", "interrupted", "canceled"])
call_verbs = st.sampled_from(["permit", "ask", "withdraw", "end"])


class Promises(RuleBasedStateMachine):
    turns = Bundle[str]("turns")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.state_dir = self.root / "state"
        self.portal_context = start_blocking_portal("asyncio")
        self.portal = self.portal_context.__enter__()
        self.lives = 0
        self.now = NOW
        self.known: dict[str, Known] = {}
        self.rung: set[str] = set()
        self.notice: str | None = None
        self.given: tuple[str, int] | None = None
        self.open()

    def teardown(self) -> None:
        self.ask(self.journal.close)
        self.portal_context.__exit__(None, None, None)
        shutil.rmtree(self.root)

    def open(self) -> None:
        async def opened() -> Journal:
            return await Journal.open(
                self.state_dir, boot_id=f"boot-{self.lives}", now=self.now, on_change=self.rung.add
            )

        self.lives += 1
        self.journal = self.ask(opened)
        assert self.journal.salvaged is None

    def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        return self.portal.call(question)

    def turn(self, known: Known) -> Turn:
        turn = self.portal.call(self.journal.turn, known.turn_id)
        assert turn is not None
        return turn

    def unchanged(self, known: Known, question: Callable[[], Awaitable[T]]) -> T:
        """Ask what must be answered with no, and see that it changed nothing."""
        before = self.everything(known)
        self.rung.clear()
        answer = self.ask(question)
        assert self.everything(known) == before
        assert not self.rung
        return answer

    def everything(self, known: Known) -> object:
        return (
            self.turn(known),
            self.portal.call(self.journal.calls, known.turn_id),
            self.portal.call(self.journal.events, known.turn_id),
            self.portal.call(self.journal.message, known.turn_id),
        )

    # --- the door -------------------------------------------------------------------

    @rule(target=turns, name=names, content=st.sampled_from("xy"), large=st.booleans())
    def send(self, name: str, content: str, large: bool) -> str:
        body = content.encode() * (LARGE if large else 1)
        new = message(
            name,
            turn_id=f"{name}-{self.now}",
            content_hash=content,
            message=body,
            accepted_at=self.now,
            canvas=name != "m3",
        )
        known = self.known.get(name)
        if known is None:
            accepted = self.ask(lambda: accept(self.journal, new))
            assert not accepted.joined
            self.known[name] = Known(name, content, body, accepted.turn.id)
        elif known.content == content:
            accepted = self.unchanged(known, lambda: accept(self.journal, new))
            assert accepted.joined
            assert accepted.turn == self.turn(known)
        else:
            assert self.unchanged(known, lambda: self.conflicts(new))
        return name

    async def conflicts(self, new: NewTurn) -> bool:
        try:
            await accept(self.journal, new)
        except ContentConflict:
            return True
        return False

    @rule(target=turns, name=names)
    def send_twice_at_once(self, name: str) -> str:
        known = self.known.get(name)
        content = "x" if known is None else known.content
        came: list[Accepted] = []

        async def send(n: int) -> None:
            new = message(name, turn_id=f"{name}-{self.now}-{n}", content_hash=content, accepted_at=self.now)
            came.append(await accept(self.journal, new))

        async def both() -> None:
            async with anyio.create_task_group() as callers:
                callers.start_soon(send, 1)
                callers.start_soon(send, 2)

        self.ask(both)
        assert len({accepted.turn.id for accepted in came}) == 1
        assert sum(not accepted.joined for accepted in came) == (known is None)
        if known is None:
            self.known[name] = Known(name, content, message(name).message, came[0].turn.id)
        else:
            assert came[0].turn.id == known.turn_id
        return name

    @rule(name=turns)
    def deliver(self, name: str) -> None:
        if (known := self.known.get(name)) is not None:

            async def told() -> None:
                self.journal.delivered(known.turn_id, now=self.now)
                await self.journal.probe()

            self.ask(told)
            if (known.ended_at is not None or known.suspended) and known.delivered_at is None:
                known.delivered_at = self.now

    @rule(name=turns, off=attempts, refused=st.sampled_from([None, "HTTP 403"]))
    def tell_the_user(self, name: str, off: int, refused: str | None) -> None:
        if (known := self.known.get(name)) is None:
            return

        async def told() -> None:
            await self.journal.notified(known.turn_id, known.starts + off, refused=refused, now=self.now)

        if off or (known.ended_at is None and not known.suspended):
            self.unchanged(known, told)
        else:
            self.ask(told)
            known.user_told = True

    @rule(name=st.sampled_from(["n1", "n2"]))
    def answer_at_once(self, name: str) -> None:
        """The platform sends a notice, or sends it again."""
        new = message(name, turn_id=f"{name}-{self.now}", accepted_at=self.now)

        async def answer() -> Accepted:
            return await self.journal.answer_at_once(new, answer="noted", notice=name, limit_bytes=1 << 40)

        known = self.known.get(name)
        if known is not None:
            assert self.unchanged(known, answer).turn == self.turn(known)
            return
        accepted = self.ask(answer)
        assert accepted.turn.state is State.ANSWERED
        self.known[name] = Known(
            name,
            "",
            b"",
            accepted.turn.id,
            final=True,
            answer="noted",
            ended_at=accepted.turn.ended_at,
        )
        self.notice, self.given = name, None

    # --- the runner -----------------------------------------------------------------

    @rule(name=turns, off=attempts)
    def start(self, name: str, off: int) -> None:
        if (known := self.known.get(name)) is None:
            return
        turn = self.turn(known)

        async def begin() -> Turn | None:
            try:
                return await self.journal.start(
                    turn.id,
                    expect=turn.state,
                    attempt=known.starts + off,
                    strikes=turn.strikes,
                    cut=None,
                    notice=self.journal.notice("session"),
                    now=self.now,
                )
            except InvalidTransition:
                return None

        if off or known.running or known.final or known.suspended:
            assert self.unchanged(known, begin) is None
            return
        started = self.ask(begin)
        assert started is not None
        known.starts += 1
        known.charges += not known.free
        known.user_told = False
        if self.notice is not None:
            self.given = (known.turn_id, known.starts)
        known.running, known.free, known.parked = True, False, False
        known.answer = known.ended_at = known.delivered_at = None

    @rule(
        name=turns, off=attempts, call_id=call_ids, verb=st.sampled_from(["permit", "ask", "withdraw", "end"])
    )
    def tool(self, name: str, off: int, call_id: str, verb: str) -> None:
        if (known := self.known.get(name)) is None:
            return
        attempt = known.starts + off

        async def write() -> bool:
            match verb:
                case "permit":
                    return await self.journal.permit(known.turn_id, attempt, call(call_id), now=self.now)
                case "ask":
                    await self.journal.ask(known.turn_id, attempt, call(call_id), now=self.now)
                case "withdraw":
                    await self.journal.withdraw(known.turn_id, attempt, call_id, now=self.now)
                case _:
                    await self.journal.end_call(known.turn_id, attempt, call_id, ok=True, now=self.now)
            return False

        if off or not known.running:
            assert self.unchanged(known, write) is False
            return
        granted = self.ask(write)
        assert granted is (verb == "permit")
        stands = known.calls.get((attempt, call_id))
        if verb == "permit":
            known.calls[attempt, call_id] = "open"
        elif verb == "ask":
            known.calls.setdefault((attempt, call_id), "asked")
        elif stands == "open":
            known.calls[attempt, call_id] = "withdrawn" if verb == "withdraw" else "ended"

    @rule(name=turns, off=attempts, words=st.lists(st.text(max_size=9), max_size=3))
    def say(self, name: str, off: int, words: list[str]) -> None:
        if (known := self.known.get(name)) is None:
            return
        events = [NewEvent(kind="text", body={"text": word}) for word in words]

        async def write() -> bool:
            return await self.journal.append(known.turn_id, known.starts + off, events, now=self.now)

        if off or not known.running:
            assert self.unchanged(known, write) is False
        else:
            self.rung.clear()
            assert self.ask(write)
            assert self.rung == ({known.turn_id} if words else set())
            known.log += words

    @rule(name=turns, off=attempts, end=ends)
    def finish(self, name: str, off: int, end: str) -> None:
        if (known := self.known.get(name)) is None:
            return
        to = {"largely": State.ANSWERED, "final": State.FAILED, "again": State.FAILED}.get(end) or State(end)
        answer = {"answered": "42", "largely": "4" * LARGE}.get(end)
        outcome = {"answered": ANSWERED, "largely": ANSWERED, "final": FINAL, "again": RETRYABLE}.get(end)

        async def write() -> Turn | None:
            return await self.journal.finish(
                known.turn_id,
                attempt=known.starts + off,
                to=to,
                cause=end,
                outcome=outcome,
                answer=answer,
                events=[NewEvent(kind="text", body={"text": end})],
                now=self.now,
            )

        if off or not known.running:
            assert self.unchanged(known, write) is None
            return
        self.rung.clear()
        assert self.ask(write) == self.turn(known)
        assert self.rung == {known.turn_id}
        known.running, known.parked, known.answer = False, end == "parked", answer
        known.log.append(end)
        known.final = end in ("answered", "largely", "final", "canceled")
        known.ended_at = self.now if known.final or end == "again" else None
        if end not in ("interrupted", "canceled"):
            for key, stands in known.calls.items():
                if stands == "open" and key[0] == known.starts:
                    known.calls[key] = "ended"

    # --- the plan and the operator --------------------------------------------------

    @rule(name=turns, to=st.sampled_from([State.CANCELED, State.EXPIRED, State.SUSPENDED]))
    def give_up(self, name: str, to: State) -> None:
        if (known := self.known.get(name)) is None:
            return
        stopped = {State.PARKED, State.INTERRUPTED}
        expect = {State.CANCELED: stopped | {State.ACCEPTED, State.RUNNING, State.SUSPENDED}}.get(to, stopped)

        async def write() -> Turn | None:
            return await self.journal.change(
                known.turn_id, expect=expect, to=to, cause="given up", now=self.now
            )

        if self.turn(known).state not in expect:
            assert self.unchanged(known, write) is None
            return
        assert self.ask(write) == self.turn(known)
        known.running, known.parked = False, False
        known.final = to is State.CANCELED
        known.suspended = to is State.SUSPENDED
        known.ended_at = None if known.suspended else self.now

    @rule(name=turns)
    def release(self, name: str) -> None:
        if (known := self.known.get(name)) is None:
            return

        async def write() -> Turn | None:
            return await self.journal.release(known.turn_id, now=self.now)

        if not known.suspended:
            assert self.unchanged(known, write) is None
        else:
            assert self.ask(write) == self.turn(known)
            known.suspended, known.free, known.charges = False, True, 0
            known.delivered_at, known.user_told = None, False

    @rule()
    def acknowledge_a_drain(self) -> None:
        self.ask(lambda: self.journal.settle([known.turn_id for known in self.known.values()]))
        for known in self.known.values():
            known.free = known.free or known.running or known.parked

    @rule()
    def reopen_the_gate(self) -> None:
        self.ask(self.journal.unsettle)
        for known in self.known.values():
            known.free = known.free and not known.running

    # --- stories, which chance alone would seldom tell ------------------------------

    @rule(
        target=turns,
        name=names,
        calls=st.lists(st.tuples(call_ids, call_verbs), max_size=4),
        drained=st.booleans(),
        reopened=st.booleans(),
        end=ends,
        late=st.lists(st.tuples(call_ids, call_verbs), max_size=2),
    )
    def work_through_a_restart(
        self,
        name: str,
        calls: list[tuple[str, str]],
        drained: bool,
        reopened: bool,
        end: str,
        late: list[tuple[str, str]],
    ) -> str:
        self.send(name, content=self.known[name].content if name in self.known else "x", large=False)
        self.start(name, off=0)
        for call_id, verb in calls:
            self.tool(name, off=0, call_id=call_id, verb=verb)
        if drained:
            self.acknowledge_a_drain()
            if reopened:
                self.reopen_the_gate()
        self.finish(name, off=0, end=end)
        self.start(name, off=0)
        for call_id, verb in late:
            self.tool(name, off=-1, call_id=call_id, verb=verb)
        return name

    @rule(name=turns, again=st.booleans())
    def have_it_answered_and_collected(self, name: str, again: bool) -> None:
        self.start(name, off=0)
        self.finish(name, off=0, end="answered")
        for _ in range(1 + again):
            self.deliver(name)
            self.now += 1

    # --- time and restarts ----------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, RETENTION / 2, RETENTION]))
    def prune(self, seconds: float) -> None:
        self.now += seconds
        gone = [known for known in self.known.values() if self.over(known)]
        assert self.ask(lambda: self.journal.prune(retention=RETENTION, now=self.now)) == len(gone)
        for known in gone:
            assert self.portal.call(self.journal.turn, known.turn_id) is None
            del self.known[known.name]
        if not self.known:  # the session went with the last of them
            self.notice = self.given = None

    def over(self, known: Known) -> bool:
        if known.ended_at is None:
            return False
        if known.delivered_at is None:
            return self.now - known.ended_at > 2 * RETENTION
        return self.now - known.delivered_at > RETENTION

    @rule()
    def restart(self) -> None:
        self.ask(self.journal.close)
        self.open()

    @precondition(lambda self: self.known)
    @rule()
    def crash(self) -> None:
        """Go on from the files as they are at this moment."""
        found = self.root / f"state-{self.lives}"
        # By a process of its own: closing a descriptor here would drop SQLite's locks.
        subprocess.run(["cp", "-r", self.state_dir, found], check=True)
        self.ask(self.journal.close)
        shutil.rmtree(self.state_dir)
        self.state_dir = found
        self.open()

    # --- the promises ---------------------------------------------------------------

    @invariant()
    def time_passes(self) -> None:
        self.now += 0.5

    @invariant()
    def deliveries_are_noted_once(self) -> None:
        for known in self.known.values():
            assert self.turn(known).delivered_at == known.delivered_at

    @invariant()
    def every_message_is_one_turn(self) -> None:
        turns = self.portal.call(self.journal.turns)
        assert {turn.id for turn in turns} == {known.turn_id for known in self.known.values()}
        assert len({turn.turn_key for turn in turns}) == len(turns)

    @invariant()
    def what_was_acknowledged_is_there(self) -> None:
        for known in self.known.values():
            turn = self.turn(known)
            assert (turn.state is State.RUNNING) is known.running
            assert turn.answer == known.answer
            assert (turn.ended_at is not None) is (known.ended_at is not None)
            body = self.portal.call(self.journal.message, known.turn_id)
            assert body == (None if known.final else known.body)

    @invariant()
    def a_notice_is_kept_until_it_was_given(self) -> None:
        notice = self.portal.call(self.journal.notice, "session")
        assert (notice and notice.text) == self.notice
        if notice is not None:
            assert (notice.given_to and (notice.given_to, notice.attempt)) == self.given

    @invariant()
    def who_was_told_by_the_platform_is_not_told_again(self) -> None:
        for known in self.known.values():
            turn = self.turn(known)
            assert (turn.notified_at is not None or turn.untold is not None) is known.user_told
        untold = self.portal.call(self.journal.untold)
        for known in self.known.values():
            turn = self.turn(known)
            if known.user_told or known.delivered_at is not None or not turn.canvas:
                assert turn.id not in untold
            elif known.suspended or (known.ended_at is not None and turn.state is not State.CANCELED):
                assert turn.id in untold

    @invariant()
    def only_starts_count_attempts(self) -> None:
        for known in self.known.values():
            turn = self.turn(known)
            assert (turn.attempt, turn.charges) == (known.starts, known.charges)

    @invariant()
    def calls_and_logs_are_what_was_acknowledged(self) -> None:
        for known in self.known.values():
            calls = self.portal.call(self.journal.calls, known.turn_id)
            assert {(c.attempt, c.id): (c.started, c.unknown) for c in calls} == {
                key: (stands in ("open", "ended"), stands == "open") for key, stands in known.calls.items()
            }
            log = self.portal.call(self.journal.events, known.turn_id)
            assert [(event.n, event.body["text"]) for event in log] == list(enumerate(known.log, 1))


TestPromises = Promises.TestCase
TestPromises.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
