"""What a platform does on a bad day: one fault at a time, on all calls of a workspace or on some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from starlette.types import Message, Receive, Send


class How(StrEnum):
    """What becomes of a request."""

    ANSWER = "answered wrongly"
    LATE = "answered properly, late"
    SILENCE = "never answered"
    RESET = "reset, before a byte of the answer"
    CUT = "reset, in the middle of the answer"
    REFUSED = "refused: nobody listens"


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail."""

    how: How
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @classmethod
    def answer(
        cls, status: int, body: bytes = b'{"error":"a fault"}', headers: Mapping[str, str] | None = None
    ) -> Self:
        """Answer with a status; as JSON, unless the headers say otherwise."""
        return cls(How.ANSWER, status, body, {"content-type": "application/json", **(headers or {})})

    @classmethod
    def too_many(cls, retry_after: float) -> Self:
        """Answer 429 as the platform's rate limit does."""
        limit = {"X-RateLimit-Limit": "600", "X-RateLimit-Remaining": "0", "Retry-After": f"{retry_after:g}"}
        return cls.answer(429, b'{"error":"rate limit exceeded"}', limit)

    @classmethod
    def html(cls, status: int = 200) -> Self:
        """Answer with a page, as a gateway in front of the platform does."""
        page = b"<!doctype html><html><body><h1>We will be back soon</h1></body></html>"
        return cls.answer(status, page, {"content-type": "text/html"})

    @classmethod
    def truncated(cls) -> Self:
        """Answer with half of a JSON object."""
        return cls.answer(200, b'{"status":"regis')

    @classmethod
    def wrong_types(cls) -> Self:
        """Answer with JSON whose members are of other types than they should be."""
        body = b'{"status":1,"generation":"two","auth_token":{"a":[]},"platform_inbound_secret":42}'
        return cls.answer(200, body)

    @classmethod
    def not_an_object(cls) -> Self:
        """Answer with JSON that is a list."""
        return cls.answer(200, b"[null]")

    @classmethod
    def empty(cls, status: int = 200) -> Self:
        """Answer without a body."""
        return cls.answer(status, b"")

    @classmethod
    def late(cls, seconds: float) -> Self:
        """Take the request at once and answer it properly, after so many seconds."""
        return cls(How.LATE, seconds=seconds)

    @classmethod
    def silence(cls) -> Self:
        """Read the request and never answer."""
        return cls(How.SILENCE)

    @classmethod
    def reset(cls) -> Self:
        """Reset the connection when the request has been read."""
        return cls(How.RESET)

    @classmethod
    def cut(cls) -> Self:
        """Reset the connection in the middle of a proper-looking answer."""
        return cls(How.CUT, body=b'{"status":"ok","generation":1', headers={"content-length": "4096"})

    @classmethod
    def refused(cls) -> Self:
        """Have nobody listen: the only fault that also meets whoever else calls the platform."""
        return cls(How.REFUSED)


@dataclass(slots=True)
class Faults:
    """The fault of the moment."""

    fault: Fault | None = None
    on: str = ""
    """End of the path it is for; empty means every call of a workspace."""
    times: int | None = None
    """How many requests it still hits; ``None`` means until it is taken away."""
    hit: int = 0
    """Requests hit since the last one was set."""

    def set(self, fault: Fault | None, on: str, times: int | None) -> None:
        """Fail like this from now on."""
        self.fault, self.on, self.times, self.hit = fault, on, times, 0

    def take(self, path: str) -> Fault | None:
        """Return the fault for a request, and count it."""
        if self.fault is None or not path.endswith(self.on) or self.times == 0:
            return None
        self.hit += 1
        if self.times is not None:
            self.times -= 1
        return self.fault


async def send_answer(fault: Fault, send: Send) -> None:
    """Write what a fault answers."""
    headers = [(name.lower().encode(), value.encode()) for name, value in fault.headers.items()]
    if not any(name == b"content-length" for name, _ in headers):
        headers.append((b"content-length", str(len(fault.body)).encode()))
    start: Message = {"type": "http.response.start", "status": fault.status, "headers": headers}
    await send(start)
    await send({"type": "http.response.body", "body": fault.body, "more_body": fault.how is How.CUT})


async def until_gone(receive: Receive) -> None:
    """Wait until the client has given up."""
    while (await receive())["type"] != "http.disconnect":
        pass
