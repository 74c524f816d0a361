"""Hundreds of random SIGKILLs under callers who re-send."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from workspace_adapter.sidecar.journal import Reader
from workspace_adapter.turns import State

from .workspace import DEADLINE, ENDS, Workspace, workspace

KILLS = 200
MINIMUM = 5
"""Kills that must have hit each phase."""

PHASES = ("before accept", "accepted", "running", "in a tool", "answered and undelivered", "in boot")


def phases(ws: Workspace, said: str) -> set[str]:
    """Tell from what is on disk in which phases the messages under way were killed."""
    lines = said.rpartition("\n")[0].splitlines()  # the last one may not be whole yet
    sent = [line.split()[1] for line in lines if line.startswith("sent")]
    done = {line.split()[1] for line in lines if line.startswith(("answered", "wrong"))}
    under_way = [name for name in sent if name not in done]
    hit: set[str] = set()
    with Reader.open(ws.state_dir) as journal:
        known = {turn.message_id: turn for turn in journal.turns(limit=200)}
        for name in under_way:
            turn = known.get(name)
            if turn is None:
                hit.add("before accept")
            elif turn.state is State.ACCEPTED:
                hit.add("accepted")
            elif turn.state is State.RUNNING:
                calls = journal.calls(turn.id)
                inside = any(c.unknown and c.attempt == turn.attempt for c in calls)
                hit.add("in a tool" if inside else "running")
            elif turn.state is State.ANSWERED and turn.delivered_at is None:
                hit.add("answered and undelivered")
    return hit


@pytest.mark.long
async def test_two_hundred_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    seed = int(os.environ.get("WORKSPACE_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"seed {seed} (WORKSPACE_TEST_SEED repeats it)")
    rng = random.Random(seed)
    hit: Counter[str] = Counter()
    kills = 0
    log = tmp_path / "callers.log"
    async with workspace(
        tmp_path,
        ENDS,
        start=False,
        WORKSPACE_MAX_CONCURRENT_TURNS="3",
        WORKSPACE_RESUME_MAX_ATTEMPTS="500",
        WORKSPACE_RESUME_MAX_TOTAL="1000",
        WORKSPACE_LOG_LEVEL="info",
    ) as ws:
        with log.open("wb") as out:
            callers = subprocess.Popen(
                [sys.executable, "-m", "tests.walks.callers", ws.url, str(seed)],
                stdin=subprocess.PIPE,
                stdout=out,
                cwd=Path(__file__).parents[2],
            )
        try:
            while kills < KILLS or any(hit[phase] < MINIMUM for phase in PHASES):
                assert kills < 3 * KILLS, f"phases not reached: {hit}"
                assert callers.poll() is None, "the callers died"
                earlier = len(ws.logged())
                ws.spawn()
                if rng.random() < 0.15:
                    await anyio.sleep(rng.uniform(0.0, 0.6))
                    booting = "open:" not in ws.logged()[earlier:]
                else:
                    await ws.until_ready()
                    booting = False
                    await anyio.sleep(rng.expovariate(1 / 0.06))
                if rng.random() < 0.5:
                    ws.kill_everything()
                else:
                    ws.kill_sidecar()
                kills += 1
                if booting:
                    hit["in boot"] += 1
                elif (ws.state_dir / "journal.db").exists():
                    hit.update(phases(ws, log.read_text()))
            await ws.start()
            assert callers.stdin is not None
            callers.stdin.close()
            with anyio.fail_after(DEADLINE * 3):
                while callers.poll() is None:
                    await anyio.sleep(0.05)
        finally:
            callers.kill()
            callers.wait()
        print(f"{kills} kills; " + ", ".join(f"{phase}: {hit[phase]}" for phase in PHASES))
        said = [line.split(maxsplit=2) for line in log.read_text().splitlines()]
        sent = [words[1] for words in said if words[0] == "sent"]
        answered = Counter(words[1] for words in said if words[0] == "answered")
        assert [words for words in said if words[0] == "wrong"] == []
        assert [name for name in sent if answered[name] != 1] == []
        effects = Counter(ws.lines())
        twice = {effect for effect, count in effects.items() if count > 1}
        assert twice - ws.told_unknown() == set(), "an effect came twice, and nobody had been told"
        with Reader.open(ws.state_dir) as journal:
            turns = journal.turns(limit=100_000)
        assert Counter(t.message_id for t in turns) == Counter(sent)
        assert {turn.state for turn in turns} == {State.ANSWERED}
        print(f"{len(sent)} messages, {sum(effects.values())} effects, {len(twice)} repeated as unknown")
