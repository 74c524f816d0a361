"""What was acknowledged is there after SIGKILL."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.turns import State

from .made import NOW, child

_NO_EARLIER_THAN = {
    "accepted": frozenset({State.ACCEPTED, State.RUNNING, State.ANSWERED}),
    "running": frozenset({State.RUNNING, State.ANSWERED}),
    "answered": frozenset({State.ANSWERED}),
}


@pytest.mark.parametrize("seed", range(6))
async def test_what_was_acknowledged_is_there_after_sigkill(state_dir: Path, seed: int) -> None:
    chance = random.Random(seed)
    said: list[tuple[str, str]] = []
    for _ in range(3):
        with child("work", state_dir) as process:
            assert process.stdout is not None
            for _ in range(chance.randrange(1, 600)):
                said.append(_read(process.stdout.readline()))
            process.kill()
            said += [_read(line) for line in process.stdout if line.endswith("\n")]
    journal = await Journal.open(state_dir, boot_id="after", now=NOW)
    assert journal.salvaged is None
    for what, turn_id in said:
        turn = journal.turn(turn_id)
        assert turn is not None, (seed, what, turn_id)
        assert turn.state in _NO_EARLIER_THAN.get(what, State), (seed, what, turn)
        calls = journal.calls(turn_id)
        match what:
            case "accepted" if turn.state is not State.ANSWERED:
                assert journal.message(turn_id) in (b"{}", b"x" * 300_000)
            case "permitted":
                assert calls[0].started
            case "logged":
                assert [event.n for event in journal.events(turn_id)] == [1, 2, 3]
            case "ended":
                assert calls[0].outcome == "ok"
            case "answered":
                assert turn.answer in (turn_id.removeprefix("turn-"), "x" * 300_000)
    kept = {path.name for path in (state_dir / "blobs").iterdir()}
    await journal.close()
    assert len(kept) <= 1  # all large bodies are the same bytes
    assert len(said) > 20


def _read(line: str) -> tuple[str, str]:
    what, turn_id = line.split()
    return what, turn_id
