"""The machinery of the chaos: replicas and workspaces that are killed, connections that are cut, callers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx

from tests.conftest import inherited
from workspace_adapter.testing.workspace import Workspace

ROOT = Path(__file__).parents[3]
ADMIN = "the-operator-of-the-chaos"
ENDS = "workspace_adapter.testing.fakes:ScriptedEnds"
HOLDS = "workspace_adapter.testing.fakes:ScriptedHolds"

SETTINGS = {
    "WORKSPACE_MAX_CONCURRENT_TURNS": "3",
    "WORKSPACE_RESUME_MAX_ATTEMPTS": "1000",
    "WORKSPACE_RESUME_MAX_TOTAL": "10000",
    "WORKSPACE_HEARTBEAT_INTERVAL": "5",
}
"""Of every workspace: each is killed more often than any should be."""

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Relay:
    """A TCP relay whose connections can be cut; whoever connects is sent to where ``connect`` says."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._pairs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self.port = 0
        self.cuts = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Relay until cancelled."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        task_status.started()
        try:
            await anyio.sleep_forever()
        finally:
            server.close()
            self.cut(1.0)

    def cut(self, share: float) -> None:
        """Reset a share of the connections, on both sides."""
        for near, far in list(self._pairs.items()):
            if random.random() <= share:
                self.cuts += 1
                near.transport.abort()
                far.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await self._connect()
        except OSError:
            near.transport.abort()
            return
        self._pairs[near] = far
        try:
            await asyncio.gather(_pump(reader, far), _pump(far_reader, near))
        finally:
            del self._pairs[near]
            for writer in (near, far):
                writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Replica:
    """One process of the shim, started again on the same port."""

    def __init__(self, number: int, root: Path, environ: Mapping[str, str]) -> None:
        self.port = free_port()
        self.log = root / f"shim-{number}.log"
        self._environ = {**environ, "SHIM_PORT": str(self.port)}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, and do not wait for it."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "workspace_adapter", "platform", "serve"],
                env=self._environ,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal, and wait for its end."""
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


@dataclass
class Sent:
    """One message, and what its sender knows of it."""

    workspace_id: str
    label: str
    session: str | None
    priority: int = 50
    item_id: int | None = None
    text: str = ""
    answers: list[str] = field(default_factory=list)
    sent_at: float = field(default_factory=time.monotonic)
    answered_at: float | None = None

    def answered(self, text: str) -> None:
        self.answers.append(text)
        if self.answered_at is None:
            self.answered_at = time.monotonic()


@dataclass
class Report:
    """What happened, in numbers."""

    sent: list[Sent] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    retries: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    """Calls that a kill cut off so that nobody knows whether they ran; the agent was told."""
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        waits = sorted((s.answered_at or time.monotonic()) - s.sent_at for s in self.sent)
        share = [
            f"p{p}: {waits[min(len(waits) - 1, len(waits) * p // 100)]:.2f} s" for p in (50, 90, 99, 100)
        ]
        return [
            f"messages: {len(self.sent)} ({_counts(self.kinds)})",
            f"answered: {sum(s.answered_at is not None for s in self.sent)}; {', '.join(share)}",
            f"faults: {_counts(self.faults)}",
            f"retries of callers: {_counts(self.retries)}",
            f"tool calls whose outcome nobody knew, and the agent was told: {self.unknown}",
            f"problems: {len(self.problems)}",
            *(f"  {problem}" for problem in self.problems[:30]),
        ]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


class Caller:
    """Whoever sends messages; it sends each again until it has its answer, and knows each by one id."""

    def __init__(self, url: str, report: Report, *, token: str, over: Callable[[], bool]) -> None:
        self._report = report
        self._over = over
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(60.0, connect=5.0),
        )

    async def close(self) -> None:
        await self._client.aclose()

    def begin(self, kind: str, workspace_id: str, session: str | None, priority: int = 50) -> Sent:
        label = f"L{uuid.uuid4().hex[:12]}"
        sent = Sent(workspace_id, label, session, priority, text=task(label))
        self._report.sent.append(sent)
        self._report.kinds[kind] += 1
        return sent

    def envelope(self, sent: Sent, *, method: str = "message/send") -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "user",
            "messageId": sent.label,
            "parts": [{"kind": "text", "text": sent.text}],
        }
        if sent.session is not None:
            message["contextId"] = sent.session
        params = {"message": message, "priority": sent.priority}
        return {"jsonrpc": "2.0", "id": sent.label, "method": method, "params": params}

    async def again(self, why: str) -> None:
        self._report.retries[why] += 1
        await anyio.sleep(random.uniform(0.05, 0.4))

    async def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Ask until there is an answer that is no failure to ask."""
        while True:
            try:
                response = await self._client.request(method, path, **more)
            except httpx.TransportError as error:
                await self.again(type(error).__name__)
                continue
            if response.status_code in (429, 502, 503):
                await self.again(str(response.status_code))
                continue
            return response

    async def send(self, workspace_id: str, session: str | None, *, wait: int | None = None) -> Sent:
        """Send a message and have its answer."""
        sent = self.begin("send", workspace_id, session)
        headers = {} if wait is None else {"Prefer": f"wait={wait}"}
        while True:
            response = await self.request(
                "POST", f"/workspaces/{workspace_id}/a2a", json=self.envelope(sent), headers=headers
            )
            body = response.json()
            if response.status_code == 202:
                sent.item_id = int(body["queue_id"])
                self._report.retries["202"] += 1
                continue
            self.take(sent, response.status_code, body)
            return sent

    async def hang_up(self, workspace_id: str, session: str | None) -> Sent:
        """Send a message, hang up at once, and ask again later."""
        sent = self.begin("hang up", workspace_id, session)
        path = f"/workspaces/{workspace_id}/a2a"
        with anyio.move_on_after(random.uniform(0.01, 0.3)), suppress(httpx.TransportError):
            await self._client.post(path, json=self.envelope(sent))
        await anyio.sleep(random.uniform(0, 1))
        while True:
            response = await self.request("POST", path, json=self.envelope(sent))
            if response.status_code != 202:
                self.take(sent, response.status_code, response.json())
                return sent

    def take(self, sent: Sent, status: int, body: Mapping[str, Any]) -> None:
        try:
            text = body["result"]["parts"][0]["text"]
        except (KeyError, IndexError, TypeError):
            self._report.problems.append(f"{sent.label} was answered {status} {json.dumps(body)[:300]}")
            text = ""
        sent.answered(text)

    async def burst(self, workspace_id: str, session: str, count: int) -> None:
        """Leave messages of one session one after the other, and collect their answers later."""
        left = []
        for _ in range(count):
            sent = self.begin("queued", workspace_id, session, random.choice((20, 50)))
            response = await self.request(
                "POST",
                f"/workspaces/{workspace_id}/a2a",
                json=self.envelope(sent),
                headers={"Prefer": "wait=0"},
            )
            if response.status_code == 202:
                sent.item_id = int(response.json()["queue_id"])
                left.append(sent)
            else:
                self.take(sent, response.status_code, response.json())
        for sent in left:
            while True:
                path = f"/workspaces/{workspace_id}/a2a/queue/{sent.item_id}"
                shown = (await self.request("GET", path)).json()
                if shown.get("status") in ("queued", "dispatched"):
                    await anyio.sleep(0.3)
                    continue
                self.take(sent, 200, shown.get("response_body") or shown)
                break

    async def stream(self, workspace_id: str, session: str | None) -> Sent:
        """Read a stream to its end, over whatever cuts it."""
        sent = self.begin("stream", workspace_id, session)
        seen = 0
        texts: dict[str, str] = {}
        while True:
            headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(seen)} if seen else {})
            try:
                async with self._client.stream(
                    "POST",
                    f"/workspaces/{workspace_id}/a2a",
                    json=self.envelope(sent, method="message/stream"),
                    headers=headers,
                ) as response:
                    if response.status_code in (429, 502, 503):
                        await self.again(str(response.status_code))
                        continue
                    if "event-stream" not in response.headers.get("content-type", ""):
                        body = json.loads(await response.aread())
                        if response.status_code == 202:
                            self._report.retries["202"] += 1
                            continue
                        self.take(sent, response.status_code, body)
                        return sent
                    async for number, result in _events(response):
                        if number is not None:
                            if number != seen + 1:
                                self._report.problems.append(
                                    f"{sent.label}: event {number} behind event {seen} of its stream"
                                )
                            seen = number
                        _add_text(texts, result)
                        if _is_final(result):
                            sent.answered(
                                f"did {sent.label}" if f"did {sent.label}" in texts.values() else str(texts)
                            )
                            return sent
            except httpx.TransportError as error:
                await self.again(type(error).__name__)
                continue
            await self.again("stream over")

    async def delegate(self, source: str, token: str, target: str) -> Sent:
        """Have a workspace delegate a task to another, and wait until its delegations say it is done."""
        sent = self.begin("delegate", target, None)
        headers = {"Authorization": f"Bearer {token}"}
        body = {"target_id": target, "task": sent.text, "idempotency_key": sent.label}
        response = await self.request("POST", f"/workspaces/{source}/delegate", json=body, headers=headers)
        delegation_id = response.json().get("delegation_id")
        if delegation_id is None:
            self._report.problems.append(f"{sent.label} was not delegated: {response.text[:300]}")
            return sent
        while True:
            response = await self.request("GET", f"/workspaces/{source}/delegations", headers=headers)
            found = next((d for d in response.json() if d["delegation_id"] == delegation_id), None)
            if found is not None and found["status"] in ("completed", "failed", "stuck"):
                sent.answered(str(found.get("response_preview")))
                if found["status"] != "completed":
                    self._report.problems.append(f"{sent.label} was delegated and {found['status']}: {found}")
                return sent
            await anyio.sleep(0.4)


def task(label: str) -> str:
    """Write a message that thinks a little, has one effect, thinks and answers."""
    first, second = random.uniform(0, 0.15), random.uniform(0, 0.15)
    steps = [
        {"sleep": round(first, 3)},
        {"tool": "sh", "input": f"echo {label} >> effects"},
        {"say": f"almost {label}"},
        {"sleep": round(second, 3)},
        {"answer": f"did {label}"},
    ]
    return f"please <<<{json.dumps(steps)}>>>"


async def _events(response: httpx.Response) -> AsyncIterator[tuple[int | None, dict[str, Any]]]:
    number, data = None, ""
    async for line in response.aiter_lines():
        if line.startswith("id:"):
            number = int(line[3:])
        elif line.startswith("data:"):
            data += line[5:]
        elif not line and data:
            yield number, json.loads(data).get("result") or {}
            number, data = None, ""


def _add_text(texts: dict[str, str], result: Mapping[str, Any]) -> None:
    artifacts = [(result.get("artifact"), result.get("append"))] if "artifact" in result else []
    artifacts += [(artifact, False) for artifact in result.get("artifacts") or []]
    for artifact, append in artifacts:
        if artifact is not None:
            text = "".join(part.get("text", "") for part in artifact.get("parts", []))
            name = artifact.get("artifactId", "")
            texts[name] = texts.get(name, "") + text if append else text


def _is_final(result: Mapping[str, Any]) -> bool:
    state = (result.get("status") or {}).get("state")
    return result.get("final") is True or (result.get("kind") == "task" and state == "completed")


class Place:
    """A workspace that the shim runs as a process: what the chaos sees of it."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory

    def kill(self) -> bool:
        """SIGKILL its process; return whether there was one."""
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.kill(int((self.directory / "pid").read_text()), signal.SIGKILL)
            return True
        return False

    def kill_all(self) -> None:
        """SIGKILL whatever runs of it."""
        mark = f"WORKSPACE_PROCESS={self.directory}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)

    def effects(self) -> list[str]:
        """The labels whose tool ran, in the order of that, each as often as it did."""
        file = self.directory / "work" / "effects"
        return file.read_text().split() if file.exists() else []

    def told_unknown(self) -> Counter[str]:
        """How often its runtime was told that a label's tool had started, and nobody knows whether it ran.

        Then the agent alone can look whether it did; a scripted one does not, and runs it again.
        """
        told = Counter[str]()
        for transcript in (self.directory / "state").rglob("scripted/*.jsonl"):
            for line in transcript.read_text().splitlines():
                with suppress(ValueError):
                    fact = json.loads(line)
                    if fact["fact"] == "given":
                        unknown = fact["text"].partition("unknown;")[2].partition("The request was:")[0]
                        told.update(set(re.findall(r"\bL[0-9a-f]{12}\b", unknown)))
        return told


class Outside(Place):
    """A workspace that the shim did not start: it only knows its address, which is a relay's."""

    def __init__(self, name: str, root: Path, *, url: str, relay: Relay, token: str, secret: str) -> None:
        super().__init__(name, root)
        self.process = Workspace(
            root,
            ENDS,
            environ=inherited() | {"HOME": str(root)},
            settings={
                **SETTINGS,
                "WORKSPACE_ID": name,
                "WORKSPACE_URL": f"http://127.0.0.1:{relay.port}",
                "PLATFORM_URL": url,
            },
        )
        configs = root / "configs"
        configs.mkdir()
        for file, content in ((".auth_token", token), (".platform_inbound_secret", secret)):
            (configs / file).write_text(content)
            (configs / file).chmod(0o600)

    def kill(self) -> bool:
        alive = self.process.alive()
        self.process.kill_everything()
        return alive

    def kill_all(self) -> None:
        self.process.kill_everything()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.process.port)


@asynccontextmanager
async def relaying(connect: Connect) -> AsyncIterator[Relay]:
    relay = Relay(connect)
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.run)
        try:
            yield relay
        finally:
            tasks.cancel_scope.cancel()
