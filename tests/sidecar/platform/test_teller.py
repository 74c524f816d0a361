"""Who is told by the platform, when, and how often."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from workspace_adapter import telling
from workspace_adapter.errors import PlatformError
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.sidecar.platform.teller import Teller
from workspace_adapter.turns import Outcome, OutcomeKind, State, Turn

from ..journal.made import accept, message, started

PATIENCE = 0.05


class Platform:
    """Takes what it is told, or fails as it is set to."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.fails: Callable[[str], PlatformError | None] = lambda text: None
        self.on_its_way: set[str] = set()
        self.hears: Callable[[], object] = lambda: None

    def notify(self, text: str) -> None:
        self.heard.append(text)
        self.hears()
        if (failure := self.fails(text)) is not None:
            raise failure


@asynccontextmanager
async def life(root: Path, platform: Platform) -> AsyncIterator[tuple[Journal, Teller]]:
    """One life of a workspace that tells."""
    journal = await Journal.open(root / "state", boot_id=secrets.token_hex(4), now=time.time())
    teller = Teller(
        journal, patience=PATIENCE, heard=lambda turn_id: turn_id in platform.on_its_way, clock=time.time
    )
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(teller.run, platform.notify)
            yield journal, teller
            tasks.cancel_scope.cancel()
    finally:
        await journal.close()


async def ends(journal: Journal, teller: Teller | None, name: str, *, canvas: bool = True) -> Turn:
    """Have a turn answered, which is told to whoever waits."""
    now = time.time()
    accepted = await accept(journal, message(name, canvas=canvas, accepted_at=now))
    turn = await started(journal, accepted.turn, now=now)
    answered = await journal.finish(
        turn.id,
        attempt=turn.attempt,
        to=State.ANSWERED,
        cause="",
        outcome=Outcome(kind=OutcomeKind.ANSWERED),
        answer=f"answer to {name}",
        now=now,
    )
    assert answered is not None
    if teller is not None:
        teller.ended(answered)
    return answered


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():  # files and threads set no event
            await anyio.sleep(0.005)


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tries follow one another in hundredths of a second."""
    monkeypatch.setattr(telling, "_FIRST_RETRY", 0.02)
    monkeypatch.setattr(telling, "_LAST_RETRY", 0.1)


async def test_what_nobody_heard_is_told_once_in_the_order_of_the_messages(
    tmp_path: Path, platform: Platform
) -> None:
    async with life(tmp_path, platform) as (journal, teller):
        for name in ("m1", "m2", "m3"):
            await ends(journal, teller, name)
        await until(lambda: not journal.untold())
    async with life(tmp_path, platform) as (journal, teller):
        await ends(journal, teller, "m4")
        await until(lambda: not journal.untold())
    assert platform.heard == ["answer to m1", "answer to m2", "answer to m3", "answer to m4"]


async def test_what_was_delivered_in_time_and_what_is_not_the_canvass_is_not_told(
    tmp_path: Path, platform: Platform
) -> None:
    async with life(tmp_path, platform) as (journal, teller):
        await ends(journal, teller, "peer", canvas=False)
        heard = await ends(journal, teller, "heard")
        journal.delivered(heard.id, now=time.time())
        await ends(journal, teller, "lost")
        await until(lambda: platform.heard)
        await until(lambda: not journal.untold())
    assert platform.heard == ["answer to lost"]


async def test_who_reads_slowly_is_not_gone(tmp_path: Path, platform: Platform) -> None:
    async with life(tmp_path, platform) as (journal, teller):
        platform.on_its_way.add("turn-slow")
        await ends(journal, teller, "slow")
        await ends(journal, teller, "lost")
        await until(lambda: platform.heard)
        assert platform.heard == ["answer to lost"]
        platform.on_its_way.clear()  # he hung up in the middle
        await until(lambda: not journal.untold())
    assert platform.heard == ["answer to lost", "answer to slow"]


async def test_a_turn_that_runs_again_is_told_its_new_end(tmp_path: Path, platform: Platform) -> None:
    platform.fails = lambda text: PlatformError("away") if "first" in text else None
    async with life(tmp_path, platform) as (journal, teller):
        now = time.time()
        turn = (await accept(journal, message("m1", canvas=True, accepted_at=now))).turn
        for reason in ("first", "second"):
            turn = await started(journal, journal.turn(turn.id) or turn, now=now)
            ended = await journal.finish(
                turn.id,
                attempt=turn.attempt,
                to=State.FAILED,
                cause="",
                outcome=Outcome(kind=OutcomeKind.FAILED, reason=reason, retryable=True),
                now=now,
            )
            assert ended is not None
            teller.ended(ended)
            await until(lambda reason=reason: platform.heard and reason in platform.heard[-1])  # type: ignore[misc]
        await until(lambda: not journal.untold())
    assert platform.heard[-1] == "Agent error: second"
    assert set(platform.heard[:-1]) == {"Agent error: first"}


async def test_dying_after_the_platform_took_it_tells_it_once_more(
    tmp_path: Path, platform: Platform
) -> None:
    """The stop comes between the 2xx and the record."""
    async with life(tmp_path, platform) as (journal, teller):
        taken = anyio.Event()
        token = anyio.lowlevel.current_token()
        platform.hears = lambda: anyio.from_thread.run_sync(taken.set, token=token)
        turn = await ends(journal, teller, "m1")
        await taken.wait()
    platform.hears = lambda: None
    async with life(tmp_path, platform) as (journal, _):
        await until(lambda: not journal.untold())
        assert (journal.turn(turn.id) or turn).notified_at is not None
    async with life(tmp_path, platform) as (journal, _):
        await anyio.sleep(3 * PATIENCE)
    assert 1 <= len(platform.heard) <= 2


async def test_a_platform_that_is_away_is_tried_for_one_turn_until_it_is_back(
    tmp_path: Path, platform: Platform
) -> None:
    away = True
    platform.fails = lambda text: PlatformError("away") if away else None
    async with life(tmp_path, platform) as (journal, teller):
        for name in ("m1", "m2", "m3"):
            await ends(journal, teller, name)
        await until(lambda: len(platform.heard) >= 4)
        assert set(platform.heard) == {"answer to m1"}, "a platform that is away is not asked for each"
        away = False
        await until(lambda: not journal.untold())
    assert platform.heard[-3:] == ["answer to m1", "answer to m2", "answer to m3"]


async def test_one_end_the_platform_chokes_on_keeps_no_other(tmp_path: Path, platform: Platform) -> None:
    platform.fails = lambda text: PlatformError("odd", status=500) if "m1" in text else None
    async with life(tmp_path, platform) as (journal, teller):
        await ends(journal, teller, "m1")
        await ends(journal, teller, "m2")
        await until(lambda: len(journal.untold()) == 1)
        await until(lambda: platform.heard.count("answer to m1") >= 3)
    assert platform.heard.count("answer to m2") == 1


async def test_one_end_that_something_on_the_way_drops_keeps_the_others_for_a_while_only(
    tmp_path: Path, platform: Platform
) -> None:
    platform.fails = lambda text: PlatformError("connection reset") if "m1" in text else None
    async with life(tmp_path, platform) as (journal, teller):
        for name in ("m1", "m2", "m3"):
            await ends(journal, teller, name)
        await until(lambda: len(journal.untold()) == 1)
        await ends(journal, teller, "m4")
        await until(lambda: len(journal.untold()) == 1)
        platform.fails = lambda text: None
        await until(lambda: not journal.untold())
    assert [text for text in platform.heard if "m1" not in text] == [f"answer to m{n}" for n in (2, 3, 4)]


async def test_a_platform_that_chokes_on_every_end_is_not_asked_for_each_nor_said_to_for_each(
    tmp_path: Path, platform: Platform, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_LAST_RETRY", 0.4)
    choking, heard = True, 0
    platform.fails = lambda text: PlatformError("odd", status=500) if choking else None
    async with life(tmp_path, platform) as (journal, teller):
        for n in range(30):
            await ends(journal, teller, f"m{n}")
        await until(lambda: len(platform.heard) >= 4)
        await anyio.sleep(0.5)
        heard = len(platform.heard)
        assert heard < 12
        choking = False
        await until(lambda: not journal.untold())
    assert len(platform.heard) <= heard + 31
    assert len([line for line in caplog.messages if "could not be told" in line]) <= 2


@pytest.mark.parametrize("status", [403, 410, 413, 422])
async def test_a_refusal_is_recorded_with_its_reason(tmp_path: Path, platform: Platform, status: int) -> None:
    platform.fails = lambda text: PlatformError("no", status=status)
    async with life(tmp_path, platform) as (journal, teller):
        turn = await ends(journal, teller, "m1")
        await until(lambda: not journal.untold())
        refused = journal.turn(turn.id)
        assert refused is not None
        assert (refused.notified_at, refused.untold) == (None, f"HTTP {status}")
    async with life(tmp_path, platform):
        await anyio.sleep(3 * PATIENCE)
    assert len(platform.heard) == 1


async def test_a_reply_that_cannot_be_read_counts_as_taken(tmp_path: Path, platform: Platform) -> None:
    platform.fails = lambda text: PlatformError("no JSON", status=200)
    async with life(tmp_path, platform) as (journal, teller):
        await ends(journal, teller, "m1")
        await until(lambda: not journal.untold())
    assert platform.heard == ["answer to m1"]
