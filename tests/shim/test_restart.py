"""A restart's cycle: every path signals, waits for the answer, and ends with a life not seen before."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.shim.hand import Hand
from tests.shim.runner import RULES
from tests.shim.scripted import Exchange, Scripted, scripted, until
from workspace_adapter.errors import StoreUnavailable
from workspace_adapter.shim import restart
from workspace_adapter.shim.address import Addresses
from workspace_adapter.shim.front.identity import CONTAINER
from workspace_adapter.shim.ranges import THIS_MACHINE_TOO
from workspace_adapter.shim.restart import Restarts, Times
from workspace_adapter.shim.store.contract import OVER, Aim, Beat, Cycle, Message, Status, Step
from workspace_adapter.shim.store.sqlite import SqliteStore
from workspace_adapter.shim.upstream import Upstream

ACKNOWLEDGED = {
    "acknowledged": True, "drained": True, "finished": 1, "parked": ["t1"], "held": [], "running": [],
    "took_ms": 3,
}  # fmt: skip


async def acknowledge(exchange: Exchange) -> None:
    await exchange.answer(200, {"jsonrpc": "2.0", "id": "1", "result": ACKNOWLEDGED})


class House:
    """A store, a hand that stops and starts, and the one workspace ``w``."""

    def __init__(self, store: SqliteStore, hand: Hand, workspace: Scripted, restarts: Restarts) -> None:
        self.store = store
        self.hand = hand
        self.workspace = workspace
        self.restarts = restarts
        self.lives = 1
        self.suspected: list[str] = []

    async def new_life(self) -> None:
        """Have the workspace register as a sidecar that was just started does."""
        self.lives += 1
        await self.store.register("w", url=self.workspace.url, boot_id=f"boot-{self.lives}")
        self.restarts.heard("w")

    async def status(self) -> Status:
        workspace = await self.store.workspace("w")
        assert workspace is not None
        return workspace.status

    async def over(self, cycle: Cycle) -> Cycle:
        with anyio.fail_after(15):
            while (now := await self.store.cycle(cycle.id)) is not None and now.step not in OVER:
                await anyio.sleep(0.005)
        assert now is not None
        return now

    async def do(self, aim: Aim) -> Cycle:
        cycle, _ = await self.store.ask_cycle("w", aim, "a test")
        return await self.over(cycle)

    @property
    def signals(self) -> list[dict[str, Any]]:
        return [json.loads(request.body) for request in self.workspace.requests]


@pytest.fixture
async def house(sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(restart, "_TRIES", (0.01, 0.02, 0.04))
    monkeypatch.setattr(restart, "_POLL", 0.1)
    async with opened(sqlite) as made:
        yield made


@asynccontextmanager
async def opened(store: SqliteStore, *, provisioner: str = "hand", **times: float) -> AsyncIterator[House]:
    async with (
        scripted(acknowledge) as workspace,
        Upstream(Addresses(THIS_MACHINE_TOO)) as upstream,
        anyio.create_task_group() as tasks,
    ):
        hand = Hand()
        numbers = iter(range(1000))

        def mint() -> tuple[str, str]:
            number = next(numbers)
            return f"token-{number}", f"digest-{number}"

        restarts = Restarts(
            store,
            upstream,
            {"hand": hand},
            owner="life-1",
            mint=mint,
            environ={"SHIM_ADMIN_TOKEN": "hidden", "MODEL_KEY": "shown"},
            platform_url="http://shim:8080",
            times=Times(**{"drain": 1.0, "grace": 1.0, "start": 3.0, "renewal": 0.2, **times}),
            suspect=lambda workspace_id: made.suspected.append(workspace_id),
        )
        made = House(store, hand, workspace, restarts)
        hand.on["start"] = made.new_life
        store.on_cycle = restarts.ring
        await store.create_workspace(
            "w", provisioner=provisioner, spec={"inherit": ["MODEL_KEY"]}, secret="the-inbound-secret"
        )
        await store.register("w", url=workspace.url, boot_id="boot-1")
        tasks.start_soon(restarts.run)
        yield made
        tasks.cancel_scope.cancel()


async def test_a_restart_signals_waits_stops_starts_and_waits_for_a_new_life(house: House) -> None:
    cycle = await house.do(Aim.RESTART)

    assert cycle.step is Step.DONE
    assert house.hand.done == ["prepare", "stop", "start"]
    assert cycle.boot_before == "boot-1"
    assert cycle.notes["signal"]["parked"] == ["t1"]
    assert cycle.notes["because"] == "a new life registered"
    workspace = await house.store.workspace("w")
    assert workspace is not None
    assert (workspace.boot_id, workspace.restarting, workspace.status) == ("boot-2", False, Status.ONLINE)


async def test_defect_13_the_signal_is_signed_and_its_answer_awaited_before_the_stop(house: House) -> None:
    answered = anyio.Event()

    async def slowly(exchange: Exchange) -> None:
        assert house.hand.done == ["prepare"], "it was stopped before it had answered"
        await anyio.sleep(0.3)
        answered.set()
        await acknowledge(exchange)

    async def stopped() -> None:
        assert answered.is_set()

    house.workspace.script = slowly
    house.hand.on["stop"] = stopped
    cycle = await house.do(Aim.RESTART)

    (request,) = house.workspace.requests
    assert (request.method, request.path) == ("POST", "/signals/restart_pending")
    assert request.headers["authorization"] == "Bearer the-inbound-secret"
    assert request.headers["x-restart-signal"] == "true"
    assert house.signals[0]["params"] == {
        "drain_seconds": 1,
        "deadline_ms": 1000,
        "workspace_id": "w",
        "restart_id": str(cycle.id),
    }
    assert cycle.notes["signal"]["acknowledged"] is True
    assert cycle.notes["signal"]["waited_ms"] >= 300


@pytest.mark.parametrize(
    ("aim", "done", "status"),
    [
        (Aim.PAUSE, ["stop"], Status.PAUSED),
        (Aim.REMOVE, ["stop", "remove"], Status.REMOVED),
        (Aim.RESTART, ["prepare", "stop", "start"], Status.ONLINE),
    ],
)
async def test_defect_13_every_path_that_stops_sends_the_signal(
    house: House, aim: Aim, done: list[str], status: Status
) -> None:
    cycle = await house.do(aim)

    assert cycle.step is Step.DONE
    assert len(house.signals) == 1
    assert house.hand.done == done
    assert await house.status() is status


async def refuse(exchange: Exchange) -> None:
    await exchange.answer(404, {"error": "not found"})


async def garbage(exchange: Exchange) -> None:
    await exchange.answer(200, b"<html>welcome</html>")


async def silence(exchange: Exchange) -> None:
    await exchange.gone()


async def breaks_off(exchange: Exchange) -> None:
    exchange.reset()


async def declines(exchange: Exchange) -> None:
    await exchange.answer(200, {"jsonrpc": "2.0", "id": "1", "result": {"acknowledged": False}})


@pytest.mark.parametrize(
    ("script", "because"),
    [
        (refuse, "it answered 404"),
        (garbage, "its answer is no acknowledgement"),
        (declines, "its answer is no acknowledgement"),
        (breaks_off, "/signals/restart_pending at workspace w"),
        (silence, "no answer within 2.1 s"),
    ],
)
async def test_whatever_comes_of_the_signal_the_restart_goes_on_and_says_so(
    sqlite: SqliteStore,
    caplog: pytest.LogCaptureFixture,
    script: Callable[[Exchange], Awaitable[None]],
    because: str,
) -> None:
    async with opened(sqlite, drain=0.1) as house:
        house.workspace.script = script
        cycle = await house.do(Aim.RESTART)

    assert cycle.step is Step.DONE
    assert cycle.notes["signal"]["acknowledged"] is False
    assert because in cycle.notes["signal"]["because"]
    assert "did not acknowledge the restart signal" in caplog.text


async def test_a_connection_refused_does_not_hold_the_restart_up(house: House) -> None:
    await house.store.register("w", url="http://127.0.0.1:1", boot_id="boot-1b")
    with anyio.fail_after(2):
        cycle = await house.do(Aim.RESTART)
    assert cycle.step is Step.DONE
    assert cycle.notes["signal"]["acknowledged"] is False


async def test_a_workspace_without_a_url_is_stopped_without_a_signal(house: House) -> None:
    await house.store.create_workspace("new", provisioner="hand")
    house.hand.on.pop("start")
    cycle, _ = await house.store.ask_cycle("new", Aim.PAUSE, "a test")
    assert (await house.over(cycle)).notes["signal"] == {"acknowledged": False, "because": "it has no URL"}
    assert house.hand.done == ["stop"]


async def test_a_life_that_began_during_the_drain_is_not_taken_for_the_new_one(house: House) -> None:
    async def by_itself(exchange: Exchange) -> None:
        await house.new_life()
        await acknowledge(exchange)

    house.workspace.script = by_itself
    cycle = await house.do(Aim.RESTART)
    workspace = await house.store.workspace("w")
    assert workspace is not None
    assert (cycle.boot_before, workspace.boot_id) == ("boot-2", "boot-3")


async def test_nothing_is_leased_from_the_signal_until_the_new_life(house: House) -> None:
    seen: dict[str, int] = {}

    async def claimed(when: str) -> None:
        seen[when] = len(await house.store.claim("w", "a dispatcher"))

    async def signalled(exchange: Exchange) -> None:
        await claimed("signal")
        await acknowledge(exchange)

    async def started() -> None:
        await claimed("start")
        await house.new_life()

    house.workspace.script = signalled
    house.hand.on |= {"stop": lambda: claimed("stop"), "start": started}
    await house.store.enqueue(Message(workspace_id="w", turn_key="k", content_hash="h", body=b"{}"))
    await house.do(Aim.RESTART)
    await claimed("end")
    assert seen == {"signal": 0, "stop": 0, "start": 0, "end": 1}


# --- coalescing ---------------------------------------------------------------------------


async def test_any_number_of_requests_is_two_cycles_at_most(house: House) -> None:
    async def asked_again() -> None:
        house.hand.on.pop("stop")
        for _ in range(10):
            await house.store.ask_cycle("w", Aim.RESTART, "once more")

    house.hand.on["stop"] = asked_again
    first = await house.do(Aim.RESTART)
    second, *rest = await house.store.cycles("w")
    await house.over(second)

    assert [cycle.id for cycle in rest] == [first.id]
    assert second.requests == 10
    assert house.hand.done.count("start") == 2


async def test_defect_15_a_change_made_right_after_a_restart_is_applied_by_another(house: House) -> None:
    await house.do(Aim.RESTART)
    await house.do(Aim.RESTART)
    assert house.hand.done.count("start") == 2, "there is no time in which requests are dropped"


async def test_cycles_of_one_workspace_run_one_after_the_other(house: House) -> None:
    """The platform's gate around stop and start: of two ways to ask, neither overtakes."""
    inside = 0

    async def alone() -> None:
        nonlocal inside
        inside += 1
        assert inside == 1
        if house.hand.done.count("stop") == 1:
            await house.store.ask_cycle("w", Aim.RESTART, "another way")
        await anyio.sleep(0.05)
        inside -= 1

    house.hand.on["stop"] = alone
    await house.do(Aim.RESTART)
    second, _ = await house.store.cycles("w")
    await house.over(second)
    assert house.hand.done == ["prepare", "stop", "start"] * 2


async def test_workspaces_restart_independently(house: House) -> None:
    await house.store.create_workspace("other", provisioner="hand")

    async def other_is_asked() -> None:
        house.hand.on.pop("stop")
        await house.store.ask_cycle("other", Aim.PAUSE, "meanwhile")
        with anyio.fail_after(5):
            while (await house.store.cycles("other"))[0].step not in OVER:
                await anyio.sleep(0.005)

    house.hand.on["stop"] = other_is_asked
    assert (await house.do(Aim.RESTART)).step is Step.DONE


# --- what cannot be started is not stopped --------------------------------------------------


async def test_what_cannot_be_started_is_not_stopped_and_keeps_its_address(house: House) -> None:
    house.hand.fails["prepare"] = 100
    before = await house.store.workspace("w")
    cycle = await house.do(Aim.RESTART)

    assert cycle.step is Step.FAILED
    assert "nothing was stopped" in cycle.notes["because"]
    assert set(house.hand.done) == {"prepare"}
    assert house.signals == []
    assert await house.store.workspace("w") == before


async def test_a_stop_that_fails_is_tried_three_times_more(house: House) -> None:
    house.hand.fails["stop"] = 3
    assert (await house.do(Aim.RESTART)).step is Step.DONE
    assert house.hand.done.count("stop") == 4


async def test_a_workspace_that_cannot_be_stopped_goes_on_and_the_log_says_so(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    house.hand.fails["stop"] = 100
    cycle = await house.do(Aim.RESTART)

    assert cycle.step is Step.FAILED
    assert "could not be stopped: stop failed" in cycle.notes["because"]
    assert "start" not in house.hand.done
    workspace = await house.store.workspace("w")
    assert workspace is not None
    assert (workspace.restarting, workspace.status) == (False, Status.ONLINE)
    assert [record.levelname for record in caplog.records if "failed:" in record.message] == ["ERROR"]


async def test_a_workspace_that_does_not_register_in_time_has_failed(
    sqlite: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(sqlite, start=0.5) as house:
        del house.hand.on["start"]
        cycle = await house.do(Aim.RESTART)

        assert cycle.step is Step.FAILED
        assert "did not register within 0.5 s" in cycle.notes["because"]
        assert await house.status() is Status.FAILED
        assert house.suspected == ["w"]
        assert any(record.levelno == logging.ERROR for record in caplog.records)
        await house.new_life()
        assert await house.status() is Status.ONLINE, "late is not never"


async def test_a_workspace_that_ends_before_it_registers_is_not_waited_for(house: House) -> None:
    async def ends() -> None:
        async def later() -> None:
            house.hand.up = False

        house.hand.on["running"] = later

    async def start_and_end() -> None:
        pass

    house.hand.on["start"] = start_and_end
    async with anyio.create_task_group() as tasks:

        async def end_it() -> None:
            while "start" not in house.hand.done:
                await anyio.sleep(0.005)
            await anyio.sleep(0.05)
            house.hand.up = False

        tasks.start_soon(end_it)
        with anyio.fail_after(2.5):
            cycle = await house.do(Aim.RESTART)
    assert cycle.notes["because"] == "it ended before it registered: see the log of w"


async def test_the_old_lifes_late_registration_is_not_taken_for_the_new_one(house: House) -> None:
    async def late() -> None:
        await house.store.register("w", url=house.workspace.url, boot_id="boot-1")
        house.restarts.heard("w")

    house.hand.on["start"] = late
    cycle, _ = await house.store.ask_cycle("w", Aim.RESTART, "a test")
    with anyio.move_on_after(0.6):
        await house.over(cycle)
        pytest.fail("it took the old life for a new one")
    await house.new_life()
    assert (await house.over(cycle)).step is Step.DONE


# --- what a start is given ------------------------------------------------------------------


async def test_a_start_gets_a_token_of_its_own(house: House) -> None:
    for _ in range(3):
        await house.do(Aim.RESTART)

    (_, first), (environ, last) = house.hand.given[0], house.hand.given[-1]
    assert first == {".auth_token": "token-0", ".platform_inbound_secret": "the-inbound-secret"}
    assert last[".auth_token"] == "token-2"
    assert environ["WORKSPACE_ID"] == "w"
    assert environ["PLATFORM_URL"] == "http://shim:8080"
    assert environ["MODEL_KEY"] == "shown"
    assert "hidden" not in environ.values()
    assert environ["WORKSPACE_DRAIN_CAP"] == "1"
    made = {token.digest: token.label for token in await house.store.tokens_of("w")}
    assert made == {"digest-0": CONTAINER, "digest-1": CONTAINER, "digest-2": CONTAINER}


# --- dormant states ---------------------------------------------------------------------------


@pytest.mark.parametrize("aim", [Aim.RESTART, Aim.REVIVE])
async def test_what_is_paused_stays_so_until_it_is_resumed(house: House, aim: Aim) -> None:
    await house.do(Aim.PAUSE)
    cycle = await house.do(aim)

    assert (cycle.step, cycle.notes["because"]) == (Step.DONE, "it is paused: resume it")
    assert house.hand.done == ["stop"]
    await house.new_life()
    assert await house.status() is Status.PAUSED

    assert (await house.do(Aim.RESUME)).notes["because"] == "a new life registered"
    assert await house.status() is Status.ONLINE
    assert house.hand.done == ["stop", "prepare", "start"]
    assert len(house.signals) == 1


async def test_a_pause_that_could_not_stop_is_made_good_by_the_next(house: House) -> None:
    house.hand.fails["stop"] = 4
    assert (await house.do(Aim.PAUSE)).step is Step.FAILED
    assert (await house.status(), house.hand.up) == (Status.PAUSED, True)

    assert (await house.do(Aim.PAUSE)).notes["because"] == "it is paused"
    assert house.hand.up is False
    assert (await house.do(Aim.PAUSE)).notes["because"] == "it is paused already"
    assert house.hand.done == ["stop"] * 5


async def test_what_is_removed_is_gone_for_every_cycle_that_waited(house: House) -> None:
    async def asked_meanwhile() -> None:
        await house.store.ask_cycle("w", Aim.RESTART, "too late")

    house.hand.on["remove"] = asked_meanwhile
    await house.do(Aim.REMOVE)
    late, _ = await house.store.cycles("w")
    assert (await house.over(late)).step is Step.FAILED
    assert house.hand.done == ["stop", "remove"]


async def test_a_pause_does_not_wait_for_a_start_that_hangs(house: House) -> None:
    del house.hand.on["start"]
    restarting, _ = await house.store.ask_cycle("w", Aim.RESTART, "a test")
    with anyio.fail_after(5):
        while (now := await house.store.cycle(restarting.id)) is None or now.step is not Step.WAIT:
            await anyio.sleep(0.005)
        pausing = await house.do(Aim.PAUSE)
    assert (await house.over(restarting)).notes["because"] == "cut short: pause was asked for"
    assert pausing.step is Step.DONE
    assert await house.status() is Status.PAUSED


# --- external and dead ones ---------------------------------------------------------------------


async def test_an_external_workspace_is_signalled_and_never_stopped(sqlite: SqliteStore) -> None:
    async with opened(sqlite, provisioner="external", drain=0.3) as house:
        cycle = await house.do(Aim.RESTART)

        assert len(house.signals) == 1
        assert house.hand.done == []
        assert cycle.step is Step.DONE
        assert "nobody restarted it within 0.3 s" in cycle.notes["because"]
        assert await house.status() is Status.ONLINE

        cycle, _ = await sqlite.ask_cycle("w", Aim.RESTART, "a test")
        while len(house.signals) < 2:
            await anyio.sleep(0.005)
        await house.new_life()
        assert (await house.over(cycle)).notes["because"] == "a new life registered"


async def test_an_external_workspace_that_was_paused_is_sent_messages_with_its_next_beat(
    sqlite: SqliteStore,
) -> None:
    """Nobody stopped it, so no new life is to be waited for."""
    async with opened(sqlite, provisioner="external", drain=60.0, start=60.0) as house:
        await house.do(Aim.PAUSE)
        cycle, _ = await house.store.ask_cycle("w", Aim.RESUME, "a test")
        while await house.status() is Status.PAUSED:
            await anyio.sleep(0.005)
        await house.store.beat([Beat("w", "boot-1", 0)])
        with anyio.fail_after(5):
            assert (await house.over(cycle)).step is Step.DONE
        workspace = await house.store.workspace("w")
        assert workspace is not None
        assert (workspace.status, workspace.restarting) == (Status.ONLINE, False)


async def test_a_dead_one_is_revived_without_signal_and_stop(house: House) -> None:
    house.hand.up = False
    cycle = await house.do(Aim.REVIVE)

    assert cycle.notes["because"] == "a new life registered"
    assert house.hand.done == ["prepare", "start"]
    assert house.signals == []


async def test_one_that_runs_again_is_not_revived(house: House) -> None:
    assert (await house.do(Aim.REVIVE)).notes["because"] == "it runs again"
    assert house.hand.done == []


# --- the shim's own end ---------------------------------------------------------------------------


async def test_a_shim_that_is_stopped_leaves_its_cycle_to_the_next(sqlite: SqliteStore) -> None:
    began = anyio.Event()

    async def hangs() -> None:
        began.set()
        await anyio.sleep_forever()

    async with opened(sqlite) as house:
        house.hand.on["stop"] = hangs
        cycle, _ = await sqlite.ask_cycle("w", Aim.RESTART, "a test")
        await began.wait()
    left = await sqlite.cycle(cycle.id)
    assert left is not None
    assert left.step is Step.STOP
    async with opened(sqlite) as house:
        with anyio.fail_after(1.5):  # before its lease would have lapsed
            finished = await house.over(cycle)
    assert (finished.step, finished.attempt) == (Step.DONE, 2)


MOVES = (Step.SIGNAL, Step.STOP, Step.START, Step.WAIT, Step.DONE)


async def test_defect_17_whatever_step_the_shim_dies_in_another_finishes_it(tmp_path: Path) -> None:
    """One restart, and a SIGKILL before and after the write of each of its steps."""
    async with SqliteStore(tmp_path / "shim.sqlite", RULES) as store:
        await store.create_workspace("w", provisioner="hand")
        await store.register("w", url="http://127.0.0.1:1", boot_id="boot-0")
        asked, _ = await store.ask_cycle("w", Aim.RESTART, "a test")
    ends = [(str(step), when) for step in MOVES for when in ("before", "after")]
    for number, end in enumerate(ends):
        command = [sys.executable, "-m", "tests.shim.runner", str(tmp_path), f"life-{number}", *end]
        with anyio.fail_after(10):
            died = await anyio.run_process(command, check=False)
        assert died.returncode == -signal.SIGKILL, (end, died.stderr.decode())

    async with SqliteStore(tmp_path / "shim.sqlite", RULES) as store:
        cycle = await store.cycle(asked.id)
        workspace = await store.workspace("w")
    assert cycle is not None
    assert workspace is not None
    assert (cycle.step, cycle.boot_before, cycle.attempt) == (Step.DONE, "boot-0", len(ends))
    assert (workspace.restarting, workspace.status, workspace.boot_id) == (False, Status.ONLINE, "boot-1")
    done = (tmp_path / "done").read_text().split()
    assert [verb for verb in dict.fromkeys(done)] == ["prepare", "stop", "start"]
    assert done.count("start") == 1, "what runs is not started again"


async def test_what_another_replica_finished_meanwhile_is_not_done_again(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart, "_POLL", 0.1)
    async with opened(sqlite, renewal=60.0) as house:

        async def take_over() -> None:
            """Finish the cycle elsewhere, while this replica has lost the store for as long."""
            await sqlite.disown()
            taken = await sqlite.claim_cycle("another")
            assert taken is not None
            await sqlite.set_restarting("w", False)
            assert await sqlite.advance_cycle(taken, Step.DONE)
            raise StoreUnavailable("it was away")

        house.hand.on["stop"] = take_over
        cycle = await house.do(Aim.RESTART)
        await until(lambda: not len(house.restarts))

        assert cycle.step is Step.DONE
        assert house.hand.done == ["prepare", "stop"]
        workspace = await house.store.workspace("w")
        assert workspace is not None
        assert not workspace.restarting
