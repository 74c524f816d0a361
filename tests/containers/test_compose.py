"""The example with a shim, PostgreSQL and two workspaces, on a real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import yaml

from ..conftest import require
from . import engine
from .conftest import ROOT, base
from .engine import attempt, docker

pytestmark = pytest.mark.docker

EXAMPLE = ROOT / "examples" / "compose"
PATIENCE = 60.0


class Composed:
    """What the compose file says, with plain calls of the engine: not every engine's client has compose."""

    def __init__(self, variables: Mapping[str, str], images: Mapping[str, str]) -> None:
        self._name = f"compose-test-{uuid.uuid4().hex[:8]}"
        self._variables = {**variables, "WORKSPACES_NETWORK": self._name}
        self._images = images
        self.workspaces = [f"{self._name}-{name}" for name in ("alpha", "beta")]
        text = re.sub(r"\$\{(\w+)(?::([-?])([^}]*))?\}", self._value, (EXAMPLE / "compose.yaml").read_text())
        self._file: dict[str, Any] = yaml.safe_load(text)

    def _value(self, found: re.Match[str]) -> str:
        name, kind, default = found.groups()
        return self._variables[name] if name in self._variables or kind != "-" else default

    def container(self, service: str) -> str:
        return f"{self._name}-{service}"

    def up(self) -> None:
        docker("network", "create", self._file["networks"]["workspaces"]["name"])
        for name, service in self._file["services"].items():
            options = ["--detach", "--name", self.container(name), "--network-alias", name]
            options += ["--network", self._name, "--restart", service["restart"]]
            options += [f"--env={key}={value}" for key, value in service["environment"].items()]
            for volume in service["volumes"]:
                where, _, folder = volume.partition(":")
                options += ["--volume", f"{where if '/' in where else self.container(where)}:{folder}"]
            options += [f"--publish={port}" for port in service.get("ports", ())]
            options += ["--user", service["user"]] if "user" in service else []
            docker("run", *options, self._images[service["image"]], *service.get("command", ()))

    def down(self) -> None:
        ours = [f"ws-{name}" for name in self.workspaces]
        attempt(
            "rm", "--force", "--volumes", *(self.container(name) for name in self._file["services"]), *ours
        )
        volumes = [self.container(name) for name in self._file["volumes"]]
        volumes += [f"{name}-{kind}" for name in ours for kind in ("work", "configs")]
        attempt("volume", "rm", "--force", *volumes)
        attempt("network", "rm", self._name)

    def logs(self) -> str:
        every = [*map(self.container, self._file["services"]), *(f"ws-{name}" for name in self.workspaces)]
        return "\n".join(
            f"--- {name}\n{done.stdout}{done.stderr}" for name in every if (done := attempt("logs", name))
        )


class Caller:
    """Somebody with the admin token."""

    def __init__(self, port: int, token: str) -> None:
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {token}"},
            timeout=PATIENCE,
        )

    async def ask(self, workspace: str, text: str, message_id: str | None = None) -> str:
        """Send a message until it is answered, as `curl --retry-all-errors` does."""
        message = {
            "role": "user",
            "messageId": message_id or uuid.uuid4().hex,
            "parts": [{"kind": "text", "text": text}],
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    reply = await self.client.post(f"/workspaces/{workspace}/a2a", json=body)
                    if reply.status_code == 200:
                        answer: str = reply.json()["result"]["parts"][0]["text"]
                        return answer
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.3)

    async def until_online(self, workspace: str, other_than: str | None = None) -> str:
        """Wait for a workspace; return the boot id of its life."""
        with anyio.fail_after(PATIENCE):
            while True:
                found = (await self.client.get(f"/workspaces/{workspace}")).json()
                if (
                    found.get("status") == "online"
                    and not found["restarting"]
                    and found["boot_id"] != other_than
                ):
                    boot_id: str = found["boot_id"]
                    return boot_id
                await anyio.sleep(0.1)


@pytest.fixture
async def composed() -> AsyncIterator[tuple[Composed, Caller]]:
    require(engine.answers(), "no container engine answers `docker info`")
    require(engine.has(base()), f"there is no image {base()}, nor a registry that has it")
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    require(host.startswith("unix://"), "the engine is on another machine")
    require(shutil.which("curl") is not None, "curl (apt install curl)")
    await anyio.to_thread.run_sync(_build)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    variables = {
        "POSTGRES_PASSWORD": uuid.uuid4().hex,
        "SHIM_ADMIN_TOKEN": uuid.uuid4().hex,
        "SHIM_PORT": str(port),
        "DOCKER_SOCKET": host.removeprefix("unix://"),
    }
    made = Composed(variables, {"postgres:17": POSTGRES, "workspace-shim": SHIM})
    caller = Caller(port, variables["SHIM_ADMIN_TOKEN"])
    try:
        made.up()
        script = [str(EXAMPLE / "workspaces"), *made.workspaces]
        environ = {"PATH": os.environ["PATH"], "IMAGE": SHIM, "ADAPTER": "echo", **variables}
        done = subprocess.run(
            script, env=environ, timeout=PATIENCE, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{made.logs()}"
        yield made, caller
    except (TimeoutError, AssertionError):
        print(made.logs())
        raise
    finally:
        await caller.client.aclose()
        made.down()
        attempt("image", "rm", "--force", SHIM, POSTGRES)


SHIM, POSTGRES = "compose-test-shim", "compose-test-postgres"


def _build() -> None:
    """Build both images, from the engine's cache where CI has built them already."""
    engine.build(
        SHIM, str(ROOT), "--file", str(ROOT / "Dockerfile.workspace"), "--build-arg", "EXTRAS=platform"
    )
    postgres = Path(__file__).parent / "postgres"
    engine.build(POSTGRES, str(postgres), "--build-arg", f"BASE={base()}")


async def test_two_workspaces_behind_a_shim_outlive_whatever_is_restarted(
    composed: tuple[Composed, Caller],
) -> None:
    house, caller = composed
    alpha, beta = house.workspaces
    before = {name: await caller.until_online(name) for name in house.workspaces}
    assert await caller.ask(alpha, "first", "m-1") == "first"

    restarted = await caller.client.post(f"/workspaces/{alpha}/restart", json={})
    assert restarted.status_code < 300
    assert await caller.ask(alpha, "while it restarts") == "while it restarts"
    assert await caller.until_online(alpha, before[alpha]) != before[alpha]
    (latest, *_) = (await caller.client.get(f"/workspaces/{alpha}/restarts")).json()
    assert latest["notes"]["signal"]["acknowledged"] is True, json.dumps(latest)

    docker("kill", f"ws-{beta}")
    assert await caller.ask(beta, "after its death") == "after its death"
    assert await caller.until_online(beta, before[beta]) != before[beta]

    docker("kill", house.container("shim"))
    docker("start", house.container("shim"))
    docker("restart", "--time", "1", house.container("postgres"))
    assert await caller.ask(alpha, "first", "m-1") == "first", "the answer is in the queue's row"

    for name in house.workspaces:
        assert (await caller.client.delete(f"/workspaces/{name}")).status_code < 300
    with anyio.fail_after(PATIENCE):
        while attempt("inspect", *(f"ws-{name}" for name in house.workspaces)).stdout.strip() != "[]":
            await anyio.sleep(0.2)
