"""Callers of every kind at a platform: its canvas, delegations, stock peers."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import httpx

from workspace_adapter.testing import FakePlatform
from workspace_adapter.testing.platform.answers import answer_text
from workspace_adapter.testing.platform.callers import Canvas, StockPeer, message
from workspace_adapter.testing.platform.envelope import canvas_context

PATIENCE = 15.0
"""Seconds a caller waits for what the platform has queued."""


@dataclass(slots=True)
class Asked:
    """One message, and what its caller knows of it."""

    kind: str
    name: str
    calls: int
    """Tool calls it asks for; each leaves one effect, named after the message."""
    envelope: dict[str, Any]
    """The message as it reaches the workspace, for asking again."""
    answer: str | None = None
    fate: str | None = None
    """How the platform lost it, in the platform's words."""

    def hear(self, answer: str) -> None:
        """Take an answer; where a boot turn began while the queue was emptied, it is another receipt."""
        if "queue_id" in answer:
            self.fate = "the platform's receipt stored as the answer"
        else:
            self.answer = answer

    @property
    def expected(self) -> str:
        """The only right answer."""
        return f"answer to {self.name}"

    @property
    def effects(self) -> list[str]:
        """What its tools leave."""
        return [f"{self.name}.{call}" for call in range(self.calls)]

    @property
    def message_id(self) -> str:
        """What its sender calls it."""
        return str(self.envelope["params"]["message"]["messageId"])


def errand(rng: random.Random) -> tuple[str, int, str]:
    """Make up a message: its name, the number of its tool calls, its text."""
    name = uuid.UUID(int=rng.getrandbits(128)).hex
    steps: list[dict[str, Any]] = []
    for call in range(rng.randint(0, 3)):
        command = f"sleep 0.0{rng.randint(0, 3)}; echo {name}.{call} >> effects; sleep 0.0{rng.randint(0, 2)}"
        steps.append({"tool": "sh", "input": command})
    calls = len(steps)
    steps.append({"answer": f"answer to {name}"})
    return name, calls, f"please <b>do</b> & answer: <<<{json.dumps(steps)}>>>"


class Askers:
    """Those who ask, all the time, until it is over."""

    def __init__(self, platform: FakePlatform, client: httpx.AsyncClient, seed: int) -> None:
        self._platform = platform
        self._client = client
        self._seed = seed
        self.over = False
        self.asked: list[Asked] = []

    async def run(self) -> None:
        """Ask until it is over and everybody has an answer or the platform's excuse."""
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(self._keep_asking, self._canvas, number)
                tasks.start_soon(self._keep_asking, self._peer, number)
                tasks.start_soon(self._keep_asking, self._delegate, number)

    async def _keep_asking(self, ask: Callable[..., Any], number: int) -> None:
        rng = random.Random(f"{self._seed}-{ask.__name__}-{number}")
        while not self.over:
            await ask(rng, number)
            await anyio.sleep(rng.expovariate(1 / 0.03))

    # --- three kinds ----------------------------------------------------------------

    async def _canvas(self, rng: random.Random, number: int) -> None:
        name, calls, text = errand(rng)
        context = canvas_context(self._platform.workspace_id)
        sent = message(text, message_id=name, context_id=context)
        asked = self._begin(Asked("canvas", name, calls, sent))
        page = Canvas(self._client, self._platform.workspace_id)
        await self._read(asked, await page.send(text, message_id=name))

    async def _peer(self, rng: random.Random, number: int) -> None:
        name, calls, text = errand(rng)
        peer = StockPeer(self._client, self._platform.workspace_id, peer_id=f"peer-{number}")
        reply = await peer.send(text, context_id=f"c{number}-{rng.randint(0, 1)}")
        await self._read(self._begin(Asked("peer", name, calls, peer.sent[-1])), reply)

    async def _delegate(self, rng: random.Random, number: int) -> None:
        name, calls, task = errand(rng)
        told = await self._client.post(
            f"/workspaces/boss-{number}/delegate",
            json={"target_id": self._platform.workspace_id, "task": task},
        )
        wanted = told.json()["delegation_id"]
        delegation = next(one for one in self._platform.delegations if one.id == wanted)
        asked = self._begin(Asked("delegation", name, calls, delegation.envelope()))
        if not await self._come(lambda: delegation.state in ("completed", "failed")):
            asked.fate = f"delegation {delegation.state} for ever"
        elif delegation.answer is None:
            asked.fate = f"delegation {delegation.state}: {delegation.error}"
        else:
            asked.hear(delegation.answer)

    def _begin(self, asked: Asked) -> Asked:
        self.asked.append(asked)
        return asked

    # --- what became of it ----------------------------------------------------------

    async def _read(self, asked: Asked, reply: httpx.Response) -> None:
        told = reply.json()
        if "queue_id" in told:
            await self._collect(asked, told["queue_id"])
        elif told.get("delivery_mode") == "push-async":
            if await self._come(lambda: asked.name in self._platform.chat):
                asked.answer = answer_text(self._platform.chat[asked.name])
            else:
                asked.fate = "canvas told nothing"
        elif reply.status_code == 200:
            asked.answer = answer_text(told) or json.dumps(told)
        else:
            asked.fate = f"{reply.status_code} {told.get('error')}"

    async def _collect(self, asked: Asked, queue_id: str) -> None:
        item = next(item for item in self._platform.queue.items if item.id == queue_id)
        if not await self._come(lambda: item.state in ("completed", "failed", "dropped")):
            asked.fate = f"queue: {item.state} for ever"
        elif item.lost:
            asked.fate = "queue: completed without an answer"
        elif item.response is None:
            asked.fate = f"queue: {item.state}"
        else:
            asked.hear(answer_text(item.response) or json.dumps(item.response))

    async def _come(self, condition: Callable[[], object]) -> bool:
        with anyio.move_on_after(PATIENCE):
            while not condition():
                await anyio.sleep(0.02)
            return True
        return False
