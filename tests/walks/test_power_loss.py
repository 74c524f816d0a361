"""What was acknowledged is on the disk when the power fails, and whatever is there is whole."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx

from . import disk
from .workspace import Workspace, answer_of, script, workspace

FAILURES = 2
"""Of the power, each while messages are at work."""

LARGE = "y" * 300_000
"""Too large for a row of the journal."""

Answers = dict[str, dict[str, Any]]
"""What was sent, by the answer it got."""


def message(ws: Workspace, n: int) -> dict[str, Any]:
    """Small ones, and now and then one with a file or one with a large answer."""
    name = str(n)
    answer = f"{name} {LARGE}" if n % 10 == 5 else name
    body = ws.envelope(
        script({"tool": "sh", "input": f"echo {name} >> effects"}, {"answer": answer}),
        context_id=f"c{n % 4}",
    )
    if n % 5 == 0:
        content = base64.b64encode(name.encode() * 20_000).decode()
        file = {"kind": "file", "file": {"bytes": content, "name": "file.txt", "mimeType": "text/plain"}}
        body["params"]["message"]["parts"].append(file)
    return body


@asynccontextmanager
async def callers(ws: Workspace) -> AsyncIterator[Answers]:
    """Send message upon message, four at once; what they got is kept."""
    answered: Answers = {}

    async def call(lane: int) -> None:
        n = lane
        while True:
            body = message(ws, n)
            try:
                reply = await ws.post(body)
            except httpx.TransportError:
                return
            answered[answer_of(reply.json())] = body
            n += 4

    async with anyio.create_task_group() as lanes:
        for lane in range(4):
            lanes.start_soon(call, lane)
        yield answered
        lanes.cancel_scope.cancel()


async def test_when_the_power_fails_every_answer_is_there_and_every_file_whole(tmp_path: Path) -> None:
    image = tmp_path / "image"
    told: list[Answers] = []
    with disk.ext4(image, tmp_path / "state"):
        async with workspace(
            tmp_path, start=False, WORKSPACE_MAX_CONCURRENT_TURNS="4", WORKSPACE_LOG_LEVEL="warning"
        ) as ws:
            await ws.start()
            assert ws.process is not None
            async with callers(ws) as answered:
                for moment in range(FAILURES):
                    enough = 12 * (moment + 1)
                    await ws.until(lambda enough=enough: len(answered) >= enough, "answers")  # type: ignore[misc]
                    told.append(dict(answered))
                    copy = tmp_path / f"copy-{moment}"
                    await anyio.to_thread.run_sync(disk.image_of_the_moment, image, copy, ws.process)
    for moment, answers in enumerate(told):
        assert not await _lost(tmp_path / f"after-{moment}", tmp_path / f"copy-{moment}", answers)


async def _lost(root: Path, image: Path, answers: Answers) -> set[str]:
    """Start a workspace on what the power left; return the answers it has to work out again."""
    with disk.ext4(image, root / "state"):
        async with workspace(root, start=False, WORKSPACE_LOG_LEVEL="warning") as ws:
            await ws.start()
            for file in (ws.state_dir / "uploads").glob("*/*/file.txt"):
                assert hashlib.sha256(file.read_bytes()).hexdigest() == file.parent.name, "half a file"
            for answer, body in answers.items():
                assert answer_of(await ws.ask_until_answered(body)) == answer
            assert "is damaged" not in ws.logged()
            return set(ws.lines()) & {answer.split()[0] for answer in answers}
