"""Sends a message, loses the connection, sends the same message again, and collects its one answer.

$ python examples/client.py
sent; the connection is lost before the answer
sent again: this is run 1
sent once more: this is run 1
"""

import time
import uuid
from typing import Any

import httpx

Message = dict[str, Any]


def new_message(text: str, context_id: str | None = None) -> Message:
    """Make a message; keep it until it is answered, because its `messageId` is what it is known by.

    A message with the `contextId` of an earlier one goes on with that conversation.
    """
    message = {"role": "user", "messageId": uuid.uuid4().hex, "parts": [{"kind": "text", "text": text}]}
    return message if context_id is None else {**message, "contextId": context_id}


def ask(workspace: httpx.Client, message: Message, patience: float = 3600) -> str:
    """Return the answer to a message, however often the connection is lost within `patience` seconds."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        wait = 1.0
        try:
            reply = workspace.post("/", json=call)
        except httpx.TransportError:  # refused, cut off, or silent for longer than the client waits
            pass
        else:
            if reply.status_code < 500:  # else it restarts, is busy, or a proxy gave up
                return text_of(reply)
            after = reply.headers.get("Retry-After", "")
            wait = float(after) if after.isdecimal() else wait
        time.sleep(wait)
    raise TimeoutError("no answer yet; it is not lost: ask with the same message again")


def text_of(reply: httpx.Response) -> str:
    """Read the answer; what failed for good is a text, too: `Agent error: …`, and `metadata` says how."""
    said = reply.json()
    if "result" not in said:
        raise ValueError(f"the workspace refused the message: HTTP {reply.status_code}, {said}")
    text: str = said["result"]["parts"][0]["text"]
    return text


def main() -> None:
    from interrupt import started  # your workspace is there already

    with started("shell_adapter:ShellAdapter") as there:
        message = new_message('sleep 2; echo >> runs; echo "this is run $(wc -l < runs)"')
        try:
            with httpx.Client(base_url=there.url, timeout=1) as hasty:
                call = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
                hasty.post("/", json=call)
        except httpx.TimeoutException:
            print("sent; the connection is lost before the answer")
        with httpx.Client(base_url=there.url, timeout=60) as patient:
            print("sent again:", ask(patient, message), end="")
            print("sent once more:", ask(patient, message), end="")


if __name__ == "__main__":
    main()
