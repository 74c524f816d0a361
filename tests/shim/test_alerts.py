from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from io import StringIO
from pathlib import Path

import anyio
import pytest

from tests.shim.scripted import Exchange, scripted, until
from workspace_adapter.shim.alerts import Alerts
from workspace_adapter.shim.store.contract import Message, Status
from workspace_adapter.shim.store.sqlite import SqliteStore

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def telling(alerts: Alerts) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alerts.run)
        yield
        tasks.cancel_scope.cancel()


async def waiting(store: SqliteStore, keys: range, *, status: Status = Status.OFFLINE) -> None:
    if await store.create_workspace("w"):
        await store.register("w", url="http://w", boot_id="b")
        await store.set_status("w", status, were={Status.ONLINE})
    for key in keys:
        await store.enqueue(Message(workspace_id="w", turn_key=str(key), content_hash="h", body=b"{}"))


def hook(tmp_path: Path, then: str = "") -> tuple[str, Callable[[], list[Mapping[str, object]]]]:
    """A program that writes down what it is told, with what it wrote."""
    program, told = tmp_path / "hook", tmp_path / "told"
    program.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        f"open({str(told)!r}, 'a').write(sys.stdin.read() + '\\n')\n"
        f"open({str(told)!r} + '.env', 'w').write(repr(sorted(os.environ)))\n{then}\n"
    )
    program.chmod(0o755)

    def read() -> list[Mapping[str, object]]:
        return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []

    return str(program), read


async def test_defect_9_what_waits_for_a_workspace_that_is_not_there_is_counted_logged_and_told(
    sqlite: SqliteStore, tmp_path: Path, logged: StringIO
) -> None:
    command, told = hook(tmp_path)
    alerts = Alerts(sqlite, after=0.0, command=command, environ={"LANG": "C"})
    await waiting(sqlite, range(3), status=Status.PAUSED)
    async with telling(alerts):
        await alerts.look()
        await until(told)
    (alert,) = told()
    assert {**alert, "oldest_seconds": 0} == {
        "alert": "stranded",
        "workspace_id": "w",
        "status": "paused",
        "waiting": 3,
        "oldest_seconds": 0,
    }
    assert [(s.workspace_id, s.waiting) for s in alerts.stranded] == [("w", 3)]
    assert "3 messages wait for workspace w, which is paused, the first of them for 0 s" in logged.getvalue()
    assert "SHIM_" not in (tmp_path / "told.env").read_text()
    assert "PATH" not in (tmp_path / "told.env").read_text()


async def test_what_waits_for_a_moment_is_counted_but_not_told(sqlite: SqliteStore, logged: StringIO) -> None:
    alerts = Alerts(sqlite, after=60.0)
    await waiting(sqlite, range(1))
    await alerts.look()
    assert len(alerts.stranded) == 1
    assert "wait for workspace" not in logged.getvalue()


def lines(logged: StringIO) -> list[str]:
    said = [json.loads(line)["message"] for line in logged.getvalue().splitlines()]
    return [line for line in said if "wait" in line]


async def test_an_incident_is_told_once_then_when_it_grew_tenfold_and_when_it_is_over(
    sqlite: SqliteStore, logged: StringIO
) -> None:
    alerts, replica = Alerts(sqlite, after=0.0), Alerts(sqlite, after=0.0)
    await waiting(sqlite, range(2))
    for _ in range(3):
        await alerts.look()
        await replica.look()
    assert len(lines(logged)) == 1
    await waiting(sqlite, range(19))
    await alerts.look()
    assert len(lines(logged)) == 1
    await waiting(sqlite, range(20))
    for _ in range(3):
        await replica.look()
        await alerts.look()
    assert len(lines(logged)) == 2
    await sqlite.set_status("w", Status.ONLINE, were={Status.OFFLINE})
    for _ in range(3):
        await alerts.look()
        await replica.look()
    assert lines(logged)[2:] == ["nothing waits in vain for workspace w any more"]
    await sqlite.set_status("w", Status.OFFLINE, were={Status.ONLINE})
    await alerts.look()
    assert len(lines(logged)) == 4  # another incident


async def test_a_shim_that_is_started_again_does_not_tell_again_but_knows_when_it_is_over(
    sqlite: SqliteStore, logged: StringIO
) -> None:
    await waiting(sqlite, range(2))
    await Alerts(sqlite, after=0.0).look()
    next_life = Alerts(sqlite, after=0.0)
    await next_life.look()
    assert len(lines(logged)) == 1
    await sqlite.set_status("w", Status.ONLINE, were={Status.OFFLINE})
    await next_life.look()
    assert len(lines(logged)) == 2


async def test_an_incident_that_lasts_another_day_is_told_again(
    sqlite: SqliteStore, logged: StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = Alerts(sqlite, after=0.0)
    await waiting(sqlite, range(2))
    await alerts.look()
    monkeypatch.setattr("workspace_adapter.shim.alerts._AGAIN", 0.0)
    await alerts.look()
    assert len(lines(logged)) == 2


async def test_a_workspace_that_was_removed_meanwhile_is_no_incident(
    sqlite: SqliteStore, logged: StringIO
) -> None:
    alerts = Alerts(sqlite, after=0.0)
    await waiting(sqlite, range(2))
    await alerts.look()
    await sqlite.set_status("w", Status.REMOVED, were={Status.OFFLINE})
    await alerts.look()
    await alerts.look()
    assert alerts.stranded == ()
    assert len(lines(logged)) == 1


async def test_an_alert_is_posted_as_json(sqlite: SqliteStore) -> None:
    async def take(exchange: Exchange) -> None:
        await exchange.answer(204)

    async with scripted(take) as receiver:
        alerts = Alerts(sqlite, after=0.0, url=f"{receiver.url}/alerts?key=1")
        await waiting(sqlite, range(2))
        async with telling(alerts):
            await alerts.look()
            await until(lambda: receiver.requests)
    (request,) = receiver.requests
    assert (request.method, request.path) == ("POST", "/alerts?key=1")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body)["waiting"] == 2


async def failing_program(tmp_path: Path) -> Mapping[str, str]:
    return {"command": hook(tmp_path, "sys.exit(3)")[0]}


async def hanging_program(tmp_path: Path) -> Mapping[str, str]:
    return {"command": hook(tmp_path, "import time; time.sleep(60)")[0]}


async def no_program(tmp_path: Path) -> Mapping[str, str]:
    return {"command": str(tmp_path / "nothing")}


async def no_receiver(tmp_path: Path) -> Mapping[str, str]:
    return {"url": "http://127.0.0.1:1/"}


@pytest.mark.parametrize(
    ("hooked", "why"),
    [
        (failing_program, "SHIM_ALERT_COMMAND: it ended with 3"),
        (hanging_program, "SHIM_ALERT_COMMAND: it took longer than 0.5 s"),
        (no_program, "SHIM_ALERT_COMMAND: [Errno 2]"),
        (no_receiver, "SHIM_ALERT_URL: ClientConnectorError"),
    ],
)
async def test_a_hook_that_fails_is_logged_and_holds_nothing_up(
    sqlite: SqliteStore,
    tmp_path: Path,
    logged: StringIO,
    hooked: Callable[[Path], Awaitable[Mapping[str, str]]],
    why: str,
) -> None:
    alerts = Alerts(sqlite, after=0.0, patience=0.5, **await hooked(tmp_path))  # type: ignore[arg-type]
    await waiting(sqlite, range(2))
    async with telling(alerts):
        with anyio.fail_after(0.4):
            await alerts.look()
        await until(lambda: f"an alert could not be told by {why}" in logged.getvalue())


async def test_what_waits_for_a_workspace_that_fell_silent_unseen_has_it_looked_at(
    sqlite: SqliteStore,
) -> None:
    suspected: list[str] = []
    alerts = Alerts(sqlite, after=60.0, suspect=suspected.append)
    await waiting(sqlite, range(1))
    for status, looked_at in ((Status.OFFLINE, True), (Status.FAILED, True), (Status.PAUSED, False)):
        await sqlite.set_status("w", status, were=set(Status))
        suspected.clear()
        await alerts.look()
        assert suspected == ["w"] * looked_at, status
