"""The composition root: builds the rooms, owns the signals.

uvicorn stops listening first when it is told to stop, so a drain cannot live in its
shutdown: it is told only when the drain is over.
"""

from __future__ import annotations

import logging
import math
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Generator, Mapping, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import uvicorn

from .. import __version__
from ..adapter import RuntimeAdapter
from ..drain import Drain, DrainState
from ..errors import AdapterError, JournalError, JournalUnavailable, SettingsError, StateDirError
from ..ledger import Ledger
from ..resume import Limits
from ..settings import STOP_MARGIN, Settings, effective, without_secrets
from ..turns import State
from .app import create_app
from .bell import Bell
from .boot import Recovery
from .children import LifeChildren, end_this_boot
from .control.socket import listening
from .control.verbs import Control
from .door.door import Door
from .door.parts import Uploads
from .drainer import Drainer
from .fence import fence
from .front import Front
from .gate import Switch
from .housekeeping import Housekeeping
from .journal import BELIEVED, Journal, this_machine
from .last_resort import LastResort
from .sessions.lane import Bounds, Ground
from .sessions.sessions import Sessions

logger = logging.getLogger(__name__)

_REOPEN_EVERY = 1.0
_MORE = 3600.0
"""Seconds by which the time between two lives that is believed exceeds what makes work stale."""

_SERVER_GRACE = 0.3
"""Seconds uvicorn gets to write out what was answered."""

_LAST_MOMENT = STOP_MARGIN / 2
"""Seconds before the engine's SIGKILL at which we end by ourselves what does not stop."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would stop listening before the drain."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def bind(settings: Settings) -> socket.socket:
    """Take the port, before anything slow.

    Raises:
        OSError: it is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server(
        (settings.host, settings.port), family=family, backlog=2048, reuse_port=False
    )
    listener.setblocking(False)
    # asyncio sets it only on sockets whose protocol number says TCP; without it a response
    # in two writes waits 40 ms for the caller's delayed acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class Sidecar:
    """One life of the half inside the container."""

    def __init__(
        self,
        settings: Settings,
        adapter: RuntimeAdapter,
        listener: socket.socket,
        environ: Mapping[str, str],
    ) -> None:
        self._settings = settings
        self._adapter = adapter
        self._listener = listener
        self._environ = without_secrets(environ)
        self._boot_id = secrets.token_hex(8)
        self._started = time.monotonic()
        self._state_dir = Path(settings.state_dir)
        self._switch = Switch()
        self._housekeeping = Housekeeping(self._switch, retention=settings.journal_retention)
        self._ledger = Ledger(settings.max_concurrent_turns)
        self._front = Front(held_limit=settings.held_limit)
        self._open = False
        self._stop_asked = 0
        self._journal: Journal | None = None
        self._door: Door | None = None
        self._drainer: Drainer | None = None
        self._abandon = anyio.CancelScope()
        self._served = anyio.Event()
        self._last_resort = LastResort(self._clean_up)

    async def run(self) -> None:
        """Serve until the stop has come.

        Raises:
            StateDirError: the state directory cannot be used.
            JournalError: the journal cannot be used, or was taken over.
        """
        server = _Server(
            uvicorn.Config(
                self._front,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
            )
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._hear_signals)
            tasks.start_soon(self._serve_http, server)
            with self._abandon:
                journal = self._journal = await self._open_journal()
                try:
                    await self._live(journal, server)
                finally:
                    with anyio.CancelScope(shield=True):
                        await journal.close()
            await self._stop_serving(server)
            tasks.cancel_scope.cancel()
        logger.info("stopped")

    async def _serve_http(self, server: uvicorn.Server) -> None:
        try:
            await server.serve(sockets=[self._listener])
        finally:
            self._served.set()

    async def _stop_serving(self, server: uvicorn.Server) -> None:
        server.should_exit = True
        with anyio.move_on_after(_SERVER_GRACE):
            await self._served.wait()

    # --- boot -----------------------------------------------------------------------

    async def _open_journal(self) -> Journal:
        bell = self._bell = Bell()
        said = ""
        while True:
            try:
                return await Journal.open(
                    self._state_dir,
                    boot_id=self._boot_id,
                    now=time.time(),
                    machine=this_machine,
                    believed=max(BELIEVED, self._settings.resume_freshness + _MORE),
                    on_change=bell.ring,
                    on_health=self._housekeeping.on_health,
                )
            except JournalUnavailable as error:
                if said != str(error):
                    said = str(error)
                    logger.error("waiting for the journal: %s", said)
                await anyio.sleep(_REOPEN_EVERY)

    async def _live(self, journal: Journal, server: uvicorn.Server) -> None:
        settings = self._settings
        adapter_dir = self._state_dir / self._adapter.name
        try:
            adapter_dir.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StateDirError(f"{adapter_dir} cannot be made: {error.strerror}") from error
        workdir = Path(settings.workdir)
        uploads = Uploads(workdir=workdir, state_dir=self._state_dir, clock=journal.time)
        recovery = Recovery(
            adapter=self._adapter,
            journal=journal,
            limits=Limits(
                freshness=settings.resume_freshness,
                max_attempts=settings.resume_max_attempts,
                max_total=settings.resume_max_total,
            ),
            look_limit=settings.recover_limit,
            workdir=workdir,
            adapter_dir=adapter_dir,
            awaited=self._bell.heard,
            clock=journal.clock,
        )
        sessions = Sessions(
            ground=Ground(
                adapter=self._adapter,
                journal=journal,
                environ=self._environ,
                workdir=workdir,
                adapter_dir=adapter_dir,
                bounds=Bounds(
                    open_sessions=settings.sessions_open,
                    session_idle=settings.session_idle,
                    turn_idle=settings.turn_idle_limit,
                    grace=settings.stop_grace,
                ),
            ),
            ledger=self._ledger,
            switch=self._switch,
            recovery=recovery,
            materialise=uploads.materialise,
            clock=journal.clock,
        )
        drainer = self._drainer = Drainer(
            drain=Drain(window=settings.restart_window),
            ledger=self._ledger,
            switch=self._switch,
            journal=journal,
            cap=settings.drain_cap,
            reopen=sessions.start_what_may,
        )
        sessions.on_change = drainer.look
        sessions.on_end = drainer.turn_left
        door = self._door = Door(
            journal=journal,
            bell=self._bell,
            sessions=sessions,
            uploads=uploads,
            settings=settings,
            clock=journal.clock,
        )

        def status() -> dict[str, Any]:
            return self._status(journal)

        control = Control(
            journal=journal, sessions=sessions, drainer=drainer, ledger=self._ledger, status=status
        )
        app = create_app(
            door=door,
            drainer=drainer,
            status=status,
            ready=self._ready,
            settings=replace(settings, url=self._url()),
            adapter_name=self._adapter.name,
        )
        async with (
            _running(self._adapter, LifeChildren(self._environ, journal), adapter_dir),
            anyio.create_task_group() as rooms,
            listening(self._state_dir, control.verbs),
        ):
            self._front.show(app)
            rooms.start_soon(drainer.run)
            rooms.start_soon(self._housekeeping.run, journal, uploads, sessions.start_what_may)
            for turn in await recovery.unfinished():
                sessions.submit(turn)
            rooms.start_soon(sessions.run)
            rooms.start_soon(self._check)
            door.open()
            self._open = True
            logger.info("open: %s, %d turns to continue or start", self._url(), len(self._ledger.waiting))
            await drainer.stopping.wait()
            door.shut(retry_after=math.ceil(settings.stop_timeout))
            await sessions.stop()
            await self._stop_serving(server)
            rooms.cancel_scope.cancel()

    async def _check(self) -> None:
        """Say at start-up what would otherwise be found out by the first message."""
        try:
            with fence("check"):
                version = await self._adapter.check()
            logger.info("runtime %s %s", self._adapter.name, version)
        except AdapterError as error:
            logger.error("the runtime %s cannot be used: %s", self._adapter.name, error)

    # --- the signals ----------------------------------------------------------------

    async def _hear_signals(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            async with anyio.create_task_group() as stops:
                async for number in received:
                    stops.start_soon(self._asked_to_stop, signal.Signals(number).name)

    async def _asked_to_stop(self, why: str) -> None:
        self._stop_asked += 1
        if self._stop_asked == 1:
            self._last_resort.within(self._settings.stop_timeout - _LAST_MOMENT)
        elif self._stop_asked == 2:
            self._last_resort.within(self._settings.stop_grace + STOP_MARGIN)
        if self._drainer is None or not self._open:
            logger.info("%s: stopping during the boot", why)
            self._front.shut()
            if self._door is not None:
                self._door.shut(retry_after=math.ceil(self._settings.stop_timeout))
            self._abandon.cancel()
        elif self._stop_asked > 1:
            self._drainer.stop_now()
        else:
            await self._drainer.begin(why, cap=self._settings.term_cap, stop=True)

    def _clean_up(self) -> None:
        if self._journal is not None:
            end_this_boot(self._journal)

    # --- what it says of itself -----------------------------------------------------

    def _url(self) -> str:
        port = self._listener.getsockname()[1]
        return self._settings.url or f"http://{socket.gethostname()}:{port}"

    def _ready(self) -> tuple[bool, str]:
        """Say whether messages are accepted, else why not."""
        if not self._open:
            return False, "booting: interrupted work is not submitted yet"
        if not self._housekeeping.healthy:
            return False, "the journal cannot be written"
        if self._drainer is not None and self._drainer.state is DrainState.STOPPING:
            return False, "stopping"
        return True, "ready"

    def _status(self, journal: Journal) -> dict[str, Any]:
        """What the operator is shown of a live sidecar."""
        counts = journal.counts()
        capabilities = self._adapter.capabilities
        return {
            "workspace_id": self._settings.workspace_id,
            "version": __version__,
            "boot_id": self._boot_id,
            "uptime_seconds": round(time.monotonic() - self._started),
            "adapter": self._adapter.name,
            "gate_covers": capabilities.covers if capabilities.gate else None,
            "at_closed_gate": capabilities.gate,
            "state": str(self._drainer.state) if self._drainer else "booting",
            "gate": "open" if self._switch.opened else f"closed by {', '.join(self._switch.closed_by)}",
            "active_tasks": len(self._ledger),
            "running": [running.turn_id for running in self._ledger],
            "waiting": len(self._ledger.waiting),
            "turns": {str(state): counts.get(state, 0) for state in State},
            "journal_bytes": journal.size_bytes(),
            "journal_salvaged": journal.salvaged,
            "ready": self._ready()[0],
        }


@asynccontextmanager
async def _running(adapter: RuntimeAdapter, children: LifeChildren, adapter_dir: Path) -> AsyncIterator[None]:
    """Hold what lives as long as the adapter; nothing of it is left behind."""
    stack = AsyncExitStack()
    try:
        with fence("running"):
            await stack.enter_async_context(adapter.running(children, adapter_dir))
        try:
            yield
        finally:
            with fence("leaving running"):
                await stack.aclose()
    finally:
        with anyio.CancelScope(shield=True):
            await children.reap()


def announce(settings: Settings, adapter: RuntimeAdapter) -> None:
    """Print the effective configuration once, secrets masked."""
    shown = effective(settings)
    if adapter.settings is not None:
        shown |= effective(adapter.settings)
    logger.info("workspace_adapter %s: %s", __version__, " ".join(f"{k}={v}" for k, v in shown.items()))
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.require_auth:
        logger.warning(
            "listening on %s without WORKSPACE_REQUIRE_AUTH: whoever reaches the port is heard",
            settings.host,
        )


def serve(settings: Settings, adapter: RuntimeAdapter, environ: MutableMapping[str, str]) -> int:
    """Run the sidecar until it is told to stop; return the process's exit code.

    0 stopped as told; 1 the journal or the runtime cannot be used, or something did not end
    in time for the stop; 2 a setting cannot work.
    """
    try:
        listener = bind(settings)
    except OSError as error:
        logger.error(
            "WORKSPACE_HOST=%s WORKSPACE_PORT=%d cannot be listened on: %s",
            settings.host,
            settings.port,
            error.strerror,
        )
        return 2
    for name in environ.keys() - without_secrets(environ).keys():
        # A library may hand its children the process's own environment, not what we give it.
        del environ[name]
    announce(settings, adapter)
    code = 0
    try:
        anyio.run(_run, settings, adapter, listener, environ)
    except* (StateDirError, SettingsError) as group:
        code = _log_all(group, 2)
    except* (JournalError, AdapterError) as group:
        code = _log_all(group, 1)
    return code


async def _run(
    settings: Settings, adapter: RuntimeAdapter, listener: socket.socket, environ: Mapping[str, str]
) -> None:
    await Sidecar(settings, adapter, listener, environ).run()


def _log_all(group: BaseExceptionGroup[Any], code: int) -> int:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            _log_all(error, code)
        else:
            logger.error("%s", error)
    return code
