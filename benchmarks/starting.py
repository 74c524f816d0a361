"""Processes that are started to see how long it takes, and callers who keep trying."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ENVIRON: Mapping[str, str] = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
"""Of what is started: the first round, which is thrown away, compiles what no installer has compiled."""

PATIENCE = 60.0


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] = ENVIRON,
    directory: Path | None = None,
    python: Path = Path(sys.executable),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process of Python; at the end kill it and what it started."""
    process = subprocess.Popen(
        [python, *command],
        env=environ,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it was waited for
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def plain_server(port: int) -> Sequence[str]:
    """The peer's arguments to Python."""
    return ["-m", "benchmarks.peers.plain_a2a", str(port)]


def sidecar() -> Sequence[str]:
    """Ours."""
    return ["-m", "workspace_adapter", "serve"]


def settings(port: int, root: Path, adapter: str, **more: str) -> Mapping[str, str]:
    """The environment of a sidecar whose directories lie beneath ``root``."""
    (root / "work").mkdir(parents=True, exist_ok=True)
    return {
        **ENVIRON,
        "WORKSPACE_ID": "bench",
        "WORKSPACE_ADAPTER": adapter,
        "WORKSPACE_HOST": "127.0.0.1",
        "WORKSPACE_PORT": str(port),
        "WORKSPACE_STATE_DIR": str(root / "state"),
        "WORKSPACE_WORKDIR": str(root / "work"),
        "CONFIGS_DIR": str(root / "configs"),
        **more,
    }


def copied(root: Path, to: Path) -> Path:
    """Put a workspace's directories as they were before in place of what is there."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(root, to, ignore=shutil.ignore_patterns("*.sock"))
    return to


def message(text: str, *, context: str | None = None, name: str | None = None, **params: object) -> bytes:
    """A ``message/send``."""
    sent = {
        "role": "user",
        "messageId": name or uuid.uuid4().hex,
        "parts": [{"kind": "text", "text": text}],
        **({"contextId": context} if context else {}),
    }
    return call("message/send", message=sent, **params)


def call(method: str, **params: object) -> bytes:
    """A JSON-RPC request."""
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


def asked(port: int, body: bytes) -> int:
    """Send once; return the status.

    Raises:
        OSError: nobody is there, or whoever was went away.
    """
    return posted(port, body)[0]


def posted(port: int, body: bytes, *, path: str = "/") -> tuple[int, bytes]:
    """Send once; return the status and the answer.

    Raises:
        OSError: nobody is there, or whoever was went away.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def until_answered(port: int, body: bytes) -> None:
    """Send the same message again and again until it is answered with 200."""
    give_up = time.monotonic() + PATIENCE
    while time.monotonic() < give_up:
        try:
            if asked(port, body) == 200:
                return
        except OSError:
            pass
        time.sleep(0.001)
    raise TimeoutError(f"no answer on port {port} within {PATIENCE:g} s")
