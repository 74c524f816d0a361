"""What stops and starts a workspace, and what that is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from ..store.contract import Workspace

TOKEN_FILE = ".auth_token"
SECRET_FILE = ".platform_inbound_secret"
"""Where in ``CONFIGS_DIR`` a workspace finds what it shows the shim, and what the shim shows it."""

KEEP, DELETE = "keep", "delete"
"""What becomes of a removed workspace's files: the spec's ``files``."""


class Provisioner(Protocol):
    """Stops and starts workspaces. Each verb may be repeated: a cycle goes on where another left it.

    Every verb may raise :class:`~workspace_adapter.errors.ProvisionerError`.
    """

    certain: bool
    """Its no is a fact: no heartbeat can contradict it."""

    def problems(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """Return what is wrong with a workspace's spec, a sentence each."""

    async def prepare(self, workspace: Workspace) -> None:
        """Have at hand what a start needs, before anything is stopped for it."""

    async def start(
        self, workspace: Workspace, environ: Mapping[str, str], secrets: Mapping[str, str]
    ) -> None:
        """Start a workspace, unless it runs; return without waiting until it serves.

        Args:
            environ: its environment, but for where it listens and where its files lie.
            secrets: files for its ``CONFIGS_DIR``, which nobody else may read; written before it starts.
        """

    async def stop(self, workspace: Workspace, grace: float) -> None:
        """Stop it, if it runs: SIGTERM, and SIGKILL after ``grace`` seconds. Its files stay."""

    async def running(self, workspace: Workspace) -> bool | None:
        """Say whether it runs; ``None``: that cannot be known."""

    async def remove(self, workspace: Workspace) -> None:
        """Take away what is left of a stopped workspace; its files where the spec says so."""

    def log(self, workspace_id: str) -> str:
        """Say where what it printed is found, for people."""

    def ended(self) -> list[str]:
        """Return the workspaces known to have ended without being stopped, where to know it costs little."""


def common_problems(spec: Mapping[str, Any], known: frozenset[str] | None) -> list[str]:
    """Return what is wrong with the members that every spec may have.

    Args:
        known: all members there may be; ``None``: any.
    """
    problems = []
    unknown = sorted(set(spec) - (known | _COMMON)) if known is not None else []
    if known is not None and unknown:
        members = ", ".join(sorted(known | _COMMON))
        problems.append(f"spec has no member {', '.join(unknown)}; known are {members}")
    environ = spec.get("environ", {})
    if not isinstance(environ, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) and _NAME.fullmatch(name) and "\0" not in value
        for name, value in environ.items()
    ):
        problems.append("spec.environ must be an object of variables and texts")
    inherit = spec.get("inherit", [])
    if not isinstance(inherit, list) or not all(
        isinstance(name, str) and _NAME.fullmatch(name) for name in inherit
    ):
        problems.append("spec.inherit must be a list of variables")
    elif any(_ours(name) for name in inherit):
        problems.append("spec.inherit must not name the shim's own variables, SHIM_…")
    if spec.get("files", KEEP) not in (KEEP, DELETE):
        problems.append(f"spec.files must be {KEEP} or {DELETE}")
    return problems


_COMMON = frozenset({"environ", "inherit", "files"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _ours(name: str) -> bool:
    return name.startswith("SHIM_")


def environment(
    workspace: Workspace, *, own: Mapping[str, str], platform_url: str, drain: float, grace: float
) -> dict[str, str]:
    """Return what a workspace is started with; of the shim's environment only what its spec names.

    Args:
        own: the shim's environment.
        platform_url: where the workspace reaches the shim.
        drain: seconds that the signal's acknowledgement is waited for.
        grace: seconds between SIGTERM and SIGKILL.
    """
    spec = workspace.spec
    return {
        "WORKSPACE_DRAIN_CAP": f"{drain:g}",
        "WORKSPACE_STOP_TIMEOUT": f"{grace:g}",
        "WORKSPACE_STOP_GRACE": f"{min(3.0, max(0.0, grace - 1)):g}",
        "WORKSPACE_RESTART_WINDOW": f"{drain + grace + 60:g}",
        **{name: own[name] for name in spec.get("inherit", ()) if name in own and not _ours(name)},
        **spec.get("environ", {}),
        "WORKSPACE_ID": workspace.id,
        "PLATFORM_URL": platform_url,
    }
