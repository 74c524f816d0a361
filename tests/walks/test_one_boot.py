"""The walk of one boot: after SIGKILL what was accepted is continued."""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from .workspace import ENDS, HOLDS, Workspace, answer_of, script, workspace


async def killed_after(ws: Workspace, body: dict[str, Any], effect: str) -> None:
    """Send a message and kill everything once its tool has left this effect."""
    async with anyio.create_task_group() as callers:
        callers.start_soon(_lose, ws, body)
        await ws.until_effect(effect)
        ws.kill_everything()


async def _lose(ws: Workspace, body: dict[str, Any]) -> None:
    try:
        await ws.post(body)
    except httpx.TransportError:
        return
    raise AssertionError("the connection should have been lost")


@pytest.mark.parametrize("adapter", [ENDS, HOLDS])
async def test_a_turn_killed_inside_a_tool_is_continued_and_answered(tmp_path: Path, adapter: str) -> None:
    async with workspace(tmp_path, adapter) as ws:
        body = ws.envelope(
            script(
                {"tool": "sh", "input": "echo one >> effects"},
                {"tool": "sh", "input": "echo begun >> effects; sleep 1; echo two >> effects"},
                {"answer": "did both"},
            )
        )
        await killed_after(ws, body, "begun")
        assert ws.turns()[0]["state"] == "running", "the row that says running is the marker"
        await ws.start()
        assert answer_of(await ws.ask_until_answered(body)) == "did both"
        assert ws.lines() == ["one", "begun", "begun", "two"], "finished calls are not repeated"


async def test_what_survives_the_sidecar_is_ended_before_the_turn_goes_on(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script({"tool": "sh", "input": "touch begun; sleep 2; echo line >> effects"}, {"answer": "done"})
        )
        async with anyio.create_task_group() as callers:
            callers.start_soon(_lose, ws, body)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            ws.kill_sidecar()
        assert ws.pids(), "the tool survives its sidecar"
        await ws.start()
        assert answer_of(await ws.ask_until_answered(body)) == "done"
        assert ws.lines() == ["line"]


async def test_a_tool_that_kills_its_own_container_ends_suspended(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script(
                {"tool": "sh", "input": "echo fine >> effects"},
                {
                    "tool": "sh",
                    "input": "echo killer >> effects; kill -9 $PPID; sleep 30",
                },
                {"answer": "never"},
            ),
            context_id="c",
        )
        await _try_to_send(ws, body)
        for _ in range(8):
            await ws.until(lambda: _dead_or_suspended(ws), "death or suspension")
            assert ws.process is not None
            if ws.process.poll() is None:
                break
            ws.spawn()
        (turn,) = ws.turns()
        assert turn["state"] == "suspended"
        assert ws.lines().count("killer") <= 5
        told = answer_of(await ws.ask_until_answered(body))
        assert told.startswith("Agent error: ")
        assert f"turns release {turn['id']}" in told
        later = await ws.send(script({"recall": True}), context_id="c")
        assert later.status_code == 200, "later messages of the session run"
        assert ws.turn(turn["id"])["state"] == "suspended"


def _accepted(ws: Workspace, count: int) -> bool:
    return len(ws.turns()) == count


async def _try_to_send(ws: Workspace, body: dict[str, Any]) -> None:
    try:
        await ws.post(body)
    except httpx.TransportError:
        return


def _dead_or_suspended(ws: Workspace) -> bool:
    assert ws.process is not None
    return ws.process.poll() is not None or "suspended, because" in ws.logged()


async def suspended(ws: Workspace, body: dict[str, Any]) -> str:
    """Bring a turn to suspension by crashes of its runtime; return its id."""
    told = answer_of((await ws.post(body)).json())
    assert "suspended" in told
    (turn,) = ws.turns()
    assert turn["state"] == "suspended"
    turn_id: str = turn["id"]
    return turn_id


CRASHES_THRICE = script({"crash": "again", "times": 3}, {"answer": "alive"})


@pytest.mark.parametrize("live", [True, False])
async def test_a_suspended_turn_can_be_released(tmp_path: Path, live: bool) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(CRASHES_THRICE)
        turn_id = await suspended(ws, body)
        if not live:
            ws.terminate()
            await ws.exited()
        released = ws.command("turns", "release", turn_id)
        assert released.returncode == 0, released.stderr
        if not live:
            await ws.start()
        assert answer_of(await ws.ask_until_answered(body)) == "alive"


@pytest.mark.parametrize("live", [True, False])
async def test_a_suspended_turn_can_be_canceled(tmp_path: Path, live: bool) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(CRASHES_THRICE)
        turn_id = await suspended(ws, body)
        if not live:
            ws.terminate()
            await ws.exited()
        assert ws.command("turns", "cancel", turn_id).returncode == 0
        again = ws.command("turns", "cancel", turn_id)
        assert again.returncode == 1
        if not live:
            await ws.start()
        assert (await ws.ask_until_answered(body))["result"]["metadata"]["state"] == "canceled"


async def test_a_canceled_turn_killed_before_its_runtime_stopped_is_not_resumed(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 0.5"},
                {"hang": True},
            )
        )
        async with anyio.create_task_group() as callers:
            callers.start_soon(_try_to_send, ws, body)
            await ws.until(lambda: "begun" in ws.lines(), "the tool")
            (turn,) = ws.turns()
            canceled = ws.command("turns", "cancel", turn["id"])
            assert canceled.returncode == 0, canceled.stderr
            ws.kill_everything()
        await ws.start()
        assert (await ws.ask_until_answered(body))["result"]["metadata"]["state"] == "canceled"
        assert ws.lines() == ["begun"]


async def test_work_silent_for_longer_than_the_freshness_expires_until_asked_again(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_RESUME_FRESHNESS="0.5") as ws:
        body = ws.envelope(
            script({"tool": "sh", "input": "echo begun >> effects; sleep 1"}, {"answer": "late"})
        )
        await killed_after(ws, body, "begun")
        died = time.monotonic()
        await ws.until(lambda: time.monotonic() - died > 0.6, "the time to pass")
        await ws.start()
        await ws.until(lambda: ws.turns()[0]["state"] == "expired", "expiry")
        assert ws.lines() == ["begun"]
        assert answer_of(await ws.ask_until_answered(body)) == "late"


async def test_accepted_messages_start_in_their_order_behind_the_interrupted_one(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        first = ws.envelope(
            script({"tool": "sh", "input": "echo 1 >> effects; [ -e killed ] || sleep 30"}, {"answer": "1"}),
            context_id="c",
        )
        rest = [
            ws.envelope(
                script({"tool": "sh", "input": f"echo {n} >> effects"}, {"answer": str(n)}), context_id="c"
            )
            for n in (2, 3, 4)
        ]
        async with anyio.create_task_group() as callers:
            callers.start_soon(_lose, ws, first)
            await ws.until_effect("1")
            for number, body in enumerate(rest):
                callers.start_soon(_lose, ws, body)
                await ws.until(partial(_accepted, ws, number + 2), "acceptance")
            (ws.workdir / "killed").touch()
            ws.kill_everything()
        await ws.start()
        for number, body in enumerate([first, *rest], 1):
            assert answer_of(await ws.ask_until_answered(body)) == str(number)
        assert ws.lines() == ["1", "1", "2", "3", "4"]


async def test_a_runtime_that_dies_while_we_live_is_resumed_by_the_same_plan(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        reply = await ws.send(
            script(
                {"tool": "sh", "input": "echo one >> effects"},
                {"crash": "once", "times": 1},
                {"answer": "still here"},
            )
        )
        assert answer_of(reply.json()) == "still here"
        assert ws.lines() == ["one"]


async def test_a_session_the_runtime_lost_starts_anew_with_the_original_message(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script({"tool": "sh", "input": "echo begun >> effects; sleep 0.3"}, {"answer": "anew"})
        )
        await killed_after(ws, body, "begun")
        for transcript in ws.state_dir.rglob("scripted/*.jsonl"):
            transcript.unlink()
        await ws.start()
        assert answer_of(await ws.ask_until_answered(body)) == "anew"
        assert "session is lost" in ws.logged()


async def test_a_stop_during_the_boot_is_honoured(tmp_path: Path) -> None:
    async with workspace(tmp_path, start=False) as ws:
        for delay in (0.0, 0.05, 0.15, 0.3, 0.5):
            ws.spawn()
            await anyio.sleep(delay)
            ws.terminate()
            with anyio.fail_after(5):
                code = await ws.exited()
            assert code in (0, -signal.SIGTERM), ws.logged()


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("when", ["its import", "its end"])
async def test_a_stop_while_the_adapter_is_loaded_or_at_the_very_end_is_no_failure(
    tmp_path: Path, when: str, stop: signal.Signals
) -> None:
    (tmp_path / "slow.py").write_text(
        "import atexit, pathlib, time\n"
        "from workspace_adapter.runtimes.echo import EchoAdapter\n"
        "def reach(point):\n"
        "    pathlib.Path(point).touch()\n"
        "    time.sleep(1)\n"
        "reach('its import')\n"
        "atexit.register(reach, 'its end')\n"
    )
    async with workspace(tmp_path, "slow:EchoAdapter", start=False) as ws:
        ws.spawn()
        assert ws.process is not None
        if when == "its end":
            await ws.until_ready()
            ws.process.send_signal(stop)
        await ws.until((tmp_path / when).exists, when)
        ws.process.send_signal(stop)
        assert await ws.exited() == 0, ws.logged()
        assert "Traceback" not in ws.logged()


async def test_while_the_journal_is_awaited_all_but_messages_is_answered(tmp_path: Path) -> None:
    times = {"WORKSPACE_DRAIN_CAP": "0.2", "WORKSPACE_STOP_GRACE": "0.2", "WORKSPACE_RESTART_WINDOW": "2"}
    async with workspace(tmp_path / "a") as first, workspace(tmp_path / "b", start=False, **times) as second:
        second.environ["WORKSPACE_STATE_DIR"] = str(first.state_dir)
        second.spawn()
        async with httpx.AsyncClient(base_url=second.url) as client, anyio.create_task_group() as callers:
            await second.until(second.serves, "the port")
            assert (await client.get("/.well-known/agent-card.json")).json()["name"] == "ws-test"
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).json() == {"error": "booting: the journal is not open yet"}
            heard = (await second.signal()).json()["result"]
            assert (heard["acknowledged"], heard["drained"]) == (True, True)
            acknowledged = time.monotonic()
            answers: list[httpx.Response] = []
            callers.start_soon(_collect, answers, second, script({"answer": "done"}))
            first.terminate()
            await second.until(lambda: answers, "the answer")
            assert answer_of(answers[0].json()) == "done"
            assert time.monotonic() - acknowledged > 1.9, "who heard that it is safe to stop may stop us"


async def test_who_waits_when_the_stop_comes_during_the_boot_is_told_to_send_again(tmp_path: Path) -> None:
    async with workspace(tmp_path / "a") as first, workspace(tmp_path / "b", start=False) as second:
        second.environ["WORKSPACE_STATE_DIR"] = str(first.state_dir)
        second.spawn()
        await second.until(second.serves, "the port")
        answers: list[httpx.Response] = []
        async with anyio.create_task_group() as callers:
            callers.start_soon(_collect, answers, second, script({"answer": "done"}))
            await anyio.sleep(0.2)  # it may come before its message: the answer is the same
            second.terminate()
        assert answers[0].status_code == 502
        assert answers[0].json()["restarting"] is True
        assert await second.exited() == 0


async def _collect(answers: list[httpx.Response], ws: Workspace, text: str) -> None:
    answers.append(await ws.send(text))


async def test_a_stop_while_the_door_is_loaded_drains_the_work_that_was_resumed(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 1"},
                {"tool": "sh", "input": "echo second >> effects"},
                {"answer": "done"},
            )
        )
        await killed_after(ws, body, "begun")
        ws.spawn()
        await ws.until(lambda: ws.lines() == ["begun", "begun"], "the resumed turn's tool")
        ws.terminate()
        assert await ws.exited() == 0
        assert ws.lines() == ["begun", "begun"]
        assert ws.turns()[0]["state"] == "parked", "it came to the gate"
        await ws.start()
        assert answer_of(await ws.ask_until_answered(body)) == "done"
        assert ws.lines() == ["begun", "begun", "second"]


async def test_a_door_that_is_loaded_when_the_port_is_closed_already_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import os, socket, sys, time\n"
        "import a2a.server.routes.jsonrpc_routes, a2a.server.routes.rest_routes\n"
        "from workspace_adapter.runtimes.echo import EchoAdapter\n"
        "class Late:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        while name == 'workspace_adapter.sidecar.door.codec':\n"
        "            try:\n"
        "                socket.create_connection(('127.0.0.1', int(os.environ['WORKSPACE_PORT']))).close()\n"
        "            except ConnectionError:\n"
        "                return\n"
        "            time.sleep(0.005)\n"
        "sys.meta_path.insert(0, Late())\n"
    )
    async with workspace(tmp_path, "late:EchoAdapter", start=False) as ws:
        ws.spawn()
        await ws.until(lambda: "turns to continue" in ws.logged(), "the work")
        ws.terminate()
        assert await ws.exited() == 0, ws.logged()


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with workspace(tmp_path / "a") as first, workspace(tmp_path / "b", start=False) as second:
        second.environ["WORKSPACE_PORT"] = str(first.port)
        second.spawn()
        assert await second.exited() == 2
        assert f"WORKSPACE_PORT={first.port}" in second.logged()


async def test_a_second_sidecar_on_one_state_directory_names_the_owner_though_it_does_not_move(
    tmp_path: Path,
) -> None:
    async with workspace(tmp_path / "a") as first, workspace(tmp_path / "b", start=False) as second:
        second.environ["WORKSPACE_STATE_DIR"] = str(first.state_dir)
        assert first.process is not None
        first.process.send_signal(signal.SIGSTOP)
        second.spawn()
        assert await second.exited() == 2
        assert f"in use by process {first.process.pid} on " in second.logged()
        first.process.send_signal(signal.SIGCONT)
        assert answer_of((await first.send(script({"answer": "mine"}))).json()) == "mine"


async def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    async with workspace(tmp_path, start=False) as ws:
        ws.environ |= {"WORKSPACE_PORT": "http", "WORKSPACE_ID": "Not Good", "WORKSPACE_STOP_GRACE": "-1"}
        ws.spawn()
        assert await ws.exited() == 2
        for name in ("WORKSPACE_PORT", "WORKSPACE_ID", "WORKSPACE_STOP_GRACE"):
            assert name in ws.logged()
