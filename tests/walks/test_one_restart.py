"""The walk of one restart: signal, SIGTERM, and a window that passes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import anyio
import httpx
import pytest

from .workspace import ENDS, HOLDS, Workspace, answer_of, script, workspace


def two_at_once(first: float, after: float) -> str:
    """One tool runs for so long; the other is asked for so much later, while the drain waits."""
    return script(
        {
            "tools": [
                {"tool": "sh", "input": f"echo slow-begun >> effects; sleep {first}; echo slow >> effects"},
                {"tool": "sh", "input": "echo second >> effects", "after": after},
            ]
        },
        {"answer": "both"},
    )


class Caller:
    """Somebody who waits for an answer on an open request."""

    def __init__(self, ws: Workspace, text: str) -> None:
        self.ws = ws
        self.body = ws.envelope(text)
        self.reply: httpx.Response | None = None

    async def call(self) -> None:
        self.reply = await self.ws.post(self.body)


@pytest.mark.parametrize("adapter", [ENDS, HOLDS])
@pytest.mark.parametrize("how", ["signal", "SIGTERM"])
async def test_a_call_is_parked_the_other_finishes_and_both_happen_once(
    tmp_path: Path, adapter: str, how: str
) -> None:
    async with workspace(tmp_path, adapter) as ws:
        caller = Caller(ws, two_at_once(2, 1.2))
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("slow-begun")
            if how == "signal":
                result = (await ws.signal()).json()["result"]
                assert result["acknowledged"] is True
                assert result["drained"] is True
                assert len(result["parked" if adapter == ENDS else "held"]) == 1
                assert ws.lines() == ["slow-begun", "slow"]
            ws.terminate()
            assert await ws.exited() == 0
        assert caller.reply is not None
        assert caller.reply.status_code == 502
        assert caller.reply.json()["restarting"] is True
        assert ws.lines() == ["slow-begun", "slow"]
        assert ws.pids() == []
        await ws.start()
        assert answer_of(await ws.ask_until_answered(caller.body)) == "both"
        assert ws.lines() == ["slow-begun", "slow", "second"]
        (turn,) = ws.turns()
        assert turn["attempts"] == 2
        assert turn["charges"] == 1, "settled when the drain was acknowledged: not charged"


@pytest.mark.parametrize("adapter", [ENDS, HOLDS])
async def test_when_no_restart_comes_the_work_goes_on_in_place(tmp_path: Path, adapter: str) -> None:
    async with workspace(
        tmp_path,
        adapter,
        WORKSPACE_RESTART_WINDOW="1",
        WORKSPACE_DRAIN_CAP="0.4",
        WORKSPACE_STOP_GRACE="0.4",
    ) as ws:
        caller = Caller(ws, two_at_once(0.5, 0.3))
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("slow-begun")
            assert (await ws.signal()).status_code == 200
            await ws.until(lambda: "work goes on" in ws.logged(), "the gate")
            deaf = await ws.signal()
            assert deaf.status_code == 429, "the next unsigned signal is heard a window later"
        assert caller.reply is not None
        assert answer_of(caller.reply.json()) == "both"
        assert ws.lines() == ["slow-begun", "slow", "second"]


async def test_at_the_cap_what_runs_is_named_and_goes_on(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_DRAIN_CAP="0.1") as ws:
        caller = Caller(
            ws,
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 0.6; echo done >> effects"},
                {"answer": "finished"},
            ),
        )
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("begun")
            result = (await ws.signal()).json()["result"]
            assert result["drained"] is False
            assert len(result["running"]) == 1
            assert ws.lines() == ["begun"]
        assert caller.reply is not None
        assert answer_of(caller.reply.json()) == "finished", "nothing is cut before the stop comes"


async def test_a_turn_whose_runtime_dies_in_the_drain_is_not_reported_as_finished(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        caller = Caller(
            ws,
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 0.5"},
                {"crash": "in the drain", "times": 1},
                {"answer": "alive"},
            ),
        )
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("begun")
            result = (await ws.signal()).json()["result"]
            assert result["drained"] is True
            assert result["finished"] == 0
            ws.terminate()
            assert await ws.exited() == 0
        await ws.start()
        assert answer_of(await ws.ask_until_answered(caller.body)) == "alive"


async def test_a_message_that_arrives_in_a_drain_runs_after_the_restart(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        assert (await ws.signal()).json()["result"]["drained"] is True
        caller = Caller(ws, script({"tool": "sh", "input": "echo ran >> effects"}, {"answer": "ran"}))
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until(lambda: len(ws.turns()) == 1, "the accepted turn")
            assert ws.turns()[0]["state"] == "accepted"
            ws.terminate()
            assert await ws.exited() == 0
        assert caller.reply is not None
        assert caller.reply.status_code == 502
        assert ws.lines() == []
        await ws.start()
        assert answer_of(await ws.ask_until_answered(caller.body)) == "ran"


async def test_an_idle_sidecar_stops_in_under_a_second_and_leaves_nothing(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await ws.send(script({"answer": "warm"}))
        before = time.monotonic()
        ws.terminate()
        assert await ws.exited() == 0
        assert time.monotonic() - before < 1.0
        assert ws.pids() == []


async def test_a_turn_that_finishes_while_the_stop_waits_is_answered(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        caller = Caller(
            ws,
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 0.5; echo done >> effects"},
                {"answer": "finished"},
            ),
        )
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("begun")
            ws.terminate()
            assert await ws.exited() == 0
        assert caller.reply is not None
        assert answer_of(caller.reply.json()) == "finished"


async def test_a_second_sigterm_stops_at_once_and_loses_nothing(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_STOP_TIMEOUT="60") as ws:
        caller = Caller(
            ws,
            script(
                {"tool": "sh", "input": "echo begun >> effects; sleep 20; echo done >> effects"},
                {"tool": "sh", "input": "echo after >> effects"},
                {"answer": "finished"},
            ),
        )
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("begun")
            ws.terminate()
            await ws.until(lambda: "drain begins: SIGTERM" in ws.logged(), "the drain")
            ws.terminate()
            assert await ws.exited() == 0
        assert caller.reply is not None
        assert caller.reply.status_code == 502
        assert ws.pids() == []
        (turn,) = ws.turns()
        assert turn["state"] == "running", "the row is the marker"


async def test_a_second_signal_joins_the_first(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        results: list[object] = []

        async def signal() -> None:
            results.append((await ws.signal()).json()["result"])

        caller = Caller(ws, two_at_once(2, 1.2))
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("slow-begun")
            async with anyio.create_task_group() as signals:
                signals.start_soon(signal)
                signals.start_soon(signal)
            ws.terminate()
        assert results[0] == results[1]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"not json", {}, 400),
        (b'{"method": "signals/restart_pending", "params": {"drain_seconds": "soon"}}', {}, 400),
        (b'{"method": "message/send"}', {}, 400),
        (b'{"method": "signals/restart_pending", "params": {"workspace_id": "other"}}', {}, 409),
        (b'{"method": "signals/restart_pending"}', {"authorization": "Bearer wrong"}, 401),
    ],
)
async def test_a_signal_that_is_wrong_is_refused_and_drains_nothing(
    tmp_path: Path, body: bytes, headers: dict[str, str], status: int
) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / ".platform_inbound_secret").write_text("right\n")
    async with workspace(tmp_path) as ws:
        async with httpx.AsyncClient(base_url=ws.url) as client:
            refused = await client.post(
                "/signals/restart_pending",
                content=body,
                headers={"content-type": "application/json", **headers},
            )
        assert refused.status_code == status
        assert answer_of((await ws.send(script({"answer": "open"}))).json()) == "open"
        assert "drain begins" not in ws.logged()


async def test_an_unsigned_signal_is_refused_where_signatures_are_required(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / ".platform_inbound_secret").write_text("right\n")
    async with workspace(tmp_path, WORKSPACE_REQUIRE_AUTH="true") as ws:
        assert (await ws.signal()).status_code == 401
        assert "drain begins" not in ws.logged()


async def test_the_drain_command_says_how_it_went(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_DRAIN_CAP="0.1") as ws:
        idle = ws.command("drain", "--json")
        assert idle.returncode == 0, idle.stderr
        assert json.loads(idle.stdout)["drained"] is True
        ws.kill_everything()
        nobody = ws.command("drain")
        assert nobody.returncode == 4
        assert str(ws.state_dir) in nobody.stderr
        await ws.start()
        caller = Caller(ws, script({"tool": "sh", "input": "echo begun >> effects; sleep 5"}))
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("begun")
            busy = ws.command("drain")
            assert busy.returncode == 3, busy.stderr
            ws.terminate()
            ws.terminate()
            assert await ws.exited() == 0


async def test_a_drain_asked_for_by_a_turns_own_tool_does_not_wait_for_that_turn(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_DRAIN_CAP="15", WORKSPACE_RESTART_WINDOW="16") as ws:
        import sys

        command = f"{sys.executable} -m workspace_adapter drain --json > drained; echo done >> effects"
        caller = Caller(ws, script({"tool": "sh", "input": command}, {"answer": "x"}))
        async with anyio.create_task_group() as callers:
            callers.start_soon(caller.call)
            await ws.until_effect("done")
            assert json.loads((ws.workdir / "drained").read_text())["took_ms"] < 5000
            ws.terminate()
