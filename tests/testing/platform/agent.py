"""A workspace whose every answer a test decides."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

import anyio
import httpx
from anyio.from_thread import start_blocking_portal
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from workspace_adapter.testing import FakePlatform
from workspace_adapter.testing.platform.server import Server

from .workspace import CARD, Sidecar

Answer = tuple[int, bytes]
RESET: Answer = (0, b"reset")
HANG: Answer = (0, b"hang")


def answered(text: str) -> Answer:
    part = {"kind": "text", "text": text}
    return 200, json.dumps({"result": {"kind": "message", "role": "agent", "parts": [part]}}).encode()


def echo(body: dict[str, Any]) -> Answer:
    return answered(f"answer to {body['params']['message']['parts'][0]['text']}")


class Agent:
    """The workspace's server, and the container the platform holds of it."""

    def __init__(self, call: Callable[..., Any], sidecar: Callable[[], Sidecar]) -> None:
        self._call = call
        self._sidecar = sidecar
        self.there = True
        self.beats = True
        """Whether it registers and beats when it is started."""
        self.may_stop = Event()
        self.may_stop.set()
        self.reply: Callable[[dict[str, Any]], Answer] = echo
        self.heard: list[tuple[float, str, bytes, dict[str, str]]] = []
        self.lives: list[float] = []
        self.server: Server = call(Server, self._app, 0)
        self.url = f"http://127.0.0.1:{self.server.port}"

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            raw = await request.body()
        except ClientDisconnect:
            return
        self.heard.append((time.monotonic(), request.url.path, raw, dict(request.headers)))
        body = json.loads(raw)
        status, content = self.reply(body) if body.get("method") == "message/send" else (200, b"{}")
        if status == 0:
            if content == RESET[1]:
                self.server.reset(scope["client"])
            while (await receive())["type"] != "http.disconnect":
                await anyio.sleep(0)
            return
        await Response(content, status, {"Retry-After": "7"}, "application/json")(scope, receive, send)

    def texts(self) -> list[str]:
        """What messages said that came, in order."""
        bodies = [json.loads(raw) for _, path, raw, _ in self.heard if path == "/"]
        return [body["params"]["message"]["parts"][0]["text"] for body in bodies]

    # --- the container --------------------------------------------------------------

    def stop(self) -> None:
        self.may_stop.wait(10)
        self.there = False
        self._call(self.server.leave)

    def start(self) -> None:
        self.there = True
        self.lives.append(time.monotonic())
        self._call(self.server.come_back)
        if self.beats:
            sidecar = self._sidecar()
            with sidecar.client:
                sidecar.register(url=self.url, agent_card={**CARD, "url": self.url})
                sidecar.beat()

    def running(self) -> bool:
        return self.there


@contextmanager
def stage(
    tmp_path: Any, *, held: bool = True, online: bool = True, **options: Any
) -> Iterator[tuple[FakePlatform, Agent, Sidecar, httpx.Client]]:
    """Hold a platform, an agent that it can restart, and a caller's client.

    Args:
        held: whether the platform holds the agent's container.
        online: whether the agent has registered and sent a beat.
    """
    with start_blocking_portal() as portal:
        platform: FakePlatform

        def sidecar() -> Sidecar:
            made = Sidecar(platform)
            token = tmp_path / ".auth_token"
            made.token = token.read_text().strip() if token.exists() else None
            return made

        agent = Agent(portal.call, sidecar)
        serving = portal.start_task_soon(agent.server.run)
        options = {"scale": 0.01, **options}
        platform = FakePlatform(configs_dir=tmp_path, container=agent if held else None, **options)
        with platform, httpx.Client(base_url=platform.url, timeout=10, verify=False) as client:
            platform.provision()
            itself = sidecar()
            if online:
                itself.register(url=agent.url, agent_card={**CARD, "url": agent.url})
                itself.beat()
            try:
                yield platform, agent, itself, client
            finally:
                portal.call(agent.server.close)
                serving.result()
                itself.client.close()
