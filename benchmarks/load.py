"""Callers who send messages to an A2A server and wait for each answer.

``python -m benchmarks.load PORT DIALECT CALLERS SECONDS [PATH BEARER]``, a process of its own. Each caller
keeps one connection and one conversation. One loop over sockets and no library, so that it costs a small
part of what any server does; it prints as JSON how many were answered, in how long, the processor's time
that took, how long each waited, and after how long its message came to a workspace that says so.
The dialect ``get`` asks for a task instead.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from uuid import uuid4

DIALECTS = ("0.3", "1.0")


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it."""

    answered: int
    seconds: float
    cpu: float
    """Seconds of the callers' own process."""
    waits: list[float] = field(default_factory=list)
    """Seconds, of each answer."""
    ways: list[float] = field(default_factory=list)
    """Seconds until each message came to a workspace that notes it."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    @property
    def busy(self) -> float:
        """The part of the time in which the callers themselves were at work, in percent."""
        return 100 * self.cpu / self.seconds


class Caller:
    """One connection, one conversation."""

    def __init__(self, port: int, dialect: str, path: str = "/", bearer: str = "") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._dialect = dialect
        self._path = path
        self._bearer = f"Authorization: Bearer {bearer}\r\n" if bearer else ""
        self._context = str(uuid4())
        self._said = ""
        self._heard = b""

    def send(self) -> None:
        """Send a message that nobody sent before."""
        self._said = uuid4().hex
        old = self._dialect != "1.0"
        part = {"kind": "text", "text": self._said} if old else {"text": self._said}
        message = {
            "role": "user" if old else "ROLE_USER",
            "messageId": self._said,
            "contextId": self._context,
            "parts": [part],
        }
        method = "message/send" if old else "SendMessage"
        call = {"jsonrpc": "2.0", "id": self._said, "method": method, "params": {"message": message}}
        if self._dialect == "get":
            call |= {"method": "tasks/get", "params": {"id": self._said}}
        body = json.dumps(call).encode()
        version = "" if old else "A2A-Version: 1.0\r\n"
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"{version}{self._bearer}Content-Length: {len(body)}\r\n\r\n"
        )
        self.sent = time.monotonic()
        self.socket.sendall(head.encode() + body)

    def hear(self) -> bool:
        """Read what has come; return whether the answer is whole.

        Raises:
            RuntimeError: it is not the answer.
        """
        data = self.socket.recv(65536)
        self._heard += data
        head, whole, body = self._heard.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if data and (not whole or len(body) < int(length)):
            return False
        # Beside the id of the request, which is the same.
        if not head.startswith(b"HTTP/1.1 200") or body.count(self._said.encode()) < 2:
            raise RuntimeError(f"no answer: {self._heard.decode(errors='replace')}")
        self._heard = b""
        came = body.partition(b'"came": ')[2].partition(b"}")[0]
        self.way = float(came) - self.sent if came else None
        return True


def load(port: int, dialect: str, callers: int, seconds: float, path: str = "/", bearer: str = "") -> Load:
    """Send for so long; what was begun is waited for and counted."""
    selector = selectors.DefaultSelector()
    for _ in range(callers):
        caller = Caller(port, dialect, path, bearer)
        selector.register(caller.socket, selectors.EVENT_READ, caller)
    began, cpu, answered = time.perf_counter(), time.process_time(), 0
    for key in tuple(selector.get_map().values()):
        key.data.send()
    waiting = callers
    waits: list[float] = []
    ways: list[float] = []
    while waiting:
        if not (ready := selector.select(30)):
            raise RuntimeError(f"{waiting} callers were not answered within 30 s")
        for key, _ in ready:
            if not key.data.hear():
                continue
            answered += 1
            waits.append(time.monotonic() - key.data.sent)
            if key.data.way is not None:
                ways.append(key.data.way)
            if time.perf_counter() - began < seconds:
                key.data.send()
            else:
                waiting -= 1
    done = Load(answered, time.perf_counter() - began, time.process_time() - cpu, waits, ways)
    for key in tuple(selector.get_map().values()):
        key.data.socket.close()
    return done


def load_from_outside(
    port: int, dialect: str, callers: int, seconds: float, path: str = "/", bearer: str = ""
) -> Load:
    """Have another process do that.

    Raises:
        RuntimeError: a message was not answered.
    """
    command = [sys.executable, "-m", "benchmarks.load", str(port), dialect, str(callers), str(seconds)]
    command += [path, bearer]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise RuntimeError(f"the callers failed: {done.stderr}")
    return Load(*json.loads(done.stdout))


if __name__ == "__main__":
    given = load(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
    print(json.dumps([given.answered, given.seconds, given.cpu, given.waits, given.ways]))
