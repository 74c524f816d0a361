"""The existing platform as one workspace meets it, in a thread of the test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import anyio
import anyio.abc
from anyio.from_thread import BlockingPortal, start_blocking_portal
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from .container import Container
from .delegations import Delegation, Delegations
from .desk import Desk
from .dispatch import Dispatcher
from .envelope import self_turn
from .faults import Fault, Faults, How
from .proxy import Delivery, Proxy
from .queue import Queue
from .registry import Received, Registry
from .restart import Restarts
from .row import Row
from .server import Server
from .times import Times
from .tokens import Tokens
from .watch import Watch


class ContractBroken(AssertionError):
    """A workspace sent what the platform's contract does not allow; the text lists it."""


class FakePlatform:
    """A platform for one workspace, on 127.0.0.1; a context manager, in sync and async code alike.

    Args:
        workspace_id: as in the workspace's ``WORKSPACE_ID``.
        configs_dir: the workspace's ``CONFIGS_DIR``, into which its token is written before
            it is started; ``None`` where only the workspace can: it gets its first token
            when it registers.
        container: how the workspace is stopped and started; ``None`` where the platform
            cannot, and cannot look whether it runs either. Then there is no sweeper.
        org_id: demanded in ``X-Molecule-Org-Id``; ``None`` demands none.
        max_concurrent: tasks a workspace may have before it is not dispatched to.
        always_auth: whether messages carry the inbound secret; the platform's default is no.
        has_greeted: whether the agent has met its user; before, it is told of no restart.
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
        container: Container | None = None,
        org_id: str | None = None,
        max_concurrent: int = 1,
        always_auth: bool = False,
        has_greeted: bool = True,
        times: Times | None = None,
        scale: float = 1.0,
        rate_limit: int = 600,
        port: int = 0,
    ) -> None:
        self.workspace_id = workspace_id
        self.times = (times or Times()).scaled(scale)
        self.tokens = Tokens(configs_dir)
        self.row = Row(self.times)
        self.queue = Queue(self.times, scale)
        self.chat: dict[str, Any] = {}
        """Messages of the canvas, by id, and the answers its user has seen."""
        self.restarts = Restarts(
            workspace_id=workspace_id,
            row=self.row,
            queue=self.queue,
            tokens=self.tokens,
            times=self.times,
            container=container,
            has_greeted=has_greeted,
        )
        self._proxy = self.restarts.proxy = Proxy(
            workspace_id=workspace_id,
            row=self.row,
            queue=self.queue,
            tokens=self.tokens,
            times=self.times,
            scale=scale,
            always_auth=always_auth,
            container=container,
            restart=self.restarts.by_id,
            complain=lambda sentence: self.violations.append(sentence),
        )
        self._delegations = Delegations(self._proxy, self.times)
        self._dispatcher = Dispatcher(
            row=self.row,
            queue=self.queue,
            proxy=self._proxy,
            delegations=self._delegations,
            times=self.times,
            max_concurrent=max_concurrent,
            answered=self.chat.__setitem__,
        )
        self._desk = Desk(
            workspace_id=workspace_id,
            proxy=self._proxy,
            queue=self.queue,
            delegations=self._delegations,
            restarts=self.restarts,
            times=self.times,
            answered=self.chat.__setitem__,
        )
        self._watch = Watch(
            workspace_id=workspace_id,
            row=self.row,
            queue=self.queue,
            times=self.times,
            restart=self.restarts.by_id,
        )
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
            on_beat=self._on_beat,
        )
        self._provisions = container is not None
        self._port = port
        self._server: Server
        self._tasks: anyio.abc.TaskGroup
        self._thread: AbstractContextManager[BlockingPortal]
        self._portal: BlockingPortal

    def __enter__(self) -> Self:
        self._thread = start_blocking_portal()
        self._portal = self._thread.__enter__()
        self._ended, _ = self._portal.start_task(self._live)
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._portal.call(self._server.close)
            self._ended.result()
        finally:
            self._thread.__exit__(None, None, None)

    async def _live(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        self._server = Server(self._app, self._port)
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = self.restarts.tasks = self._desk.tasks = tasks
                tasks.start_soon(self._watch.run)
                if self._provisions:
                    tasks.start_soon(self._dispatcher.sweep)
                task_status.started()
                await self._server.run()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._proxy.close()

    def _on_beat(self) -> None:
        self._proxy.beat()
        self._dispatcher.beat(self._tasks)

    @property
    def broken(self) -> bool:
        """Whether the platform itself has failed, such as over a container; leaving it says why."""
        return self._ended.done()

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
        return [
            entry.body
            for entry in self.received
            if entry.method == "POST" and entry.path.endswith("/activity")
        ]

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
        self._registry.excuse()
        if fault.how is How.REFUSED:
            self._portal.call(self._server.leave)
        else:
            self._portal.call(self._server.come_back)

    def recover(self) -> None:
        """Answer properly again."""
        self._faults.set(None, "", None)
        self._registry.excuse()
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

    # --- what it does ---------------------------------------------------------------

    def provision(self) -> None:
        """Revoke the token, make new secrets and write the token into ``configs_dir``."""
        self.tokens.provision()

    def signal(self) -> None:
        """Send the signal alone, as before a restart that is declined; return at once."""
        self._portal.start_task_soon(self.restarts.signal)

    def restart(self, *, button: bool = False) -> None:
        """Restart the workspace; return at once.

        Args:
            button: as a person does who presses the button: without a signal.
        """
        self._portal.call(self.restarts.by_button if button else self._restart)

    def _restart(self) -> None:
        self.restarts.by_id(after_mutation=True)

    def say(self, source_type: str, text: str, *, kind: str | None = None) -> None:
        """Queue a turn of the platform's own, such as a probe; return at once.

        Args:
            source_type: such as ``self-stall``.
            kind: as in ``message.metadata``, such as ``stall_probe``.
        """
        turn = self_turn(self.workspace_id, source_type, text, kind=kind)
        self._portal.call(partial(self.queue.enqueue, turn, caller=None, now=time.monotonic()))

    @property
    def delegations(self) -> list[Delegation]:
        """The ledger of delegations, oldest first."""
        return list(self._delegations.all.values())

    @property
    def deliveries(self) -> list[Delivery]:
        """Every message sent to the workspace, oldest first."""
        return list(self._proxy.deliveries)

    # --- the server -----------------------------------------------------------------

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):  # before its request was complete
            await (self._desk.app if self._desk.serves(scope) else self._registry)(scope, receive, send)
