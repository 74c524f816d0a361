"""The unix socket in the state directory, on which the operator is heard.

One JSON object a line each way: ``{"verb": "drain", "wait": 5}`` is answered with
``{"result": …}`` or ``{"error": "…"}``. Only who may write to the socket (mode 0600) is heard.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketListener, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from ...errors import StateDirError, WorkspaceAdapterError

logger = logging.getLogger(__name__)

SOCKET = "control.sock"
_LINE = 64 * 1024
_PAUSE = 0.5

Verb = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""From the request to what is answered as ``result``; raises with a sentence for the operator."""


class NoSidecar(WorkspaceAdapterError):
    """Nobody listens on the control socket: no sidecar runs on this state directory."""


@contextmanager
def _short_path(state_dir: Path) -> Iterator[str]:
    """Yield a path to the socket that fits its 108 bytes however deep the directory is."""
    directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{SOCKET}"
    finally:
        os.close(directory)


@asynccontextmanager
async def listening(state_dir: Path, verbs: Mapping[str, Verb]) -> AsyncIterator[None]:
    """Answer the operator's verbs while the context is held."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            with suppress(
                anyio.EndOfStream, anyio.BrokenResourceError, anyio.IncompleteRead, anyio.DelimiterNotFound
            ):
                line = await BufferedByteReceiveStream(stream).receive_until(b"\n", _LINE)
                await stream.send(json.dumps(await _answer(line, verbs)).encode() + b"\n")

    async def hear(listener: SocketListener, connections: TaskGroup) -> None:
        while True:
            try:
                await listener.serve(serve, connections)
            except anyio.BrokenResourceError as error:  # no file descriptor left, say
                logger.warning("the control socket does not listen for a moment: %s", error.__cause__)
                await anyio.sleep(_PAUSE)

    socket = anyio.Path(state_dir / SOCKET)
    with _short_path(state_dir) as path:
        try:
            await socket.unlink(missing_ok=True)
            listener = await anyio.create_unix_listener(path, mode=0o600)
        except OSError as error:
            raise StateDirError(
                f"{socket} cannot be listened on ({error.strerror}): set WORKSPACE_STATE_DIR to a"
                " directory on a local disk"
            ) from error
        async with listener, anyio.create_task_group() as connections:
            connections.start_soon(hear, listener, connections)
            yield
            connections.cancel_scope.cancel()
    await socket.unlink(missing_ok=True)


async def _answer(line: bytes, verbs: Mapping[str, Verb]) -> dict[str, Any]:
    try:
        request = json.loads(line)
        verb = verbs[request["verb"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": f"not one of the verbs {', '.join(sorted(verbs))}"}
    try:
        return {"result": await verb(request)}
    except WorkspaceAdapterError as error:
        return {"error": str(error)}


async def ask(state_dir: Path, verb: str, *, patience: float, **arguments: Any) -> Any:
    """Say a verb to the sidecar that runs on this state directory; return its result.

    Args:
        patience: seconds it gets to answer.

    Raises:
        NoSidecar: nobody is listening.
        WorkspaceAdapterError: we may not speak to it; it does not answer; or what it
            answered instead of a result.
    """
    request = json.dumps({"verb": verb, **arguments}).encode() + b"\n"
    try:
        with _short_path(state_dir) as path:
            stream = await anyio.connect_unix(path)
    except PermissionError:
        raise WorkspaceAdapterError(
            f"{state_dir / SOCKET} is only for the user the sidecar runs as: run this command as that user"
        ) from None
    except OSError as error:
        raise NoSidecar(f"no sidecar runs on {state_dir}: {error.strerror}") from None
    async with stream:
        received = BufferedByteReceiveStream(stream)
        try:
            with anyio.fail_after(patience):
                await stream.send(request)
                answer = json.loads(await received.receive_until(b"\n", 64 << 20))
        except TimeoutError:
            raise WorkspaceAdapterError(
                f"the sidecar on {state_dir} has not answered for {patience:g} s: see its log"
            ) from None
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            raise NoSidecar(f"the sidecar on {state_dir} went away before it answered") from None
    if "error" in answer:
        raise WorkspaceAdapterError(answer["error"])
    return answer["result"]
