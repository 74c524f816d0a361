"""The envelope of an A2A call, read before the codec sees it.

The codec is given the envelope alone: in the place of the message stands a stub of its
own dialect. So no part that it does not know is refused, nothing is lost on the way into
its types, and no message text gets into its errors or logs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from a2a.utils.errors import MethodNotFoundError, VersionNotSupportedError

from ... import wire
from ...errors import BadMessage
from ...wire import NotJson, SentMessage, TooDeep, parse_message
from .refusal import Binding, Refusal, bad_params, invalid_request, not_json


class Dialect(StrEnum):
    """Which A2A a call is written in."""

    V03 = "0.3"
    V10 = "1.0"


_METHODS = {
    Dialect.V03: (
        "message/send",
        "message/stream",
        "tasks/get",
        "tasks/cancel",
        "tasks/resubscribe",
        "tasks/pushNotificationConfig/set",
        "tasks/pushNotificationConfig/get",
        "tasks/pushNotificationConfig/list",
        "tasks/pushNotificationConfig/delete",
        "agent/getAuthenticatedExtendedCard",
    ),
    Dialect.V10: (
        "SendMessage",
        "SendStreamingMessage",
        "GetTask",
        "ListTasks",
        "CancelTask",
        "SubscribeToTask",
        "CreateTaskPushNotificationConfig",
        "GetTaskPushNotificationConfig",
        "ListTaskPushNotificationConfigs",
        "DeleteTaskPushNotificationConfig",
        "GetExtendedAgentCard",
    ),
}
_DIALECTS = {method: dialect for dialect, methods in _METHODS.items() for method in methods}
_BRING_MESSAGES = frozenset({"message/send", "message/stream", "SendMessage", "SendStreamingMessage"})
_MAY_BE_HELD = _BRING_MESSAGES | {"tasks/resubscribe", "SubscribeToTask"}

_REST_METHODS = (
    (re.compile(r"(?:/[^/]+)?/message:send"), "SendMessage"),
    (re.compile(r"(?:/[^/]+)?/message:stream"), "SendStreamingMessage"),
    (re.compile(r"(?:/[^/]+)?/tasks/[^/]+:subscribe"), "SubscribeToTask"),
)
"""The paths whose callers may be held; the first part may be a version or a tenant."""

_REST_PATH = re.compile(r"(?:/[^/]+)?/(?:message:|tasks|extendedAgentCard|card)")

_STUBS: dict[tuple[Binding, Dialect], dict[str, Any]] = {
    (Binding.RPC, Dialect.V03): {"role": "user", "parts": [{"kind": "text", "text": ""}]},
    (Binding.RPC, Dialect.V10): {"role": "ROLE_USER", "parts": [{"text": ""}]},
    (Binding.REST, Dialect.V03): {"role": "ROLE_USER", "content": [{"text": ""}]},
    (Binding.REST, Dialect.V10): {"role": "ROLE_USER", "parts": [{"text": ""}]},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One A2A call, as it was sent."""

    binding: Binding
    dialect: Dialect
    method: str
    """JSON-RPC's name of it, also where it came by REST; empty for what REST alone names."""
    request_id: str | int | None
    params: Mapping[str, Any]
    message: SentMessage | None
    """What it brings, where it is a method that brings one."""

    @property
    def may_be_held(self) -> bool:
        """Whether its caller may have to wait."""
        return self.method in _MAY_BE_HELD

    def for_codec(self, body: bytes) -> bytes:
        """Return the body that the codec is given instead of ``body``."""
        if self.message is None:
            return body
        params: dict[str, Any] = {
            "message": {"messageId": "stub", **_STUBS[self.binding, self.dialect]},
        }
        if self.params.get("configuration") is not None:
            params["configuration"] = self.params["configuration"]
        if self.binding is Binding.REST:
            return json.dumps(params).encode()
        return json.dumps(
            {"jsonrpc": "2.0", "id": self.request_id, "method": self.method, "params": params}
        ).encode()


def read_json(body: bytes) -> Any:
    """Read a body.

    Raises:
        Refusal: it is no JSON in UTF-8, or nested too deeply.
    """
    try:
        return wire.read_json(body)
    except TooDeep as error:
        raise invalid_request(str(error)) from None
    except NotJson as error:
        raise not_json(str(error)) from None


_ODD_ID = "id must be a string of valid Unicode or a whole number"
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


def request_id_of(value: object) -> str | int | None:
    """Return the id of what may be a JSON-RPC request, where one can be read and sent back."""
    match value:
        case {"id": str(request_id)} if not _HALF_A_PAIR.search(request_id):
            return request_id
        case {"id": int(request_id)} if not isinstance(request_id, bool):
            return request_id
        case _:
            return None


def rpc_call(value: object, version: str | None) -> Call:
    """Read a JSON-RPC call.

    Args:
        value: the body as JSON.
        version: the ``A2A-Version`` header; none means 0.3.

    Raises:
        Refusal: saying what is wrong with the envelope, or with the message in it.
    """
    if isinstance(value, list):
        raise invalid_request("batches are not supported: send one request at a time")
    if not isinstance(value, Mapping) or value.get("jsonrpc") != "2.0":
        raise invalid_request("the body must be a JSON-RPC 2.0 request object")
    request_id = request_id_of(value)
    if request_id is None and value.get("id") is not None:
        raise invalid_request(_ODD_ID)
    method = value.get("method")
    if not isinstance(method, str) or not method:
        raise invalid_request("method is required, as a string")
    dialect = _DIALECTS.get(method)
    if dialect is None:
        raise Refusal("no such method", status=404, error=MethodNotFoundError("no such method"))
    _check_version(dialect, version)
    params = value.get("params", {})
    if not isinstance(params, Mapping):
        raise bad_params("params must be an object")
    message = _message(method, params)
    if request_id is None:
        raise invalid_request(_ODD_ID)
    return Call(
        binding=Binding.RPC,
        dialect=dialect,
        method=method,
        request_id=request_id,
        params=params,
        message=message,
    )


def rest_call(path: str, value: object, version: str | None) -> Call | None:
    """Read a call that came as plain HTTP; ``None`` where the path is none of A2A's.

    Raises:
        Refusal: saying what is wrong with the body, or the header names the other dialect.
    """
    if not _REST_PATH.match(path):
        return None
    dialect = Dialect.V03 if path.startswith("/v1/") else Dialect.V10
    _check_version(dialect, version)
    if not isinstance(value, Mapping):
        raise invalid_request("the body must be a JSON object")
    method = next((name for pattern, name in _REST_METHODS if pattern.fullmatch(path)), "")
    return Call(
        binding=Binding.REST,
        dialect=dialect,
        method=method,
        request_id=None,
        params=value,
        message=_message(method, value),
    )


def _message(method: str, params: Mapping[str, Any]) -> SentMessage | None:
    if method not in _BRING_MESSAGES:
        return None
    try:
        return parse_message(params)
    except BadMessage as error:
        raise bad_params(str(error)) from None


def _check_version(dialect: Dialect, version: str | None) -> None:
    if (version or Dialect.V03).split(".")[0] != dialect.split(".")[0]:
        why = f"this method is A2A {dialect}; the A2A-Version header must say so (left out, it means 0.3)"
        raise Refusal(why, status=400, error=VersionNotSupportedError(why))
