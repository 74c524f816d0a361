"""What a request that is not served is answered, in HTTP and in JSON-RPC.

===============================  ========  =====  ======
refusal                          JSON-RPC  ``/``  others
===============================  ========  =====  ======
not JSON                         -32700    200    400
no request, a batch, too deep    -32600    200    400
unknown method                   -32601    200    404
bad params, content conflict     -32602    200    400
unknown task                     -32001    200    404
task cannot be canceled          -32002    200    400
push notifications               -32003    200    400
unsupported here                 -32004    200    400
no extended card                 -32007    200    400
dialect and version disagree     -32009    200    400
body too large                   -32600    413    413
wrong content type               -32005    415    415
bearer missing or wrong                    401    401
stop has come                              502    502
no room, held too long                     503    503
a fault of ours                  -32603    500    500
===============================  ========  =====  ======

The existing platform relays a JSON-RPC error in HTTP 200 as it stands and does not try
again, which is right for what no repetition can mend. Of any other status it shows only
a top-level ``error`` that is a string; on 502 with ``restarting`` it sends once more.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from a2a.utils.error_handlers import build_error_details, build_rest_error_payload
from a2a.utils.errors import (
    JSON_RPC_ERROR_CODE_MAP,
    A2AError,
    ContentTypeNotSupportedError,
    InternalError,
    InvalidParamsError,
    InvalidRequestError,
    JSONParseError,
)

from ... import wire


class Binding(StrEnum):
    """How a request is put on HTTP, and so how its refusal looks."""

    RPC = "rpc"  #: A2A as JSON-RPC, on ``/``
    REST = "rest"  #: A2A as plain HTTP
    SIGNAL = "signal"  #: a JSON-RPC body on a path of its own
    PLAIN = "plain"  #: an ordinary resource


class Refusal(Exception):
    """A request that is not served."""

    def __init__(
        self,
        text: str,
        *,
        status: int,
        error: A2AError | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status = status
        """HTTP status; a JSON-RPC error below 500 that HTTP has no part in is sent with 200."""
        self.error = error
        """The protocol's own error, where it has one."""
        self.body = body
        """What is sent where the protocol has none."""
        self.headers = dict(headers or {})

    def render(self, binding: Binding, request_id: str | int | None) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of the answer."""
        status = self.status
        body: Mapping[str, Any]
        if self.error is None or binding is Binding.PLAIN:
            body = self.body or {"error": str(self)}
        elif binding is Binding.REST:
            body = _as_rest(self.error, status)
        else:
            code = JSON_RPC_ERROR_CODE_MAP[type(self.error)]
            body = wire.rpc_error(request_id, code, str(self), data=build_error_details(self.error))
            if binding is Binding.RPC and status in _FAULT_OF_THE_CALL:
                status = 200
        headers = {"content-type": "application/json", **self.headers}
        return status, headers, json.dumps(body, ensure_ascii=False).encode()


_FAULT_OF_THE_CALL = frozenset({400, 404})
"""The call is wrong, not the HTTP around it."""


def _as_rest(error: A2AError, status: int) -> dict[str, Any]:
    if isinstance(error, JSONParseError):  # the codec has no REST form of it
        error = InvalidRequestError(error.message)
    body = build_rest_error_payload(error)
    body["error"]["code"] = status
    return body


def not_json(why: str) -> Refusal:
    """The body cannot be read."""
    return Refusal(why, status=400, error=JSONParseError(why))


def invalid_request(why: str) -> Refusal:
    """It is JSON, but not a call."""
    return Refusal(why, status=400, error=InvalidRequestError(why))


def bad_params(why: str) -> Refusal:
    """The call's params are wrong."""
    return Refusal(why, status=400, error=InvalidParamsError(why))


def too_large(limit: int) -> Refusal:
    """The body exceeds the limit."""
    why = f"the body is larger than WORKSPACE_BODY_LIMIT_BYTES={limit}"
    return Refusal(why, status=413, error=InvalidRequestError(why))


def wrong_content_type() -> Refusal:
    """The body says that it is something other than JSON."""
    why = "Content-Type must be application/json or application/a2a+json"
    return Refusal(why, status=415, error=ContentTypeNotSupportedError(why))


def unauthorized(why: str) -> Refusal:
    """The bearer is missing or wrong."""
    return Refusal(why, status=401, headers={"www-authenticate": "Bearer"})


def our_fault() -> Refusal:
    """Something of ours broke; the log says what."""
    why = "the workspace failed to answer; what it accepted is kept: send it again"
    return Refusal(why, status=500, error=InternalError(why))


def restarting(retry_after: int) -> Refusal:
    """The stop has come."""
    body = wire.restarting(retry_after)
    return Refusal(body["error"], status=502, body=body, headers=_retry(retry_after))


def busy(why: str, retry_after: float, *, taken: bool = False) -> Refusal:
    """No room now (nothing was kept), or held too long (``taken``)."""
    seconds = max(1, math.ceil(retry_after))
    return Refusal(why, status=503, body=wire.busy(why, seconds, taken=taken), headers=_retry(seconds))


def _retry(seconds: int) -> dict[str, str]:
    return {"retry-after": str(seconds)}
