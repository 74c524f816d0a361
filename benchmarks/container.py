"""From a container's SIGKILL to its health, and to work that goes on, beside a bare server in the same image.

Both are killed and started again by the engine, on the image that Dockerfile.workspace makes and with its
init; the peer is a bare Starlette application on uvicorn. Health is the first 200 on ``/healthz``, asked
through the published port each millisecond. Work goes on when the tool that the kill cut runs again: it
writes down when.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import anyio.to_thread

from benchmarks.frame import Bench, Figure, Unmeasurable, at_most
from benchmarks.starting import free_port, message

REPOSITORY = Path(__file__).parents[1]
PATIENCE = 60.0
BUILD = 1200.0

BARE = ("python", "-c", (REPOSITORY / "benchmarks/peers/bare.py").read_text(), "0.0.0.0", "8000")
CUT = f"<<<{json.dumps([{'tool': 'sh', 'input': 'date +%s.%N >> began; sleep 600'}])}>>>"


async def measure(bench: Bench) -> list[Figure]:
    """Kill both in turns."""
    with (
        image() as name,
        container(name, *BARE) as bare,
        container(name) as ours,
    ):
        bare.until_healthy()
        ours.until_healthy()
        with suppress(OSError):  # nobody waits for the answer
            ours.begin()
        ours.until_at_work(attempts=1)
        sides: dict[str, Callable[[], Awaitable[list[float]]]] = {
            "bare": partial(anyio.to_thread.run_sync, bare.killed),
            "ours": partial(anyio.to_thread.run_sync, ours.killed_at_work),
        }
        took = await bench.interleave(sides, rounds=15)
    bare_ms = [healthy for healthy, *_ in took["bare"]]
    return [
        Figure(
            what=what,
            unit="ms",
            measured=[each[number] for each in took["ours"]],
            against="a bare starlette server, healthy",
            reference=bare_ms,
            limit=at_most(times=times),
        )
        for number, (what, times) in enumerate(
            (("SIGKILL to healthy", 1.3), ("SIGKILL to the first resumed turn's tool", 1.6))
        )
    ]


def docker(*arguments: str, limit: float = PATIENCE) -> str:
    """Run the engine's client; return what it printed.

    Raises:
        Unmeasurable: there is none, or it failed.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, timeout=limit, check=True
        )
    except FileNotFoundError:
        raise Unmeasurable("there is no container engine: install Docker") from None
    except subprocess.CalledProcessError as error:
        raise Unmeasurable(f"docker {arguments[0]}: {error.stderr.strip()}") from error
    return done.stdout.strip()


@contextmanager
def image() -> Iterator[str]:
    """Build it, or take it from the engine's cache."""
    name = f"workspace-bench-{uuid.uuid4().hex[:8]}"
    file = str(REPOSITORY / "Dockerfile.workspace")
    docker("build", "--quiet", "--file", file, "--tag", name, str(REPOSITORY), limit=BUILD)
    try:
        yield name
    finally:
        docker("image", "rm", "--force", name)


class Container:
    """One of the two."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._port = port
        self._attempts = 0

    def killed(self) -> list[float]:
        """SIGKILL it and start it; return the ms until it is healthy."""
        began = time.time()
        docker("kill", self._name)
        docker("start", self._name)
        self.until_healthy()
        return [1e3 * (time.time() - began)]

    def killed_at_work(self) -> list[float]:
        """As above, and the ms until its work goes on."""
        began = time.time()
        (healthy,) = self.killed()
        return [healthy, 1e3 * (self.until_at_work(attempts=self._attempts + 1) - began)]

    def until_healthy(self) -> None:
        """Ask until it answers."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
            try:
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.001)
            finally:
                connection.close()
        raise TimeoutError(f"{self._name} did not become healthy within {PATIENCE:g} s")

    def begin(self) -> None:
        """Send the message whose tool does not end."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=1)
        try:
            connection.request("POST", "/", message(CUT), {"content-type": "application/json"})
            connection.getresponse()
        finally:
            connection.close()

    def until_at_work(self, *, attempts: int) -> float:
        """Wait until the tool has begun so often; return when it did last."""
        waiting = (
            f"until [ $(cat began 2>/dev/null | wc -l) -ge {attempts} ]; do sleep 0.02; done; tail -n 1 began"
        )
        self._attempts = attempts
        return float(docker("exec", self._name, "timeout", f"{PATIENCE:g}", "bash", "-c", waiting))


@contextmanager
def container(image: str, *command: str) -> Iterator[Container]:
    """Run one until the block ends."""
    name, port = f"workspace-bench-{uuid.uuid4().hex[:8]}", free_port()
    settings = {
        "WORKSPACE_ID": "bench",
        "WORKSPACE_ADAPTER": "workspace_adapter.testing.fakes:ScriptedEnds",
        "WORKSPACE_RESUME_MAX_ATTEMPTS": "1000",
        "WORKSPACE_RESUME_MAX_TOTAL": "1000",
    }
    environ = [f"--env={key}={value}" for key, value in settings.items()]
    where = ["--volume", f"{name}:/workspace", "--publish", f"127.0.0.1:{port}:8000"]
    docker("run", "--detach", "--no-healthcheck", "--name", name, *where, *environ, image, *command)
    try:
        yield Container(name, port)
    finally:
        docker("rm", "--force", "--volumes", name)
        docker("volume", "rm", "--force", name)
