"""Asks an agent something, interrupts its workspace in the middle, and shows what comes of it.

The workspace gets `kill -9`, or with `--restart` an announced restart as platforms do it. The middle
is where the agent first says what it does: a tool call, or an `Activity`. With an adapter of your
own `workspace-adapter try` does the same and more.

$ python examples/interrupt.py echo 'hello'
the turn ended before it could be interrupted
hello
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
from workspace_adapter.testing.workspace import Workspace

from client import Message, ask, new_message


@contextmanager
def started(adapter: str) -> Iterator[Workspace]:
    """Hold a workspace on 127.0.0.1, with an adapter of this folder or a registered one."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as root:
        workspace = Workspace(Path(root), adapter, environ=os.environ, settings={}, directory=here)
        try:
            anyio.run(workspace.start)
            yield workspace
        finally:
            workspace.kill_everything()


def until_it_works(workspace: Workspace, message: Message) -> bool:
    """Send a message and wait for a sign of work on it; false when its turn ended without."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "message/stream", "params": {"message": message}}
    with httpx.stream("POST", workspace.url, json=call, timeout=60) as events:
        for line in events.iter_lines():
            if line.startswith("data: "):
                status = json.loads(line.removeprefix("data: "))["result"].get("status", {})
                if status.get("state") == "working" and "message" in status:
                    return True
    return False


def kill(workspace: Workspace) -> None:
    """End everything in the workspace at once, as a container that is lost."""
    workspace.kill_everything()
    print("kill -9 in the middle of the turn, and a new start")
    anyio.run(workspace.start)


def restart(workspace: Workspace) -> None:
    """Say that a restart is pending, wait for the acknowledgement, stop, start."""
    told = anyio.run(workspace.signal).json()["result"]
    workspace.terminate()
    anyio.run(workspace.exited)
    counts = ", ".join(f"{len(told[name])} {name}" for name in ("parked", "held", "running"))
    print(f"a restart in the middle of the turn: {counts}")
    anyio.run(workspace.start)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("adapter", help="as in WORKSPACE_ADAPTER")
    options.add_argument("message")
    options.add_argument("--restart", action="store_true", help="announce it, instead of kill -9")
    given = options.parse_args()
    with started(given.adapter) as workspace:
        message = new_message(given.message)
        if not until_it_works(workspace, message):
            print("the turn ended before it could be interrupted")
        elif given.restart:
            restart(workspace)
        else:
            kill(workspace)
        with httpx.Client(base_url=workspace.url, timeout=60) as caller:
            print(ask(caller, message))
        for file in sorted(workspace.workdir.iterdir()):
            print(f"{file.name} holds: {', '.join(file.read_text().splitlines())}")


if __name__ == "__main__":
    main()
