"""The composition root: builds the rooms, owns the signals.

uvicorn stops listening first when it is told to stop, so a drain cannot live in its
shutdown: it is told only when the drain is over.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread
import uvicorn
from starlette.types import ASGIApp

from .. import __version__
from ..adapter import RuntimeAdapter
from ..drain import Drain, DrainState
from ..errors import (
    AdapterError,
    ContractBroken,
    JournalError,
    JournalUnavailable,
    SettingsError,
    StateDirError,
)
from ..heartbeat import Identity, Pace
from ..ledger import Ledger
from ..resume import Limits
from ..settings import STOP_MARGIN, Settings, effective, without_secrets
from ..turns import State, Turn
from .adapter_life import running
from .app import MetricsMissing, Scraped, create_app
from .bell import Bell
from .boot import Recovery
from .children import LifeChildren, end_this_boot
from .control.socket import listening
from .control.verbs import Control
from .doctor import container
from .doctor.finding import Status
from .door.card import card
from .door.parts import Uploads
from .door.waiting import WaitingRoom
from .drainer import KEPT as DRAINS
from .drainer import Drainer
from .fence import fence
from .forgetting import Forgetting
from .front import Front
from .gate import Switch
from .housekeeping import Housekeeping
from .journal import BELIEVED, Journal, this_machine
from .last_resort import LastResort
from .mounts import mount_here
from .platform.pulse import Pulse
from .platform.reporter import Reporter
from .platform.secret_file import Secrets
from .platform.teller import Teller
from .platform.vitals import VitalSigns
from .sessions.lane import Bounds, Ground
from .sessions.own_prompts import OwnPrompts
from .sessions.sessions import Sessions
from .telemetry.lives import KEPT as LIVES
from .telemetry.lives import Lives
from .telemetry.tally import Tally
from .telemetry.tracer import Tracer

if TYPE_CHECKING:
    from .door.door import Door
    from .platform.client import PlatformClient
    from .telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_STOPS = (signal.SIGTERM, signal.SIGINT)

_REOPEN_EVERY = 1.0
_MORE = 3600.0
"""Seconds by which the time between two lives that is believed exceeds what makes work stale."""

_SHOWN = 200
"""Characters of a setting, such as a prompt, that are logged."""

_CHECK_AGAIN = 60.0
"""Seconds after which a runtime that cannot be used is looked at again."""

_LONGEST_CONFIGURATION_ERROR = 300
"""Characters that the agent card quotes of why the runtime cannot be used."""

_SERVER_GRACE = 0.3
"""Seconds uvicorn gets to write out what was answered."""

_ANSWER_BY = 60.0
"""Seconds by which the platform should be more patient than we are with a caller we hold."""

_TRACES_GRACE = 0.5
"""Seconds a stop waits at most for traces to be sent."""

_PLATFORM_TIMEOUT = 10.0
"""Seconds the platform gets to take what we tell it, beside the heartbeats."""

_LAST_MOMENT = STOP_MARGIN / 2
"""Seconds before the engine's SIGKILL at which we end by ourselves what does not stop."""

_JOIN = 0.15
"""Seconds before that at which the last heartbeat is given up."""


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would stop listening before the drain."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = anyio.Event()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        """Wake once a second for the ``Date`` header; its own looks ten times whether to stop."""
        while not await self.on_tick(0):
            with anyio.move_on_after(1):
                await self._told.wait()

    def stop(self) -> None:
        """Take no more connections, and end once what was answered is written out."""
        self.should_exit = True
        self._told.set()


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
        port = listener.getsockname()[1]
        self._url = settings.url or f"http://{socket.gethostname()}:{port}"
        self._environ = without_secrets(environ)
        self._boot_id = secrets.token_hex(8)
        self._started, self._started_at = time.monotonic(), time.time()
        self._state_dir = Path(settings.state_dir)
        self._switch = Switch()
        self._housekeeping = Housekeeping(self._switch, retention=settings.journal_retention)
        self._ledger = Ledger(settings.max_concurrent_turns)
        self._drainer = Drainer(
            drain=Drain(window=settings.restart_window),
            ledger=self._ledger,
            switch=self._switch,
            cap=settings.drain_cap,
        )
        self._room = WaitingRoom(hold_limit=settings.hold_limit)
        self._front = Front(self._room, places=settings.held_limit)
        self._tally = Tally()
        self._lives = Lives()
        self._metrics: Metrics | None = None
        self._sessions: Sessions | None = None
        self._secrets = Secrets(Path(settings.configs_dir))
        self._card: dict[str, Any] = {}
        self._runtime: dict[str, str] = {}
        """What the card says of the runtime, once it was checked."""
        self._vitals = VitalSigns(
            adapter=adapter,
            ledger=self._ledger,
            switch=self._switch,
            drainer=self._drainer,
            card=self._agent_card,
            url=self._url,
        )
        self._pulse: Pulse | None = None
        self._stop_by = math.inf
        self._journal: Journal | None = None
        self._door: Door | None = None
        self._working = False
        self._open = False
        self._opened_after: float | None = None
        self._stop_asked = 0
        self._abandon = anyio.CancelScope()
        self._served = anyio.Event()
        self._last_resort = LastResort(self._clean_up)

    async def run(self) -> None:
        """Serve until the stop has come.

        Raises:
            SettingsError: ``WORKSPACE_AGENT_CARD`` cannot be used.
            StateDirError: the state directory cannot be used.
            JournalError: the journal cannot be used, or was taken over.
        """
        settings = replace(self._settings, url=self._url)
        self._card = card(settings, adapter_name=self._adapter.name)
        if settings.platform_url is not None:
            self._pulse = self._pulse_for(settings.platform_url)
        server = _Server(
            uvicorn.Config(
                self._app(settings),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ws="none",
            )
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._hear_signals)
            tasks.start_soon(self._drainer.run)
            tasks.start_soon(self._serve_http, server)
            if self._pulse is not None:
                tasks.start_soon(self._pulse.run)
            with self._abandon:
                journal = self._journal = await self._open_journal()
                try:
                    await self._live(journal, server)
                finally:
                    with anyio.CancelScope(shield=True):
                        # Also where it is an error that ends us.
                        self._send_away()
                        await self._stop_serving(server)
                        if self._stop_asked:
                            self._lives.stop()
                            journal.note(LIVES, self._lives.as_text())
                        await journal.close()
                        if self._pulse is not None:
                            await self._pulse.stop(self._stop_by - time.monotonic())
            await self._stop_serving(server)
            tasks.cancel_scope.cancel()
        logger.info("stopped")

    def _app(self, settings: Settings) -> ASGIApp:
        return create_app(
            codec=self._front,
            drainer=self._drainer,
            status=self._status,
            metrics=self._scrape,
            ready=self._ready,
            settings=settings,
            secrets=self._secrets,
            card=self._agent_card,
            runtime=self._adapter.name,
            delivered=self._delivered,
            boot_id=self._boot_id,
        )

    def _connect(self, platform_url: str, *, timeout: float) -> PlatformClient:
        """Make a client of the platform; whoever stands alone never imports it."""
        from .platform.client import PlatformClient

        return PlatformClient(
            platform_url=platform_url,
            workspace_id=self._settings.workspace_id,
            configs_dir=Path(self._settings.configs_dir),
            org_id=self._settings.org_id,
            timeout=timeout,
            secrets=self._secrets,
        )

    def _pulse_for(self, platform_url: str) -> Pulse:
        settings, pace = self._settings, Pace(self._settings.heartbeat_interval)

        pulse = Pulse(
            connect=lambda: self._connect(platform_url, timeout=pace.timeout),
            identity=Identity(
                workspace_id=settings.workspace_id,
                boot_id=self._boot_id,
                version=__version__,
                idle_timeout=settings.hold_limit + _ANSWER_BY,
                began=self._started,
            ),
            url=self._url,
            delivery_mode=settings.delivery_mode,
            pace=pace,
            wedged_after=settings.wedged_after,
            read=self._vitals.read,
            ask_runtime=self._vitals.ask_runtime,
            require_auth=self._secrets.require,
        )
        self._switch.on_change = pulse.publish
        return pulse

    def _delivered(self, turn_id: str) -> None:
        if self._door is not None:
            self._door.delivered(turn_id)

    def _is_heard(self, turn_id: str) -> bool:
        return self._door is not None and self._door.tells(turn_id)

    async def _serve_http(self, server: _Server) -> None:
        try:
            await server.serve(sockets=[self._listener])
        finally:
            self._served.set()

    async def _stop_serving(self, server: _Server) -> None:
        server.stop()
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
                gc.enable()  # this may last
                if said != str(error):
                    said = str(error)
                    logger.error("waiting for the journal: %s", said)
                await anyio.sleep(_REOPEN_EVERY)

    async def _live(self, journal: Journal, server: _Server) -> None:
        settings = self._settings
        self._lives = Lives.parse(journal.noted(LIVES))
        self._lives.begin()
        journal.note(LIVES, self._lives.as_text())
        self._drainer.took.add(journal.noted(DRAINS))
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
        sessions = self._sessions = Sessions(
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
        drainer = self._drainer
        drainer.reopen = sessions.start_what_may
        pulse, tracer = self._pulse, self._traces(journal)
        teller = None
        if settings.platform_url is not None:
            teller = Teller(
                journal, patience=settings.notify_after, heard=self._is_heard, clock=journal.clock
            )

        def changed() -> None:
            drainer.look()
            if pulse is not None:
                pulse.publish()

        def left(turn_id: str, state: State | None) -> None:
            drainer.turn_left(turn_id, state)
            if pulse is not None:
                pulse.publish()

        def told(turn: Turn) -> None:
            self._tally.told(turn)
            self._vitals.told(turn)
            if tracer is not None:
                tracer.told(turn)
            if teller is not None:
                teller.ended(turn)

        if tracer is not None:
            sessions.place = tracer.place
        sessions.on_change = changed
        sessions.on_end = left
        sessions.on_start = self._tally.started
        sessions.on_told = told
        control = Control(
            journal=journal,
            sessions=sessions,
            drainer=drainer,
            ledger=self._ledger,
            forgetting=Forgetting(
                journal=journal,
                uploads=uploads,
                adapter=self._adapter,
                workdir=workdir,
                adapter_dir=adapter_dir,
            ),
            status=self._status,
        )
        async with (
            running(self._adapter, LifeChildren(self._environ, journal), adapter_dir),
            anyio.create_task_group() as rooms,
            listening(self._state_dir, control.verbs),
        ):
            rooms.start_soon(self._housekeeping.run, journal, uploads, sessions.start_what_may)
            for turn in await recovery.unfinished():
                sessions.submit(turn)
            logger.info("%d turns to continue or start", len(self._ledger.waiting))
            drainer.journal = journal
            self._working = True
            rooms.start_soon(sessions.run)
            if tracer is not None:
                rooms.start_soon(tracer.run)
            rooms.start_soon(self._open_door, journal, sessions, uploads)
            if teller is not None:
                rooms.start_soon(self._tell_platform, teller, sessions)
            if settings.initial_prompt is not None or settings.idle_prompt is not None:
                rooms.start_soon(self._own_prompts(journal, sessions).run)
            await drainer.stopping.wait()
            self._send_away()
            await sessions.stop()
            await self._stop_serving(server)
            if tracer is not None:
                await tracer.close(_TRACES_GRACE)
            rooms.cancel_scope.cancel()

    def _traces(self, journal: Journal) -> Tracer | None:
        """Make what gives turns their place in traces, where these are asked for."""
        endpoint = self._settings.traces_endpoint
        if endpoint is None:
            return None
        return Tracer(journal, endpoint=endpoint, workspace_id=self._settings.workspace_id)

    async def _open_door(self, journal: Journal, sessions: Sessions, uploads: Uploads) -> None:
        """Let messages in, once what reads them is loaded: in a thread, beside the work that is resumed."""
        door_of, create_codec = await anyio.to_thread.run_sync(_load_door, abandon_on_cancel=True)
        self._door = door_of(
            journal=journal,
            bell=self._bell,
            sessions=sessions,
            uploads=uploads,
            room=self._room,
            settings=self._settings,
            clock=journal.clock,
        )
        self._front.show(create_codec(self._door))
        self._room.open()
        self._open = True
        self._opened_after = time.monotonic() - self._started
        logger.info("open: %s", self._url)
        if self._pulse is not None:
            self._pulse.start()
        await self._check()

    async def _tell_platform(self, teller: Teller, sessions: Sessions) -> None:
        """Say by ourselves what the platform, or its user, would otherwise not hear of."""
        platform_url = self._settings.platform_url
        assert platform_url is not None
        await self._room.opened()
        client = await anyio.to_thread.run_sync(
            partial(self._connect, platform_url, timeout=_PLATFORM_TIMEOUT), abandon_on_cancel=True
        )
        reporter = Reporter(sessions.work, clock=time.time)
        async with anyio.create_task_group() as rooms:
            rooms.start_soon(teller.run, client.notify)
            rooms.start_soon(
                reporter.run, lambda line: client.activity(activity_type="agent_log", summary=line)
            )

    def _own_prompts(self, journal: Journal, sessions: Sessions) -> OwnPrompts:
        def idle() -> bool:
            quiet = not len(self._ledger) and not self._ledger.waiting
            return quiet and self._switch.opened and self._drainer.state is DrainState.SERVING

        return OwnPrompts(
            journal, settings=self._settings, submit=sessions.submit, idle=idle, clock=journal.clock
        )

    async def _check(self) -> None:
        """Say at start-up what would otherwise be found out by the first message, and when it is mended."""
        said = ""
        while True:
            try:
                with fence("check"):
                    version = await self._adapter.check()
            except AdapterError as error:
                why = (str(error).splitlines() or [type(error).__name__])[0]
                self._runtime = {
                    "configuration_status": "not_configured",
                    "configuration_error": why[:_LONGEST_CONFIGURATION_ERROR],
                }
                if said != why:
                    said = why
                    logger.error("the runtime %s cannot be used: %s", self._adapter.name, error)
                if isinstance(error, ContractBroken):
                    return  # waiting mends no mistake of the adapter's
                await anyio.sleep(_CHECK_AGAIN)
            else:
                self._runtime = {"configuration_status": "ready"}
                logger.info("runtime %s %s", self._adapter.name, version)
                return

    # --- the signals ----------------------------------------------------------------

    async def _hear_signals(
        self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            with anyio.open_signal_receiver(*_STOPS) as received:
                task_status.started()
                async with anyio.create_task_group() as stops:
                    async for number in received:
                        stops.start_soon(self._asked_to_stop, signal.Signals(number).name)
        finally:
            for stop in _STOPS:  # all is done: another one could only spoil the exit code
                signal.signal(stop, signal.SIG_IGN)

    async def _asked_to_stop(self, why: str) -> None:
        self._stop_asked += 1
        if self._stop_asked == 1:
            self._stop_by = time.monotonic() + self._settings.stop_timeout - _LAST_MOMENT - _JOIN
            self._last_resort.within(self._settings.stop_timeout - _LAST_MOMENT)
        elif self._stop_asked == 2:
            self._last_resort.within(self._settings.stop_grace + STOP_MARGIN)
        if not self._working:
            logger.info("%s: stopping during the boot", why)
            self._send_away()
            self._abandon.cancel()
        elif self._stop_asked > 1:
            self._drainer.stop_now()
        else:
            await self._drainer.begin(why, cap=self._settings.term_cap, stop=True)

    def _send_away(self) -> None:
        self._room.shut(retry_after=math.ceil(self._settings.stop_timeout))

    def _clean_up(self) -> None:
        if self._journal is not None:
            end_this_boot(self._journal)

    # --- what it says of itself -----------------------------------------------------

    def _agent_card(self) -> dict[str, Any]:
        """The card as it is now, with what the existing platform shows of a runtime that cannot start."""
        return self._card | self._runtime

    def _ready(self) -> tuple[bool, str]:
        """Say whether messages are accepted, else why not."""
        if self._journal is None:
            return False, "booting: the journal is not open yet"
        if not self._open:
            return False, "booting: the door is not open yet"
        if not self._housekeeping.healthy:
            return False, "the journal cannot be written"
        if self._drainer.state is DrainState.STOPPING:
            return False, "stopping"
        return True, "ready"

    def _state(self) -> str:
        return str(self._drainer.state) if self._working else "booting"

    async def _scrape(self) -> Scraped:
        """What a scraper is shown.

        Raises:
            MetricsMissing: the extra is not installed.
        """
        if self._metrics is None:
            made = await anyio.to_thread.run_sync(_load_metrics)
            self._metrics = self._metrics or made(
                settings=self._settings,
                info={
                    "workspace_id": self._settings.workspace_id,
                    "version": __version__,
                    "adapter": self._adapter.name,
                    "boot_id": self._boot_id,
                },
                started=self._started_at,
                ready=lambda: self._ready()[0],
                state=self._state,
                opened_after=lambda: self._opened_after,
                ledger=self._ledger,
                switch=self._switch,
                drainer=self._drainer,
                room=self._room,
                housekeeping=self._housekeeping,
                tally=self._tally,
                lives=lambda: self._lives,
                pulse=self._pulse,
            )
        self._metrics.journal, self._metrics.sessions = self._journal, self._sessions
        return await self._metrics.scrape()

    def _status(self) -> dict[str, Any]:
        """What the operator is shown of a live sidecar."""
        journal = self._journal
        counts = journal.counts() if journal else {}
        capabilities = self._adapter.capabilities
        return {
            "workspace_id": self._settings.workspace_id,
            "version": __version__,
            "boot_id": self._boot_id,
            "uptime_seconds": round(time.monotonic() - self._started),
            "adapter": self._adapter.name,
            "gate_covers": capabilities.covers if capabilities.gate else None,
            "at_closed_gate": capabilities.gate,
            "state": self._state(),
            "gate": "open" if self._switch.opened else f"closed by {', '.join(self._switch.closed_by)}",
            "active_tasks": len(self._ledger),
            "running": [running.turn_id for running in self._ledger],
            "waiting": len(self._ledger.waiting),
            "turns": {str(state): counts.get(state, 0) for state in State},
            "journal_bytes": journal.size_bytes() if journal else None,
            "journal_salvaged": journal.salvaged if journal else None,
            "ready": self._ready()[0],
            "platform": self._pulse.status() if self._pulse else None,
        }


def announce(settings: Settings, adapter: RuntimeAdapter) -> None:
    """Print the effective configuration once, secrets masked."""
    shown = effective(settings)
    if adapter.settings is not None:
        shown |= effective(adapter.settings)
    words = (f"{name}={value[:_SHOWN]}{'…' * (len(value) > _SHOWN)}" for name, value in shown.items())
    logger.info("workspace_adapter %s: %s", __version__, " ".join(words))
    if settings.host not in ("127.0.0.1", "::1", "localhost") and not settings.require_auth:
        logger.warning(
            "listening on %s without WORKSPACE_REQUIRE_AUTH: whoever reaches the port is heard",
            settings.host,
        )
    state_dir = settings.state_dir
    for finding in (container.place(state_dir, mount_here(Path(state_dir))), container.init(os.getpid())):
        if finding.status is not Status.OK:
            level = logging.ERROR if finding.status is Status.BROKEN else logging.WARNING
            logger.log(level, "%s", finding)


def serve(
    settings: Settings,
    adapter: RuntimeAdapter,
    listener: socket.socket,
    environ: MutableMapping[str, str],
) -> int:
    """Run the sidecar until it is told to stop; return the process's exit code.

    0 stopped as told; 1 the journal or the runtime cannot be used, or something did not end
    in time for the stop; 2 a setting cannot work.
    """
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


def _load_door() -> tuple[type[Door], Callable[[Door], ASGIApp]]:
    """Import the door and its codec, which takes longer than the rest of the boot."""
    from .door.codec import create_codec
    from .door.door import Door

    gc.freeze()
    gc.enable()
    return Door, create_codec


def _load_metrics() -> type[Metrics]:
    """Import what renders metrics, and the extra with it.

    Raises:
        MetricsMissing: it is not installed.
    """
    try:
        from .telemetry.metrics import Metrics
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        raise MetricsMissing(
            "metrics need an extra that is not installed: pip install 'workspace-adapter[metrics]'"
        ) from None
    return Metrics


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
