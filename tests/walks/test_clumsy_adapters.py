"""What an adapter does wrong fails its turn, and nothing else."""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from .workspace import Workspace, answer_of, workspace

STOP_TIMEOUT = 2.5


def clumsy(
    root: Path, adapter: str = "Clumsy", *, start: bool = True, **settings: str
) -> AbstractAsyncContextManager[Workspace]:
    """Hold a workspace with the clumsy adapter, its limits short."""
    return workspace(
        root,
        f"tests.walks.clumsy:{adapter}",
        start=start,
        PYTHONPATH=str(Path(__file__).parents[2]),
        WORKSPACE_STOP_GRACE="0.3",
        WORKSPACE_STOP_TIMEOUT=str(STOP_TIMEOUT),
        **settings,
    )


async def send_and_leave(ws: Workspace, text: str, context_id: str) -> None:
    """Send a message whose answer nobody waits for; return when its turn has begun."""

    def begun() -> bool:
        ended = ws.process is None or ws.process.poll() is not None
        return ended or any(turn["state"] != "accepted" for turn in ws.turns())

    with suppress(httpx.TransportError):
        await ws.send(text, context_id=context_id, configuration={"blocking": False})
    await ws.until(begun, "the turn")


MISTAKES = [
    "surprise",
    "exit",
    "interrupt",
    "friend",
    "no end",
    "answer of bytes",
    "text of numbers",
    "usage of text",
    "handle of lists",
    "not an event",
    "arguments of objects",
    "id of numbers",
    "question of objects",
]


async def test_a_mistake_fails_its_turn_and_the_session_goes_on(tmp_path: Path) -> None:
    async with clumsy(tmp_path) as ws:
        for number, mistake in enumerate(MISTAKES):
            told = (await ws.send(mistake, context_id=f"c{number}")).json()["result"]
            assert told["metadata"]["state"] == "failed", mistake
            assert told["parts"][0]["text"].startswith("Agent error: the adapter"), mistake
            assert answer_of((await ws.send("next", context_id=f"c{number}")).json()) == "next", mistake
        assert ws.process is not None
        assert ws.process.poll() is None


@pytest.mark.parametrize("context", ["open exits", "open has a friend", "open gives nothing"])
async def test_a_session_that_opens_wrongly_fails_its_turn(tmp_path: Path, context: str) -> None:
    async with clumsy(tmp_path) as ws:
        told = (await ws.send("x", context_id=context)).json()["result"]
        assert told["metadata"]["state"] == "failed"
        assert answer_of((await ws.send("next", context_id="c")).json()) == "next"


@pytest.mark.parametrize("mistake", ["recover nothing", "recover numbers"])
async def test_evidence_that_is_none_counts_as_seen(tmp_path: Path, mistake: str) -> None:
    async with clumsy(tmp_path) as ws:
        assert answer_of((await ws.send(mistake)).json()) == mistake
        assert "no evidence (ContractBroken)" in ws.logged()


@pytest.mark.parametrize("mistake", ["two ends", "hang after the end", "hang at the end"])
async def test_what_an_adapter_does_after_its_end_takes_the_answer_from_nobody(
    tmp_path: Path, mistake: str
) -> None:
    async with clumsy(tmp_path) as ws:
        with anyio.fail_after(5):
            told = answer_of((await ws.send(mistake, context_id="c")).json())
        assert told in ("first", "before it hung")
        assert answer_of((await ws.send("next", context_id="c")).json()) == "next"


@pytest.mark.parametrize(
    ("text", "context"),
    [
        ("hang", "c"),
        ("hang", "stop hangs"),
        ("hang", "stop is deaf"),
        ("hang", "stop raises"),
        ("shielded", "c"),
        ("crash in a tool, then hang", "c"),
        ("x", "open hangs"),
    ],
)
async def test_silence_ends_a_turn_wherever_it_is_silent(tmp_path: Path, text: str, context: str) -> None:
    async with clumsy(tmp_path, WORKSPACE_TURN_IDLE_LIMIT="0.4") as ws:
        told = (await ws.send(text, context_id=context)).json()["result"]
        assert "WORKSPACE_TURN_IDLE_LIMIT" in told["parts"][0]["text"]
        assert answer_of((await ws.send("next", context_id="another")).json()) == "next"


@pytest.mark.parametrize("context", ["leaving hangs", "leaving is surprising", "leaving has a friend"])
async def test_a_session_that_cannot_be_left_is_opened_anew(tmp_path: Path, context: str) -> None:
    async with clumsy(tmp_path, WORKSPACE_SESSION_IDLE="0.05") as ws:
        for number in range(3):
            with anyio.fail_after(10):
                assert answer_of((await ws.send(f"{number}", context_id=context)).json()) == f"{number}"
            await anyio.sleep(0.1)


async def test_a_runtime_that_is_canceled_while_it_opens_lets_the_session_go_on(tmp_path: Path) -> None:
    async with clumsy(tmp_path) as ws:
        await send_and_leave(ws, "x", "open hangs")
        assert ws.command("turns", "cancel", ws.turns()[0]["id"]).returncode == 0
        assert answer_of((await ws.send("next", context_id="c")).json()) == "next"


@pytest.mark.parametrize(
    ("text", "context", "adapter"),
    [
        ("hang", "c", "NoCancel"),
        ("hang", "stop hangs", "Clumsy"),
        ("hang", "stop is deaf", "Clumsy"),
        ("deaf", "c", "Clumsy"),
        ("shielded", "c", "Clumsy"),
        ("x", "open hangs", "Clumsy"),
        ("x", "open is deaf", "Clumsy"),
        ("x", "leaving hangs", "Clumsy"),
        ("x", "leaving is deaf", "Clumsy"),
        ("x", "c", "LeavingRunningHangs"),
        ("x", "c", "LeavingRunningIsDeaf"),
        ("x", "c", "RunningFails"),
    ],
)
@pytest.mark.parametrize("signals", [1, 2])
async def test_nothing_an_adapter_does_outlasts_the_stop_timeout(
    tmp_path: Path, text: str, context: str, adapter: str, signals: int
) -> None:
    async with clumsy(tmp_path, adapter) as ws:
        await send_and_leave(ws, text, context)
        began = time.monotonic()
        for _ in range(signals):
            ws.terminate()
            await anyio.sleep(0.05)
        await ws.exited()
        assert time.monotonic() - began < STOP_TIMEOUT
        assert ws.pids() == []


async def test_a_stop_while_the_runtime_starts_up_is_heard(tmp_path: Path) -> None:
    async with clumsy(tmp_path, "RunningHangs", start=False) as ws:
        ws.spawn()
        await ws.until((ws.state_dir / "clumsy").exists, "the journal")
        began = time.monotonic()
        ws.terminate()
        assert await ws.exited() == 0
        assert time.monotonic() - began < 1.5
