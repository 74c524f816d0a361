"""The envelopes that reach a workspace: a caller's, made regular, or the platform's own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

SYSTEM = "system:"
"""How the names of callers begin that are the platform itself."""


class Unusable(ValueError):
    """No message can be read from what a caller sent."""


def normalised(sent: Mapping[str, Any], *, canvas_of: str | None) -> dict[str, Any]:
    """Return the envelope that the platform makes of a caller's body.

    Args:
        canvas_of: the workspace's id where the caller is a person's canvas.

    Raises:
        Unusable: the message has neither parts nor content, or parts that are no list.
    """
    body = dict(sent)
    if "jsonrpc" not in body:
        wrapped = {"jsonrpc": "2.0", "id": str(uuid.uuid4())}
        body = wrapped | {name: body[name] for name in ("method", "params") if name in body}
    params = body.get("params")
    if not isinstance(params, dict) or not isinstance(params.get("message"), dict):
        return body
    message = dict(params["message"])
    body["params"] = {**params, "message": message}
    message["messageId"] = message.get("messageId") or str(uuid.uuid4())
    message["role"] = message.get("role") or "user"
    if not message.get("parts"):
        content = message.pop("content", None)
        if isinstance(content, str):
            message["parts"] = [{"kind": "text", "text": content}]
        elif isinstance(content, list):
            message["parts"] = content
        else:
            raise Unusable("params.message has neither parts nor content")
    if not isinstance(message["parts"], list):
        raise Unusable("params.message.parts is not a list")
    message["parts"] = [_part(part) for part in message["parts"]]
    if canvas_of is not None and not message.get("contextId"):
        message["contextId"] = canvas_context(canvas_of)
    return body


def _part(part: Any) -> Any:
    if isinstance(part, dict) and "type" in part and "kind" not in part:
        return {("kind" if name == "type" else name): value for name, value in part.items()}
    return part


def canvas_context(workspace_id: str) -> str:
    """Name the one conversation a workspace has with its canvas."""
    return f"canvas-{workspace_id}"


def message_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message of an envelope; empty when it has none."""
    params = body.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    return message if isinstance(message, dict) else {}


def self_turn(workspace_id: str, source_type: str, text: str, *, kind: str | None = None) -> dict[str, Any]:
    """Build a turn that the platform asks for itself."""
    metadata = {"source_type": source_type} | ({"kind": kind} if kind else {})
    return {
        "jsonrpc": "2.0",
        "id": str(uuid.uuid4()),
        "method": "message/send",
        "params": {
            "message": {
                "role": "user",
                "messageId": str(uuid.uuid4()),
                "contextId": canvas_context(workspace_id),
                "parts": [{"kind": "text", "text": text}],
                "metadata": metadata,
            },
            "metadata": {"source": "platform", "source_type": source_type},
        },
    }


def restart_context(workspace_id: str, *, ended_seconds_ago: float) -> dict[str, Any]:
    """Build the turn that tells an agent of the restart behind it."""
    now = datetime.now(UTC)
    ended = now - timedelta(seconds=ended_seconds_ago)
    text = (
        "=== WORKSPACE RESTART CONTEXT ===\n"
        f"Restart at: {now:%Y-%m-%dT%H:%M:%SZ}\n"
        f"Previous session ended: {ended:%Y-%m-%dT%H:%M:%SZ} ({ended_seconds_ago:.0f}s ago)\n"
        "Env vars now available: PLATFORM_URL, WORKSPACE_ID\n"
        "=== END RESTART CONTEXT ==="
    )
    return self_turn(workspace_id, "self-restart-context", text, kind="restart_context")


def restart_pending(workspace_id: str, drain_seconds: int = 20) -> dict[str, Any]:
    """Build the signal that comes before a stop."""
    return {
        "jsonrpc": "2.0",
        "method": "signals/restart_pending",
        "params": {"drain_seconds": drain_seconds, "workspace_id": workspace_id},
        "id": None,
    }
