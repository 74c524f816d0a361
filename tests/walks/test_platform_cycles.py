"""A hundred restarts as the existing platform does them, under callers of every kind."""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from pathlib import Path

import anyio
import httpx
import pytest

from workspace_adapter.sidecar.journal import Reader
from workspace_adapter.testing import FakePlatform, Times
from workspace_adapter.testing.platform.answers import answer_text, parsed
from workspace_adapter.turns import State, Turn

from .askers import Askers
from .workspace import DEADLINE, ENDS, HOLDS, Workspace, answer_of, workspace

CYCLES = int(os.environ.get("WORKSPACE_TEST_CYCLES", "100"))
SCALE = 0.02
TIMES = Times(until_online=500, until_beating=500, connect=100)
"""A boot takes as long here as anywhere: what waits for one is not scaled down as the rest."""


class Container:
    """What the platform holds of the workspace: removed without a warning, made anew on the same files."""

    def __init__(self, ws: Workspace, rng: random.Random) -> None:
        self._ws = ws
        self._rng = rng

    def stop(self) -> None:
        time.sleep(self._rng.uniform(0.0, 0.06))  # the platform asks its engine, which takes its time
        self._ws.kill_everything()

    def start(self) -> None:
        self._ws.spawn()

    def running(self) -> bool:
        return self._ws.process is not None and self._ws.process.poll() is None


@pytest.mark.long
async def test_a_hundred_restarts_of_the_platform_lose_and_repeat_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("WORKSPACE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed} (WORKSPACE_TEST_SEED repeats it)")
    rng = random.Random(seed)
    async with workspace(
        tmp_path,
        rng.choice((ENDS, HOLDS)),
        start=False,
        WORKSPACE_MAX_CONCURRENT_TURNS="3",
        WORKSPACE_RESUME_MAX_ATTEMPTS="500",
        WORKSPACE_RESUME_MAX_TOTAL="1000",
        WORKSPACE_HEARTBEAT_INTERVAL="0.2",
        WORKSPACE_NOTIFY_AFTER="0.4",
        WORKSPACE_LOG_LEVEL="info",
    ) as ws:
        with FakePlatform(
            configs_dir=ws.root / "configs",
            container=Container(ws, rng),
            max_concurrent=3,
            times=TIMES,
            scale=SCALE,
        ) as platform:
            ws.environ |= {"PLATFORM_URL": platform.url, "WORKSPACE_URL": ws.url}
            async with httpx.AsyncClient(base_url=platform.url, timeout=None, verify=False) as client:
                askers = Askers(platform, client, seed)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(askers.run)
                    await cycle(ws, platform, rng)
                    askers.over = True
            await quiet(ws, platform)
            platform.assert_no_violations()
            await judge(ws, platform, askers)


async def cycle(ws: Workspace, platform: FakePlatform, rng: random.Random) -> None:
    """Restart again and again, now and then in the middle of a boot."""
    restarts = platform.restarts
    for number in range(CYCLES + 1):
        cycles, told = restarts.cycles, len(restarts.contexts)
        platform.restart(button=number == 0 or rng.random() < 0.25)
        await ws.until(lambda: restarts.cycles > cycles, f"cycle {number}")  # noqa: B023
        if rng.random() < 0.15 and number < CYCLES:
            await anyio.sleep(rng.uniform(0.0, 0.5))
            continue
        await ws.until(lambda: len(restarts.contexts) > told, "the restart context's end")  # noqa: B023
        await anyio.sleep(rng.expovariate(1 / 0.08))
        if rng.random() < 0.25:
            await some_work(platform)


async def some_work(platform: FakePlatform) -> None:
    """Let the queue be emptied for a while: else it only ever grows."""
    with anyio.move_on_after(0.6):
        while platform.queue.due(time.monotonic()):
            await anyio.sleep(0.02)


async def quiet(ws: Workspace, platform: FakePlatform) -> None:
    """Wait until the workspace and the queue have nothing to do any more."""

    def unfinished() -> list[str]:
        with Reader.open(ws.state_dir) as journal:
            return [turn.id for turn in journal.turns(limit=100_000) if not over(turn)]

    def over(turn: Turn) -> bool:
        heard = turn.delivered_at is not None or turn.notified_at is not None
        return turn.state is State.ANSWERED and (heard or not turn.canvas)

    ws.patience = 6 * DEADLINE  # on a busy machine much has piled up
    await ws.until_ready()
    await ws.until(lambda: not platform.queue.due(time.monotonic()), "the end of the queue")
    await ws.until(lambda: not unfinished(), "the end of every turn, told to somebody where a person asked")


async def judge(ws: Workspace, platform: FakePlatform, askers: Askers) -> None:
    asked = {one.message_id: one for one in askers.asked}
    assert len(asked) == len(askers.asked)
    # No id got another's answer, whoever was connected.
    wrong = [one for one in askers.asked if one.answer is not None and one.answer != one.expected]
    assert wrong == []
    contexts = 0
    for delivery in platform.deliveries:
        if delivery.status != 200:
            continue
        said = answer_text(parsed(delivery.answer))
        if b"RESTART CONTEXT" in delivery.sent:
            contexts += 1
            assert said is not None
            assert "answer to" not in said
        else:
            assert said == asked[str(delivery.message_id)].expected
    asked_by_people = {one.expected for one in askers.asked if one.kind == "canvas"}
    notes = Counter(note["message"] for note in platform.notifications)
    assert notes.keys() <= asked_by_people, "a person was shown what was meant for somebody else"
    # What was accepted is answered, once; what the platform lost has its answer here.
    with Reader.open(ws.state_dir) as journal:
        kept_turns = journal.turns(limit=100_000)
    accepted = set(re.findall(r"turn (\S+): accepted", ws.logged()))
    assert accepted
    assert accepted <= {turn.id for turn in kept_turns}, (
        "the log says accepted, and the journal knows nothing"
    )
    turns = [turn for turn in kept_turns if turn.message_id in asked]
    assert Counter(turn.message_id for turn in turns).most_common(1)[0][1] == 1
    answers = {turn.message_id: turn.answer for turn in turns}
    assert [i for i, answer in answers.items() if answer != asked[i].expected] == []
    lost = [one for one in askers.asked if one.answer is None]
    kept = sum(one.message_id in answers for one in lost)
    async with httpx.AsyncClient(base_url=ws.url, timeout=DEADLINE, verify=False) as client:
        for one in lost:
            again = await client.post("/", json=one.envelope)
            assert answer_of(again.json()) == one.expected
    # Each effect once, but those whose outcome nobody knew, as the agent was told.
    effects = Counter(ws.lines())
    assert {effect for one in askers.asked for effect in one.effects} <= effects.keys()
    twice = {effect for effect, count in effects.items() if count > 1}
    assert twice - ws.told_unknown() == set(), "an effect came twice, and nobody had been told"
    report(platform, askers, kept)
    assert contexts > CYCLES / 2
    assert len(askers.asked) > CYCLES


def report(platform: FakePlatform, askers: Askers, kept: int) -> None:
    """Print what happened, and what the platform itself lost.

    Args:
        kept: how many of those lost had their answer in our journal; the others never came.
    """
    asked, answered = Counter(one.kind for one in askers.asked), Counter[str]()
    answered.update(one.kind for one in askers.asked if one.answer is not None)
    signals = Counter("heard" if signal.status == 200 else "cut off" for signal in platform.restarts.signals)
    print(f"{platform.restarts.cycles} cycles, contexts {dict(Counter(platform.restarts.contexts))}")
    print(
        f"signals {dict(signals)}, {len(platform.queue.items)} queued, {len(platform.deliveries)} deliveries"
    )
    for kind, count in asked.items():
        print(f"{kind}: {count} asked, {answered[kind]} answered by the platform, the rest when asked again")
    notes = Counter(note["message"] for note in platform.notifications)
    both = sum(one.answer in notes for one in askers.asked if one.kind == "canvas")
    print(f"{len(notes)} answers shown to their user by /notify, {notes.total() - len(notes)} of them twice,")
    print(f"{both} of them although the platform had shown them")
    lost = len(askers.asked) - answered.total()
    print(f"lost by the platform: {lost}, {kept} of them with their answer in the journal")
    fates = Counter(f"{one.kind}: {one.fate}" for one in askers.asked if one.answer is None)
    for fate, count in fates.most_common():
        print(f"{count:5} × {fate}")
