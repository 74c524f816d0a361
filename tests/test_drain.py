"""From "restart pending" to "safe to stop"."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from workspace_adapter.drain import Command, Drain, DrainState
from workspace_adapter.ledger import Running

WINDOW = 60.0


def working(turn_id: str = "a") -> Running:
    """A turn with a tool running."""
    return Running(turn_id, f"session of {turn_id}", attempt=1, open={"call"})


def thinking(turn_id: str = "a") -> Running:
    """A turn whose model works and no tool."""
    return Running(turn_id, f"session of {turn_id}", attempt=1)


def held(turn_id: str = "a") -> Running:
    """A turn that waits at the closed gate."""
    return Running(turn_id, f"session of {turn_id}", attempt=1, held={"call"})


def drain() -> Drain:
    return Drain(window=WINDOW)


def acknowledged(*running: Running) -> Drain:
    """A drain acknowledged at once, at 0."""
    new = drain()
    assert new.begin(running, now=0, cap=0) == [Command.CLOSE_GATE, Command.ACKNOWLEDGE]
    return new


# --- settling ---------------------------------------------------------------------------


def test_with_nothing_running_it_is_acknowledged_at_once() -> None:
    d = drain()
    assert d.gate_open
    assert d.begin([], now=0, cap=5) == [Command.CLOSE_GATE, Command.ACKNOWLEDGE]
    assert not d.gate_open
    assert d.report is not None
    assert d.report.drained


def test_it_waits_for_a_tool_and_acknowledges_when_the_turn_has_ended() -> None:
    d, a = drain(), working()
    assert d.begin([a], now=0, cap=5) == [Command.CLOSE_GATE]
    assert d.look([a], now=1) == []
    d.turn_ended("a", parked=False)
    assert d.look([], now=2) == [Command.ACKNOWLEDGE]
    assert d.report is not None
    assert (d.report.finished, d.report.took) == (1, 2)


def test_a_held_call_settles_its_turn_only_when_no_sibling_of_it_runs() -> None:
    d, a = drain(), working()
    d.begin([a], now=0, cap=5)
    a.held.add("second")
    assert d.look([a], now=1) == []
    a.open.clear()
    assert d.look([a], now=2) == [Command.ACKNOWLEDGE]
    assert d.report is not None
    assert d.report.held == ("a",)


def test_a_thinking_model_is_not_settled() -> None:
    d, a = drain(), thinking()
    assert d.begin([a], now=0, cap=5) == [Command.CLOSE_GATE]


def test_a_report_is_of_the_drain_under_way_not_of_the_last_one() -> None:
    d, a = acknowledged(), working()
    assert d.look([], now=WINDOW) == [Command.OPEN_GATE]
    d.begin([a], now=WINDOW, cap=5)
    assert d.report is None


def test_who_did_not_sign_can_double_the_window_and_no_more() -> None:
    d = acknowledged()
    for now in range(0, 200, 10):
        if d.begin([], now=now, cap=0, signed=False) == [Command.OPEN_GATE]:
            break
    assert now == 2 * WINDOW


def test_who_signed_extends_the_window_each_time() -> None:
    d = acknowledged()
    for now in range(0, 300, 50):
        d.begin([], now=now, cap=0)
        assert d.deadline == now + WINDOW
    d.begin([], now=255, cap=0, signed=False)
    assert d.deadline == 250 + WINDOW, "a stranger does not shorten it either"


def test_a_turn_no_runtime_has_seen_is_not_waited_for() -> None:
    d, a = drain(), Running("a", "s")
    assert d.begin([a], now=0, cap=5) == [Command.CLOSE_GATE, Command.ACKNOWLEDGE]
    assert d.report is not None
    assert (d.report.held, d.report.running) == ((), ())


def test_a_turn_whose_tool_asked_for_the_drain_is_not_waited_for_and_not_called_held() -> None:
    d, a = drain(), working()
    a.waits_for_drain = True
    a.held.add("second")
    d.begin([a], now=0, cap=5)
    assert d.report is not None
    assert (d.report.held, d.report.running) == ((), ())  # stopping it cuts a tool: it must be charged


def test_at_the_cap_it_acknowledges_and_says_what_runs_and_goes_on() -> None:
    d, a, b = drain(), working("a"), held("b")
    d.begin([a, b], now=10, cap=5)
    assert d.deadline == 15
    d.turn_ended("c", parked=True)
    assert d.look([a, b], now=14.9) == []
    assert d.look([a, b], now=15) == [Command.ACKNOWLEDGE]
    assert d.report is not None
    assert (d.report.running, d.report.held, d.report.parked) == (("a",), ("b",), ("c",))
    assert not d.report.drained


def test_the_acknowledgement_on_the_wire() -> None:
    d = drain()
    d.begin([working("a"), held("b")], now=0, cap=1)
    d.turn_ended("c", parked=True)
    d.turn_ended("d", parked=False)
    d.look([working("a"), held("b")], now=1.0506)
    assert d.report is not None
    assert d.report.as_json() == {
        "acknowledged": True,
        "drained": False,
        "finished": 1,
        "parked": ["c"],
        "held": ["b"],
        "running": ["a"],
        "took_ms": 1051,
    }


def test_a_turn_that_ends_while_nobody_drains_is_not_counted() -> None:
    d = drain()
    d.turn_ended("a", parked=False)
    d.begin([], now=0, cap=5)
    assert d.report is not None
    assert d.report.finished == 0


# --- a second signal --------------------------------------------------------------------


def test_a_second_signal_joins_the_first() -> None:
    d, a = drain(), working()
    d.begin([a], now=0, cap=5)
    assert d.begin([a], now=4, cap=5) == []
    assert d.look([a], now=5) == [Command.ACKNOWLEDGE]


def test_a_signal_after_the_acknowledgement_extends_the_window() -> None:
    d = acknowledged()
    first = d.report
    assert d.begin([], now=50, cap=5) == []
    assert d.report is first
    assert d.look([], now=WINDOW) == []
    assert d.look([], now=50 + WINDOW) == [Command.OPEN_GATE]


def test_a_stop_that_joins_a_short_drain_gets_its_own_time() -> None:
    d, a = drain(), working()
    d.begin([a], now=0, cap=1)
    assert d.begin([a], now=0.5, cap=6, stop=True) == []
    assert d.look([a], now=1) == []
    assert d.look([a], now=6.5) == [Command.ACKNOWLEDGE, Command.STOP]


def test_a_stop_that_joins_a_long_drain_does_not_wait_longer_than_it_has() -> None:
    d, a = drain(), working()
    d.begin([a], now=0, cap=600)
    d.begin([a], now=1, cap=6, stop=True)
    assert d.deadline == 7
    assert d.look([a], now=7) == [Command.ACKNOWLEDGE, Command.STOP]


def test_a_stop_after_the_acknowledgement_stops_at_once_where_all_is_settled() -> None:
    d = acknowledged(held())
    assert d.begin([held()], now=1, cap=6, stop=True) == [Command.STOP]


def test_a_stop_after_the_acknowledgement_gives_its_time_to_what_still_runs() -> None:
    d, a = acknowledged(working()), working()
    assert d.begin([a], now=1, cap=6, stop=True) == []
    assert not d.gate_open
    d.turn_ended("a", parked=True)
    assert d.look([], now=2) == [Command.ACKNOWLEDGE, Command.STOP]
    assert d.report is not None
    assert d.report.parked == ("a",)


# --- the window, and the stop -----------------------------------------------------------


def test_no_stop_within_the_window_reopens_the_gate() -> None:
    d = acknowledged()
    assert d.deadline == WINDOW
    assert d.look([], now=WINDOW - 0.1) == []
    assert d.look([], now=WINDOW) == [Command.OPEN_GATE]
    assert d.state is DrainState.SERVING
    assert d.gate_open
    assert d.deadline is None


def test_the_next_drain_counts_from_nothing() -> None:
    d = drain()
    d.begin([working()], now=0, cap=1)
    d.turn_ended("a", parked=True)
    d.look([], now=0.5)
    d.look([], now=100)
    assert d.begin([], now=200, cap=1) == [Command.CLOSE_GATE, Command.ACKNOWLEDGE]
    assert d.report is not None
    assert (d.report.parked, d.report.took) == ((), 0)


def test_stop_waits_for_nobody_and_closes_the_gate() -> None:
    d = drain()
    assert d.stop() == [Command.CLOSE_GATE, Command.STOP]
    assert not d.gate_open
    assert d.deadline is None


def test_a_second_stop_cuts_the_waiting_short() -> None:
    d, a = drain(), working()
    d.begin([a], now=0, cap=6, stop=True)
    assert d.stop() == [Command.STOP]


# --- the promises, whatever happens -----------------------------------------------------


class Promises(RuleBasedStateMachine):
    """A workspace that obeys the drain; its model is what was promised, not the table.

    Nothing is acknowledged early; no permit is given after the acknowledgement; the cap
    is honoured; the window reopens the gate; a second signal joins; the stop is final.
    """

    @initialize()
    def boot(self) -> None:
        self.drain = drain()
        self.now = 0.0
        self.turns: dict[str, Running] = {}
        self.named = 0
        self.gate_closed = False
        self.acknowledged = False
        self.until: float | None = None  # the drain under way must be acknowledged by then
        self.window_until: float | None = None
        self.stop_wanted = False
        self.stopped = False

    # --- what a workspace does --------------------------------------------------------

    @precondition(lambda self: self.drain.gate_open and len(self.turns) < 4)
    @rule()
    def a_turn_starts(self) -> None:
        self.named += 1
        self.turns[f"t{self.named}"] = Running(f"t{self.named}", f"s{self.named}", attempt=1)

    @precondition(lambda self: self.drain.gate_open and self.turns)
    @rule(data=st.data())
    def a_call_is_permitted(self, data: st.DataObject) -> None:
        assert not self.gate_closed, "a permit after the gate was closed"
        self.some(data).open.add("call")

    @precondition(lambda self: not self.drain.gate_open and self.turns)
    @rule(data=st.data(), call=st.sampled_from(["first", "second"]))
    def a_call_is_held(self, data: st.DataObject, call: str) -> None:
        self.some(data).held.add(call)
        self.look()

    @precondition(lambda self: any(turn.open for turn in self.turns.values()))
    @rule(data=st.data())
    def a_tool_ends(self, data: st.DataObject) -> None:
        turn = data.draw(st.sampled_from([turn for turn in self.turns.values() if turn.open]))
        turn.open.clear()
        self.look()

    @precondition(lambda self: any(not (t.open or t.held) for t in self.turns.values()))
    @rule(data=st.data(), parked=st.booleans())
    def a_turn_ends(self, data: st.DataObject, parked: bool) -> None:
        idle = [t for t in self.turns.values() if not (t.open or t.held)]
        turn = data.draw(st.sampled_from(idle))
        del self.turns[turn.turn_id]
        self.drain.turn_ended(turn.turn_id, parked=parked and self.gate_closed)
        self.look()

    # --- what others do ---------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.5, 2.0, 7.0, WINDOW - 5]))
    def time_passes(self, seconds: float) -> None:
        due = self.drain.deadline
        self.now += seconds
        if due is not None and due <= self.now:
            self.look()

    @rule(cap=st.sampled_from([0.0, 1.0, 6.0]))
    def a_restart_is_pending(self, cap: float) -> None:
        self.begin(cap, stop=False)

    @precondition(lambda self: self.turns)
    @rule(cap=st.sampled_from([0.0, 1.0, 6.0]))
    def sigterm(self, cap: float) -> None:
        self.begin(cap, stop=True)

    def begin(self, cap: float, *, stop: bool) -> None:
        match self.drain.state:
            case DrainState.SERVING:
                self.until = self.now + cap
            case DrainState.DRAINING if stop:
                self.until = self.now + cap
            case DrainState.DRAINED:
                self.window_until = self.now + WINDOW
                if stop and self.drain.report is not None and not self.drain.report.drained:
                    self.until, self.acknowledged = self.now + cap, False
        self.stop_wanted = self.stop_wanted or stop
        self.obey(self.drain.begin(self.turns.values(), now=self.now, cap=cap, stop=stop))

    @precondition(lambda self: self.now > WINDOW)
    @rule()
    def told_to_stop_now(self) -> None:
        self.stop_wanted = True
        commands = self.drain.stop()
        self.obey(commands)
        assert self.stopped

    # --- the model --------------------------------------------------------------------

    def some(self, data: st.DataObject) -> Running:
        return data.draw(st.sampled_from(list(self.turns.values())))

    def look(self) -> None:
        self.obey(self.drain.look(self.turns.values(), now=self.now))

    def obey(self, commands: list[Command]) -> None:
        assert not (self.stopped and commands), "the stop is final"
        for command in commands:
            match command:
                case Command.CLOSE_GATE:
                    assert not self.gate_closed
                    self.gate_closed = True
                case Command.ACKNOWLEDGE:
                    self.acknowledge()
                case Command.OPEN_GATE:
                    assert self.acknowledged
                    assert not self.stop_wanted
                    assert self.window_until is not None
                    assert self.now >= self.window_until, "the gate opened before the window was over"
                    self.gate_closed = self.acknowledged = False
                    self.until = self.window_until = None
                    for turn in self.turns.values():
                        turn.open |= turn.held
                        turn.held.clear()
                case Command.STOP:
                    assert self.stop_wanted, "it stops by itself, unasked"
                    self.stopped = True

    def acknowledge(self) -> None:
        assert self.gate_closed
        assert not self.acknowledged, "acknowledged twice"
        unsettled = {id for id, turn in self.turns.items() if turn.open or not turn.held}
        assert self.until is not None
        assert not unsettled or self.now >= self.until, "acknowledged early"
        report = self.drain.report
        assert report is not None
        assert set(report.running) == unsettled
        assert set(report.held) == self.turns.keys() - unsettled
        assert report.drained == (not unsettled)
        self.acknowledged = True
        self.window_until = self.now + WINDOW

    @invariant()
    def the_gate_is_as_it_was_told(self) -> None:
        assert self.drain.gate_open == (not self.gate_closed)

    @invariant()
    def the_cap_is_honoured(self) -> None:
        if self.until is not None and not self.stopped and self.now >= self.until:
            assert self.acknowledged

    @invariant()
    def what_is_settled_is_acknowledged(self) -> None:
        if self.gate_closed and not self.stopped:
            settled = all(turn.held and not turn.open for turn in self.turns.values())
            assert self.acknowledged or not settled

    @invariant()
    def the_window_reopens_the_gate(self) -> None:
        if self.acknowledged and not self.stopped and self.window_until is not None:
            assert self.now < self.window_until

    @invariant()
    def it_says_when_it_must_be_looked_at(self) -> None:
        waits = self.gate_closed and not self.stopped
        assert (self.drain.deadline is not None) == waits
        assert self.drain.deadline is None or self.drain.deadline > self.now


TestPromises = Promises.TestCase
TestPromises.settings = settings(max_examples=300, stateful_step_count=25, deadline=None)
