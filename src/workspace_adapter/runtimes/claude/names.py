"""The uuids we choose in Claude's stead, so that they are known before it writes anything."""

from __future__ import annotations

import uuid

_OURS = uuid.UUID("0a7c8d5e-9a2b-4f55-8f0e-5d9f6c1b7a43")


def session_uuid(session_id: str) -> str:
    """Return Claude's id for a conversation of ours."""
    return str(uuid.uuid5(_OURS, session_id))


def prompt_uuid(turn_id: str, attempt: int) -> str:
    """Return the uuid of one attempt's prompt; Claude drops a uuid that it has seen before."""
    return str(uuid.uuid5(_OURS, f"{turn_id}:{attempt}"))


def is_uuid(name: str) -> bool:
    """Say whether Claude may have a conversation of this name."""
    try:
        return str(uuid.UUID(name)) == name
    except ValueError:
        return False
