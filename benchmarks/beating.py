"""Workspaces that beat, many over few connections as behind a balancer: a process of its own.

``python -m benchmarks.beating PORT WORKSPACES INTERVAL CONNECTIONS SECONDS`` prints, as JSON, how
many heartbeats were answered with 200 within a second of when they were due, how many were not, and the
99th percentile of how long that took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from statistics import quantiles

import uvloop

from workspace_adapter.wire import Heartbeat

CARD = {
    "name": "bench",
    "description": "An agent that runs on echo and survives restarts.",
    "url": "http://127.0.0.1:8000",
    "version": "0.1.0",
    "protocolVersion": "0.3.0",
    "capabilities": {"streaming": True, "pushNotifications": False},
    "defaultInputModes": ["text/plain"],
    "defaultOutputModes": ["text/plain"],
    "skills": [{"id": "chat", "name": "chat", "description": "Talks.", "tags": ["chat"]}],
    "configuration_status": "ready",
}
"""As long as a sidecar's own."""


IN_TIME = 1.0
"""Seconds."""


def name(number: int) -> str:
    """What the workspace of a number is called."""
    return f"bench-{number:06d}"


def token(number: int) -> str:
    """Its bearer."""
    return f"token-of-workspace-{number:06d}-which-is-as-long"


def beat(number: int) -> bytes:
    """Its heartbeat, as a sidecar of ours sends it."""
    body = Heartbeat(workspace_id=name(number), boot_id=f"{number:016x}", agent_card=CARD, state="serving")
    raw = json.dumps(body.as_json()).encode()
    head = (
        "POST /registry/heartbeat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Accept: application/json\r\nUser-Agent: workspace_adapter/0.1.0\r\n"
        f"X-Workspace-ID: {name(number)}\r\nAuthorization: Bearer {token(number)}\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


async def beating(
    port: int, workspaces: int, interval: float, connections: int, seconds: float
) -> dict[str, float]:
    """Beat for so long."""
    took: list[float] = []
    failed = 0
    pace = interval / workspaces * connections
    start = time.perf_counter() + 0.2

    async def one(connection: int) -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = start + pace * connection / connections
        for number in range(connection, workspaces, connections):
            await asyncio.sleep(at - time.perf_counter())
            if at - start > seconds:
                break
            writer.write(beat(number))
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = (
                line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
            )
            await reader.readexactly(int(length))
            took.append(time.perf_counter() - at)
            failed += not head.startswith(b"HTTP/1.1 200") or took[-1] > IN_TIME
            at += pace
        writer.close()

    await asyncio.gather(*map(one, range(connections)))
    return {
        "answered": len(took) - failed,
        "failed": failed,
        "p99_ms": 1000 * quantiles(took, n=100)[-1],
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    port, workspaces, interval, connections, seconds = map(float, sys.argv[1:])
    print(json.dumps(uvloop.run(beating(int(port), int(workspaces), interval, int(connections), seconds))))
