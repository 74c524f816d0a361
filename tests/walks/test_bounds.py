"""What a workspace takes and keeps has bounds, each named to whoever meets it; time makes room again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio

from .workspace import Workspace, answer_of, script, workspace

WAITS = {"tool": "sh", "input": "touch begun; while [ ! -e go ]; do sleep 0.02; done"}
LIMIT = 400_000


async def refusal(ws: Workspace, text: str = script({"answer": "x"})) -> str:
    """Send a message there is no room for; return what its caller is told."""
    reply = await ws.send(text)
    assert reply.status_code == 503, reply.text
    assert int(reply.headers["retry-after"]) > 0
    assert reply.json()["busy"] is True
    return str(reply.json()["error"])


async def test_who_finds_no_place_is_told_which_limit_to_raise(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_HELD_LIMIT="3", WORKSPACE_INBOX_LIMIT="1") as ws:
        first = ws.envelope(script(WAITS, {"answer": "first"}))
        second = ws.envelope("second")
        answers: list[str] = []

        async def call(body: dict[str, Any]) -> None:
            answers.append(answer_of((await ws.post(body)).json()))

        async with anyio.create_task_group() as callers:
            callers.start_soon(call, first)
            await ws.until((ws.workdir / "begun").exists, "the tool")
            callers.start_soon(call, second)
            await ws.until(lambda: len(ws.turns()) == 2, "the second message")
            assert "WORKSPACE_INBOX_LIMIT" in await refusal(ws)
            callers.start_soon(call, first)
            await ws.until(lambda: "sent again while running" in ws.logged(), "the third caller")
            assert "WORKSPACE_HELD_LIMIT=3" in await refusal(ws)
            (ws.workdir / "go").touch()
        assert sorted(answers) == ["first", "first", "second"]
        assert len(ws.turns()) == 2


async def test_a_journal_at_its_limit_refuses_and_the_retention_makes_room(tmp_path: Path) -> None:
    async with workspace(
        tmp_path, WORKSPACE_BODY_LIMIT_BYTES="100000", WORKSPACE_JOURNAL_LIMIT_BYTES=str(LIMIT)
    ) as ws:
        old = [ws.envelope(script({"answer": "x" * 30_000}), message_id=f"old-{n}") for n in range(20)]
        taken = [body for body in old if (await ws.post(body)).status_code == 200]
        assert 2 < len(taken) < len(old)
        assert f"WORKSPACE_JOURNAL_LIMIT_BYTES allows {LIMIT}" in await refusal(ws)
        assert size(ws) < LIMIT + 100_000
        assert (await ws.post(taken[0])).status_code == 200, "an answer that is there costs no room"
        ws.kill_everything()
        ws.environ["WORKSPACE_JOURNAL_RETENTION"] = "0.1"
        await ws.start()
        assert answer_of(await ws.ask_until_answered(ws.envelope(script({"answer": "new"})))) == "new"
        await ws.until(lambda: len(ws.turns()) < 2, "the end of all that is old")
        assert size(ws) < LIMIT


def size(ws: Workspace) -> int:
    """What counts towards the limit, as an operator is told."""
    said = ws.command("journal", "size", "--json")
    assert said.returncode == 0, said.stderr
    return int(json.loads(said.stdout)["counted_bytes"])
