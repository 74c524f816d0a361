"""The looks themselves: each gathers facts, and returns what they mean.

Each runs aside, so it may hang and need not catch what it cannot explain.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import math
import os
import resource
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import anyio

from ...adapter import RuntimeAdapter
from ...errors import ContractBroken, JournalDamaged, JournalError, SettingsError, WorkspaceAdapterError
from ...settings import Configuration, Settings, left_out, variables
from ..adapters import build_adapter, configure
from ..children import MARK
from ..control.socket import ask
from ..fence import fence
from ..journal import Reader
from ..journal.damage import told as noted_damage
from ..journal.ownership import LOCK
from ..journal.schema import FILE
from ..mounts import mount_here
from ..secret_file import INBOUND, TOKEN, SecretFile
from . import container, disk, network
from .asking import NoAnswer, get
from .finding import Finding, Status, broken, ok, skipped, warning

_CONTROL = 2.0
"""Seconds a sidecar gets to answer on its control socket."""

_PLATFORM = 5.0
"""Seconds the platform gets for each step of an answer."""

_REAPED = 4.0
"""Seconds an init gets to reap."""

_PAGE, _WRITES = 4096, 3
"""Bytes; and how often they are written: the fastest write counts, whatever else the machine does."""

_SCRATCH = "/tmp"

_FILES_OF_A_GROUP = {
    "": ("memory.max", "memory.events"),
    "memory": ("memory.limit_in_bytes", "memory.oom_control"),
}
"""Of control groups, by the controllers that ``/proc/self/cgroup`` names: version 2 names none."""

_NO_LIMIT = 1 << 60
"""What version 1 says where there is none is larger."""


class Owner(NamedTuple):
    """The sidecar that owns the state directory."""

    boot_id: str
    pid: int
    """As it counts itself; of no meaning from another container."""
    state: str
    """Of its drain; empty where it does not answer on its control socket."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What every look starts from."""

    environ: Mapping[str, str]
    config: Configuration
    settings: Settings
    """Those that cannot be read have their default."""
    owner: Owner | None

    @property
    def boot_id(self) -> str | None:
        """The running sidecar's."""
        return self.owner.boot_id if self.owner else None

    @property
    def state_dir(self) -> Path:
        return Path(self.settings.state_dir)

    @property
    def url(self) -> str:
        """The registered one."""
        return self.settings.url or f"http://{socket.gethostname()}:{self.settings.port}"


def owner(state_dir: Path) -> Owner | None:
    """Find the sidecar that runs on a state directory, changing nothing."""
    lock = state_dir / LOCK
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for no time; who wants it tries again
            except BlockingIOError:
                told = json.loads(file.read() or "{}")
            else:
                return None
    except FileNotFoundError:
        return None

    async def asking() -> str:
        return str((await ask(state_dir, "status", patience=_CONTROL))["state"])

    try:
        state = anyio.run(asking)
    except WorkspaceAdapterError:
        state = ""
    return Owner(str(told.get("boot_id", "")), int(told.get("pid", 0)), state)


# --- what it is told ---------------------------------------------------------------------


def settings(view: View) -> list[Finding]:
    """Read every setting as a start does."""
    try:
        ours, adapter = configure(view.environ, view.config)
    except SettingsError as error:
        todo = "correct it; README.md has every setting"
        # The start names the pairs that do not fit only once each setting can be read.
        problems = dict.fromkeys((*error.problems, *view.settings.conflicts()))
        return [Finding(Status.BROKEN, problem, todo) for problem in problems]
    classes = [type(ours)] + ([adapter.Settings] if adapter.Settings else [])
    known = {
        name
        for of in classes
        for variable in variables(of).values()
        for name in (variable.name, *variable.aliases)
    }
    findings = [ok(f"{len(known & view.environ.keys())} settings are given, and fit together")]
    for why in left_out(classes, view.environ, view.config):
        findings.append(Finding(Status.WARNING, why, "correct it there: it is as if it were not written"))
    for name in sorted(view.environ.keys() - known - {MARK}):
        if name.startswith("WORKSPACE_") and (meant := difflib.get_close_matches(name, known, 1, 0.9)):
            findings.append(warning(f"{name} is set, and nobody reads it", f"is {meant[0]} meant?"))
    theirs = _environ_of(view.owner)
    different = sorted(
        name for name in known if theirs and (theirs.get(name) or None) != (view.environ.get(name) or None)
    )
    if different:
        findings.append(
            warning(
                f"the running sidecar was started with another {', '.join(different)} than this command",
                "run it with the sidecar's own environment; what follows is about this one",
            )
        )
    return findings


def _environ_of(owner: Owner | None) -> Mapping[str, str]:
    """Return what a sidecar was started with; nothing where that cannot be seen."""
    try:
        text = Path(f"/proc/{owner.pid}/environ").read_text(errors="surrogateescape") if owner else ""
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)


# --- its disk ----------------------------------------------------------------------------


def sidecar(view: View) -> list[Finding]:
    """Say whether one runs."""
    if view.owner is None:
        return [skipped(f"no sidecar runs on WORKSPACE_STATE_DIR={view.state_dir}")]
    if not view.owner.state:
        return [
            warning(
                f"process {view.owner.pid} (boot {view.owner.boot_id}) owns the state directory and does not"
                " answer there",
                "a sidecar that boots or hangs, or a command such as journal vacuum: look at its log",
            )
        ]
    return [ok(f"a sidecar runs: boot {view.owner.boot_id}, {view.owner.state}")]


def state(view: View) -> list[Finding]:
    """Write to the state directory, or to where it would be made."""
    state_dir = view.state_dir
    findings = [container.place(str(state_dir), mount_here(state_dir))]
    there = _existing(state_dir)
    if there == state_dir:
        found = state_dir.stat()
        kept = disk.keeping(str(state_dir), mode=found.st_mode, owner=found.st_uid, user=os.geteuid())
        findings += [kept] if kept else []
    error, seconds = None, math.inf
    try:
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:
            for _ in range(_WRITES):
                began = time.monotonic()
                file.write(bytes(_PAGE))
                os.fsync(file.fileno())
                seconds = min(seconds, time.monotonic() - began)
    except OSError as failed:
        error = failed.strerror or str(failed)
    return [*findings, disk.writing(str(state_dir), error=error, seconds=seconds)]


def journal(view: View) -> list[Finding]:
    """Open the journal as every reading command does."""
    path = view.state_dir / FILE
    try:
        with Reader.open(view.state_dir) as reader:
            turns = sum(reader.counts().values())
            findings = [ok(f"the journal can be read: {turns} turns"), container.clock(reader.ran_back)]
        if (damage := noted_damage(path)) is not None:
            findings.append(
                warning(
                    f"somebody found the journal damaged: {damage}",
                    "restart the sidecar: its start saves what can be read, and moves the damaged file aside",
                )
            )
        return findings
    except JournalDamaged as error:
        return [Finding(Status.BROKEN, str(error), "restart the sidecar")]
    except JournalError as error:
        if not path.exists():
            return [skipped(f"there is no journal in {view.state_dir} yet")]
        return [Finding(Status.BROKEN, str(error), "see the line in docs/operations.md")]


def space(view: View) -> list[Finding]:
    """Ask the file system for what is free."""
    free = os.statvfs(_existing(view.state_dir))
    try:
        with Reader.open(view.state_dir) as reader:
            size = reader.size_bytes()
    except JournalError:
        size = 0
    found = disk.space(
        str(view.state_dir),
        free=free.f_bavail * free.f_frsize,
        inodes=free.f_favail if free.f_files else None,
        journal=size,
        limit=view.settings.journal_limit_bytes,
    )
    return [found]


def scratch(view: View) -> list[Finding]:
    """Write where runtimes and tools put what they throw away."""
    path = view.environ.get("TMPDIR") or _SCRATCH
    error = None
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as failed:
        error = failed.strerror or str(failed)
    return [disk.scratch(path, error=error)]


def configs(view: View) -> list[Finding]:
    """Look at the directory of the platform's secrets, and at who may read them."""
    configs_dir = Path(view.settings.configs_dir)
    findings = [
        disk.configs(
            str(configs_dir),
            exists=configs_dir.is_dir(),
            writable=os.access(configs_dir, os.W_OK | os.X_OK),
            wanted=view.settings.platform_url is not None,
        )
    ]
    for path in (configs_dir / TOKEN, configs_dir / INBOUND):
        if path.exists():
            readable = os.access(path, os.R_OK)
            found = disk.secret(str(path), mode=path.stat().st_mode, readable=readable)
            findings += [found] if found else []
    return findings


def _existing(path: Path) -> Path:
    """Return the path, or the deepest directory above it that is there for this user."""
    for there in (path, *path.parents):
        with suppress(PermissionError):
            if there.exists():
                return there
    return path


# --- the network -------------------------------------------------------------------------


def platform(view: View) -> list[Finding]:
    """Ask the platform for our own latest activity, which changes nothing and needs the token."""
    url = view.settings.platform_url
    if url is None:
        return [skipped("there is no PLATFORM_URL: the workspace stands alone")]
    if not view.settings.workspace_id:
        return [skipped("who we are is not known without WORKSPACE_ID")]
    token = SecretFile(Path(view.settings.configs_dir) / TOKEN).read()
    headers = {"X-Workspace-ID": view.settings.workspace_id}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if view.settings.org_id:
        headers["X-Molecule-Org-Id"] = view.settings.org_id
    try:
        reply = get(
            f"{url}/workspaces/{view.settings.workspace_id}/activity?limit=1", headers, patience=_PLATFORM
        )
    except NoAnswer as error:
        return [network.unreachable(url, str(error))]
    said = reply.error(without=token)
    is_json = reply.headers.get_content_type() == "application/json"
    findings = [network.platform(url, status=reply.status, token=token is not None, json=is_json, said=said)]
    if (date := reply.date()) is not None:
        findings.append(container.clocks(date - time.time()))
    return findings


def url(view: View) -> list[Finding]:
    """Go where the platform is told we are."""
    if not view.settings.port and not view.settings.url:
        return [skipped("WORKSPACE_PORT=0 takes any free port")]
    findings = [network.url_host(view.url, platform_url=view.settings.platform_url)]
    answered, why = None, ""
    try:
        answered = _boot_id(view.url)
    except NoAnswer as error:
        why = str(error)
    found = network.url(view.url, boot_id=view.boot_id, answered=answered, why=why)
    return [finding for finding in (*findings, found) if finding]


def port(view: View) -> list[Finding]:
    """Go to our own port."""
    at = _local(view.settings)
    if not view.settings.port:
        return [skipped("WORKSPACE_PORT=0 takes any free port")]
    boot_id, answered, why = view.boot_id, None, ""
    try:
        answered = _boot_id(at)
        if boot_id is not None and answered == boot_id:
            ready = get(f"{at}/readyz", {})
            return [
                network.port(at, boot_id=boot_id, answered=answered, why=""),
                network.readiness(ready.status == 200, ready.error()),
            ]
    except NoAnswer as error:
        why = str(error)
        if error.refused and view.owner is not None and not view.owner.state:
            boot_id = None  # no sidecar, which listens before it owns the directory: a command
        elif boot_id is None and error.heard:
            answered = ""  # and speaks another language
        elif boot_id is None and not error.refused:
            return [network.not_ours(at, why)]
    return [network.port(at, boot_id=boot_id, answered=answered, why=why)]


def authentication(view: View) -> list[Finding]:
    """Try bearers on the running sidecar, where they decide and nothing else happens."""
    settings = view.settings
    secret = SecretFile(Path(settings.configs_dir) / INBOUND).read()
    public = not network.is_loopback(settings.host)
    findings = [
        network.authentication(secret=secret is not None, required=settings.require_auth, public=public)
    ]
    at = _local(settings)
    try:
        if settings.port and view.boot_id is not None and _boot_id(at) == view.boot_id:
            wrong = get(f"{at}/status", {"Authorization": "Bearer wrong"}).status
            right = get(f"{at}/status", {"Authorization": f"Bearer {secret}"}).status if secret else None
            findings.append(network.bearer(wrong=wrong, right=right))
    except NoAnswer:
        pass  # which the look at the port says
    return findings


def _boot_id(url: str) -> str:
    """Return the boot id of the sidecar that answers; empty of what is none.

    Raises:
        NoAnswer: nobody does.
    """
    return str(get(f"{url}/healthz", {}).json().get("boot_id", ""))


def _local(settings: Settings) -> str:
    """Return the sidecar's address on its own machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


# --- the runtime -------------------------------------------------------------------------


def runtime(view: View) -> list[Finding]:
    """Have the adapter start its runtime for a moment."""
    try:
        adapter = build_adapter(view.environ, view.config)
    except SettingsError:
        return [skipped("the runtime cannot be looked at before its settings are right")]
    return [*_credentials(view, adapter), anyio.run(_check, adapter)]


async def _check(adapter: RuntimeAdapter) -> Finding:
    try:
        with fence("check"):
            version = await adapter.check()
    except WorkspaceAdapterError as error:
        cause = f" ({error.__cause__})" if isinstance(error, ContractBroken) else ""
        return broken(
            f"the runtime {adapter.name} cannot be used: {error}{cause}",
            "install or set what it names; until then messages are taken and their turns fail",
        )
    return ok(f"the runtime {adapter.name} can be started{f': {version}' if version else ''}")


def _credentials(view: View, adapter: RuntimeAdapter) -> list[Finding]:
    names = adapter.credentials
    given = [name for name in names if view.environ.get(name)]
    if not names or given:
        return [ok(f"{', '.join(given)} is set")] if given else []
    return [
        warning(
            f"none of {', '.join(names)} is set: unless {adapter.name} has a login of its own on disk, every"
            " turn fails",
            "set the one you have, from a secret",
        )
    ]


# --- the container -----------------------------------------------------------------------


def init(view: View) -> list[Finding]:
    """Leave an orphan behind that ends at once, and see whether it goes."""
    first = _text(Path("/proc/1/comm")).strip()
    if not first:
        return [skipped("PID 1 cannot be seen: /proc is not mounted")]
    findings = [container.init(view.owner.pid)] if view.owner else []
    return [*findings, container.reaping(_reaped(_orphan()), first)]


def _orphan() -> int:
    """Start a process whose parent is gone, and which ends then; return its pid."""
    reading, writing = os.pipe()
    told, telling = os.pipe()
    if (parent := os.fork()) == 0:
        if os.fork() == 0:
            os.close(writing)
            os.write(telling, str(os.getpid()).encode())
            os.read(reading, 1)  # until nobody holds the other end
        os._exit(0)
    os.waitpid(parent, 0)
    orphan = int(os.read(told, 16))
    for descriptor in (reading, writing, told, telling):
        os.close(descriptor)
    return orphan


def _reaped(pid: int) -> float | None:
    began = time.monotonic()
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() - began > _REAPED:
            return None
        time.sleep(0.01)
    return time.monotonic() - began


def limits(view: View) -> list[Finding]:
    """Read what the control group and the process may take."""
    settings = view.settings
    try:
        session_bytes = build_adapter(view.environ, view.config).session_bytes
    except SettingsError:
        session_bytes = 0
    limit, killed = _memory()
    return [
        container.memory(
            limit=limit, killed=killed, sessions=settings.sessions_open, session_bytes=session_bytes
        ),
        container.descriptors(
            limit=_descriptors(view.owner), held=settings.held_limit, sessions=settings.sessions_open
        ),
        container.stopping(settings.stop_timeout),
    ]


def _memory() -> tuple[int | None, int]:
    """Return the least limit of our control groups, and how many processes the innermost has cost."""
    limits, killed = [], 0
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        limit, events = _FILES_OF_A_GROUP[controllers]
        root = Path("/sys/fs/cgroup", controllers)
        group = root / path.lstrip("/")  # within a container it may be the host's, and the root be ours
        groups = [at for at in (group, *group.parents) if at.is_relative_to(root) and (at / limit).exists()]
        limits += [int(text) for at in groups if (text := _text(at / limit).strip()).isdigit()]
        counted = (
            dict(line.split(" ", 1) for line in _text(groups[0] / events).splitlines()) if groups else {}
        )
        killed += int(counted.get("oom_kill", 0))
    return min((limit for limit in limits if limit < _NO_LIMIT), default=None), killed


def _descriptors(owner: Owner | None) -> int | None:
    """Return how many the sidecar may have open, else this process; ``None`` for any number."""
    for line in _text(Path(f"/proc/{owner.pid}/limits")).splitlines() if owner else ():
        if line.startswith("Max open files"):
            limit = line.split()[3]
            return int(limit) if limit.isdigit() else None
    ours, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if ours == resource.RLIM_INFINITY else ours


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
