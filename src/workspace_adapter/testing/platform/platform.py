"""The existing platform as one workspace meets it, in a thread of the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .faults import Fault, Faults, How
from .registry import Received, Registry
from .row import Row
from .server import Server
from .times import Times
from .tokens import Tokens


class ContractBroken(AssertionError):
    """A workspace sent what the platform's contract does not allow; the text lists it."""


class FakePlatform:
    """A platform for one workspace, on 127.0.0.1; a context manager, in sync and async code alike.

    Args:
        workspace_id: as in the workspace's ``WORKSPACE_ID``.
        configs_dir: the workspace's ``CONFIGS_DIR``, into which its token is written before
            it is started; ``None`` where only the workspace can: it gets its first token
            when it registers.
        org_id: demanded in ``X-Molecule-Org-Id``; ``None`` demands none.
        times: the platform's times.
        scale: by which all of them are multiplied.
        rate_limit: requests a workspace may send in ``times.rate_window``.
        port: to listen on; 0 takes a free one.
    """

    def __init__(
        self,
        workspace_id: str = "ws-test",
        *,
        configs_dir: Path | None = None,
        org_id: str | None = None,
        times: Times | None = None,
        scale: float = 1.0,
        rate_limit: int = 600,
        port: int = 0,
    ) -> None:
        self.workspace_id = workspace_id
        self.times = (times or Times()).scaled(scale)
        self.tokens = Tokens(configs_dir)
        self.row = Row(self.times)
        self._faults = Faults()
        self._registry = Registry(
            workspace_id=workspace_id,
            row=self.row,
            tokens=self.tokens,
            faults=self._faults,
            times=self.times,
            rate_limit=rate_limit,
            org_id=org_id,
            reset=lambda client: self._server.reset(client),
        )
        self._port = port
        self._server: Server
        self._thread: AbstractContextManager[BlockingPortal]
        self._portal: BlockingPortal

    def __enter__(self) -> Self:
        self._thread = start_blocking_portal()
        self._portal = self._thread.__enter__()
        self._server = self._portal.call(Server, self._app, self._port)
        self._ended = self._portal.start_task_soon(self._server.run)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._portal.call(self._server.close)
        self._ended.result()
        self._thread.__exit__(None, None, None)

    @property
    def url(self) -> str:
        """What ``PLATFORM_URL`` is."""
        return f"http://127.0.0.1:{self._server.port}"

    # --- what it heard --------------------------------------------------------------

    @property
    def violations(self) -> list[str]:
        """What the workspace sent against the contract, a sentence each."""
        return self._registry.violations

    def assert_no_violations(self) -> None:
        """Be content only when the workspace has kept the contract.

        Raises:
            ContractBroken: it has not.
        """
        if self.violations:
            raise ContractBroken("\n".join(self.violations))

    @property
    def received(self) -> list[Received]:
        """Everything the workspace has sent, oldest first."""
        return list(self._registry.received)

    def bodies(self, end: str) -> list[Any]:
        """Return the bodies sent to paths that end so, among them those a fault took."""
        return [entry.body for entry in self.received if entry.path.endswith(end)]

    @property
    def registrations(self) -> list[Any]:
        """The bodies of the registrations."""
        return self.bodies("/registry/register")

    @property
    def heartbeats(self) -> list[Any]:
        """The bodies of the heartbeats."""
        return self.bodies("/registry/heartbeat")

    @property
    def activities(self) -> list[Any]:
        """The bodies of what was posted as activity."""
        return self.bodies("/activity")

    @property
    def notifications(self) -> list[Any]:
        """The bodies of what was posted for the user."""
        return self.bodies("/notify")

    def until(self, condition: Callable[[], object], what: str, *, patience: float = 10.0) -> None:
        """Wait until a condition holds; from a thread, not from an event loop.

        Raises:
            AssertionError: it did not within ``patience`` seconds.
        """
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{what} did not come within {patience:g} s; violations: {self.violations}"
                )
            time.sleep(0.005)

    # --- bad days -------------------------------------------------------------------

    def fail(self, fault: Fault, *, on: str = "", times: int | None = None) -> None:
        """Fail from now on, instead of as before.

        Args:
            on: end of the paths concerned, such as ``/heartbeat``; empty means every call of
                the workspace.
            times: how many requests; ``None`` means until :meth:`recover`.
        """
        self._faults.set(fault, on, times)
        self._portal.call(self._server.leave if fault.how is How.REFUSED else self._server.come_back)

    def recover(self) -> None:
        """Answer properly again."""
        self._faults.set(None, "", None)
        self._portal.call(self._server.come_back)

    @contextmanager
    def failing(self, fault: Fault, *, on: str = "") -> Iterator[None]:
        """Fail for as long as the block lasts."""
        self.fail(fault, on=on)
        try:
            yield
        finally:
            self.recover()

    @property
    def failed(self) -> int:
        """Requests that the last fault has hit; those refused never get so far."""
        return self._faults.hit

    def provision(self) -> None:
        """Revoke the token, make new secrets and write the token into ``configs_dir``."""
        self.tokens.provision()

    # --- the server -----------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/health" or self._registry.serves(path):
            await self._registry(scope, receive, send)
        else:
            self.violations.append(f"{scope['method']} {path}: the platform has no such route")
            await JSONResponse({"error": "404 page not found"}, 404)(scope, receive, send)
