"""The platform's proxy as it is usually written, ``httpx_proxy.py PORT URL``: bare ASGI, httpx's client.

It does what ours does with a call that passes through: reads it, parses it once, adds who asks, and
relays the answer as it comes. It knows no tokens, no rates and no other workspace.
"""

from __future__ import annotations

import json
import sys

import httpx
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

URL = sys.argv[2] if len(sys.argv) > 2 else ""
FORWARDED = {b"content-type", b"accept", b"traceparent"}
RETURNED = {b"content-type", b"content-length"}

client = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=1000), trust_env=False)


async def proxy(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Relay one call."""
    assert scope["type"] == "http"
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    assert json.loads(body)["method"]
    headers = [(name, value) for name, value in scope["headers"] if name in FORWARDED]
    request = client.build_request("POST", URL, content=body, headers=[*headers, (b"x-workspace-id", b"ci")])
    response = await client.send(request, stream=True)
    try:
        returned = [(name, value) for name, value in response.headers.raw if name.lower() in RETURNED]
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": returned,
                "trailers": False,
            }
        )
        async for chunk in response.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        await response.aclose()


if __name__ == "__main__":
    uvicorn.run(
        proxy, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools",
        access_log=False, log_level="error", lifespan="off", ws="none",
    )  # fmt: skip
