"""The agent card: what this workspace says of itself to other agents."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...errors import SettingsError
from ...settings import Settings
from ...wire import MAX_DEPTH, depth

_BINDINGS = (("JSONRPC", "1.0"), ("HTTP+JSON", "1.0"), ("JSONRPC", "0.3"))

_MOST_SKILLS = 100
_LONGEST = 200
"""Skills, and characters of a skill's name; the card goes out with every heartbeat."""

_LARGEST = 1 << 20
"""Bytes of the operator's file."""

_BEARER: Mapping[str, Any] = {
    "securitySchemes": {
        "bearer": {"httpAuthSecurityScheme": {"scheme": "bearer"}, "type": "http", "scheme": "bearer"}
    },
    "securityRequirements": [{"schemes": {"bearer": {}}}],
    "security": [{"bearer": []}],
}


def card(settings: Settings, *, adapter_name: str) -> dict[str, Any]:
    """Return the card: ours, with ``WORKSPACE_AGENT_CARD`` merged over it.

    Raises:
        SettingsError: that file cannot be read, or is no JSON object.
    """
    ours = _ours(settings, adapter_name)
    return _merge(ours, _theirs(settings.agent_card)) if settings.agent_card else ours


def etag(body: bytes) -> str:
    """Return the entity tag of a card as it is sent."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _ours(settings: Settings, adapter_name: str) -> dict[str, Any]:
    """In both dialects at once: 1.0's members, and beside them those that only 0.3 knows."""
    url = settings.url or f"http://{socket.gethostname()}:{settings.port}"
    return {
        "name": settings.name or settings.workspace_id,
        "description": settings.description
        or f"Workspace {settings.workspace_id}, an agent on {adapter_name}.",
        "version": settings.version or __version__,
        "supportedInterfaces": [
            {"url": url, "protocolBinding": binding, "protocolVersion": version}
            for binding, version in _BINDINGS
        ],
        "url": url,
        "preferredTransport": "JSONRPC",
        "protocolVersion": "0.3",
        "capabilities": {"streaming": settings.offers_streams, "pushNotifications": False},
        "defaultInputModes": ["text/plain", "application/json", "application/octet-stream"],
        "defaultOutputModes": ["text/plain"],
        "skills": [
            {
                "id": "chat",
                "name": "Chat",
                "description": "Takes a request in words, with files where needed, and works on it.",
                "tags": ["chat"],
            },
            *(
                {"id": name, "name": name, "description": f"The skill {name}.", "tags": [name]}
                for name in _named(settings.skills)
            ),
        ],
        **(_BEARER if settings.require_auth else {}),
    }


def _named(skills: tuple[str, ...]) -> list[str]:
    """Return what is named beside ``chat``: each once, and no more than a card should hold."""
    return [name for name in dict.fromkeys(skills) if name != "chat" and len(name) <= _LONGEST][:_MOST_SKILLS]


def _theirs(path: str) -> Mapping[str, Any]:
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe waits for whoever writes to it
            raise OSError(errno.EINVAL, "it is no file")
        with file.open("rb") as opened:
            text = opened.read(_LARGEST + 1)
    except OSError as error:
        raise SettingsError((f"WORKSPACE_AGENT_CARD={path} cannot be read: {error.strerror}",)) from None
    if len(text) > _LARGEST:
        raise SettingsError((f"WORKSPACE_AGENT_CARD={path} has more than {_LARGEST} bytes",))
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise SettingsError((f"WORKSPACE_AGENT_CARD={path} is not JSON",)) from None
    if depth(value) > MAX_DEPTH:
        raise SettingsError((f"WORKSPACE_AGENT_CARD={path} is nested more than {MAX_DEPTH} levels deep",))
    if not isinstance(value, dict):
        raise SettingsError((f"WORKSPACE_AGENT_CARD={path} must hold a JSON object",))
    return value


def _merge(ours: Any, theirs: Any) -> Any:
    """Merge as JSON merge patches do: objects member by member, ``null`` takes one out."""
    if not isinstance(theirs, Mapping):
        return theirs
    merged = dict(ours) if isinstance(ours, Mapping) else {}
    for key, value in theirs.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged
