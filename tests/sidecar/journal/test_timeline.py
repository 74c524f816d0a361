from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from workspace_adapter.errors import JournalDamaged, JournalUnavailable
from workspace_adapter.sidecar.journal import Journal, Reader
from workspace_adapter.sidecar.journal import journal as room
from workspace_adapter.sidecar.journal.timeline import BELIEVED, Instant, Kept, Timeline, this_machine
from workspace_adapter.turns import State

from .made import NOW, accept, answered, message, running

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
JUMPS = {"two hours back": -2 * HOUR, "a day on": DAY, "ten years on": 10 * YEAR, "to 1970": -NOW + 100}
jumps = pytest.mark.parametrize("jump", JUMPS.values(), ids=JUMPS)


def at(wall: float, uptime: float, kernel: str = "k1") -> Instant:
    return Instant(wall=wall, uptime=uptime, kernel=kernel)


@jumps
def test_in_life_the_journals_time_goes_on_evenly(jump: float) -> None:
    timeline = Timeline(at(NOW, 100), None)
    assert timeline.look(at(NOW + 10, 110)) == 0
    assert timeline.at(at(NOW + 10, 110)) == NOW + 10
    assert timeline.look(at(NOW + 20 + jump, 120)) == jump
    assert timeline.at(at(NOW + 20 + jump, 120)) == NOW + 20
    assert timeline.offset == jump
    assert timeline.look(at(NOW + 21 + jump, 121)) == 0
    assert timeline.look(at(NOW + 22, 122)) == -jump
    assert timeline.offset == 0


def test_what_the_clock_is_slewed_by_is_no_jump() -> None:
    timeline = Timeline(at(NOW, 100), None)
    assert timeline.look(at(NOW + 11.9, 110)) == 0
    assert timeline.offset == 0


@jumps
def test_between_two_lives_of_one_machine_its_uptime_counts(jump: float) -> None:
    before = Timeline(at(NOW, 100), None)
    now = at(NOW + 60 + jump, 160)
    after = Timeline(now, before.keep(at(NOW + 10, 110)))
    assert after.at(now) == NOW + 60
    assert after.look(now) == jump
    assert after.offset == jump


@jumps
def test_a_jump_right_before_a_kill_is_seen_by_the_next_life(jump: float) -> None:
    before = Timeline(at(NOW, 100), None)
    kept = before.keep(at(NOW, 100))
    before.look(at(NOW + 10 + jump, 110))
    now = at(NOW + 60 + jump, 160)
    after = Timeline(now, kept)
    after.look(now)
    assert (after.at(now), after.offset) == (NOW + 60, jump)


def test_on_another_machine_the_wall_clock_is_believed() -> None:
    kept = Timeline(at(NOW, 1000), None).keep(at(NOW, 1000))
    now = at(NOW + DAY, 5, "k2")
    after = Timeline(now, kept)
    assert (after.at(now), after.offset, after.doubted) == (NOW + DAY, 0, 0)


@pytest.mark.parametrize("kernel", ["k2", "k1", ""])
def test_but_not_beyond_all_bounds_and_never_backwards(kernel: str) -> None:
    """A machine that was started anew may keep its name; its uptime is then too short."""
    before = at(NOW, 1000, kernel or "k1")
    kept = Timeline(before, None).keep(before)
    far = at(NOW + 10 * YEAR, 5, kernel)
    believed = Timeline(far, kept)
    assert believed.at(far) == NOW + BELIEVED
    assert believed.at(far) + believed.offset == far.wall
    assert believed.passed == 10 * YEAR
    early = at(100, 5, kernel)
    still = Timeline(early, kept)
    assert still.at(early) == NOW
    assert still.offset == still.doubted == 100 - NOW
    right = at(NOW + 7, 12, kernel)
    assert still.look(right) == NOW - 100
    assert (still.at(right), still.offset) == (NOW + 7, 0)


def test_without_the_name_of_the_machine_its_uptime_says_nothing() -> None:
    before, now = at(NOW, 100, ""), at(NOW + 60, 300, "")
    assert Timeline(now, Timeline(before, None).keep(before)).at(now) == NOW + 60


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        "1",
        '{"kernel": "k1"}',
        '{"kernel": "k1", "uptime": 1, "at": "noon", "offset": 0}',
        '{"kernel": "k1", "uptime": [], "at": 1, "offset": 0}',
    ],
)
def test_what_cannot_be_gone_on_from_is_begun_anew(text: str | None) -> None:
    assert Kept.parse(text) is None


def test_what_is_kept_can_be_read_again() -> None:
    kept = Timeline(at(NOW, 100), None).keep(at(NOW, 100))
    assert Kept.parse(kept.as_text()) == kept


# --- in the journal ---------------------------------------------------------------------


@dataclass
class Clocks:
    """A machine's two clocks, as a test turns them."""

    wall: float = NOW
    uptime: float = 1000.0
    kernel: str = "k1"

    def machine(self) -> Instant:
        return at(self.wall, self.uptime, self.kernel)

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds

    async def open(self, state_dir: Path) -> Journal:
        return await Journal.open(state_dir, boot_id=str(self.uptime), now=self.wall, machine=self.machine)


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.mark.parametrize("in_life", [True, False], ids=["in life", "between lives"])
@jumps
async def test_no_jump_prunes_anything_or_spares_it(
    state_dir: Path, clocks: Clocks, jump: float, in_life: bool
) -> None:
    journal = await clocks.open(state_dir)
    for name in ("delivered", "undelivered"):
        await answered(journal, name, now=clocks.wall)
    journal.delivered("turn-delivered", now=clocks.wall)
    if not in_life:
        await journal.close()
    clocks.wall += jump
    if not in_life:
        journal = await clocks.open(state_dir)
    await answered(journal, "since", now=journal.clock())

    async def left() -> set[str]:
        await journal.prune(retention=DAY, now=journal.clock())
        return {turn.message_id for turn in journal.turns()}

    clocks.passes(DAY - 1)
    assert await left() == {"delivered", "undelivered", "since"}
    clocks.passes(2)
    assert await left() == {"undelivered", "since"}
    clocks.passes(DAY)
    assert await left() == set()
    await journal.close()


@jumps
async def test_an_hour_ago_stays_an_hour_ago_for_every_reader(
    state_dir: Path, clocks: Clocks, jump: float
) -> None:
    journal = await clocks.open(state_dir)
    await running(journal, "m1", accepted_at=clocks.wall)
    clocks.passes(HOUR)
    clocks.wall += jump
    now = journal.clock()
    turn = journal.turn("turn-m1")
    assert turn is not None
    assert turn.started_at == now - HOUR
    ended = await journal.finish(turn.id, attempt=1, to=State.ANSWERED, cause="", now=now)
    assert ended is not None
    assert (ended.started_at, ended.ended_at) == (now - HOUR, now)
    await journal.close()
    with Reader.open(state_dir, machine=clocks.machine) as reader:
        (read,) = reader.turns()
        assert (read.started_at, read.ended_at) == (now - HOUR, now)
        (summary,) = reader.sessions()
        assert (summary.session.created_at, summary.active_at) == (now - HOUR, now)
        (row,) = reader.records("SELECT started_at, ended_at, expires_at FROM turns")
        assert row == {"started_at": now - HOUR, "ended_at": now, "expires_at": None}


async def test_the_order_of_the_list_is_that_of_the_changes(state_dir: Path, clocks: Clocks) -> None:
    journal = await clocks.open(state_dir)
    for number, jump in enumerate(JUMPS.values()):
        clocks.passes(1)
        clocks.wall += jump
        await answered(journal, f"m{number}", now=journal.clock())
    stamps = [turn.ended_at for turn in reversed(journal.turns())]
    assert None not in stamps
    assert stamps == sorted(stamps, key=float)  # type: ignore[arg-type]
    await journal.close()


async def test_a_senders_limit_is_counted_not_read(state_dir: Path, clocks: Clocks) -> None:
    journal = await clocks.open(state_dir)
    await accept(journal, message("m1", accepted_at=clocks.wall, expires_at=clocks.wall + 60))
    clocks.wall += YEAR
    now = journal.clock()
    turn = journal.turn("turn-m1")
    assert turn is not None
    assert turn.expires_at == now + 60
    await journal.close()


async def test_a_set_clock_is_said_once(
    state_dir: Path, clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    journal = await clocks.open(state_dir)
    clocks.wall -= 2 * HOUR
    for _ in range(3):
        journal.clock()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the clock was set back by 7200 s: nothing gets older or younger by that"
    ]
    await journal.close()
    clocks.kernel, clocks.uptime = "k2", 5.0
    clocks.wall += 10 * YEAR
    caplog.clear()
    await (await clocks.open(state_dir)).close()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "315360000 s have passed since the last start if the clock is right: 172800 of them are counted"
    ]


async def test_a_start_that_cannot_read_the_time_leaves_nothing_open(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await Journal.open(state_dir, boot_id="boot-1", now=NOW)).close()

    def fails(connection: sqlite3.Connection) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    monkeypatch.setattr(room, "kept_time", fails)
    left: list[int] = []
    for _ in range(2):
        with pytest.raises((JournalUnavailable, JournalDamaged)):
            await Journal.open(state_dir, boot_id="boot-2", now=NOW, machine=this_machine)
        left.append(len(list(Path("/proc/self/fd").iterdir())))
    assert left[0] == left[1]


@pytest.mark.parametrize("kernel", ["k1", "k2"], ids=["same machine", "another machine"])
async def test_a_reader_says_how_far_the_clock_has_gone_back(state_dir: Path, kernel: str) -> None:
    journal = await Journal.open(state_dir, boot_id="b", now=NOW, machine=lambda: at(NOW, 100))
    await journal.close()
    for jump, back in ((-HOUR, HOUR), (DAY, 0.0)):
        with Reader.open(state_dir, machine=lambda jump=jump: at(NOW + jump, 100, kernel)) as reader:  # type: ignore[misc]
            assert reader.ran_back == back
