"""The contract of an adapter, clause by clause.

These functions specify ``workspace_adapter.adapter``: what none of them proves is not
promised. A docstring states the rule; the body works the adapter through a
:class:`~.stage.Stage`, as the core would, and says what to mend.
"""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator
from uuid import uuid4

import anyio

from ..adapter import (
    AtClosedGate,
    Capabilities,
    DataPart,
    FilePart,
    ForgottenSession,
    InterruptedTurn,
    RuntimeAdapter,
    RuntimeSession,
    StopReason,
)
from ..errors import SessionLost
from ..events import SessionHandle
from ..resume import Evidence, Found, Resumption, recovery_note
from ..turns import Call
from . import proc
from .contract import (
    CANCELS,
    CLAUSES,
    FORGETS,
    GATES,
    HOLDS,
    IMPORTABLE,
    LASTS,
    PARALLEL,
    RECOVERS,
    RESUMES,
    WORKS,
    ClauseBroken,
    Prompts,
    clause,
    expect,
)
from .recording import Record
from .stage import Attempt, Elsewhere, Scene, Stage, build, in_many_tasks, to_the_last

_AT_ONCE = 0.2
"""Seconds for which a call on the event loop is hardly noticed."""

__all__ = ["CLAUSES"]


# --- one turn ---------------------------------------------------------------------------


@clause()
async def can_be_started(stage: Stage, prompts: Prompts) -> None:
    """``check`` returns the runtime's version as text; it raises where it cannot be started."""
    async with stage.adapter() as adapter:
        version = await adapter.check()
    expect(isinstance(version, str), f"`check` returned {version!r}; return the version as text, or ''")


@clause()
async def says_whether_it_can_work(stage: Stage, prompts: Prompts) -> None:
    """``wedged`` returns at once: ``None`` while the runtime can work, else why not, as text."""
    async with stage.adapter() as adapter:
        began = time.monotonic()
        told = adapter.wedged()
        took = time.monotonic() - began
    expect(told is None or isinstance(told, str), f"`wedged` returned {told!r}; return None, or a text")
    expect(took < _AT_ONCE, f"`wedged` took {took:.1f} s; it keeps the event loop: look at what is known")


@clause()
async def ends_once(stage: Stage, prompts: Prompts) -> None:
    """A turn yields nothing but events, ends with exactly one ``TurnFinished``, and yields
    nothing after it."""
    async with stage.session() as scene:
        turn = await scene.run(prompts.answer, drive=to_the_last)
    kinds = [moment.kind for moment in turn.moments]
    expect("raised" not in kinds, f"the turn ended {turn.finish}")
    others = [moment.detail for moment in turn.moments if moment.kind == "other"]
    expect(not others, f"{', '.join(others)} is no event; yield what `workspace_adapter.events` has")
    finishes = kinds.count("finished")
    expect(finishes == 1, f"{finishes} TurnFinished were yielded; yield exactly one")
    expect(kinds[-1] == "finished", f"after TurnFinished came {kinds[-1]}; return when it is yielded")


@clause()
async def answers(stage: Stage, prompts: Prompts) -> None:
    """The answer is ``TurnFinished.answer``, or else the text after the last tool call."""
    async with stage.session() as scene:
        turn = await scene.run(prompts.answer)
    _answered(turn)
    expect(
        scene.traces.word in turn.answer,
        f"the answer {turn.answer!r} does not hold {scene.traces.word}: is all of the text yielded?",
    )


@clause()
async def takes_every_part(stage: Stage, prompts: Prompts) -> None:
    """A message may hold files, images and data beside its text; a runtime that cannot
    see them is given their paths."""
    image = stage.workdir / "dot.png"
    image.write_bytes(_DOT)
    plain = stage.workdir / "plain.txt"
    plain.write_text("plain")
    parts = (
        FilePart(path=image, name=image.name, mime_type="image/png"),
        FilePart(path=plain, name=plain.name, mime_type="text/plain"),
        DataPart(json='{"a": 1}'),
    )
    async with stage.session() as scene:
        _answered(await scene.run(prompts.answer, parts=parts))


@clause()
async def yields_outside_of_scopes(stage: Stage, prompts: Prompts) -> None:
    """No ``yield`` stands inside a task group, a cancel scope or a timeout, so each step of
    a turn may be taken by another task."""
    async with stage.session() as scene:
        turn = await scene.run(prompts.tool or prompts.answer, drive=in_many_tasks)
    _answered(turn)


@clause(WORKS, needs=["slow"])
async def raises_adapter_errors_only(stage: Stage, prompts: Prompts) -> None:
    """When its processes die in the middle of a turn, the turn goes on or raises an error of
    the ``AdapterError`` tree, and the session can still be left."""
    async with stage.session() as scene:

        async def kill_its_processes() -> None:
            await scene.traces.until_begun()
            for process in proc.marked(stage.mark):
                process.kill()

        turn = await scene.run(prompts.slow, meanwhile=kill_its_processes)
    expect(scene.traces.begun.exists(), f"the turn ended {turn.finish} before its slow tool had begun")


# --- the gate ---------------------------------------------------------------------------


@clause(GATES, needs=["tool"])
async def asks_before_the_effect(stage: Stage, prompts: Prompts) -> None:
    """The gate is asked before a tool call has any effect, and the call is made once it is
    permitted."""
    async with stage.session() as scene:
        turn = await scene.run(prompts.tool)
    asked = scene.record.all("asked")
    effects = scene.traces.effects()
    expect(bool(asked) or not effects, "a tool ran, but the gate was never asked: await `gate.ask` first")
    expect(bool(asked), f"no tool was called (the turn ended {turn.finish}): does `Prompts.tool` ask for it?")
    expect(asked[0].effects == 0, "the tool had had its effect when the gate was asked: ask before the call")
    _answered(turn)
    expect(effects == 1, f"the tool was permitted once and had {effects} effects")


@clause(GATES, needs=["tool"])
async def tells_every_end(stage: Stage, prompts: Prompts) -> None:
    """Every permitted call is told ended, once it has ended and before the turn has."""
    async with stage.session() as scene:
        _answered(await scene.run(prompts.tool))
    _ends_are_told(scene.record)


@clause(GATES, needs=["tool"])
async def parked_means_no_effect(stage: Stage, prompts: Prompts) -> None:
    """Told ``PARKED``, a session does not make the call and ends the turn ``PARKED``."""
    async with stage.session(permits=0) as scene:
        turn = await scene.run(prompts.tool)
    expect(bool(scene.record.all("parked")), "the gate was never asked: await `gate.ask` before each call")
    effects = scene.traces.effects()
    expect(effects == 0, "the tool had its effect though its call was parked: do not make the call")
    expect(turn.finish == "parked", f"the turn ended {turn.finish}; end it with Finish.PARKED")


@clause(GATES, needs=["tool"])
async def goes_on_after_parking(stage: Stage, prompts: Prompts) -> None:
    """A parked turn leaves the session good: continued with a note it makes the call and
    answers, and the next turn runs."""
    async with stage.session(permits=0) as scene:
        parked = await scene.run(prompts.tool)
        scene.gate.open()
        _answered(await _continue(scene, parked), "continued after it was parked")
        effects = scene.traces.effects()
        expect(effects == 1, f"parked and then continued, the tool had {effects} effects instead of one")
        _answered(await scene.run(prompts.answer), "in the turn after one that was parked")


@clause(HOLDS, needs=["tool", "slow"])
async def holds_at_the_closed_gate(stage: Stage, prompts: Prompts) -> None:
    """A runtime that holds waits for the gate as long as it takes, without an effect, goes
    on when it opens, and keeps no other session waiting meanwhile."""
    async with stage.adapter() as adapter, stage.session(adapter, permits=0, hold=True) as scene:

        async def work_elsewhere_then_open() -> None:
            await scene.record.until("held")
            async with stage.session(adapter) as other:
                _answered(await other.run(prompts.slow), "in a second session while the first was held")
            scene.gate.open()

        turn = await scene.run(prompts.tool, meanwhile=work_elsewhere_then_open)
    permitted = scene.record.all("permitted")
    expect(bool(permitted), f"the turn ended {turn.finish} while its call was held: await `gate.ask`")
    expect(permitted[0].effects == 0, "the tool had its effect while its call was held: wait for the answer")
    _answered(turn, "after its call was held")
    effects = scene.traces.effects()
    expect(effects == 1, f"held and then permitted, the tool had {effects} effects instead of one")


@clause(GATES, PARALLEL)
async def keeps_parallel_calls_apart(stage: Stage, prompts: Prompts) -> None:
    """Of two calls at once, one runs and one meets the closed gate: the first one's permit
    stays open until its tool has ended, whatever becomes of the other."""
    hold = _capabilities(stage).gate is AtClosedGate.HOLD
    async with stage.session(permits=1, hold=hold) as scene:

        async def open_when_nothing_runs() -> None:
            if hold:
                await scene.record.until("held")
                await scene.record.until("ended")
                scene.gate.open()

        turn = await scene.run(prompts.parallel, meanwhile=open_when_nothing_runs)
    expect(len(scene.record.all("asked")) > 1, "the gate was asked once, for two calls: ask for each")
    _ends_are_told(scene.record)
    effects = scene.traces.effects()
    if hold:
        _answered(turn, "after one of its calls was held")
        expect(effects == 2, f"two calls were permitted and had {effects} effects")
    else:
        expect(turn.finish == "parked", f"with one call parked the turn ended {turn.finish}: end it PARKED")
        expect(effects == 1, f"one call was permitted and one parked; there were {effects} effects")


# --- stopping ---------------------------------------------------------------------------


@clause(CANCELS, needs=["long"])
async def cancel_ends_the_turn(stage: Stage, prompts: Prompts) -> None:
    """``stop(CANCEL)`` returns at once, the turn ends promptly and not as if it had
    answered, and the session runs another turn."""
    async with stage.session() as scene:
        await _stopped(stage, scene, prompts.long, StopReason.CANCEL)
        turn = await scene.run(prompts.answer)
    _answered(turn, "in the turn after one that was canceled")
    expect(
        scene.traces.word in turn.answer,
        f"the turn after the canceled one answered {turn.answer!r}: is that the old turn's answer?",
    )


@clause(LASTS, needs=["long"])
async def restart_ends_the_turn(stage: Stage, prompts: Prompts) -> None:
    """``stop(RESTART)``, or leaving the session where ``stop`` is not written, ends the turn
    promptly and not as if it had answered, leaves nothing running, and the session can be
    opened again."""
    async with stage.adapter() as adapter:
        async with stage.session(adapter) as scene:
            if type(scene.session).stop is RuntimeSession.stop:
                left_at = await _left_in_the_middle(scene, prompts.long, scene.record.until)
            else:
                await _stopped(stage, scene, prompts.long, StopReason.RESTART)
                left_at = anyio.current_time()
        _was_prompt(stage, left_at)
        await _nothing_runs(stage, "after stop(RESTART) and leaving the session")
    if _capabilities(stage).resumes:
        async with stage.session(resume=scene.record.handle) as scene:
            _answered(await scene.run(prompts.answer), "reopened after a restart")


@clause(WORKS, needs=["slow"])
async def can_be_left_in_the_middle(stage: Stage, prompts: Prompts) -> None:
    """A session may be left while its turn runs a tool: that is prompt, and ends the tool."""
    async with stage.adapter() as adapter:
        async with stage.session(adapter) as scene:
            left_at = await _left_in_the_middle(scene, prompts.slow, scene.traces.until_begun)
        _was_prompt(stage, left_at)
        await _nothing_runs(stage, "after the session was left in the middle of a tool")
    expect(scene.traces.effects() == 0, "the tool of a session that was left went on to its effect")


@clause()
async def leaves_nothing_behind(stage: Stage, prompts: Prompts) -> None:
    """When the session and the adapter's life are left, no process and no task of theirs is
    left."""
    before = {task.id for task in anyio.get_running_tasks()}
    async with stage.session() as scene:
        _answered(await scene.run(prompts.tool or prompts.answer))
    await _nothing_runs(stage, "after the session was left")
    tasks = [task.name for task in anyio.get_running_tasks() if task.id not in before]
    expect(not tasks, f"tasks are left: {', '.join(map(str, tasks))}; end them when the session is left")


# --- sessions ---------------------------------------------------------------------------


@clause()
async def sessions_do_not_mix(stage: Stage, prompts: Prompts) -> None:
    """Two sessions of one adapter run turns at the same time, each with its own handle,
    gate, tools and memory."""
    seen: list[tuple[Scene, list[Attempt]]] = []
    both_open = anyio.Event()

    async def converse(adapter: RuntimeAdapter) -> None:
        async with stage.session(adapter) as scene:
            attempts: list[Attempt] = []
            seen.append((scene, attempts))
            if len(seen) == 2:
                both_open.set()
            await both_open.wait()
            for prompt in filter(None, (prompts.answer, prompts.recall, prompts.tool)):
                attempts.append(await scene.run(prompt))

    async with stage.adapter() as adapter, anyio.create_task_group() as both:
        both.start_soon(converse, adapter)
        both.start_soon(converse, adapter)
    scenes = [scene for scene, _ in seen]
    for scene, attempts in seen:
        for attempt in attempts:
            _answered(attempt, "with two sessions at work")
        spoken = {s.traces.word for s in scenes for attempt in attempts if s.traces.word in attempt.answer}
        expect(spoken == {scene.traces.word}, f"told {scene.traces.word}, a session spoke of {spoken}")
    handles = {scene.record.handle for scene in scenes if scene.record.handle}
    expect(
        len(handles) in (0, 2), "both sessions have the same handle: bind what names this conversation alone"
    )
    if _capabilities(stage).gate is not None and prompts.tool:
        for _, attempts in seen:
            asked = sum(moment.kind == "asked" for moment in attempts[-1].moments)
            expect(asked == 1, f"each session made one call; the gate of one was asked {asked} times")


@clause(RESUMES)
async def binds_a_handle(stage: Stage, prompts: Prompts) -> None:
    """``SessionBound`` comes before the turn ends, as soon as the handle is known."""
    async with stage.session() as scene:
        turn = await scene.run(prompts.answer, drive=to_the_last)
    _answered(turn)
    kinds = [moment.kind for moment in turn.moments]
    expect("bound" in kinds, "no SessionBound was yielded, though `capabilities.resumes`")
    expect(kinds.index("bound") < kinds.index("finished"), "SessionBound came after TurnFinished")


@clause(RESUMES)
async def unknown_handle_is_lost(stage: Stage, prompts: Prompts) -> None:
    """A handle that the runtime does not know raises ``SessionLost``, on opening or in the
    first turn."""
    try:
        async with stage.session(resume=SessionHandle(str(uuid4()))) as scene:
            turn = await scene.run(prompts.answer)
    except SessionLost:
        return
    expect(
        turn.finish.startswith("with SessionLost"),
        f"a turn in a session that never was ended {turn.finish}; raise SessionLost",
    )


@clause(RESUMES, IMPORTABLE, needs=["recall"])
async def remembers_in_another_process(stage: Stage, prompts: Prompts) -> None:
    """Reopened by its handle, by a fresh adapter in another process, a session remembers."""
    async with stage.session(session_id="one") as scene:
        _answered(await scene.run(prompts.answer))
    async with stage.elsewhere(
        prompts.recall, session_id="one", traces=scene.traces, resume=scene.record.handle
    ) as other:
        await other.record.until("finished", "raised", "gone")
    expect(
        scene.traces.word in other.attempt.answer,
        f"reopened as {scene.record.handle}, the turn ended {other.attempt.finish} and answered"
        f" {other.attempt.answer!r}, without {scene.traces.word}",
    )


@clause(FORGETS)
async def forgets_one_session_for_good(stage: Stage, prompts: Prompts) -> None:
    """``forget`` erases every trace of a session from the adapter's directory, so that its
    handle is lost; it harms no other session, and may be said again, or of a session that
    never was."""
    scenes = []
    for session_id in ("one", "two"):
        async with stage.session(session_id=session_id) as scene:
            _answered(await scene.run(prompts.answer))
            scenes.append(scene)
    forgotten, other = scenes
    await _forget(stage, "one", forgotten.record.handle)
    left = list(_holding(stage, forgotten.traces.word))
    expect(not left, f"after `forget`, what the session was told still stands in {', '.join(left)}")
    await _forget(stage, "one", forgotten.record.handle)
    await _forget(stage, "never", None)
    if not _capabilities(stage).resumes:
        return
    try:
        async with stage.session(session_id="one", resume=forgotten.record.handle) as scene:
            lost = (await scene.run(prompts.answer)).finish.startswith("with SessionLost")
    except SessionLost:
        lost = True
    expect(lost, "the session that was forgotten could be reopened by its handle")
    async with stage.session(session_id="two", resume=other.record.handle) as scene:
        turn = await scene.run(prompts.answer)
    _answered(turn, "after another session was forgotten")


async def _forget(stage: Stage, session_id: str, handle: SessionHandle | None) -> None:
    async with stage.adapter() as adapter:
        erased = await adapter.forget(
            ForgottenSession(
                session_id=session_id, handle=handle, workdir=stage.workdir, state_dir=stage.state_dir
            )
        )
    fine = isinstance(erased, list) and all(isinstance(line, str) for line in erased)
    expect(fine, f"`forget` returned {erased!r}; return what was erased, a line of text each")


def _holding(stage: Stage, word: str) -> Iterator[str]:
    """The files of the adapter in which a word stands."""
    for path in sorted(stage.state_dir.rglob("*")):
        if path.is_file() and word.encode() in path.read_bytes():
            yield str(path.relative_to(stage.state_dir))


# --- what becomes of an interrupted turn ------------------------------------------------


@clause(RECOVERS)
async def recover_knows_what_it_never_saw(stage: Stage, prompts: Prompts) -> None:
    """``recover`` says ``unseen``, or in doubt ``seen``, of a message that was never given to
    the runtime; another turn's answer is not this one's."""
    async with stage.session(session_id="one") as scene:
        turn = await scene.run(prompts.answer)
    for handle in (scene.record.handle, None):
        evidence = await _recover(stage, Attempt(id="never-sent", text="Never sent.", moments=()), handle)
        doubt = {Found.UNSEEN, Found.SEEN} if handle else {Found.UNSEEN, Found.SEEN, Found.SESSION_LOST}
        expect(
            evidence.found in doubt,
            f"of a message never sent `recover` said {evidence.found} ({evidence.answer!r},"
            f" handle {handle}); the turn before it had answered {turn.answer!r}",
        )


@clause(RECOVERS)
async def recover_finds_the_answer(stage: Stage, prompts: Prompts) -> None:
    """``recover`` finds the answer of a turn that the runtime finished."""
    async with stage.session(session_id="one") as scene:
        turn = await scene.run(prompts.answer)
    evidence = await _recover(stage, turn, scene.record.handle)
    expect(
        evidence == Evidence.answered(turn.answer),
        f"the runtime answered {turn.answer!r}; `recover` said {evidence.found} {evidence.answer!r}",
    )


@clause(RECOVERS)
async def recover_misses_a_lost_session(stage: Stage, prompts: Prompts) -> None:
    """``recover`` says ``session_lost`` of a handle that the runtime does not know."""
    turn = Attempt(id="lost", text="Lost.", moments=())
    evidence = await _recover(stage, turn, SessionHandle(str(uuid4())))
    expect(
        evidence.found is Found.SESSION_LOST, f"of a session that never was `recover` said {evidence.found}"
    )


@clause(RECOVERS, IMPORTABLE, WORKS, needs=["slow"])
async def recover_sees_a_killed_turn(stage: Stage, prompts: Prompts) -> None:
    """``recover`` says ``seen`` of a turn whose process was killed in the middle of a tool."""
    async with stage.elsewhere(prompts.slow, session_id="one") as other:
        await _killed_in_a_tool(other)
    await stage.recovering()
    evidence = await _recover(stage, other.attempt, other.record.handle)
    expect(
        evidence.found is Found.SEEN,
        f"of a turn killed in the middle of a tool `recover` said {evidence.found} {evidence.answer!r}",
    )


@clause(IMPORTABLE, WORKS, needs=["slow"])
async def children_can_be_found(stage: Stage, prompts: Prompts) -> None:
    """When the process that drives the adapter is killed in the middle of a tool, everything
    it started can be found, by the mark in its environment or by ``children.started``, and
    ended before the tool has its effect."""
    async with stage.elsewhere(prompts.slow) as other:
        await other.until_begun()
        started = proc.descendants(other.pid)
        try:
            on_record = {int(moment.what) for moment in other.record.all("child")}
            hidden = [p for p in started if p.alive and not p.carries(stage.mark) and p.pid not in on_record]
            expect(
                not hidden,
                f"{', '.join(map(str, hidden))} does not carry the mark: start it with `children.environ()`",
            )
            await _killed_in_a_tool(other)
        finally:
            for process in (*started, *proc.marked(stage.mark)):
                process.kill()
    await _nothing_runs(stage, "after everything that carries the mark was killed")
    expect(other.traces.effects() == 0, "the tool had its effect after everything that was found was killed")


@clause(RESUMES, IMPORTABLE, WORKS, needs=["slow"])
async def goes_on_after_sigkill(stage: Stage, prompts: Prompts) -> None:
    """A turn whose process was killed in the middle of a tool is continued by a fresh adapter,
    with a note that the tool's outcome is unknown, and answers."""
    async with stage.elsewhere(prompts.slow, session_id="one") as other:
        await _killed_in_a_tool(other)
    expect(other.record.handle is not None, "the handle was not bound before the first tool call")
    await stage.recovering()
    async with stage.session(session_id="one", traces=other.traces, resume=other.record.handle) as scene:
        turn = await _continue(scene, other.attempt)
    _answered(turn, "continued after SIGKILL")


# --- the clauses' own words -------------------------------------------------------------

_DOT = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


def _capabilities(stage: Stage) -> Capabilities:
    return build(stage.subject, stage.environ).capabilities


def _answered(turn: Attempt, when: str = "") -> None:
    expect(turn.finish == "answered", " ".join(filter(None, ("the turn ended", turn.finish, when))))


def _ends_are_told(record: Record) -> None:
    kinds = [(moment.kind, moment.what) for moment in record.moments]
    ids = [what for kind, what in kinds if kind == "asked"]
    expect(len(ids) == len(set(ids)), f"the calls' ids {ids} are not unique within the attempt")
    ended = 0
    for moment in record.all("permitted"):
        expect(
            ("ended", moment.what) in kinds,
            f"call {moment.what} was permitted and never told ended: await `gate.ended` after it",
        )
    for moment in record.moments:
        if moment.kind == "ended" and ("permitted", moment.what) in kinds:
            ended += 1
            expect(
                moment.effects >= ended,
                f"call {moment.what} was told ended before its tool had its effect: tell it after the call",
            )
        expect(
            moment.kind != "finished" or ended == len(record.all("permitted")),
            "the turn ended before its calls were told ended",
        )


def _calls(turn: Attempt) -> list[Call]:
    """The calls of an attempt, as the journal would have them."""
    at = {(moment.kind, moment.what): float(n) for n, moment in enumerate(turn.moments)}
    return [
        Call(
            turn_id=turn.id,
            attempt=1,
            id=moment.what,
            name=moment.detail.partition(" ")[0],
            digest=moment.detail,
            excerpt=moment.detail.partition(" ")[2],
            asked_at=0.0,
            permitted_at=at.get(("permitted", moment.what)),
            ended_at=at.get(("ended", moment.what)),
            withdrawn_at=None,
            outcome=None,
        )
        for moment in turn.moments
        if moment.kind == "asked"
    ]


async def _continue(scene: Scene, turn: Attempt) -> Attempt:
    note = recovery_note(_calls(turn), turn.text, resumption=Resumption.CONTINUE)
    return await scene.run(turn.text, id=turn.id, attempt=2, resumption=Resumption.CONTINUE, note=note)


async def _stopped(stage: Stage, scene: Scene, prompt: str, why: StopReason) -> None:
    """Run a turn and stop it at its first sign of life."""
    late, returned = anyio.CancelScope(), anyio.Event()

    async def stop() -> None:
        await scene.record.until()
        late.deadline = anyio.current_time() + stage.promptness
        await scene.session.stop(why)
        returned.set()
        await anyio.sleep_forever()

    with late:
        turn = await scene.run(prompt, meanwhile=stop)
    expect(returned.is_set(), f"stop({why.name}) waited: ask the turn to stop and return")
    expect(not late.cancelled_caught, f"the turn went on for {stage.promptness:g} s after stop({why.name})")
    expect(
        turn.finish != "answered",
        f"the turn stopped by {why.name} ended answered ({turn.answer!r}): what was cut is no answer",
    )


async def _left_in_the_middle(scene: Scene, prompt: str, until: Callable[[], Awaitable[None]]) -> float:
    """Run a turn and cut it, as the core does when a session must be left; return when."""
    cut, cut_at = anyio.CancelScope(), 0.0

    async def leave() -> None:
        nonlocal cut_at
        await until()
        cut_at = anyio.current_time()
        cut.cancel()

    with cut:
        turn = await scene.run(prompt, meanwhile=leave)
        raise ClauseBroken(f"the turn ended {turn.finish} before it could be left in its middle")
    return cut_at


def _was_prompt(stage: Stage, left_at: float) -> None:
    took = anyio.current_time() - left_at
    expect(
        took < stage.promptness, f"leaving the session took {took:.0f} s; {stage.promptness:g} s are allowed"
    )


async def _nothing_runs(stage: Stage, when: str) -> None:
    left = await stage.until_gone(lambda: proc.marked(stage.mark))
    expect(not left, f"{when} {', '.join(map(str, left))} still runs: end it when the session is left")


async def _killed_in_a_tool(other: Elsewhere) -> None:
    await other.until_begun()
    expect(
        other.traces.begun.exists(), f"the turn ended {other.attempt.finish} before its slow tool had begun"
    )
    await other.kill()
    expect(other.traces.effects() == 0, "the slow tool ended before it could be killed: let it take longer")


async def _recover(stage: Stage, turn: Attempt, handle: SessionHandle | None) -> Evidence:
    async with stage.adapter() as adapter:
        return await adapter.recover(
            InterruptedTurn(
                id=turn.id,
                attempts=1,
                session_id="one",
                handle=handle,
                workdir=stage.workdir,
                state_dir=stage.state_dir,
                text=turn.text,
            )
        )
