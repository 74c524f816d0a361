"""``workspace-adapter platform serve``: its start, what it does while its store is away, its stop."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import httpx

from tests.conftest import inherited
from tests.walks.workspace import ENDS, script
from workspace_adapter.testing.shim import Shim
from workspace_adapter.testing.workspace import answer_of

ADMIN = "admin-token-that-nobody-may-read"
SECRET = "password-that-nobody-may-read"


@asynccontextmanager
async def shim_in(root: Path, **settings: str) -> AsyncIterator[Shim]:
    """A shim that is not started yet; nothing is left of it at the end."""
    root.mkdir(exist_ok=True)
    environ = inherited()
    said = {"SHIM_LOG_LEVEL": "debug", **settings}
    made = Shim(root, environ=environ | {"HOME": str(root)}, settings=said, patience=20.0)
    try:
        yield made
    finally:
        made.kill_everything()


async def refused(root: Path, **settings: str) -> str:
    """Start one that ends by itself with 2; return what it says."""
    async with shim_in(root, **settings) as shim:
        shim.spawn()
        assert await shim.exited() == 2
        return shim.logged()


async def get(shim: Shim, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=shim.url, timeout=5.0) as client:
        return await client.get(path, headers=headers)


async def until_answering(shim: Shim) -> None:
    with anyio.fail_after(shim.patience):
        while True:
            try:
                await get(shim, "/healthz")
            except httpx.TransportError:
                await anyio.sleep(0.02)
            else:
                return


# --- the start ----------------------------------------------------------------------------


async def test_a_port_that_is_taken_is_named_with_its_settings(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = await refused(tmp_path, SHIM_PORT=port)

    assert f"SHIM_PORT={port}" in said
    assert "in use" in said


async def test_every_setting_that_cannot_work_is_told_at_once(tmp_path: Path) -> None:
    said = await refused(
        tmp_path, SHIM_HOST="0.0.0.0", SHIM_LEASE="1", SHIM_DATABASE_URL=f"mysql://u:{SECRET}@h"
    )
    assert "SHIM_DATABASE_URL" in said

    said = await refused(tmp_path, SHIM_HOST="0.0.0.0", SHIM_LEASE="1")
    assert "SHIM_ADMIN_TOKEN must be set" in said
    assert "SHIM_LEASE" in said
    assert SECRET not in said


async def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "SHIM_STATE_DIR" in await refused(tmp_path, SHIM_STATE_DIR=str(tmp_path / "file" / "state"))


def test_it_may_open_as_many_files_as_it_holds_callers_or_says_that_it_may_not() -> None:
    code = (
        "import logging, resource as r, sys; from workspace_adapter.shim.serve import want_files\n"
        "logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "r.setrlimit(r.RLIMIT_NOFILE, (200, 500))\n"
        "for wanted in (100, 300, 900): want_files(wanted); print(r.getrlimit(r.RLIMIT_NOFILE))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    ).stdout.splitlines()
    assert said[:2] == ["(200, 500)", "(300, 500)"]
    assert said[2].startswith("this process may open 500 files,")
    assert said[3] == "(500, 500)"


async def test_a_misspelt_setting_is_told(tmp_path: Path) -> None:
    async with shim_in(tmp_path, SHIM_HOLD="3") as shim:
        await shim.start()
        assert "SHIM_HOLD is no setting" in shim.logged()


def test_without_its_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u, sys\n"
        "found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'asyncpg' else found(name, *more)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "workspace_adapter", "platform", "serve"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "`platform serve` needs asyncpg: pip install 'workspace-adapter[platform]'\n"


async def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "shim"
    state.mkdir()
    with sqlite3.connect(state / "shim.sqlite") as newer:
        newer.execute("PRAGMA user_version=999")
    async with shim_in(tmp_path) as shim:
        shim.spawn()
        assert await shim.exited() == 1
        assert "upgrade" in shim.logged()


async def test_while_the_store_is_away_it_lives_is_not_ready_and_goes_on_trying(tmp_path: Path) -> None:
    async with shim_in(tmp_path / "first") as first, shim_in(tmp_path / "second") as second:
        second.environ["SHIM_STATE_DIR"] = first.environ["SHIM_STATE_DIR"]
        await first.start()
        second.spawn()
        await until_answering(second)

        assert (await get(second, "/readyz")).status_code == 503
        waiting = await get(second, "/workspaces")
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "1")
        assert "SHIM_DATABASE_URL" in waiting.json()["error"], "several replicas need PostgreSQL"
        assert second.logged().count("waiting for the store") == 1

        first.terminate()
        assert await first.exited() == 0
        await second.until_ready()


async def test_a_database_that_is_away_is_said_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://shim:{SECRET}@127.0.0.1:9/shim"
    async with shim_in(tmp_path, SHIM_DATABASE_URL=url) as shim:
        shim.spawn()
        await until_answering(shim)
        await shim.until(lambda: "waiting for the store" in shim.logged(), "the reason")
        told = (await get(shim, "/readyz")).text
        began = time.monotonic()
        shim.terminate()
        assert await shim.exited() == 0
        assert time.monotonic() - began < 3
        assert SECRET not in shim.logged() + told


# --- the stop -----------------------------------------------------------------------------


async def test_a_stop_that_comes_at_any_moment_of_the_start_ends_it_cleanly(tmp_path: Path) -> None:
    async with shim_in(tmp_path) as shim:
        for pause in (0.0, 0.1, 0.3, 0.5):
            shim.spawn()
            assert shim.process is not None
            status = Path(f"/proc/{shim.process.pid}/status")
            await shim.until(partial(catches, status, signal.SIGTERM), "its first line")
            await anyio.sleep(pause)
            shim.terminate()
            assert await shim.exited() == 0, shim.logged()
        assert "Traceback" not in shim.logged()


def catches(status: Path, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    (caught,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


async def test_a_stop_sends_callers_away_and_the_next_life_has_their_answer(tmp_path: Path) -> None:
    async with shim_in(tmp_path) as shim:
        await shim.start()
        await shim.create("w", ENDS)
        body = shim.envelope(script({"tool": "sh", "input": "touch begun; sleep 1.5"}, {"answer": "done"}))
        sent_away: list[httpx.Response] = []

        async def ask() -> None:
            sent_away.append(await shim.send("w", body))

        async with anyio.create_task_group() as callers:
            callers.start_soon(ask)
            begun = shim.place("w") / "work" / "begun"
            await shim.until(begun.exists, "the work")
            began = time.monotonic()
            shim.terminate()
        assert await shim.exited() == 0
        assert time.monotonic() - began < 3
        assert sent_away[0].status_code == 503
        assert sent_away[0].headers["retry-after"]

        await shim.start()
        assert answer_of((await shim.send("w", body)).json()) == "done"


async def test_a_second_stop_hastens_the_first(tmp_path: Path) -> None:
    async with shim_in(tmp_path) as shim:
        await shim.start()
        shim.terminate()
        shim.terminate()
        assert await shim.exited() == 0


# --- what is kept to itself ---------------------------------------------------------------


async def test_no_secret_is_in_any_log(tmp_path: Path) -> None:
    async with shim_in(tmp_path, SHIM_ADMIN_TOKEN=ADMIN) as shim:
        await shim.start()
        operator = {"authorization": f"Bearer {ADMIN}"}
        async with httpx.AsyncClient(base_url=shim.url, headers=operator, timeout=20.0) as client:
            spec = {"environ": {"WORKSPACE_ADAPTER": "echo"}, "inherit": ["WORKSPACE_TEST_RUN", "CI_MARK"]}
            made = (
                await client.post("/workspaces", json={"id": "w", "provisioner": "process", "spec": spec})
            ).json()
            caller = (await client.post("/tokens", json={"name": "ann"})).json()
            with anyio.fail_after(20):
                while (await client.get("/workspaces/w")).json()["status"] != "online":
                    await anyio.sleep(0.05)
            sent = await client.post(
                "/workspaces/w/a2a",
                json=shim.envelope("a message that nobody may read"),
                headers={"authorization": f"Bearer {caller['auth_token']}"},
            )
            assert sent.status_code == 200, sent.text
            restarted = await client.post("/workspaces/w/restart?wait=20", json={"reason": "a test"})
            assert restarted.json()["cycle"]["step"] == "done", restarted.text
            wrong = await client.get("/workspaces", headers={"authorization": "Bearer a-wrong-bearer"})
            assert wrong.status_code == 401
        shim.terminate()
        assert await shim.exited() == 0

        token = (shim.place("w") / "configs" / ".auth_token").read_text().strip()
        logs = shim.logged() + "".join(
            log.read_text(errors="replace") for log in shim.place("w").glob("*.log")
        )
        assert "registered" in logs
        for secret in (
            ADMIN,
            made["auth_token"],
            token,
            made["platform_inbound_secret"],
            caller["auth_token"],
            "a-wrong-bearer",
            "a message that nobody may read",
        ):
            assert secret not in logs


# --- connections --------------------------------------------------------------------------


async def test_a_head_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async with shim_in(tmp_path) as shim:
        await shim.start()
        stream = await anyio.connect_tcp("127.0.0.1", shim.port)
        async with stream:
            await stream.send(b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 70_000)
            reply = await stream.receive()
        assert reply.startswith(b"HTTP/1.1 431")

        assert (await get(shim, "/healthz", x="a" * 30_000)).status_code == 200
