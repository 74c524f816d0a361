"""What a workspace may send to the platform: one table, read from the platform's own sources.

Nothing of the sidecar is imported here. What both took from one place would agree also
where it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

Json = Mapping[str, Any]


class Need(StrEnum):
    """What happens without a member."""

    FREE = "nothing"
    ALWAYS = "the platform takes the request, and forgets something"
    REFUSED = "the platform answers 400"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a body."""

    types: tuple[type, ...]
    need: Need = Need.FREE
    because: str = ""
    """What is forgotten without it."""


@dataclass(slots=True)
class Judgement:
    """What is wrong with one request."""

    refused: list[str] = field(default_factory=list)
    """What the platform answers 400 to."""
    careless: list[str] = field(default_factory=list)
    """What it takes, to somebody's harm."""


@dataclass(frozen=True, slots=True)
class Call:
    """One route that a workspace calls."""

    method: str
    path: str
    members: Mapping[str, Member] = field(default_factory=dict)
    more: bool = False
    """Whether members of the workspace's own are welcome; elsewhere they are slips of the pen."""
    look: Callable[[Json, Judgement], None] = lambda body, found: None
    """What the types do not say."""
    open: bool = False
    """Whether it is answered without a bearer."""
    exempt: bool = False
    """Whether it needs no organisation id where the platform demands one."""


_STR: Final = (str,)
_INT: Final = (int,)
_BOOL: Final = (bool,)
_OBJECT: Final = (dict,)
_NUMBER: Final = (int, float)
_NONE: Final = type(None)

CAPABILITIES: Final = (
    "heartbeat",
    "scheduler",
    "session",
    "status_mgmt",
    "retry",
    "activity_decoration",
    "channel_dispatch",
)

ACTIVITY_TYPES: Final = frozenset(
    {"a2a_send", "a2a_receive", "task_update", "agent_log", "skill_promotion", "memory_write", "error"}
)


def _look_at_card(card: object, found: Judgement) -> None:
    if not isinstance(card, dict):
        return
    if not card.get("name"):
        found.careless.append("agent_card has no name: the platform shows the workspace's id instead")
    _look_at_url("agent_card.url", card.get("url"), found)


def _look_at_url(what: str, url: object, found: Judgement) -> None:
    if url is None or url == "":
        return
    if not isinstance(url, str) or not re.match("https?://[^/]", url):
        found.refused.append(f"{what} is not an http URL")
    elif url.endswith("/"):
        found.careless.append(f"{what} ends with a slash: the signal would go to …//signals/restart_pending")


def _look_at_registration(body: Json, found: Judgement) -> None:
    mode = body.get("delivery_mode")
    if mode is not None and mode not in ("push", "poll"):
        found.refused.append("delivery_mode is neither push nor poll")
    if body.get("kind") not in (None, "workspace"):
        found.refused.append("kind is not workspace: answered 403 unless the row is the platform's own agent")
    card = body.get("agent_card")
    _look_at_card(card, found)
    _look_at_url("url", body.get("url"), found)
    if mode != "poll" and not body.get("url"):
        if not (isinstance(card, dict) and card.get("url")):
            found.refused.append("url is required for push-mode workspaces")
        else:
            found.careless.append("url is missing: the platform falls back to the card's")


def _look_at_beat(body: Json, found: Judgement) -> None:
    if isinstance(active := body.get("active_tasks"), int) and active < 0:
        found.careless.append("active_tasks is negative")
    if isinstance(uptime := body.get("uptime_seconds"), int) and uptime < 0:
        found.careless.append("uptime_seconds is negative")
    if isinstance(rate := body.get("error_rate"), _NUMBER) and not 0 <= rate <= 1:
        found.careless.append("error_rate is not between 0 and 1")
    if body.get("runtime_state") not in (None, "", "wedged"):
        found.careless.append("runtime_state is neither empty nor wedged: the workspace could never recover")
    _look_at_card(body.get("agent_card"), found)
    metadata = body.get("runtime_metadata")
    if not isinstance(metadata, dict):
        return
    capabilities = metadata.get("capabilities")
    if not isinstance(capabilities, dict) or set(capabilities) != set(CAPABILITIES):
        found.careless.append(f"runtime_metadata.capabilities has not exactly {', '.join(CAPABILITIES)}")
    elif not all(isinstance(value, bool) for value in capabilities.values()):
        found.refused.append("runtime_metadata.capabilities holds something else than booleans")
    idle = metadata.get("idle_timeout_seconds")
    if idle is not None and (isinstance(idle, bool) or not isinstance(idle, int) or idle <= 0):
        found.refused.append("runtime_metadata.idle_timeout_seconds is not a whole number above 0")


def _look_at_activity(body: Json, found: Judgement) -> None:
    if body.get("activity_type") not in ACTIVITY_TYPES:
        found.refused.append(f"activity_type is none of {', '.join(sorted(ACTIVITY_TYPES))}")


def _look_at_notification(body: Json, found: Judgement) -> None:
    if body.get("message") == "" and not body.get("attachments"):
        found.careless.append("message is empty: the user would see an empty bubble")
    attachments = body.get("attachments") or []
    if isinstance(attachments, list) and not all(
        isinstance(one, dict) and one.get("uri") and one.get("name") for one in attachments
    ):
        found.refused.append("an attachment lacks its uri or its name")


def _look_at_boot_event(body: Json, found: Judgement) -> None:
    step, total = body.get("step"), body.get("total")
    if isinstance(step, int) and isinstance(total, int) and not 1 <= step <= total:
        found.refused.append("step is not between 1 and total")
    if len(str(body.get("key", ""))) > 8:
        found.refused.append("key is longer than 8 characters")
    if body.get("status") not in (None, "running", "ok", "failed"):
        found.refused.append("status is none of running, ok, failed")


_ONE_BEAT: Final = "one beat without it clears it on the platform"

CALLS: Final = (
    Call(
        "POST",
        "/registry/register",
        {
            "id": Member(_STR, Need.REFUSED),
            "url": Member(_STR),
            "agent_card": Member(_OBJECT, Need.REFUSED),
            "delivery_mode": Member(_STR, Need.ALWAYS, "a row that is in poll mode would stay so, and deaf"),
            "kind": Member(_STR),
            "mcp_server_present": Member(_BOOL),
        },
        more=True,
        look=_look_at_registration,
        exempt=True,
    ),
    Call(
        "POST",
        "/registry/heartbeat",
        {
            "workspace_id": Member(_STR, Need.REFUSED),
            "active_tasks": Member(
                _INT, Need.ALWAYS, "missing counts as 0: a busy workspace is dispatched to"
            ),
            "is_busy": Member((bool, _NONE), Need.ALWAYS, "it is derived from active_tasks"),
            "current_task": Member(_STR, Need.ALWAYS, _ONE_BEAT),
            "error_rate": Member(_NUMBER, Need.ALWAYS, "missing counts as 0: a degraded workspace recovers"),
            "sample_error": Member(_STR, Need.ALWAYS, _ONE_BEAT),
            "uptime_seconds": Member(_INT, Need.ALWAYS, "missing counts as 0"),
            "runtime_state": Member(
                _STR, Need.ALWAYS, "missing counts as healthy: a wedged workspace recovers"
            ),
            "runtime_metadata": Member(_OBJECT, Need.ALWAYS, _ONE_BEAT),
            "agent_card": Member(_OBJECT, Need.ALWAYS, "a failed registration keeps the workspace degraded"),
            "monthly_spend": Member(_INT),
            "observed_generation": Member((int, _NONE), Need.ALWAYS, "wake intents never settle"),
            "schema_version": Member((str, _NONE)),
            "mcp_server_present": Member(_BOOL),
            "loaded_mcp_tools": Member((list,)),
            "mcp_tools_ready": Member(_BOOL),
            "first_ready_at": Member((str, _NONE)),
        },
        more=True,
        look=_look_at_beat,
        exempt=True,
    ),
    Call(
        "POST",
        "/registry/update-card",
        {"workspace_id": Member(_STR, Need.REFUSED), "agent_card": Member(_OBJECT, Need.REFUSED)},
        look=lambda body, found: _look_at_card(body.get("agent_card"), found),
    ),
    Call(
        "POST",
        "/workspaces/{id}/activity",
        {
            "activity_type": Member(_STR, Need.REFUSED),
            "method": Member((str, _NONE)),
            "summary": Member((str, _NONE)),
            "target_id": Member((str, _NONE)),
            "source_id": Member((str, _NONE)),
            "status": Member((str, _NONE)),
            "error_detail": Member((str, _NONE)),
            "duration_ms": Member((int, _NONE)),
            "request_body": Member((dict, list, str, _NONE)),
            "response_body": Member((dict, list, str, _NONE)),
            "metadata": Member((dict, _NONE)),
        },
        look=_look_at_activity,
    ),
    Call(
        "POST",
        "/workspaces/{id}/notify",
        {"message": Member(_STR, Need.REFUSED), "attachments": Member((list, _NONE))},
        look=_look_at_notification,
    ),
    Call(
        "POST",
        "/workspaces/{id}/boot-event",
        {
            "step": Member(_INT, Need.REFUSED),
            "total": Member(_INT, Need.REFUSED),
            "key": Member(_STR, Need.REFUSED),
            "label": Member(_STR, Need.REFUSED),
            "status": Member(_STR, Need.REFUSED),
            "message": Member((str, _NONE)),
        },
        look=_look_at_boot_event,
    ),
    Call("GET", "/workspaces/{id}/activity"),
    Call("GET", "/workspaces/{id}", open=True),
    Call("GET", "/health", open=True, exempt=True),
)


def call_of(method: str, path: str, workspace_id: str) -> Call | None:
    """Find the route of a request; ``None`` when the platform has none for a workspace."""
    for call in CALLS:
        if call.method == method and call.path.replace("{id}", workspace_id) == path:
            return call
    return None


def judge(call: Call, body: object) -> Judgement:
    """Hold a body against what its route wants."""
    found = Judgement()
    if not call.members:
        return found
    if not isinstance(body, dict):
        found.refused.append("the body is not a JSON object")
        return found
    for name, member in call.members.items():
        if name not in body:
            if member.need is Need.REFUSED:
                found.refused.append(f"{name} is missing")
            elif member.need is Need.ALWAYS:
                found.careless.append(f"{name} is missing: {member.because}")
        elif not _fits(body[name], member.types):
            wanted = " or ".join(_NAMES[one] for one in member.types)
            found.refused.append(f"{name} is {_NAMES[type(body[name])]} instead of {wanted}")
    if not call.more and (unknown := body.keys() - call.members.keys()):
        found.careless.append(f"{', '.join(sorted(unknown))}: nobody reads that")
    call.look(body, found)
    return found


_NAMES: Final[Mapping[type, str]] = {
    str: "a string",
    int: "a whole number",
    float: "a number with a fraction",
    bool: "a boolean",
    dict: "an object",
    list: "a list",
    _NONE: "null",
}


def _fits(value: object, types: tuple[type, ...]) -> bool:
    if isinstance(value, bool):  # which Python counts among the numbers, and the platform does not
        return bool in types
    return isinstance(value, types)
