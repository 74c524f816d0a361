"""What a heartbeat says and when it is due."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workspace_adapter.heartbeat import (
    TEXT_LIMIT,
    Act,
    Ended,
    Ends,
    Identity,
    News,
    Pace,
    Rhythm,
    Vitals,
    Watch,
    heartbeat,
)
from workspace_adapter.queueing import NO_ROOM
from workspace_adapter.wire import WEDGED, Heartbeat

ME = Identity(workspace_id="w", boot_id="b", version="1", idle_timeout=1500.5, began=100.0)


def said(vitals: Vitals, *, now: float = 160.9, blocked: str | None = None) -> Heartbeat:
    return heartbeat(ME, vitals, now=now, blocked=blocked, generation=7)


# --- what it says -----------------------------------------------------------------------


def test_a_heartbeat_says_everything_each_time() -> None:
    beat = said(Vitals(running=2, waiting=3, current_task="x", state="serving", agent_card={"name": "n"}))
    assert beat.as_json() == {
        "workspace_id": "w",
        "active_tasks": 2,
        "is_busy": True,
        "current_task": "x",
        "error_rate": 0.0,
        "sample_error": "",
        "uptime_seconds": 60,
        "runtime_state": "",
        "runtime_metadata": {
            "capabilities": dict.fromkeys(beat.capabilities, False),
            "idle_timeout_seconds": 1501,
        },
        "agent_card": {"name": "n"},
        "observed_generation": 7,
        "boot_id": "b",
        "state": "serving",
        "waiting": 3,
        "version": "1",
    }
    assert len(beat.capabilities) == 7


def test_active_tasks_is_the_length_of_the_ledger() -> None:
    assert said(Vitals(running=0)).active_tasks == 0
    assert not said(Vitals(running=0)).is_busy
    assert said(Vitals(running=3)).active_tasks == 3


@pytest.mark.parametrize(
    "vitals",
    [Vitals(running=1, leaving=True), Vitals(running=1, accepting=False)],
    ids=["draining", "the gate is closed"],
)
def test_while_nothing_may_start_there_is_no_room(vitals: Vitals) -> None:
    beat = said(vitals)
    assert beat.active_tasks == NO_ROOM + 1
    assert beat.is_busy


def test_a_blocked_event_loop_is_wedged_with_the_reason_and_so_is_a_runtime_that_says_so() -> None:
    assert said(Vitals()).runtime_state == ""
    beat = said(Vitals(trouble="its server is gone"))
    assert (beat.runtime_state, beat.sample_error) == (WEDGED, "its server is gone")
    beat = said(Vitals(trouble="its server is gone"), blocked="in sleep")
    assert (beat.runtime_state, beat.sample_error) == (WEDGED, "in sleep")


def test_long_texts_are_cut() -> None:
    beat = said(Vitals(current_task="ä" * 9999, trouble="x" * 9999))
    assert len(beat.current_task) == len(beat.sample_error) == TEXT_LIMIT


def ended(*failures: str | None, at: float = 0.0) -> Ends:
    ends = Ends()
    for failure in failures:
        ends = ends.and_(Ended(at, failure))
    return ends


def test_one_failed_turn_alone_degrades_no_workspace() -> None:
    assert ended("boom").rate(1.0) < 0.5
    assert ended("boom").sample(1.0) == "boom"


def test_when_most_turns_fail_the_rate_says_so() -> None:
    assert ended("a", "b", "c").rate(1.0) >= 0.5
    assert ended("a", "b", "c", None).sample(1.0) == "c"


def test_the_rate_looks_at_the_latest_ends_only() -> None:
    assert ended(*["boom"] * 50, *[None] * 20).rate(1.0) == 0.0
    assert ended(*["boom"] * 50).rate(1.0) == 1.0


def test_old_failures_are_forgotten() -> None:
    ends = ended("boom", "boom", "boom")
    assert ends.rate(599.0) > 0
    assert (ends.rate(600.0), ends.sample(600.0)) == (0.0, "")


# --- when ---------------------------------------------------------------------------------

PACE = Pace(10.0)


def known(now: float = 0.0) -> Rhythm:
    """A rhythm that has registered and beaten."""
    rhythm = Rhythm(PACE)
    assert rhythm.next(now) is Act.REGISTER
    assert rhythm.registered(now) is News.REGISTERED
    assert rhythm.next(now) is Act.BEAT
    rhythm.beating(now, chance=0.0)
    assert rhythm.beaten(now) is None
    return rhythm


def test_first_it_registers_and_beats_at_once_after_it() -> None:
    assert known().next(0.1) is None


def test_the_next_heartbeat_is_due_within_the_interval_with_jitter() -> None:
    assert known().wait(0.0) == 10.0
    for chance in (0.0, 0.5, 0.999):
        rhythm = known()
        rhythm.beating(0.0, chance=chance)
        assert 9.0 <= rhythm.wait(0.0) <= 10.0


def test_a_change_is_said_at_once() -> None:
    assert known().next(0.1, changed=True) is Act.BEAT


def test_a_storm_of_changes_stays_far_below_what_the_platform_allows() -> None:
    rhythm, beats = known(), 0
    for tick in range(60_000):
        now = tick / 1000
        if rhythm.next(now, changed=True) is Act.BEAT:
            rhythm.beating(now, chance=0.5)
            rhythm.beaten(now)
            beats += 1
    assert 55 <= beats <= 75, "a minute's worth; the platform allows 600"


def test_the_begin_of_a_drain_is_said_at_once_even_in_a_storm() -> None:
    rhythm = known()
    for _ in range(20):
        rhythm.beating(0.1, chance=0.0)
        rhythm.beaten(0.1)
    assert rhythm.next(0.1, changed=True) is None
    assert rhythm.next(0.1, changed=True, urgent=True, leaving=True) is Act.BEAT


def test_nothing_is_sent_to_a_platform_that_was_never_told_of_us_but_in_a_drain() -> None:
    rhythm = Rhythm(PACE)
    assert rhythm.next(0.0, changed=True, urgent=True) is Act.REGISTER
    assert rhythm.next(0.0, leaving=True) is Act.BEAT


@pytest.mark.parametrize(
    ("status", "first", "longest"),
    [
        *((status, 1.0, 30.0) for status in (None, 500, 503, 429)),
        *((status, 4.0, 60.0) for status in (400, 401, 409)),
    ],
)
def test_registering_is_tried_for_ever_and_what_is_refused_slowly(
    status: int | None, first: float, longest: float
) -> None:
    rhythm, now, waits = Rhythm(PACE), 0.0, []
    for _ in range(200):
        assert rhythm.next(now) is Act.REGISTER
        rhythm.not_registered(now, status=status, retry_after=None, chance=0.0)
        waits.append(rhythm._register_at - now)
        now = rhythm._register_at
    assert waits[0] == first
    assert max(waits) == waits[-1] == longest


def test_what_the_platform_asks_to_wait_is_waited_up_to_a_minute() -> None:
    rhythm = Rhythm(PACE)
    rhythm.not_registered(0.0, status=429, retry_after=45.0, chance=0.9)
    assert rhythm._register_at == 45.0
    rhythm.not_registered(0.0, status=429, retry_after=86400.0, chance=0.9)
    assert rhythm._register_at == 60.0
    rhythm = known()
    rhythm.missed(1.0, status=429, retry_after=25.0, chance=0.0)
    assert rhythm.next(25.9, changed=True) is None
    assert rhythm.next(26.0) is Act.BEAT


def test_while_registering_fails_heartbeats_leave_all_the_same() -> None:
    rhythm = Rhythm(PACE)
    rhythm.not_registered(0.0, status=400, retry_after=None, chance=0.0)
    assert rhythm.next(0.0) is Act.BEAT


def test_a_lost_heartbeat_is_repeated_before_the_platform_misses_it() -> None:
    rhythm = known()
    rhythm.beating(10.0, chance=0.0)
    assert rhythm.missed(10.0, status=None, retry_after=None, chance=0.0) is None
    assert rhythm.next(11.0) is Act.BEAT


def test_an_outage_is_told_once_and_its_end_too() -> None:
    rhythm, told = known(), []
    for second in range(10, 120):
        if rhythm.next(float(second)) is Act.BEAT:
            rhythm.beating(float(second), chance=0.0)
            told.append(rhythm.missed(float(second), status=None, retry_after=None, chance=0.0))
    assert told.count(News.LOST) == 1
    assert set(told) == {None, News.LOST}
    assert told.index(News.LOST) > 0, "one lost heartbeat is no outage"
    assert rhythm.beaten(120.0) is News.BACK
    assert rhythm.beaten(121.0) is None


def test_after_a_long_outage_it_registers_anew_but_never_while_it_leaves() -> None:
    rhythm = known()
    assert rhythm.next(149.9) is Act.BEAT
    assert rhythm.next(150.0, leaving=True) is Act.BEAT
    assert rhythm.next(150.0, urgent=True) is Act.BEAT, "first that there is room again"
    assert rhythm.next(150.0) is Act.REGISTER
    assert rhythm.registered_at is None


@pytest.mark.parametrize("status", [404, 409])
def test_whom_the_platform_does_not_know_registers_anew_and_not_again_and_again(status: int) -> None:
    rhythm = Rhythm(Pace(10.0))
    rhythm.registered(0.0)
    rhythm.beating(1.0, chance=0.0)
    rhythm.missed(1.0, status=status, retry_after=None, chance=0.0)
    assert rhythm.next(1.1) is None
    at = 1.0 + rhythm.pace.first
    assert rhythm.next(at) is Act.REGISTER
    rhythm.not_registered(at, status=409, retry_after=None, chance=0.0)
    rhythm.missed(at + 0.1, status=status, retry_after=None, chance=0.0)
    assert rhythm.next(at + rhythm.pace.first) is None


def test_each_kind_of_failure_to_register_is_told_once() -> None:
    rhythm = Rhythm(PACE)

    def fail(status: int | None) -> News | None:
        return rhythm.not_registered(0.0, status=status, retry_after=None, chance=0.0)

    assert [fail(None), fail(500), fail(None)] == [News.NOT_REGISTERED, None, None]
    assert [fail(401), fail(401), fail(400)] == [News.NOT_REGISTERED, None, News.NOT_REGISTERED]


# --- the event loop -----------------------------------------------------------------------


def test_a_silent_event_loop_is_noticed_and_one_that_was_stopped_with_us_is_not() -> None:
    watch = Watch(30.0)
    assert watch.silence(0.0, sign_at=0.0) == 0.0
    assert watch.silence(29.0, sign_at=0.0) == 29.0
    assert watch.silence(31.0, sign_at=0.0) == 31.0
    assert watch.silence(32.0, sign_at=31.9) < 1.0
    assert watch.silence(500.0, sign_at=32.0) == 0.0, "the machine slept"
    assert watch.silence(515.0, sign_at=32.0) == 15.0
    assert watch.silence(531.0, sign_at=32.0) == 31.0


# --- all of it ----------------------------------------------------------------------------

STATUSES = st.sampled_from([None, 200, 301, 400, 401, 404, 429, 500, 503])
CHANCES = st.floats(0.0, 1.0, exclude_max=True)
AFTER = st.none() | st.floats(0.0, 3600.0)


class APlatformThatComesAndGoes(RuleBasedStateMachine):
    """Whatever the platform does: nothing is given up, nothing is sent too often."""

    @initialize(interval=st.sampled_from([0.05, 1.0, 10.0]))
    def begin(self, interval: float) -> None:
        self.pace = Pace(interval)
        self.rhythm = Rhythm(self.pace)
        self.now = 1000.0
        self.leaving = False
        self.tried_leaving = False
        self.changed = True
        self.sent: list[float] = []
        self.flips = 0

    def act(self) -> Act | None:
        urgent = self.leaving is not self.tried_leaving
        self.due = self.rhythm.next(self.now, changed=self.changed, urgent=urgent, leaving=self.leaving)
        return self.due

    @rule(intervals=st.floats(0.0, 20.0))
    def time_passes(self, intervals: float) -> None:
        self.now += intervals * self.pace.interval

    @rule()
    def something_changes(self) -> None:
        self.changed = True

    @rule()
    def it_drains_or_goes_on(self) -> None:
        self.leaving = not self.leaving
        self.flips += 1

    @rule(ok=st.booleans(), status=STATUSES, after=AFTER, chance=CHANCES)
    def what_is_due_is_done(self, ok: bool, status: int | None, after: float | None, chance: float) -> None:
        match self.act():
            case Act.REGISTER:
                assert not self.leaving
                if ok:
                    self.rhythm.registered(self.now)
                    assert self.act() is Act.BEAT
                else:
                    self.rhythm.not_registered(self.now, status=status, retry_after=after, chance=chance)
                    assert self.act() is not Act.REGISTER
            case Act.BEAT:
                self.sent.append(self.now)
                self.tried_leaving = self.leaving
                self.rhythm.beating(self.now, chance=chance)
                if ok:
                    self.changed = False
                    self.rhythm.beaten(self.now)
                else:
                    self.rhythm.missed(self.now, status=status, retry_after=after, chance=chance)

    @invariant()
    def something_is_always_due_soon(self) -> None:
        urgent = self.leaving is not self.tried_leaving
        wait = self.rhythm.wait(self.now, changed=self.changed, urgent=urgent, leaving=self.leaving)
        assert 0 <= wait <= self.pace.slow + 1e-6
        if not self.rhythm.failures:
            assert wait <= self.pace.interval + 1e-6

    @invariant()
    def what_wait_says_is_when_next_acts(self) -> None:
        probe = replace(self.rhythm)
        how = {"changed": self.changed, "urgent": False, "leaving": self.leaving}
        assert probe.next(self.now + probe.wait(self.now, **how) + 1e-6, **how) is not None

    @invariant()
    def there_are_never_more_than_the_burst_and_the_rate_allow(self) -> None:
        since = self.now - self.pace.interval
        recent = [at for at in self.sent if at > since]
        assert len(recent) <= self.pace.burst + 10 + self.flips + 2

    @precondition(lambda self: self.leaving)
    @rule()
    def who_leaves_does_not_register(self) -> None:
        assert self.act() is not Act.REGISTER


TestAPlatformThatComesAndGoes = APlatformThatComesAndGoes.TestCase
TestAPlatformThatComesAndGoes.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
