"""What the platform makes of the body of a call: made regular, or refused.

=====================================  =================================================
a message                              is given
=====================================  =================================================
without ``jsonrpc`` or ``id``          both; what else stood beside ``method`` is dropped
                                       where there was no ``jsonrpc``
without ``messageId``                  one of ours: sent again it is another message
without ``role``                       ``user``, in A2A 1.0 ``ROLE_USER``
with ``content`` for ``parts``         the text, or the list, as its parts
whose parts have ``type``, no ``kind`` ``kind``; in 1.0, which knows neither, none
of the canvas, without ``contextId``   ``canvas-<workspace>``
=====================================  =================================================

The canvas is who says so (``source`` is ``canvas_user``) and has no name of its own. Calls of
any other method are passed on as they are. Nothing here quotes the message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ... import wire
from ...errors import BadMessage, Refused
from ..store.contract import Message

CRITICAL, RESTART_CONTEXT, TASK, INFO = 100, 90, 50, 10
"""Priorities, as the existing platform has them."""

STREAMED = frozenset({"message/stream", "SendStreamingMessage"})
"""Methods that are answered with events."""

MODERN = frozenset({"SendMessage", "SendStreamingMessage"})
"""Methods that bring a message in A2A 1.0."""

_BRING_MESSAGES = MODERN | {"message/send", "message/stream"}

FORWARDED = ("traceparent", "tracestate", "a2a-version", "a2a-extensions")
"""Headers of a caller that its workspace is sent."""

RequestId = str | int | float | None


class BadCall(Refused):
    """No call can be read from the body."""

    def __init__(self, error: str, hint: str) -> None:
        super().__init__(error)
        self.hint = hint
        """What to send instead."""


class NotAllowed(Refused):
    """The sender may not send this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Whose call it is, as far as it matters for what may be in it."""

    identity: str | None
    """Part of a message's identity; ``None`` where nobody said who."""
    workspace_id: str | None = None
    """Of a workspace."""
    operator: bool = False
    """May speak for the platform."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, made regular."""

    method: str
    request_id: RequestId
    """What its answer carries as ``id``."""
    body: bytes
    """What the workspace is sent."""
    message: Message | None
    """To be queued; ``None``: the call is passed on."""

    @property
    def streamed(self) -> bool:
        """Whether its answer is a stream."""
        return self.method in STREAMED


def read(
    body: bytes,
    *,
    workspace_id: str,
    sender: Sender,
    headers: Mapping[str, str],
    new_id: Callable[[], str],
) -> Call:
    """Read the body of a call to a workspace.

    Args:
        headers: of the request, their names in lower case.
        new_id: makes what is missing.

    Raises:
        BadCall: with a sentence and a hint for the answer.
        NotAllowed: it is the platform's own to send.
    """
    try:
        sent = wire.read_json(body)
    except (wire.NotJson, wire.TooDeep) as error:
        raise BadCall(str(error), "send one JSON-RPC 2.0 request") from None
    if isinstance(sent, list):
        raise BadCall("batches are not taken", "send one request at a time")
    if not isinstance(sent, dict):
        raise BadCall("the body is no JSON object", "send one JSON-RPC 2.0 request")
    envelope, regular = _envelope(sent, new_id)
    method = envelope.get("method")
    if not isinstance(method, str) or not method:
        raise BadCall("method is missing, or no string", 'for a message it is "message/send"')
    message = None
    if method in _BRING_MESSAGES:
        regular &= _make_regular(envelope, method, workspace_id, sender, new_id)
        forwarded = {name: headers[name] for name in FORWARDED if name in headers}
        if method in MODERN:
            forwarded.setdefault("a2a-version", "1.0")
        body = body if regular else _encode(envelope)
        message = _message(envelope["params"], method, workspace_id, sender, forwarded, body)
    elif not regular:
        body = _encode(envelope)
    return Call(method=method, request_id=envelope["id"], body=body, message=message)


def _envelope(sent: dict[str, Any], new_id: Callable[[], str]) -> tuple[dict[str, Any], bool]:
    """Return the JSON-RPC request, and whether it came as one."""
    request_id = sent.get("id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | float | None):
        raise BadCall("id is neither a string nor a number", "leave it out, and one is made")
    if isinstance(request_id, str) and _HALF_A_PAIR.search(request_id):
        raise BadCall("id is not valid Unicode (half a surrogate pair)", "leave it out, and one is made")
    if "jsonrpc" not in sent:
        sent = {"jsonrpc": "2.0", "id": request_id} | {k: sent[k] for k in ("method", "params") if k in sent}
    elif sent["jsonrpc"] != "2.0":
        raise BadCall('jsonrpc is not "2.0"', "leave it out, or say 2.0")
    elif request_id is not None:
        return sent, True
    return {**sent, "id": request_id if request_id is not None else new_id()}, False


_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def _encode(envelope: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(envelope, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise BadCall("the body holds text that is not valid Unicode", "half a surrogate pair") from None


def _make_regular(
    envelope: dict[str, Any],
    method: str,
    workspace_id: str,
    sender: Sender,
    new_id: Callable[[], str],
) -> bool:
    """Complete the message of a call in its place; return whether there was nothing to do."""
    params = envelope.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    if not isinstance(params, dict) or not isinstance(message, dict):
        raise BadCall("params.message is missing, or no object", _EXAMPLE)
    modern, given = method in MODERN, dict(message)
    if not message.get("messageId"):
        message["messageId"] = new_id()
    if not message.get("role"):
        message["role"] = "ROLE_USER" if modern else "user"
    parts = message.get("parts")
    if not parts:
        content = message.pop("content", None)
        if isinstance(content, str):
            parts = [{"text": content} if modern else {"kind": "text", "text": content}]
        elif isinstance(content, list) and content:
            parts = content
        else:
            raise BadCall("the message has neither parts nor content", _EXAMPLE)
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise BadCall("the message's parts are no list of objects", _EXAMPLE)
    message["parts"] = [_part(part, modern) for part in parts]
    canvas = sender.identity is None and wire.from_canvas(params, None, workspace_id)
    if canvas and not message.get("contextId"):
        message["contextId"] = wire.canvas_context(workspace_id)
    return message == given


_EXAMPLE = 'as {"role": "user", "messageId": "…", "parts": [{"kind": "text", "text": "…"}]}'


def _part(part: dict[str, Any], modern: bool) -> dict[str, Any]:
    if modern and isinstance(part.get("text"), str):
        return {name: value for name, value in part.items() if name not in ("kind", "type")}
    if not modern and "type" in part and "kind" not in part:
        return {("kind" if name == "type" else name): value for name, value in part.items()}
    return part


def _message(
    params: Mapping[str, Any],
    method: str,
    workspace_id: str,
    sender: Sender,
    headers: Mapping[str, str],
    body: bytes,
) -> Message:
    try:
        sent = wire.parse_message(params)
        _check_source(params, workspace_id, sender)
        return Message(
            workspace_id=workspace_id,
            turn_key=wire.turn_key(sender.identity, sent.context_id, sent.message_id),
            content_hash=wire.content_hash(sent.raw),
            body=body,
            method=method,
            context_id=sent.context_id,
            caller=sender.identity,
            priority=_priority(params, sender),
            headers=headers,
            expires_in=wire.expires_in(params),
        )
    except BadMessage as error:
        raise BadCall(str(error), _EXAMPLE) from None


def _check_source(params: Mapping[str, Any], workspace_id: str, sender: Sender) -> None:
    """Let nobody speak as the platform, except a workspace to itself."""
    if sender.operator or sender.workspace_id == workspace_id:
        return
    if wire.source_of(params) is not None:
        raise NotAllowed(
            "metadata.source_type and metadata.kind of the platform's own turns are an operator's to send"
        )


def _priority(params: Mapping[str, Any], sender: Sender) -> int:
    """Read ``params.priority``: from 0 to 50 anybody may say, above it an operator.

    Without one, it is that of a task, or of what the platform itself says after a restart.
    """
    sent = params.get("priority")
    if sent is None:
        after_restart = wire.self_answered(params) is wire.SelfAnswered.RESTART_CONTEXT
        return RESTART_CONTEXT if after_restart and sender.operator else TASK
    if isinstance(sent, bool) or not isinstance(sent, int) or not 0 <= sent <= CRITICAL:
        raise BadCall(f"params.priority is no whole number from 0 to {CRITICAL}", f"leave it out for {TASK}")
    if sent > TASK and not sender.operator:
        raise NotAllowed(f"params.priority above {TASK} is an operator's to give")
    return sent
