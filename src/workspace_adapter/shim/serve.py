"""The composition root of the shim: builds the rooms, owns the signals."""

from __future__ import annotations

import gc
import logging
import resource
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .. import __version__
from ..errors import StateDirError, StoreError, StoreTooNew, StoreUnavailable
from ..server import Server
from ..settings import effective
from .activity import Activities
from .address import Addresses
from .alerts import Alerts
from .app import create_routes
from .deaths import Deaths
from .delegations import Delegations
from .dispatcher import Dispatcher
from .door.door import Door
from .door.waiting import Waiters
from .front.edge import HEALTH, HEARTBEAT, Edge
from .front.identity import Identity, mint
from .front.protocol import Protocol, ShortCut
from .front.rates import Rates
from .front.refusal import UNAVAILABLE, Refusal, write
from .operator import Operator
from .provisioners.command import CommandProvisioner
from .provisioners.contract import Provisioner
from .provisioners.docker import DockerProvisioner
from .provisioners.process import ProcessProvisioner
from .registry import Registry
from .restart import Restarts, Times
from .settings import ShimSettings
from .store.contract import Store
from .sweeper import Sweeper
from .upstream import Upstream

if TYPE_CHECKING:
    from .metrics import Metrics

logger = logging.getLogger(__name__)

_STOPS = (signal.SIGTERM, signal.SIGINT)

_REOPEN_EVERY = 1.0
_KEEP_ALIVE = 75
"""Seconds: longer than balancers keep a connection, so that they end it and not we."""

_STOP = 8.0
"""Seconds a stop may take; what is dispatched then is joined by whoever dispatches it next."""

_FAREWELL = 3.0
"""Seconds of it in which everybody who is held open hears that the message is kept."""

_HASTE = 1.0
"""Seconds of it that are left when the stop is asked for again."""

_OF_THE_MACHINE = ("PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""What the program that tells an alert gets of the shim's environment."""

_NO_METRICS = "metrics need an extra that is not installed: pip install 'workspace-adapter[metrics]'"

_FILES = 1000
"""Open files for the store, and for who is not held: heartbeats, and calls that pass through."""

_LOOK = 2.0
"""Seconds in which the store must answer to count as there."""


class Front:
    """What stands at the port while the store is not open, and then what serves."""

    def __init__(self) -> None:
        self._app: Edge | None = None
        self.why = "the shim starts"
        """Why nothing is served."""
        self.short_cuts: dict[str, ShortCut] = {}

    def show(self, app: Edge, short_cuts: Mapping[str, ShortCut]) -> None:
        """Serve from now on."""
        self._app = app
        self.short_cuts.update(short_cuts)

    def shut(self, why: str) -> None:
        """Serve no new request."""
        self._app, self.why = None, why
        self.short_cuts.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            return
        elif scope["path"] == HEALTH:
            await write(send, 200, {"status": "ok"})
        else:
            body = {"error": self.why, "code": UNAVAILABLE, "retry_after": 1}
            await write(send, 503, body, {"retry-after": "1", "connection": "close"})


class Shim:
    """One life of the half on the platform."""

    def __init__(self, settings: ShimSettings, listener: socket.socket, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._environ = environ
        self._listener = listener
        host, port = listener.getsockname()[:2]
        self._url = settings.url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._boot_id = secrets.token_hex(8)
        self._front = Front()
        self._stopping = anyio.Event()
        self._living = anyio.CancelScope()
        self._serving = False
        self._stop_asked = 0
        self._metrics: Metrics | None = None

    async def run(self) -> None:
        """Serve until the stop has come.

        Raises:
            StoreTooNew: a newer version wrote the store.
            StateDirError: the state directory cannot be made.
        """
        server = Server(self._front, self._listener, http=Protocol, keep_alive=_KEEP_ALIVE)
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._hear_signals)
            tasks.start_soon(server.run)
            gc.freeze()
            gc.enable()
            with self._living:
                store = await self._open_store()
                try:
                    await self._live(store, server)
                finally:
                    with anyio.move_on_after(_HASTE, shield=True):
                        await server.end()
                    await store.__aexit__(None, None, None)
            await server.end()
            tasks.cancel_scope.cancel()
        logger.info("stopped")

    async def _open_store(self) -> Store:
        said = ""
        while True:
            try:
                store = await self._store().__aenter__()
                await store.disown()
                return store
            except StoreTooNew:
                raise
            except StoreUnavailable as error:
                self._front.why = f"waiting for the store: {error}"
                if said != str(error):
                    said = str(error)
                    logger.error("waiting for the store: %s", said)
                await anyio.sleep(_REOPEN_EVERY)

    def _store(self) -> Store:
        settings = self._settings
        if settings.database_url is not None:
            from .store.postgres import PostgresStore

            return PostgresStore(settings.database_url, settings.rules)
        from .store.sqlite import SqliteStore

        directory = Path(settings.directory)
        if settings.state_dir is None and not settings.home:
            raise StateDirError("SHIM_STATE_DIR must be set: there is no HOME, below which it is by default")
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"SHIM_STATE_DIR={directory} cannot be made: {error.strerror}") from error
        return SqliteStore(directory / "shim.sqlite", settings.rules)

    async def _live(self, store: Store, server: Server) -> None:
        settings = self._settings
        identity = Identity(store.tokens, settings.admin_token)
        addresses = Addresses(
            settings.reach, in_container=_in_container(settings), network=settings.docker_network
        )
        async with (
            Upstream(
                addresses,
                connect_timeout=settings.connect_timeout,
                deadline=settings.dispatch_deadline,
                answer_limit=settings.answer_limit_bytes,
                dispatches=settings.dispatches,
            ) as upstream,
            anyio.create_task_group() as rooms,
        ):
            provisioners = self._provisioners()
            deaths = Deaths(store, provisioners)
            dispatcher = Dispatcher(
                store,
                upstream,
                owner=self._boot_id,
                rules=settings.rules,
                dispatches=settings.dispatches,
                suspect=deaths.suspect,
            )
            restarts = Restarts(
                store,
                upstream,
                provisioners,
                owner=self._boot_id,
                mint=mint,
                environ=self._environ,
                platform_url=self._url,
                times=Times(
                    drain=settings.drain_seconds,
                    grace=settings.stop_grace,
                    start=settings.start_timeout,
                    renewal=settings.renewal,
                ),
                suspect=deaths.suspect,
            )
            store.on_due, store.on_cycle = dispatcher.ring, restarts.ring
            registry = Registry(
                store,
                vet=addresses.vet,
                open=identity.open,
                rings=dispatcher.ring,
                registered=restarts.heard,
            )
            alerts = Alerts(
                store,
                after=settings.stranded_after,
                suspect=deaths.suspect,
                command=settings.alert_command,
                url=settings.alert_url,
                environ={name: self._environ[name] for name in _OF_THE_MACHINE if name in self._environ},
            )
            sweeper = Sweeper(
                store,
                ring=dispatcher.ring,
                stranded=alerts.look,
                silent=deaths.suspect,
                interval=settings.sweep_interval,
                offline_after=settings.offline_after,
            )
            operator = Operator(store, identity, provisioners=provisioners, ring=dispatcher.ring)

            waiters = Waiters(store, most=settings.held_limit)
            store.on_ended, store.on_said = waiters.ended, waiters.said
            door = Door(
                store, upstream, waiters, hold=settings.hold_seconds, body_limit=settings.body_limit_bytes
            )
            delegations = Delegations(store)
            activities = Activities(store, delegations.catch_up)

            def now() -> Mapping[str, Any]:
                return {
                    "dispatching": len(dispatcher),
                    "held": waiters.held,
                    "stranded": sum(stranded.waiting for stranded in alerts.stranded),
                    "heartbeats": registry.heartbeats,
                }

            routes = create_routes(
                registry=registry,
                operator=operator,
                door=door,
                further=[*activities.routes(), *delegations.routes()],
                ready=partial(self._ready, store),
                metrics=partial(self._scraped, store, now),
            )
            for room in (dispatcher, sweeper, alerts, registry, waiters, restarts, deaths):
                rooms.start_soon(room.run)
            edge = Edge(routes, identity=identity, rates=Rates(settings.rate_limit))
            self._front.show(edge, {HEARTBEAT: registry.take})
            logger.info("open: %s", self._url, extra={"boot_id": self._boot_id})
            self._serving = True
            await self._stopping.wait()
            self._front.shut("the shim is stopping; ask again in a moment")
            waiters.stop()
            with anyio.move_on_after(_FAREWELL):
                await waiters.left()
            await server.end()
            rooms.cancel_scope.cancel()

    def _provisioners(self) -> Mapping[str, Provisioner]:
        settings = self._settings
        found: dict[str, Provisioner] = {
            "process": ProcessProvisioner(Path(settings.directory, "workspaces"), environ=self._environ),
            "docker": DockerProvisioner(settings.docker_host, network=settings.docker_network),
        }
        if settings.provisioner_command is not None:
            found["command"] = CommandProvisioner(settings.provisioner_command, environ=self._environ)
        return found

    async def _scraped(
        self, store: Store, now: Callable[[], Mapping[str, Any]], request: Request
    ) -> Response:
        """Render metrics; the first scrape imports what does."""
        try:
            from .metrics import CONTENT_TYPE, Metrics, Now
        except ModuleNotFoundError as error:
            if error.name != "prometheus_client":
                raise
            raise Refusal(501, _NO_METRICS) from None
        if self._metrics is None:
            self._metrics = Metrics(store, self._boot_id, lambda: Now(**now()))
        return Response(await self._metrics.scrape(), headers={"content-type": CONTENT_TYPE})

    async def _ready(self, store: Store, request: Request) -> Response:
        """Say whether requests are served: that is, whether the store answers."""
        try:
            with anyio.fail_after(_LOOK):
                await store.workspace("")
        except (StoreUnavailable, TimeoutError) as error:
            return JSONResponse({"error": str(error) or "the store does not answer"}, 503)
        return JSONResponse({"status": "ready"})

    # --- the signals ------------------------------------------------------------------

    async def _hear_signals(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            with anyio.open_signal_receiver(*_STOPS) as received:
                task_status.started()
                async for number in received:
                    self._asked_to_stop(signal.Signals(number).name)
        finally:
            for stop in _STOPS:  # all is done: another one could only spoil the exit code
                signal.signal(stop, signal.SIG_IGN)

    def _asked_to_stop(self, why: str) -> None:
        self._stop_asked += 1
        logger.info("%s: stopping", why)
        self._stopping.set()
        if not self._serving:
            self._living.cancel()
        patience = _STOP if self._stop_asked == 1 else _HASTE
        self._living.deadline = min(self._living.deadline, anyio.current_time() + patience)


def _in_container(settings: ShimSettings) -> bool:
    if settings.in_docker is not None:
        return settings.in_docker
    # Who listens on loopback alone has its workspaces in the same container.
    return settings.is_public and Path("/.dockerenv").exists()


def announce(settings: ShimSettings) -> None:
    """Print the effective configuration once, secrets masked."""
    words = " ".join(f"{name}={value}" for name, value in effective(settings).items())
    logger.info("workspace_adapter %s shim: %s", __version__, words)
    if settings.state_dir is None:
        logger.info("SHIM_STATE_DIR is not set: the state lies in %s", settings.directory)
    if settings.admin_token is None:
        logger.warning(
            "SHIM_ADMIN_TOKEN is not set: whoever reaches %s from this machine is the operator", settings.host
        )


def want_files(wanted: int) -> None:
    """Have the kernel let this process open so many files, as far as it may: a shell gives 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = sys.maxsize if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, most), hard))
    if most < wanted:
        logger.warning(
            "this process may open %d files, and SHIM_HELD_LIMIT and SHIM_DISPATCHES may want %d: raise its"
            " hard limit (ulimit -Hn, LimitNOFILE=), or lower them",
            most,
            wanted,
        )


def serve(settings: ShimSettings, listener: socket.socket, environ: MutableMapping[str, str]) -> int:
    """Run the shim until it is told to stop; return the process's exit code.

    0 stopped as told; 1 the store cannot be used by this version; 2 a setting cannot work.
    """
    for name in ("SHIM_ADMIN_TOKEN", "SHIM_DATABASE_URL"):
        environ.pop(name, None)  # what the shim starts must not have them
    announce(settings)
    want_files(settings.held_limit + 4 * settings.dispatches + _FILES)
    code = 0
    try:
        anyio.run(_run, settings, listener, environ, backend_options={"use_uvloop": True})
    except* StateDirError as group:
        code = _log_all(group, 2)
    except* StoreError as group:
        code = _log_all(group, 1)
    return code


async def _run(settings: ShimSettings, listener: socket.socket, environ: Mapping[str, str]) -> None:
    await Shim(settings, listener, environ).run()


def _log_all(group: BaseExceptionGroup[Any], code: int) -> int:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _log_all(error, code)
        else:
            logger.error("%s", error)
    return code
