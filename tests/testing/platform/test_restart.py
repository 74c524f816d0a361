"""The restart cycle as the existing platform runs it, and what it does about silence."""

from __future__ import annotations

from pathlib import Path

from workspace_adapter.testing import Times
from workspace_adapter.testing.platform.queue import ItemState

from .agent import HANG, answered, stage
from .test_proxy import ask, queued

CONTEXT = "=== WORKSPACE RESTART CONTEXT ==="


def test_a_restart_signals_stops_starts_and_tells_the_agent_before_anybody_else(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(transient_retry=1)) as (platform, agent, _, client):
        secret, token = platform.tokens.inbound_secret, (tmp_path / ".auth_token").read_text()
        agent.beats = False
        platform.restart()
        platform.until(lambda: platform.restarts.cycles == 1, "the cycle")
        assert [signal.status for signal in platform.restarts.signals] in ([200], [None])
        assert (platform.row.url, platform.row.status) == ("", "provisioning")
        assert platform.tokens.inbound_secret != secret
        assert (tmp_path / ".auth_token").read_text() != token
        reply = ask(client, "me first", message_id="m")
        assert (reply.status_code, reply.json()["status"]) == (200, "queued")
        again = ask(client, "me first", message_id="m")
        assert again.json()["queue_id"] != reply.json()["queue_id"]
        agent.beats = True
        agent.start()
        platform.until(lambda: len(agent.texts()) == 3, "all of them")
        assert agent.texts()[0].startswith(CONTEXT)
        assert agent.texts()[1:] == ["me first", "me first"]
        assert platform.restarts.contexts == ["delivered"]


def test_the_signal_is_as_the_platform_sends_it(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, _):
        platform.signal()
        platform.until(lambda: platform.restarts.signals, "the signal")
        (_, path, raw, headers) = agent.heard[0]
        assert path == "/signals/restart_pending"
        assert headers["x-restart-signal"] == "true"
        assert "authorization" not in headers
        assert b'"drain_seconds":20' in raw
        assert platform.restarts.cycles == 0


def test_the_button_sends_no_signal(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, client):
        client.post("/workspaces/ws-test/restart")
        platform.until(lambda: platform.restarts.contexts, "the cycle")
        assert [path for _, path, *_ in agent.heard] == ["/"]


def test_many_requests_make_two_cycles_and_early_ones_none(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(debounce=6000)) as (platform, agent, _, client):
        agent.may_stop.clear()
        platform.restart()
        platform.until(lambda: platform.row.restarting, "the first cycle")
        for _ in range(4):
            platform.restart()
        agent.may_stop.set()
        platform.until(lambda: len(platform.restarts.contexts) == 2, "the cycles")
        assert platform.restarts.cycles == 2
        client.post("/admin/workspaces/ws-test/restart")
        assert (platform.restarts.cycles, platform.restarts.debounced) == (2, 1)


def test_a_restart_context_that_meets_nobody_is_queued_before_all_others(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(until_online=1)) as (platform, agent, sidecar, client):
        item = queued(platform, client, "early")
        item.next_attempt_at = float("inf")
        agent.beats = False
        platform.restart()
        platform.until(lambda: platform.restarts.contexts == ["queued"], "the queue")
        item.next_attempt_at = None
        sidecar.token = (tmp_path / ".auth_token").read_text().strip()
        sidecar.register(url=agent.url)
        platform.until(lambda: len(agent.texts()) == 2, "both")
        assert agent.texts()[0].startswith(CONTEXT)


def test_a_restart_context_without_a_beat_is_dropped(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(until_beating=1)) as (platform, agent, _, _):
        agent.beats = False
        platform.restart()
        platform.until(lambda: platform.restarts.cycles == 1, "the cycle")
        platform.row.status = platform.row.status.ONLINE
        platform.until(lambda: platform.restarts.contexts == ["dropped"], "the end")


def test_an_agent_that_has_met_nobody_is_told_of_no_restart(tmp_path: Path) -> None:
    with stage(tmp_path, has_greeted=False) as (platform, agent, _, client):
        platform.restart(button=True)
        platform.until(lambda: platform.restarts.cycles == 1 and platform.row.url, "the start")
        assert ask(client, "hi").status_code == 200
        assert agent.texts() == ["hi"]


def test_nothing_is_dispatched_while_the_boot_turn_is_under_way(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, sidecar, client):
        agent.reply = lambda body: HANG if CONTEXT in str(body) else answered("yes")
        platform.restart(button=True)
        platform.until(agent.texts, "the restart context")
        reply = ask(client, "me too")
        assert reply.json()["status"] == "queued"
        sidecar.token = (tmp_path / ".auth_token").read_text().strip()
        sidecar.beat()
        assert platform.queue.items[0].state is ItemState.QUEUED


def test_a_registration_while_it_drains_is_noticed(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, sidecar, _):
        platform.signal()
        platform.until(lambda: platform.restarts.signals, "the signal")
        assert platform.row.draining_since is not None
        sidecar.register(url=agent.url)
        platform.assert_no_violations()  # it may have been on its way
        platform.row.draining_since -= 3
        sidecar.register(url=agent.url)
        assert "registered while it drains" in platform.violations.pop()
        sidecar.beat(active_tasks=1000, is_busy=True)
        sidecar.beat(active_tasks=0)
        sidecar.register(url=agent.url)
        platform.assert_no_violations()


def test_silence_while_busy_is_probed_then_restarted(tmp_path: Path) -> None:
    times = Times(silent=30, stall_grace=30, phantom=6000, sweep=5)
    with stage(tmp_path, times=times) as (platform, agent, sidecar, _):
        agent.reply = lambda body: HANG
        activity = {"activity_type": "agent_log", "summary": "reads"}
        sidecar.post("/workspaces/ws-test/activity", activity)
        sidecar.beat(active_tasks=1, is_busy=True)
        platform.until(agent.texts, "the probe")
        probe = platform.queue.items[0].body["params"]["message"]["metadata"]
        assert probe == {"source_type": "self-stall", "kind": "stall_probe"}
        platform.until(lambda: platform.restarts.cycles, "the restart")


def test_tasks_without_a_sign_of_life_are_taken_for_phantoms(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(phantom=30)) as (platform, _, sidecar, _):
        platform.row.active_at = platform.received[-1].at
        sidecar.beat(active_tasks=1, is_busy=True)
        platform.until(lambda: platform.row.active_tasks == 0, "the sweep")


def test_a_workspace_without_beats_is_offline_and_restarted(tmp_path: Path) -> None:
    with stage(tmp_path, times=Times(liveness=30)) as (platform, _, _, _):
        platform.until(lambda: platform.restarts.cycles, "the restart")


def test_a_platforms_own_turn_is_queued(tmp_path: Path) -> None:
    with stage(tmp_path) as (platform, agent, _, _):
        platform.say("self-nudge", "look into your inbox", kind="inbox_nudge")
        platform.until(lambda: agent.texts() == ["look into your inbox"], "the turn")
