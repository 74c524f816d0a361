"""Every JSON shape the halves and the platform exchange, with a message's identity.

Both halves compute ``turn_key`` and ``content_hash`` here, so a message means the same
on the platform and in the container. Facts about the existing platform's shapes are
from its own sources: the envelope of ``message/send``, and the restart signal.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn

from .errors import BadMessage

MAX_DEPTH = 64
"""Nesting above which a body is refused before anything recursive reads it."""

PLATFORM_SIGNAL_PATIENCE = 9.0
"""Seconds. The existing platform listens ten for the answer to its signal, whatever it asks for."""


def turn_key(caller: str | None, context_id: str | None, message_id: str) -> str:
    """Return a message's identity.

    Args:
        caller: who sent it, where that is authenticated.
        context_id: as sent, or ``None`` when none was.
        message_id: the sender's own id of it.
    """
    identity = json.dumps([caller, context_id or None, message_id], ensure_ascii=False)
    return hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()


def content_hash(message: Mapping[str, Any]) -> str:
    """Return the digest of what a message says, however it was serialised.

    Only ``role`` and ``parts`` count: keys are sorted, ``type`` is read as ``kind`` and
    ``mime_type`` as ``mimeType``, inline bytes count by digest, and whole numbers count
    the same as floats, because a re-serialising platform changes all of these. What is
    inside a part's ``data`` and ``metadata`` keeps its own keys.
    """
    parts = _sent_parts(message)
    content = {
        "role": _role(message.get("role")),
        "parts": [_canonical_part(part) for part in parts] if isinstance(parts, list | tuple) else parts,
    }
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        )
    ).hexdigest()


def _role(role: object) -> str:
    """Read both dialects' names of a role; a message without one is the user's."""
    return str(role or "user").removeprefix("ROLE_").lower()


_RENAMED = {
    "type": "kind",
    "mime_type": "mimeType",
    "media_type": "mimeType",
    "mediaType": "mimeType",
    "filename": "name",
    "fileWithBytes": "bytes",
    "fileWithUri": "uri",
}
_BYTES = frozenset({"bytes", "raw"})


def _sent_parts(message: Mapping[str, Any]) -> Any:
    """Return the parts; A2A 0.3 over plain HTTP calls them ``content``."""
    return message["parts"] if "parts" in message else message.get("content")


def _canonical_part(part: object) -> Any:
    """Bring one part, or the ``file`` in it, to the form that every spelling of it shares."""
    if not isinstance(part, Mapping):
        return _canonical(part)
    canonical: dict[str, Any] = {}
    for key in sorted(part):
        name, value = _RENAMED.get(key, key), part[key]
        if name != key and (name in part or name in canonical):
            name = key  # two spellings at once: two members
        if name in _BYTES and isinstance(value, str):
            value = "sha256:" + hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
        canonical[name] = _canonical_part(value) if key == "file" else _canonical(value)
    return canonical


def _canonical(value: object) -> Any:
    match value:
        case Mapping():
            return {key: _canonical(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_canonical(item) for item in value]
        case bool():
            return value
        case int() | float():
            return _number(value)
        case _:
            return value


def _number(value: float) -> float | str:
    """Read a number as a platform does that knows only floats; it drops the sign of zero too."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return str(value)


def depth(value: object, limit: int = MAX_DEPTH) -> int:
    """Return the nesting of a JSON value, counted without recursion up to ``limit + 1``."""
    level, layer = 0, [value]
    while level <= limit and (nested := [item for item in layer if isinstance(item, dict | list)]):
        level += 1
        layer = [inner for item in nested for inner in (item.values() if isinstance(item, dict) else item)]
    return level


class NotJson(ValueError):
    """A body that is no JSON in UTF-8."""


class TooDeep(ValueError):
    """A body nested deeper than :data:`MAX_DEPTH`."""


def read_json(body: bytes) -> Any:
    """Read a body from outside.

    Raises:
        NotJson: it is none.
        TooDeep: nothing recursive may read it.
    """
    deep = f"the body is nested more than {MAX_DEPTH} levels deep"
    try:
        value = _DECODER.decode(body.decode())
    except RecursionError:
        raise TooDeep(deep) from None
    except ValueError:
        raise NotJson("the body is not JSON in UTF-8") from None
    # What opens less often than that is not nested deeper: no need to walk through it.
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and depth(value) > MAX_DEPTH:
        raise TooDeep(deep)
    return value


def _no_such_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    """Read a number; one that is too large would be written as what is not JSON."""
    number = float(text)
    if number in (float("inf"), float("-inf")):
        _no_such_number(text)
    return number


_DECODER = json.JSONDecoder(parse_constant=_no_such_number, parse_float=_finite)
"""Made once, not for each of thousands of heartbeats a second."""


MAX_NAME = 512
"""Characters that a messageId, contextId or taskId may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """The message of a ``message/send`` or ``message/stream``, in either dialect."""

    message_id: str
    context_id: str | None
    """As sent."""
    task_id: str | None
    """As sent."""
    raw: Mapping[str, Any]
    """The message object, as it was sent."""
    encoded: bytes
    """The same as JSON."""


def parse_message(params: Mapping[str, Any]) -> SentMessage:
    """Read the message of a call; its parts are :func:`parse_parts`' to read.

    Raises:
        BadMessage: naming the member that is wrong, never quoting it.
    """
    message = params.get("message")
    if not isinstance(message, Mapping):
        raise BadMessage("params.message must be an object")
    message_id = _name(message, "messageId")
    if message_id is None:
        raise BadMessage("message.messageId is required: it is how a message sent twice is known")
    if message.get("role") not in (None, "user", "agent", "ROLE_USER", "ROLE_AGENT"):
        raise BadMessage("message.role must be 'user' or 'agent'")
    for where, value in (
        ("message.metadata", message.get("metadata")),
        ("params.metadata", params.get("metadata")),
        ("params.configuration", params.get("configuration")),
    ):
        if not isinstance(value, Mapping | None):
            raise BadMessage(f"{where} must be an object")
    try:
        encoded = json.dumps(message, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadMessage("message holds text that is not valid Unicode (half a surrogate pair)") from None
    return SentMessage(
        message_id=message_id,
        context_id=_name(message, "contextId"),
        task_id=_name(message, "taskId"),
        raw=message,
        encoded=encoded,
    )


def _name(message: Mapping[str, Any], key: str) -> str | None:
    """Read one of a message's identifiers; empty means none."""
    value = message.get(key)
    if not isinstance(value, str | None):
        raise BadMessage(f"message.{key} must be a string")
    if value is not None and len(value) > MAX_NAME:
        raise BadMessage(f"message.{key} is longer than {MAX_NAME} characters")
    return value or None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentText:
    """A part as sent: text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentFile:
    """A part as sent: a file named by URI or path, never fetched."""

    where: str
    """Its place in the message, for errors."""
    uri: str
    name: str
    mime_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SentBytes:
    """A part as sent: a file's bytes, as base64 text."""

    where: str
    """Its place in the message, for errors."""
    base64: str
    name: str
    mime_type: str

    def decode(self) -> bytes:
        """Return the bytes.

        Raises:
            BadMessage: it is not base64, in either alphabet, padded or not.
        """
        text = "".join(self.base64.split()).rstrip("=").replace("-", "+").replace("_", "/")
        try:
            return b64decode(text + "=" * (-len(text) % 4), validate=True)
        except ValueError:
            raise BadMessage(f"{self.where} brings bytes that are not base64") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SentData:
    """A part as sent: structured data."""

    value: Any


SentPart = SentText | SentFile | SentBytes | SentData


def parse_parts(message: Mapping[str, Any]) -> tuple[SentPart, ...]:
    """Read the parts of a message in either dialect, as the existing platform sends them too.

    Raises:
        BadMessage: naming the part by position and kind, never quoting it.
    """
    parts = _sent_parts(message)
    if not isinstance(parts, list) or not parts:
        raise BadMessage("message.parts must be a list with at least one part")
    return tuple(_part(part, f"message.parts[{number}]") for number, part in enumerate(parts))


def _part(part: object, where: str) -> SentPart:
    if not isinstance(part, Mapping):
        raise BadMessage(f"{where} must be an object")
    if isinstance(part.get("text"), str):
        return SentText(text=part["text"])
    file = part["file"] if isinstance(part.get("file"), Mapping) else part
    name = str(_first(file, "name", "filename") or _first(part, "name", "filename") or "file")
    mime_type = str(
        _first(file, "mimeType", "mime_type", "mediaType", "media_type")
        or _first(part, "mimeType", "mime_type", "mediaType", "media_type")
        or "application/octet-stream"
    )
    for key in ("bytes", "raw", "fileWithBytes"):
        if isinstance(file.get(key), str):
            return SentBytes(where=where, base64=file[key], name=name, mime_type=mime_type)
    for key in ("uri", "url", "fileWithUri"):
        if isinstance(file.get(key), str):
            return SentFile(where=where, uri=file[key], name=name, mime_type=mime_type)
    if "data" in part:
        return SentData(value=part["data"])
    kind = str(part.get("kind") or part.get("type") or "none")
    shown = kind if re.fullmatch(r"[a-z_-]{1,20}", kind) else "unknown"
    raise BadMessage(f"{where} has no text, file or data this workspace can use (its kind: {shown})")


def _first(mapping: Mapping[str, Any], *keys: str) -> Any:
    return next((mapping[key] for key in keys if mapping.get(key)), None)


def source_of(params: Mapping[str, Any]) -> str | None:
    """Return ``source_type`` of a message of the platform's own making.

    The existing platform puts it in the params' or in the message's metadata, and all
    its values start with ``self-``.
    """
    for metadata in _metadata(params):
        source = metadata.get("source_type")
        if isinstance(source, str) and source.startswith("self-"):
            return source
    kind = self_answered(params)
    return None if kind is None else _SOURCES[kind]


class SelfAnswered(StrEnum):
    """A message of the platform's own that the workspace answers without its agent."""

    RESTART_CONTEXT = "restart_context"  #: what a restart changed
    STALL_PROBE = "stall_probe"  #: are you stuck?


_SOURCES = {
    SelfAnswered.RESTART_CONTEXT: "self-restart-context",
    SelfAnswered.STALL_PROBE: "self-stall",
}


def self_answered(params: Mapping[str, Any]) -> SelfAnswered | None:
    """Return which message of that kind this is, if it is one.

    The existing platform says so in ``kind`` of the message's metadata.
    """
    for metadata in _metadata(params):
        kind = metadata.get("kind")
        for known, source in _SOURCES.items():
            if kind == known or metadata.get("source_type") == source:
                return known
    return None


def from_canvas(params: Mapping[str, Any], context_id: str | None, workspace_id: str) -> bool:
    """Whether a message is of the user of the platform's canvas, whom ``/notify`` reaches.

    The existing platform says so, or gives it the context ``canvas-<workspace>``, where
    its own turns are as well.
    """
    sources = {str(metadata.get("source")) for metadata in _metadata(params)}
    if source_of(params) is not None or self_answered(params) is not None or "platform" in sources:
        return False
    return "canvas_user" in sources or context_id == canvas_context(workspace_id)


def canvas_context(workspace_id: str) -> str:
    """Return the context of a workspace's conversation with the user of the canvas."""
    return f"canvas-{workspace_id}"


def _metadata(params: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    message = params.get("message")
    for holder in (params, message if isinstance(message, Mapping) else {}):
        if isinstance(metadata := holder.get("metadata"), Mapping):
            yield metadata


def expires_in(params: Mapping[str, Any]) -> float | None:
    """Return the sender's own time limit for a waiting message, in seconds; ``None``: for ever.

    What is no positive number is read as none, as the existing platform does.
    """
    value = params.get("expires_in_seconds")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Not a number and infinity fail the comparison, as what is too far away to matter does.
    return float(value) if 0 < value < 1e10 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartSignal:
    """``POST /signals/restart_pending``, as either platform sends it."""

    request_id: str | int | None
    workspace_id: str | None
    patience: float
    """Seconds the caller listens for the acknowledgement."""


class BadSignal(ValueError):
    """A restart signal that is malformed; says what is wrong with it."""


def parse_restart_signal(body: object) -> RestartSignal:
    """Read a restart signal.

    The existing platform sends ``drain_seconds`` (20) and listens 10 s; ours sends
    ``deadline_ms`` and listens that long.

    Raises:
        BadSignal: with a sentence for the answer.
    """
    if not isinstance(body, Mapping):
        raise BadSignal("the body must be a JSON-RPC object")
    if body.get("method") != "signals/restart_pending":
        raise BadSignal("method must be 'signals/restart_pending'")
    params = body.get("params", {})
    if not isinstance(params, Mapping):
        raise BadSignal("params must be an object")
    workspace_id = params.get("workspace_id")
    if workspace_id is not None and not isinstance(workspace_id, str):
        raise BadSignal("params.workspace_id must be a string")
    request_id = body.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | None):
        raise BadSignal("id must be a string, a number or null")
    if "deadline_ms" in params:
        patience = _duration(params["deadline_ms"], "deadline_ms") / 1000
    else:
        patience = min(
            _duration(params.get("drain_seconds", PLATFORM_SIGNAL_PATIENCE), "drain_seconds"),
            PLATFORM_SIGNAL_PATIENCE,
        )
    return RestartSignal(request_id=request_id, workspace_id=workspace_id, patience=patience)


def restart_pending(workspace_id: str, restart_id: str, *, drain: float) -> dict[str, Any]:
    """Build the signal that our own platform sends.

    Args:
        drain: seconds that its acknowledgement is waited for.
    """
    return {
        "jsonrpc": "2.0",
        "method": "signals/restart_pending",
        "params": {
            "drain_seconds": math.ceil(drain),
            "deadline_ms": round(drain * 1000),
            "workspace_id": workspace_id,
            "restart_id": restart_id,
        },
        "id": restart_id,
    }


def _duration(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise BadSignal(f"params.{name} must be a number that is not negative")
    return float(value)


def rpc_result(request_id: str | int | None, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON-RPC answer."""
    return {"jsonrpc": "2.0", "id": request_id, "result": dict(result)}


def rpc_error(
    request_id: str | int | None, code: int, message: str, *, data: object = None
) -> dict[str, Any]:
    """Return a JSON-RPC error."""
    error: dict[str, Any] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return {"jsonrpc": "2.0", "id": request_id, "error": error}


def restarting(retry_after: int) -> dict[str, Any]:
    """The body of the 502 that every held request gets when the stop comes.

    It is the one answer on which the existing platform retries with the same id.
    """
    return {
        "error": "workspace restarting; the message is kept: send it again",
        "restarting": True,
        "retry_after": retry_after,
    }


def busy(error: str, retry_after: int, *, taken: bool = False) -> dict[str, Any]:
    """The body of a 503: no room (nothing was kept), or held too long (``taken``)."""
    body: dict[str, Any] = {"error": error, "busy": True, "retry_after": retry_after}
    if taken:
        body["taken"] = True
    return body


# --- what a workspace tells its platform ------------------------------------------------

WEDGED = "wedged"
"""The one ``runtime_state`` beside the empty, healthy one."""

CAPABILITIES = (
    "heartbeat",
    "scheduler",
    "session",
    "status_mgmt",
    "retry",
    "activity_decoration",
    "channel_dispatch",
)
"""Features that the existing platform leaves to a workspace that declares them. Ours declares none."""


class BadBody(ValueError):
    """A registration or heartbeat that is malformed; says which member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """``POST /registry/register``."""

    workspace_id: str
    url: str
    """Where the workspace is called; paths are appended to it as it stands, so no slash at its end."""
    agent_card: Mapping[str, Any]
    delivery_mode: str = "push"
    boot_id: str = ""
    """Ours: which life of the workspace speaks. The existing platform ignores it."""

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.workspace_id,
            "url": self.url,
            "agent_card": dict(self.agent_card),
            "delivery_mode": self.delivery_mode,
            "boot_id": self.boot_id,
        }


def parse_registration(body: object) -> Registration:
    """Read a registration.

    Raises:
        BadBody: naming the member that is wrong.
    """
    given = _object(body)
    card = _member(given, "agent_card", dict, {})
    return Registration(
        workspace_id=_required(given, "id"),
        url=str(_member(given, "url", str, "") or card.get("url") or "").rstrip("/"),
        agent_card=card,
        delivery_mode=_member(given, "delivery_mode", str, "") or "push",
        boot_id=_member(given, "boot_id", str, ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """``POST /registry/heartbeat``: all of it each time, since what is absent counts as taken back."""

    workspace_id: str
    active_tasks: int = 0
    """Turns running now; :data:`.queueing.NO_ROOM` more while nothing may start."""
    is_busy: bool = False
    current_task: str = ""
    error_rate: float = 0.0
    """0 to 1, of the turns that ended lately."""
    sample_error: str = ""
    """The latest failure, or why it is wedged; empty clears what the platform shows."""
    uptime_seconds: int = 0
    runtime_state: str = ""
    """``""`` or :data:`WEDGED`."""
    capabilities: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(CAPABILITIES, False))
    idle_timeout_seconds: int | None = None
    """How long the platform should let a call of ours be silent."""
    agent_card: Mapping[str, Any] = field(default_factory=dict)
    observed_generation: int | None = None
    """The ``generation`` of the last reply."""
    boot_id: str = ""
    """Ours, as the rest below: which life of the workspace speaks."""
    state: str = ""
    """The drain's state."""
    waiting: int = 0
    """Turns that wait to start."""
    version: str = ""

    def as_json(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {"capabilities": dict(self.capabilities)}
        if self.idle_timeout_seconds is not None:
            metadata["idle_timeout_seconds"] = self.idle_timeout_seconds
        return {
            "workspace_id": self.workspace_id,
            "active_tasks": self.active_tasks,
            "is_busy": self.is_busy,
            "current_task": self.current_task,
            "error_rate": self.error_rate,
            "sample_error": self.sample_error,
            "uptime_seconds": self.uptime_seconds,
            "runtime_state": self.runtime_state,
            "runtime_metadata": metadata,
            "agent_card": dict(self.agent_card),
            "observed_generation": self.observed_generation,
            "boot_id": self.boot_id,
            "state": self.state,
            "waiting": self.waiting,
            "version": self.version,
        }


def parse_heartbeat(body: object) -> dict[str, Any]:
    """Read a heartbeat, also of a runtime that is not ours.

    Returns the members of :class:`Heartbeat` that it has; one that is ``null`` counts as absent.

    Raises:
        BadBody: naming the member that is wrong.
    """
    given = _object(body)
    said = {}
    # One pass and no object for each of thousands a second.
    for name, kinds in _BEAT.items():
        if (value := given.get(name)) is not None:
            if type(value) not in kinds:
                raise BadBody(f"{name} is of the wrong type")
            said[name] = value
    if not said.get("workspace_id"):
        raise BadBody("workspace_id is required")
    metadata = said.get("runtime_metadata", {})
    _member(metadata, "capabilities", dict, {})
    _member(metadata, "idle_timeout_seconds", int, None)
    return said


_BEAT: Mapping[str, tuple[type, ...]] = {
    "workspace_id": (str,),
    "active_tasks": (int,),
    "is_busy": (bool,),
    "current_task": (str,),
    "error_rate": (float, int),
    "sample_error": (str,),
    "uptime_seconds": (int, float),
    "runtime_state": (str,),
    "runtime_metadata": (dict,),
    "agent_card": (dict,),
    "observed_generation": (int,),
    "boot_id": (str,),
    "state": (str,),
    "waiting": (int,),
    "version": (str,),
}
"""The members of a heartbeat, and what JSON makes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatReply:
    """What a platform answers to a registration or heartbeat, its secrets apart."""

    generation: int | None = None
    """The existing platform's: sent back as ``observed_generation``."""
    queue_depth: int | None = None
    """Ours, as the rest below: messages that wait on the platform."""
    max_concurrent_tasks: int | None = None
    require_auth: bool | None = None
    """Whether the workspace must refuse what carries no bearer."""

    def as_json(self) -> dict[str, Any]:
        members = {
            "generation": self.generation,
            "queue_depth": self.queue_depth,
            "max_concurrent_tasks": self.max_concurrent_tasks,
            "require_auth": self.require_auth,
        }
        return {name: value for name, value in members.items() if value is not None}


def parse_beat_reply(body: Mapping[str, Any]) -> BeatReply:
    """Read a reply; what makes no sense in it counts as not said."""

    def number(name: str) -> int | None:
        value = body.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    require_auth = body.get("require_auth")
    return BeatReply(
        generation=number("generation"),
        queue_depth=number("queue_depth"),
        max_concurrent_tasks=number("max_concurrent_tasks"),
        require_auth=require_auth if isinstance(require_auth, bool) else None,
    )


def moment(at: float) -> str:
    """Write UTC epoch seconds as peers read a time (RFC 3339)."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _object(body: object) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise BadBody("the body must be a JSON object")
    return body


def _required(body: Mapping[str, Any], name: str) -> str:
    value: str = _member(body, name, str, "")
    if not value:
        raise BadBody(f"{name} is required")
    return value


def _member(body: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """Read one member; absent and ``null`` are the same."""
    value = body.get(name)
    if value is None:
        return default
    if type(value) is kind:  # mostly; the rest takes longer
        return value
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BadBody(f"{name} is of the wrong type")
    return value
