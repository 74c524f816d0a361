"""The Claude Agent SDK as its documentation uses it: connect, ask once, read the answer.

``python -m benchmarks.peers.bare_claude PROMPT [SESSION]``, in the directory the agent works in; with a
session it resumes that one.
"""

from __future__ import annotations

import sys

import anyio
from claude_agent_sdk import ClaudeAgentOptions, ClaudeSDKClient


async def main(prompt: str, session: str | None) -> None:
    """Ask."""
    options = ClaudeAgentOptions(permission_mode="bypassPermissions", resume=session)
    async with ClaudeSDKClient(options) as client:
        await client.query(prompt)
        async for _ in client.receive_response():
            pass


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
