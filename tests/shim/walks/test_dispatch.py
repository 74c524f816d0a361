"""Queued messages and real sidecars, killed and restarted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.shim.conftest import RULES
from tests.shim.replica import Platform, answer_of
from tests.walks.workspace import ENDS, Workspace, script
from workspace_adapter.queueing import State
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio

TURN = script(
    {"say": "one "},
    {"tool": "sh", "input": "echo once >> effects"},
    {"sleep": 0.5},
    {"say": "two"},
    {"answer": "done"},
)


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    async with SqliteStore(tmp_path / "shim.sqlite", RULES) as store:
        yield Platform(store)


@pytest.fixture
async def workspace(tmp_path: Path) -> AsyncIterator[Workspace]:
    workspace = Workspace(
        tmp_path / "ws", ENDS, WORKSPACE_HOLD_LIMIT="0.2", WORKSPACE_INBOX_LIMIT="2", WORKSPACE_STOP_GRACE="1"
    )
    try:
        await workspace.start()
        yield workspace
    finally:
        workspace.kill_everything()


async def test_a_message_whose_workspace_is_killed_is_answered_by_its_next_life(
    platform: Platform, workspace: Workspace
) -> None:
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", TURN)
        await workspace.until_ended()
        workspace.kill_everything()
        await platform.when(item_id, lambda item: item.strikes)
        await workspace.start()
        item = await platform.ended(item_id, within=20)
    assert (item.state, answer_of(item)) == (State.COMPLETED, "done")
    assert workspace.lines() == ["once"]


async def test_a_message_that_meets_a_stop_goes_again_without_a_strike(
    platform: Platform, workspace: Workspace
) -> None:
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", TURN)
        await workspace.until(workspace.lines, "the effect")
        await platform.store.set_restarting("w", True)
        workspace.terminate()
        await workspace.exited()
        item = await platform.when(item_id, lambda item: item.state is State.QUEUED)
        assert (item.strikes, item.taken) == (0, True)
        await workspace.start()
        await platform.store.register("w", url=workspace.url, boot_id="next")
        await platform.store.set_restarting("w", False)
        item = await platform.ended(item_id, within=20)
    assert (item.state, answer_of(item), item.strikes) == (State.COMPLETED, "done", 0)
    assert workspace.lines() == ["once"]


async def test_more_messages_than_the_workspace_has_room_for_are_all_answered_once(
    platform: Platform, workspace: Workspace
) -> None:
    """It holds callers for 0.2 s and takes two at a time, so each answer is fetched in several goes."""
    await platform.workspace("w", workspace.url, most=8)
    ids = []
    async with platform.running():
        for number in range(4):
            effect = {"tool": "sh", "input": f"echo {number} >> effects"}
            ids.append(await platform.send("w", script(effect, {"sleep": 0.3}, {"answer": f"did {number}"})))
        items = [await platform.ended(item_id, within=30) for item_id in ids]
    assert [answer_of(item) for item in items] == [f"did {number}" for number in range(4)]
    assert sorted(workspace.lines()) == [str(number) for number in range(4)]
    assert {item.strikes for item in items} == {0}


async def test_a_stream_is_kept_whole_over_the_death_of_its_workspace(
    platform: Platform, workspace: Workspace
) -> None:
    await platform.workspace("w", workspace.url)
    async with platform.running():
        item_id = await platform.send("w", TURN, method="message/stream")
        await workspace.until_ended()
        workspace.kill_everything()
        await workspace.start()
        item = await platform.ended(item_id, within=20)
    results = [json.loads(event)["result"] for _, event in await platform.store.said(item_id)]
    assert [result["kind"] for result in results].count("task") == 1
    cursors = [result["metadata"]["cursor"] for result in results if "cursor" in result.get("metadata", {})]
    assert len(cursors) == len(set(cursors))
    assert item.answer is not None
    assert json.loads(item.answer.body)["result"]["status"]["state"] == "completed"
    assert workspace.lines() == ["once"]
