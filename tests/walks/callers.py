"""Callers in a process of their own, who send and re-send until they are answered.

Started by the kill loop with the port and a seed; says on standard output, a line each,
``sent <id>``, ``answered <id> <answer>`` and ``wrong <id> <what>``. When standard input
closes nobody begins a new message; the process ends when all begun ones are answered.
"""

from __future__ import annotations

import json
import random
import sys
import uuid
from typing import Any

import anyio
import anyio.to_thread
import httpx

CALLERS = 6


def message(rng: random.Random, caller: int) -> tuple[str, dict[str, Any]]:
    """Make a message whose tools write effects named after it."""
    name = uuid.UUID(int=rng.getrandbits(128)).hex
    steps: list[dict[str, Any]] = []
    for call in range(rng.randint(0, 3)):
        command = f"sleep 0.0{rng.randint(0, 3)}; echo {name}.{call} >> effects; sleep 0.0{rng.randint(0, 2)}"
        steps.append({"tool": "sh", "input": command})
        if rng.random() < 0.3:
            steps.append({"sleep": 0.02})
    steps.append({"answer": f"answer to {name}"})
    body = {
        "jsonrpc": "2.0",
        "id": name,
        "method": "message/send",
        "params": {
            "message": {
                "role": "user",
                "messageId": name,
                "contextId": f"c{caller}-{rng.randint(0, 1)}",
                "parts": [{"kind": "text", "text": f"<<<{json.dumps(steps)}>>>"}],
            }
        },
    }
    return name, body


def say(*words: str) -> None:
    print(*words, flush=True)


async def call(url: str, seed: int, number: int, over: anyio.Event) -> None:
    rng = random.Random(f"{seed}-{number}")
    while not over.is_set():
        name, body = message(rng, number)
        say("sent", name)
        while True:
            try:
                async with httpx.AsyncClient(base_url=url, timeout=30) as client:
                    reply = await client.post("/", json=body)
            except httpx.TransportError:
                await anyio.sleep(0.01)
                continue
            if reply.status_code in (502, 503):
                await anyio.sleep(0.01)
                continue
            if reply.status_code != 200:
                say("wrong", name, str(reply.status_code))
                break
            result = reply.json().get("result", {})
            text = result.get("parts", [{}])[0].get("text", json.dumps(reply.json()))
            say("answered" if text == f"answer to {name}" else "wrong", name, text)
            break


async def main(url: str, seed: int) -> None:
    over = anyio.Event()

    async def until_told() -> None:
        await anyio.to_thread.run_sync(sys.stdin.read)
        over.set()

    async with anyio.create_task_group() as callers:
        callers.start_soon(until_told)
        for number in range(CALLERS):
            callers.start_soon(call, url, seed, number, over)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))
