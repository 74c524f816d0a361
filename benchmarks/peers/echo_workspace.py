"""The least workspace there can be, ``echo_workspace.py PORT``: it answers each call with its own text.

No framework, so that what stands before it is what is measured. Each answer says when the
first byte of its request came, on the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._heard = b""
        self._came = 0.0

    def data_received(self, data: bytes) -> None:
        if not self._heard:
            self._came = time.monotonic()
        self._heard += data
        head, whole, body = self._heard.partition(b"\r\n\r\n")
        expected = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if not whole or len(body) < expected:
            return
        self._heard = b""
        call = json.loads(body)
        sent = call["params"].get("message") or {"parts": [{"text": call["params"]["id"]}]}
        result = {"kind": "message", "parts": sent["parts"], "metadata": {"came": self._came}}
        answer = json.dumps({"jsonrpc": "2.0", "id": call["id"], "result": result}).encode()
        self._transport.write(_HEAD % len(answer) + answer)


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"


async def serve(port: int) -> None:
    """Serve for ever."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
