"""Drives an adapter through one turn in a process of its own, which may be killed.

Started by ``Stage.elsewhere``: a job comes in on stdin, each moment goes out on stdout
as one line of JSON at the instant it is seen.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import anyio

from ..errors import AdapterError
from ..events import SessionHandle
from .recording import Moment
from .stage import Job, Stage, Traces


async def drive(job: Job, out: int) -> None:
    """Do one job, telling what is seen on a file descriptor."""

    def tell(moment: Moment) -> None:
        os.write(out, json.dumps(asdict(moment)).encode() + b"\n")

    stage = Stage(
        subject=job.subject,
        environ=job.environ,
        directory=Path(job.directory),
        mark=job.mark,
        patience=job.patience,
        promptness=job.promptness,
        tell=tell,
    )
    traces = Traces(
        effect=Path(job.traces["effect"]), begun=Path(job.traces["begun"]), word=job.traces["word"]
    )
    resume = None if job.resume is None else SessionHandle(job.resume)
    try:
        async with stage.session(session_id=job.session_id, traces=traces, resume=resume) as scene:
            await scene.run(job.prompt, id=job.id)
    except AdapterError as error:
        tell(Moment("raised", type(error).__name__, str(error)))


def main() -> None:
    """Keep stdout for ourselves: whatever the adapter prints goes to stderr."""
    out = os.dup(1)
    os.dup2(2, 1)
    anyio.run(drive, Job(**json.load(sys.stdin)), out)


if __name__ == "__main__":
    main()
