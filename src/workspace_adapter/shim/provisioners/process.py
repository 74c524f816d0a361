"""Workspaces as processes on the shim's machine, which outlive the shim.

Each has a directory. A process holds the lock in it from before it begins until it has
ended, so a second one cannot be started, and nobody else is taken for it: what has our
lock open is ours, whatever pid it has.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from ...errors import ProvisionerError
from ..store.contract import Workspace
from .contract import DELETE, common_problems

logger = logging.getLogger(__name__)

_MARK = "WORKSPACE_PROCESS"
"""Its value is the directory; whatever the workspace starts carries it too, and ends with it."""

_OF_THE_MACHINE = (
    "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip
"""What a process takes over from the shim's environment, unasked."""

_LOG_LIMIT = 16 << 20
"""Bytes of log above which a start begins a new one; one old one is kept."""

_END = 10.0
"""Seconds a killed process may take to be gone."""

_BEGINS = 0.5
"""Seconds within which a process that was started has written its pid."""

_BEGIN = 'cd "$0/work" && echo $$ >../pid && exec "$@"'
"""Writes the pid before the program begins: there is no instant at which it runs unknown."""

_LOCK = 9
"""The handle by which a workspace holds its lock."""


class ProcessProvisioner:
    """Runs ``workspace-adapter serve``, or another program, for each workspace.

    Args:
        directory: of the workspaces' directories.
        environ: the shim's own.
        program: what is run.
    """

    certain = True

    def __init__(
        self, directory: Path, *, environ: Mapping[str, str], program: Sequence[str] | None = None
    ) -> None:
        self._directory = directory
        self._environ = environ
        self._program = program or (sys.executable, "-m", "workspace_adapter", "serve")
        self._children: dict[str, int] = {}

    def problems(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(common_problems(spec, frozenset()))

    async def prepare(self, workspace: Workspace) -> None: ...

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None:
        await self._do(workspace, partial(self._start, environ=environ, secrets=secrets))

    async def stop(self, workspace: Workspace, grace: float) -> None:
        await self._do(workspace, partial(self._stop, grace=grace))

    async def running(self, workspace: Workspace) -> bool | None:
        return self._holder(self._place(workspace.id)) is not None

    async def remove(self, workspace: Workspace) -> None:
        await self._do(workspace, partial(self._remove, delete=workspace.spec.get("files") == DELETE))

    def ended(self) -> list[str]:
        with suppress(OSError):
            return [
                pid.parent.name for pid in self._directory.glob("*/pid") if self._holder(pid.parent) is None
            ]
        return []

    def log(self, workspace_id: str) -> str:
        return str(self._place(workspace_id) / "workspace.log")

    async def _do(self, workspace: Workspace, what: partial[None]) -> None:
        try:
            await anyio.to_thread.run_sync(what, self._place(workspace.id), abandon_on_cancel=True)
        except (OSError, ValueError) as error:
            raise ProvisionerError(
                f"the process of workspace {workspace.id} in {self._directory}: {error}"
            ) from None

    def _place(self, workspace_id: str) -> Path:
        return self._directory / Path(workspace_id).name

    # --- in a thread ----------------------------------------------------------------

    def _start(self, place: Path, *, environ: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        for name in ("state", "configs", "work", "home"):
            (place / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not self._locked(lock, place):
                return  # it runs
            _end_marked(place)  # what an earlier one left
            for name, secret in secrets.items():
                _write_secret(place / "configs" / name, secret)
            log = place / "workspace.log"
            if log.exists() and log.stat().st_size > _LOG_LIMIT:
                log.replace(place / "workspace.log.1")
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                # Its end is nobody's to wait for: the shim may be gone by then.
                self._children[place.name] = os.posix_spawn(
                    "/bin/sh",
                    ["sh", "-c", _BEGIN, str(place), *self._program],
                    self._whole(place, environ),
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, output, 1),
                        (os.POSIX_SPAWN_DUP2, output, 2),
                        (os.POSIX_SPAWN_DUP2, lock, _LOCK),
                    ],
                    setsid=True,
                )
            finally:
                os.close(output)
        finally:
            os.close(lock)

    def _locked(self, lock: int, place: Path) -> bool:
        """Take the lock of a place; return ``False`` when its process has it."""
        began = time.monotonic()
        while self._holder(place) is None:
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            # Either it is about to write its pid, or something it started has the lock still.
            waited = time.monotonic() - began
            if waited > _END:
                raise OSError(f"the lock of {place} is held, and not by its process")
            if waited > _BEGINS:
                _end_marked(place)
            time.sleep(0.01)
        return False

    def _whole(self, place: Path, environ: Mapping[str, str]) -> dict[str, str]:
        port = _port(place)
        return {
            **{name: self._environ[name] for name in _OF_THE_MACHINE if name in self._environ},
            "HOME": str(place / "home"),
            **environ,
            _MARK: str(place),
            "WORKSPACE_HOST": "127.0.0.1",
            "WORKSPACE_PORT": str(port),
            "WORKSPACE_URL": f"http://127.0.0.1:{port}",
            "WORKSPACE_STATE_DIR": str(place / "state"),
            "WORKSPACE_WORKDIR": str(place / "work"),
            "CONFIGS_DIR": str(place / "configs"),
        }

    def _stop(self, place: Path, *, grace: float) -> None:
        for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _END)):
            if self._holder(place) is None or self._signalled(place, number, patience):
                break
        else:
            raise ProvisionerError(f"process {self._holder(place)} in {place} does not end, killed or not")
        _end_marked(place)
        (place / "pid").unlink(missing_ok=True)

    def _signalled(self, place: Path, number: signal.Signals, patience: float) -> bool:
        """Send a signal to the process of a place; return whether it ended in time."""
        pid = self._holder(place)
        if pid is None:
            return True
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            if self._holder(place) != pid:  # it ended, and the pid may be another's by now
                return True
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, number)
            return bool(select.select([handle], [], [], patience)[0])
        finally:
            os.close(handle)

    def _remove(self, place: Path, *, delete: bool) -> None:
        (place / "pid").unlink(missing_ok=True)
        if delete and place.exists():
            shutil.rmtree(place)

    def _holder(self, place: Path) -> int | None:
        """Return the pid of the process that has the lock of a place open."""
        self._reap(place.name)
        try:
            pid = int((place / "pid").read_text())
            ours = os.path.samestat(Path(f"/proc/{pid}/fd/{_LOCK}").stat(), (place / "lock").stat())
        except (OSError, ValueError):
            return None
        return pid if ours else None

    def _reap(self, name: str) -> None:
        """Take note of a child's end, once: a zombie is no process, and its pid may be another's next."""
        if (child := self._children.get(name)) is None:
            return
        try:
            ended = os.waitpid(child, os.WNOHANG)[0] != 0
        except ChildProcessError:
            ended = True
        if ended:
            self._children.pop(name, None)


def _port(place: Path) -> int:
    """Return the port a workspace had, or another where that is taken."""
    kept = place / "port"
    wanted = 0
    with suppress(FileNotFoundError, ValueError):  # a full disk may have left it empty
        wanted = int(kept.read_text())
    for wish in (wanted, 0):
        try:
            with socket.create_server(("127.0.0.1", wish)) as free:
                port: int = free.getsockname()[1]
        except OSError:
            continue
        kept.write_text(str(port))
        return port
    raise OSError("no port of 127.0.0.1 is free")


def _write_secret(path: Path, secret: str) -> None:
    """Replace a file in one step; nobody else can read it at any instant."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(f"{secret}\n")
    draft.replace(path)


def _end_marked(place: Path) -> None:
    """Kill whatever carries the mark of a place; a container's end would."""
    mark = f"{_MARK}={place}".encode()
    deadline = time.monotonic() + _END
    while pids := [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _carries(entry, mark)]:
        if time.monotonic() > deadline:
            logger.error("processes that a workspace left do not end: %s, in %s", pids, place)
            return
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                handle = os.pidfd_open(pid)
                try:
                    if _carries(Path(f"/proc/{pid}"), mark):
                        signal.pidfd_send_signal(handle, signal.SIGKILL)
                finally:
                    os.close(handle)
        time.sleep(0.01)


def _carries(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
