"""Streams told from the store, with a real dispatcher, and workspaces made of sockets that break off."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest

from tests.shim.house import House, house, message, text_of
from tests.shim.scripted import Exchange, Script, Scripted, scripted, until
from workspace_adapter.shim.store.sqlite import SqliteStore
from workspace_adapter.shim.streams import Parser

pytestmark = pytest.mark.anyio

TASK = {"kind": "task", "id": "t", "contextId": "c", "status": {"state": "submitted"}}


def said(text: str) -> dict[str, Any]:
    artifact = {"artifactId": "answer", "parts": [{"kind": "text", "text": text}]}
    return {"kind": "artifact-update", "taskId": "t", "contextId": "c", "append": True, "artifact": artifact}


def status(state: str, *, final: bool = False, **metadata: Any) -> dict[str, Any]:
    told = {"taskId": "t", "contextId": "c", "status": {"state": state}, "metadata": metadata}
    return {"kind": "status-update", "final": final, **told}


class Agent:
    """A workspace of ours: it numbers its events, and goes on behind a cursor.

    Args:
        results: what its one turn says.
        cuts: after how many events each call of it is cut; the last one is not.
    """

    def __init__(self, *results: dict[str, Any], cuts: tuple[int, ...] = ()) -> None:
        self.results = [TASK, *results]
        self.cuts = list(cuts)
        self.gates: dict[int, anyio.Event] = {}
        self.asked_behind: list[str | None] = []

    async def __call__(self, exchange: Exchange) -> None:
        cursor = exchange.request.headers.get("last-event-id")
        self.asked_behind.append(cursor)
        after = int(cursor.partition(".")[2]) if cursor else 0
        cut = self.cuts.pop(0) if self.cuts else None
        await exchange.head(200, content_type="text/event-stream", connection="close")
        await exchange.event(TASK, f"1.{after}")
        for n, result in enumerate(self.results[1:], 1):
            if n <= after:
                continue
            if cut is not None and n > cut:
                exchange.reset()
                return
            if n in self.gates:
                await self.gates[n].wait()
            await exchange.event(result, f"1.{n}")
        exchange.close()


@dataclass(frozen=True)
class Told:
    """One event as a client saw it."""

    id: str | None
    event: dict[str, Any]

    @property
    def text(self) -> str | None:
        parts = (self.event.get("result", {}).get("artifact") or {}).get("parts")
        return None if not parts else str(parts[0]["text"])


@asynccontextmanager
async def reading(shim: House, body: Any, **headers: str) -> AsyncIterator[AsyncIterator[Told]]:
    """Send a message and read its events as they come."""

    async def events(response: httpx.Response) -> AsyncIterator[Told]:
        parser = Parser()
        async for chunk in response.aiter_raw():
            for event in parser.feed(chunk):
                yield Told(event.id, json.loads(event.data))

    names = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"{shim.url}/workspaces/w/a2a"
    with anyio.fail_after(20):
        async with shim.client.stream("POST", url, json=body, headers=names) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "text/event-stream"
            yield events(response)


async def read(shim: House, body: Any, **headers: str) -> list[Told]:
    async with reading(shim, body, **headers) as events:
        return [event async for event in events]


def stream(text: str = "hi", **more: Any) -> dict[str, Any]:
    return message(text, method="message/stream", **more)


@asynccontextmanager
async def platform(store: SqliteStore, script: Script, **more: Any) -> AsyncIterator[tuple[House, Scripted]]:
    async with scripted(script) as workspace, house(store, **more) as built:
        await built.workspace("w", workspace.url)
        yield built, workspace


DONE = status("completed", final=True)


async def test_a_stream_is_told_as_it_was_said_numbered_and_with_the_callers_own_id(
    sqlite: SqliteStore,
) -> None:
    async with platform(sqlite, Agent(said("a"), said("b"), DONE)) as (shim, _):
        told = await read(shim, stream(request_id="mine"))
    assert [event.id for event in told] == ["1", "2", "3", "4"]
    assert [event.event["result"] for event in told] == [TASK, said("a"), said("b"), DONE]
    assert {event.event["id"] for event in told} == {"mine"}


async def test_events_are_told_while_the_turn_runs(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), said("b"), DONE)
    agent.gates[2] = anyio.Event()
    async with platform(sqlite, agent) as (shim, _), reading(shim, stream()) as events:
        assert [(await anext(events)).id for _ in range(2)] == ["1", "2"]
        agent.gates[2].set()
        assert [event.id async for event in events] == ["3", "4"]


async def test_a_stream_that_broke_off_goes_on_where_it_was_behind_one_status_event(
    sqlite: SqliteStore,
) -> None:
    agent = Agent(said("a"), said("b"), said("c"), DONE, cuts=(1, 2))
    async with platform(sqlite, agent) as (shim, _):
        told = await read(shim, stream())
    results = [event.event["result"] for event in told]
    notes = [result for result in results if result.get("metadata", {}).get("restarting")]
    assert [result for result in results if result not in notes] == [
        TASK,
        said("a"),
        said("b"),
        said("c"),
        DONE,
    ]
    assert [note["status"]["state"] for note in notes] == ["working", "working"]
    assert all("restarting" in note["status"]["message"]["parts"][0]["text"] for note in notes)
    assert [event.id for event in told] == [str(n) for n in range(1, 8)]
    assert agent.asked_behind == [None, "1.1", "1.2"]


@pytest.mark.parametrize("seen", [1, 2, 3, 4])
async def test_a_reader_that_comes_back_misses_nothing_and_sees_nothing_twice(
    sqlite: SqliteStore, seen: int
) -> None:
    body = stream(message_id="m")
    async with platform(sqlite, Agent(said("a"), said("b"), DONE)) as (shim, workspace):
        whole = await read(shim, body)
        assert await read(shim, body, last_event_id=whole[seen - 1].id or "") == whole[seen:]
        for odd in ("0", "99", "x", "-1", "1.5"):
            again = await read(shim, body, last_event_id=odd)
            assert again == whole or (odd == "99" and not again)
        assert len(workspace.requests) == 1


async def test_a_reader_comes_back_to_another_replica_in_the_middle(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), said("b"), DONE, cuts=(1,))
    agent.gates[2] = anyio.Event()
    body = stream(message_id="m")
    async with scripted(agent) as workspace:
        async with house(sqlite) as first:
            await first.workspace("w", workspace.url)
            async with reading(first, body) as events:
                before = [await anext(events), await anext(events)]
        async with (
            house(sqlite, owner="life-2") as second,
            reading(second, body, last_event_id="2") as events,
        ):
            agent.gates[2].set()
            after = [event async for event in events]
    texts = [event.text for event in [*before, *after] if event.text]
    assert texts == ["a", "b"]
    assert after[-1].event["result"] == DONE


async def test_who_did_not_ask_for_a_stream_gets_its_task(sqlite: SqliteStore) -> None:
    async with platform(sqlite, Agent(said("a"), said("b"), DONE)) as (shim, workspace):
        await read(shim, stream(message_id="m"))
        found = (await shim.post(message("hi", message_id="m", request_id=9))).json()
        assert found["id"] == 9
        assert found["result"]["kind"] == "task"
        assert found["result"]["artifacts"][0]["parts"] == [{"kind": "text", "text": "ab"}]
        assert len(workspace.requests) == 1
        standing = (await shim.standing("1")).json()["response_body"]
        assert standing["result"]["artifacts"] == found["result"]["artifacts"]


async def test_who_asks_for_a_stream_of_what_was_sent_without_gets_the_answer_as_its_event(
    sqlite: SqliteStore,
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.result(exchange.request.text)

    async with platform(sqlite, answer) as (shim, workspace):
        await shim.post(message("hi", message_id="m"))
        (told,) = await read(shim, stream(message_id="m"))
        assert text_of(told.event) == "hi"
        assert len(workspace.requests) == 1


async def test_a_failure_that_is_tried_again_is_not_the_end(sqlite: SqliteStore) -> None:
    turns = 0

    async def fail_once(exchange: Exchange) -> None:
        nonlocal turns
        turns += 1
        end = DONE if turns > 1 else status("failed", final=True, retryable=True)
        await Agent(said(f"{turns}"), end)(exchange)

    async with platform(sqlite, fail_once) as (shim, _):
        told = await read(shim, stream())
    assert told[-1].event["result"] == DONE
    assert not any(event.event["result"].get("final") for event in told[:-1])


async def test_a_dead_letter_ends_a_stream_that_began_with_an_error(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), cuts=(1, 1, 1, 1, 1, 1))
    async with platform(sqlite, agent) as (shim, _):
        told = await read(shim, stream())
    assert told[1].text == "a"
    assert told[-1].id is None
    assert told[-1].event["error"]["code"] == -32603
    assert "replay queue item 1" in told[-1].event["error"]["message"]


async def test_a_stream_that_was_given_up_begins_anew_when_its_message_is_sent_again(
    sqlite: SqliteStore,
) -> None:
    failed = status("failed", final=True, retryable=True)
    body = stream(message_id="m")
    async with platform(sqlite, Agent(said("a"), failed)) as (shim, workspace):
        before = await read(shim, body)
        assert [(event.id, event.event["result"]) for event in before] == [
            ("1", TASK),
            ("2", said("a")),
            (None, failed),
        ]
        workspace.script = Agent(said("a"), said("b"), DONE)
        after = await read(shim, body, last_event_id="2")
        assert [event.event["result"] for event in after] == [TASK, said("a"), said("b"), DONE]
        assert [event.id for event in after] == ["3", "4", "5", "6"]  # none that a reader has for another


async def test_what_ends_before_there_is_anything_to_tell_is_an_ordinary_answer(sqlite: SqliteStore) -> None:
    async with house(sqlite, hold=0.2) as shim:
        await shim.workspace("w", None)
        found = await shim.post(stream(expires_in_seconds=0.05))
        assert (found.status_code, found.json()["status"]) == (504, "expired")
        found = await shim.post(stream())
        assert (found.status_code, found.json()["queued"]) == (202, True)


async def test_what_ends_after_a_second_of_silence_is_told_as_the_streams_last_event(
    sqlite: SqliteStore,
) -> None:
    async with house(sqlite, hold=1.3, keep_alive=0.2) as shim:
        await shim.workspace("w", None)
        (told,) = await read(shim, stream(request_id="mine"))
        assert (told.id, told.event["id"]) == (None, "mine")
        assert told.event["error"]["data"] == {"status": 202, "queue_id": "1"}
        assert "workspace is starting" in told.event["error"]["message"]


async def test_a_reader_whose_hold_is_over_is_told_where_to_go_on(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), DONE)
    agent.gates[2] = anyio.Event()
    body = stream(message_id="m")
    async with platform(sqlite, agent, hold=0.3) as (shim, _):
        told = await read(shim, body)
        assert [event.id for event in told] == ["1", "2", None]
        last = told[-1].event["result"]
        assert (last["status"]["state"], last["final"]) == ("working", False)
        assert "Last-Event-ID" in last["status"]["message"]["parts"][0]["text"]
        agent.gates[2].set()
        assert [event.event["result"] for event in await read(shim, body, last_event_id="2")] == [DONE]


async def test_a_stream_ends_with_a_status_event_when_the_shim_stops(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), DONE)
    agent.gates[2] = anyio.Event()
    async with platform(sqlite, agent) as (shim, _), reading(shim, stream()) as events:
        assert [(await anext(events)).id for _ in range(2)] == ["1", "2"]
        shim.waiters.stop()
        (last,) = [event async for event in events]
        assert last.id is None
        assert "platform restarting" in last.event["result"]["status"]["message"]["parts"][0]["text"]


async def test_silence_is_filled_with_comments(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), DONE)
    agent.gates[1] = anyio.Event()
    async with (
        platform(sqlite, agent, keep_alive=0.05) as (shim, _),
        shim.client.stream("POST", f"{shim.url}/workspaces/w/a2a", json=stream()) as response,
    ):
        lines = response.aiter_lines()
        with anyio.fail_after(10):
            comments = 0
            async for line in lines:
                comments += line.startswith(":")
                if comments == 3:
                    agent.gates[1].set()
                if DONE["status"]["state"] in line:
                    break
        assert comments >= 3


async def test_who_hangs_up_in_a_stream_takes_nothing_back(sqlite: SqliteStore) -> None:
    agent = Agent(said("a"), DONE)
    agent.gates[2] = anyio.Event()
    body = stream(message_id="m")
    async with platform(sqlite, agent) as (shim, workspace):
        async with reading(shim, body) as events:
            await anext(events)
        await until(lambda: shim.waiters.held == 0)
        agent.gates[2].set()
        assert (await read(shim, body))[-1].event["result"] == DONE
        assert len(workspace.requests) == 1


async def test_a_reader_that_is_slow_holds_nothing_in_memory(
    sqlite: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, asked, said_by = "x" * 100_000, [0], sqlite.said

    async def noted(item_id: int, *, after: int = 0, most: int = 500) -> list[tuple[int, bytes]]:
        asked.append(after)
        return await said_by(item_id, after=after, most=most)

    monkeypatch.setattr(sqlite, "said", noted)
    agent = Agent(*(said(text) for _ in range(400)), DONE)
    async with platform(sqlite, agent) as (shim, _), reading(shim, stream()) as events:
        await anext(events)
        await until(lambda: not len(shim.dispatcher))
        await anyio.wait_all_tasks_blocked()
        assert max(asked) < 300  # what the sockets hold, and one batch
        assert len([event async for event in events if event.text == text]) == 400


async def test_a_refusal_of_the_workspaces_is_passed_on(sqlite: SqliteStore) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.answer(413, {"error": "too large for me"})

    async def error(exchange: Exchange) -> None:
        await exchange.answer(200, {"jsonrpc": "2.0", "id": 1, "error": {"code": -32602, "message": "no"}})

    async with platform(sqlite, refuse) as (shim, workspace):
        found = await shim.post(stream())
        assert (found.status_code, found.json()) == (413, {"error": "too large for me"})
        workspace.script = error
        (told,) = await read(shim, stream(request_id="x"))
        assert (told.event["id"], told.event["error"]["message"]) == ("x", "no")
