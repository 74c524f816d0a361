"""SSE between workspace and caller: read, told apart, renumbered.

Pure: bytes come in, bytes go out. A stream is kept event by event while it lasts; the
event that ends it is no part of that but the item's answer, so a workspace that says
"failed, try again" can be asked again before its caller hears of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import wire
from ..errors import WorkspaceAdapterError
from ..queueing import Lost, Reply

CONTENT_TYPE = "text/event-stream"
KEEP_ALIVE = b": still here\n\n"
"""A comment, for whatever is between us and the caller and ends what is silent."""

LIMIT = 64 * 1024 * 1024
"""Bytes that one event of a workspace may have."""


class StreamTooLarge(WorkspaceAdapterError):
    """A workspace sent an event larger than the limit."""


# --- from bytes to events and back ----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """One event as a workspace sent it."""

    data: bytes
    id: str | None
    """Its own, not one that an event before it had."""


_LINE_END = re.compile(rb"\r\n|\n|\r")


class Parser:
    """Takes the bytes of a stream as they come, and gives its events as they are whole."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._size = 0
        self._data: list[bytes] = []
        self._id: str | None = None

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that are whole now.

        Raises:
            StreamTooLarge: the next one exceeds the limit.
        """
        self._rest += chunk
        events = [event for line in self._lines(chunk) if (event := self._take(line)) is not None]
        if self._size + len(self._rest) > self._limit:
            raise StreamTooLarge(f"an event of the stream is larger than {self._limit} bytes")
        return events

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        """Give the lines that are whole; a CR at the very end may be the half of a CRLF."""
        if b"\n" not in chunk and b"\r" not in chunk and b"\r" not in self._rest[-len(chunk) - 1 :]:
            return
        start = 0
        for end in _LINE_END.finditer(self._rest):
            if end.group() == b"\r" and end.end() == len(self._rest):
                break
            yield bytes(self._rest[start : end.start()])
            start = end.end()
        del self._rest[:start]

    def _take(self, line: bytes) -> Event | None:
        if not line:
            event = Event(b"\n".join(self._data), self._id) if self._data else None
            self._data, self._id, self._size = [], None, 0
            return event
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        return None


def encode(data: bytes, number: int | None = None) -> bytes:
    """Write an event; with a number, it is where the caller may go on."""
    head = b"" if number is None else b"id: %d\n" % number
    if b"\n" not in data and b"\r" not in data:
        return b"%bdata: %b\n\n" % (head, data)
    return head + b"".join(b"data: %b\n" % line for line in _LINE_END.split(data)) + b"\n"


_HEAD = 4096
_MEMBER = re.compile(r"[ \t\r\n]*([{,])[ \t\r\n]*(?=\")")
_COLON = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_read_value = json.JSONDecoder().raw_decode


def with_request_id(body: bytes, request_id: str | int | float | None) -> bytes:
    """Return a JSON-RPC answer with this ``id`` in the place of its own, all else to the byte.

    What is no JSON object, or has no ``id``, stays as it is.
    """
    for text in (body[:_HEAD].decode(errors="ignore"), None):  # mostly it is at the head of a large answer
        try:
            span = _span_of_id(body.decode() if text is None else text)
        except (ValueError, RecursionError):
            continue
        if span is not None:
            break
    else:
        return body
    start, end, found = span
    if found == request_id and type(found) is type(request_id):
        return body
    text = body.decode() if text is None else text
    at, behind = len(text[:start].encode()), len(text[:end].encode())
    return body[:at] + json.dumps(request_id).encode() + body[behind:]


def _span_of_id(text: str) -> tuple[int, int, Any] | None:
    """Find the value of the outermost ``id``; what stands behind it is not read."""
    place, opening = 0, "{"
    while (member := _MEMBER.match(text, place)) is not None and member[1] == opening:
        key, place = _read_value(text, member.end())
        colon = _COLON.match(text, place)
        if colon is None:
            return None
        value, place = _read_value(text, start := colon.end())
        if key == "id":
            return start, place, value
        opening = ","
    return None


# --- what a workspace's stream says ---------------------------------------------------

_ENDED = frozenset({"completed", "failed", "canceled", "rejected"})
_WAITS = frozenset({"input-required", "auth-required"})


def _state(status: object) -> str:
    """Read both dialects' names of a task's state."""
    state = status.get("state") if isinstance(status, Mapping) else None
    return str(state or "").removeprefix("TASK_STATE_").lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class _Said:
    """What one event is, in either dialect."""

    kind: str = ""
    """``task``, ``message``, ``status-update``, ``artifact-update``, ``error``; empty: none of these."""
    modern: bool = False
    """It is written in A2A 1.0."""
    body: Mapping[str, Any] | None = None
    """What is beneath ``result``."""

    @property
    def ends(self) -> bool:
        """Whether nothing follows it."""
        body = self.body or {}
        if self.kind == "status-update":
            return body.get("final") is True or (self.modern and _state(body.get("status")) in _ENDED)
        return self.kind in ("message", "error")

    @property
    def may_end(self) -> bool:
        """Whether a stream that closes behind it is whole."""
        told = self.kind in ("task", "status-update")
        return self.ends or (told and _state((self.body or {}).get("status")) in _ENDED | _WAITS)

    @property
    def task_id(self) -> str | None:
        """Of the task that the event tells of."""
        body = self.body or {}
        task_id = body.get("id" if self.kind == "task" else "taskId")
        return task_id if isinstance(task_id, str) else None

    def working(self, text: str, name: str, now: float) -> bytes:
        """Write a status event of the same task, in the same dialect."""
        task = {"taskId": self.task_id, "contextId": (self.body or {}).get("contextId")}
        part, role, state = {"kind": "text", "text": text}, "agent", "working"
        if self.modern:
            part, role, state = {"text": text}, "ROLE_AGENT", "TASK_STATE_WORKING"
        message = {"messageId": f"{self.task_id}-{name}", "role": role, "parts": [part], **task}
        status: dict[str, Any] = {"state": state, "message": message, "timestamp": wire.moment(now)}
        event: dict[str, Any] = {**task, "status": status, "metadata": {"restarting": True}}
        if self.modern:
            result: dict[str, Any] = {"statusUpdate": event}
        else:
            message["kind"] = "message"
            result = {"kind": "status-update", "final": False, **event}
        return json.dumps({"jsonrpc": "2.0", "id": None, "result": result}, ensure_ascii=False).encode()

    @property
    def pauses(self) -> bool | None:
        """Of an event by which a workspace of ours ends a stream whose turn goes on: whether it restarts."""
        metadata = (self.body or {}).get("metadata") if self.kind == "status-update" else None
        restarting = metadata.get("restarting") if isinstance(metadata, Mapping) else None
        return restarting if isinstance(restarting, bool) and not self.may_end else None


_MODERN = {
    "task": "task",
    "message": "message",
    "statusUpdate": "status-update",
    "artifactUpdate": "artifact-update",
}


def _read(data: bytes) -> _Said:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return _Said()
    if not isinstance(event, Mapping):
        return _Said()
    if isinstance(event.get("error"), Mapping):
        return _Said("error")
    result = event.get("result")
    if not isinstance(result, Mapping):
        return _Said()
    if isinstance(kind := result.get("kind"), str):
        return _Said(kind, body=result)
    for name, kind in _MODERN.items():
        if isinstance(body := result.get(name), Mapping):
            return _Said(kind, modern=True, body=body)
    return _Said()


class Reading:
    """One stream of a workspace while it is read.

    Args:
        after: the cursor that was sent as ``Last-Event-ID``. The Task by which the workspace
            says that it goes on behind it was told before, and is left out.
    """

    def __init__(self, *, after: str | None = None, limit: int = LIMIT) -> None:
        self._parser = Parser(limit)
        self._after = after
        self._first = True
        self._withheld: Event | None = None
        self._paused: bool | None = None
        self._told: _Said | None = None
        self.cursor: str | None = None
        """Of the last event that was returned."""
        self.ended = False
        """Nothing more is to be read: the event that ends it came, or one that says it is paused."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take what came; return the data of the events that are to be kept now.

        An event that may end the stream is withheld until another follows it.

        Raises:
            StreamTooLarge: one event exceeds the limit.
        """
        kept: list[bytes] = []
        for event in self._parser.feed(chunk):
            if self.ended:
                break
            said = _read(event.data)
            first, self._first = self._first, False
            if said.kind == "task" and first and self._after is not None and event.id == self._after:
                self._told = said
                continue
            if self._withheld is not None:
                self._keep(self._withheld, kept)
                self._withheld = None
            if said.pauses is not None:
                self._paused, self.ended = said.pauses, True
                continue
            if said.task_id is not None:
                self._told = said
            self.ended = said.ends
            if said.may_end:
                self._withheld = event
            else:
                self._keep(event, kept)
        return kept

    def _keep(self, event: Event, kept: list[bytes]) -> None:
        kept.append(event.data)
        self.cursor = event.id or self.cursor

    @property
    def answer(self) -> bytes | None:
        """The event that ended the stream, once it has ended."""
        return None if self._withheld is None else self._withheld.data

    def outcome(self) -> Reply | Lost:
        """Say what a stream that is over came to."""
        if self.answer is not None:
            body = json.loads(self.answer)
            return Reply(status=200, body=body if isinstance(body, Mapping) else None)
        if self._paused is None:
            return Lost.CUT
        if self._paused:
            return Reply(status=502, body={"restarting": True})
        return Reply(status=503, body={"busy": True, "taken": True})

    def interruption(self, text: str, *, now: float) -> bytes | None:
        """Return a status event that says why it goes on later.

        It is to be kept like an event of the workspace's, once each time a stream breaks off. There is
        none where no task is known yet, or only the workspace's patience with us was over.

        Args:
            now: UTC epoch seconds.
        """
        return (
            None
            if self._told is None or self._paused is False
            else self._told.working(text, f"{self.cursor}-pause", now)
        )


def interruption(event: bytes, text: str, *, now: float) -> bytes | None:
    """Return the same for a stream of which this event is known."""
    said = _read(event)
    return None if said.task_id is None else said.working(text, f"{round(now * 1000)}-pause", now)


def whole(events: Iterable[bytes], answer: bytes) -> bytes:
    """Return what a stream amounts to, for who asks for its message without one: the Task, or the Message.

    Args:
        events: those that were kept.
        answer: the one that ended it.
    """
    task: dict[str, Any] = {}
    artifacts: dict[str, dict[str, Any]] = {}
    said = _read(answer)
    for told in (*map(_read, events), said):
        body = dict(told.body or {})
        if told.kind == "task":
            task = body
            artifacts = {
                str(artifact.get("artifactId")): artifact for artifact in body.get("artifacts") or ()
            }
        elif told.kind == "status-update":
            task = {"id": body.get("taskId"), "contextId": body.get("contextId"), **task}
            task["status"] = body.get("status")
            if isinstance(metadata := body.get("metadata"), Mapping):
                task["metadata"] = metadata
        elif told.kind == "artifact-update" and isinstance(artifact := body.get("artifact"), Mapping):
            name = str(artifact.get("artifactId"))
            before = artifacts.get(name, {}).get("parts") if body.get("append") is True else None
            artifacts[name] = {**artifact, "parts": _joined(before or [], artifact.get("parts") or [])}
    if not task or said.kind in ("message", "error"):
        return answer
    task["artifacts"] = list(artifacts.values())
    result = {"task": task} if said.modern else {**task, "kind": "task"}
    return json.dumps({"jsonrpc": "2.0", "id": None, "result": result}, ensure_ascii=False).encode()


def _joined(before: list[Any], parts: list[Any]) -> list[Any]:
    """Append parts to those of the same artifact; text goes on in the part it began in."""
    last, first = (before or [None])[-1], (parts or [None])[0]
    texts = [part.get("text") if isinstance(part, dict) else None for part in (last, first)]
    if isinstance(texts[0], str) and isinstance(texts[1], str) and last.keys() == first.keys():
        return [*before[:-1], {**last, "text": texts[0] + texts[1]}, *parts[1:]]
    return [*before, *parts]
