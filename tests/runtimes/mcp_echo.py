"""A stdio MCP server with one tool, ``say``."""

from __future__ import annotations

import json
import sys
from typing import Any

TOOL = {
    "name": "say",
    "description": "Say it back.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}},
}


def answer(request: dict[str, Any]) -> dict[str, Any] | None:
    match request.get("method"):
        case "initialize":
            return {
                "protocolVersion": request["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "echo", "version": "1"},
            }
        case "tools/list":
            return {"tools": [TOOL]}
        case "tools/call":
            text = request["params"]["arguments"]["text"]
            return {"content": [{"type": "text", "text": f"you said {text}"}]}
    return None


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": asked["id"]}
        result = answer(asked)
        if result is None:
            reply["error"] = {"code": -32601, "message": "no such method"}
        else:
            reply["result"] = result
        print(json.dumps(reply), flush=True)
