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
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.to_thread
from starlette.types import ASGIApp

from .. import __version__
from ..adapter import RuntimeAdapter
from ..drain import Drain, DrainState
from ..errors import (
    AdapterError,
    JournalError,
    JournalUnavailable,
    SettingsError,
    StateDirError,
)
from ..ledger import Ledger
from ..resume import Limits
from ..server import Server
from ..settings import STOP_MARGIN, Settings, effective, without_secrets
from ..turns import State, Turn
from .adapter_life import running
from .app import create_app
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
from .forgetting import Forgetting
from .front import Front
from .gate import Switch
from .housekeeping import Housekeeping
from .journal import BELIEVED, Journal, this_machine
from .last_resort import LastResort
from .mounts import mount_here
from .platform.link import Link
from .platform.vitals import VitalSigns
from .runtime_check import RuntimeCheck
from .secret_file import Secrets
from .sessions.lane import Bounds, Ground
from .sessions.own_prompts import OwnPrompts
from .sessions.sessions import Sessions
from .telemetry.lives import KEPT as LIVES
from .telemetry.lives import Lives
from .telemetry.scrape import Scrape
from .telemetry.standing import Standing
from .telemetry.tally import Tally
from .telemetry.tracer import Tracer

if TYPE_CHECKING:
    from .door.door import Door

logger = logging.getLogger(__name__)

_STOPS = (signal.SIGTERM, signal.SIGINT)

_REOPEN_EVERY = 1.0
_MORE = 3600.0
"""Seconds by which the time between two lives that is believed exceeds what makes work stale."""

_SHOWN = 200
"""Characters of a setting, such as a prompt, that are logged."""

_TRACES_GRACE = 0.5
"""Seconds a stop waits at most for traces to be sent."""

_LAST_MOMENT = STOP_MARGIN / 2
"""Seconds before the engine's SIGKILL at which we end by ourselves what does not stop."""

_JOIN = 0.15
"""Seconds before that at which the last heartbeat is given up."""


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
        self._began, self._began_at = time.monotonic(), time.time()
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
        self._secrets = Secrets(Path(settings.configs_dir))
        self._runtime = RuntimeCheck(adapter)
        self._tally = Tally()
        self._door: Door | None = None
        self._stop_asked = 0
        self._stop_by = math.inf
        self._abandon = anyio.CancelScope()
        self._last_resort = LastResort(self._clean_up)

    async def run(self) -> None:
        """Serve until the stop has come.

        Raises:
            SettingsError: ``WORKSPACE_AGENT_CARD`` cannot be used.
            StateDirError: the state directory cannot be used.
            JournalError: the journal cannot be used, or was taken over.
        """
        standing = self._standing = Standing(
            settings=self._settings,
            adapter=self._adapter,
            boot_id=self._boot_id,
            described=card(replace(self._settings, url=self._url), adapter_name=self._adapter.name),
            runtime=self._runtime,
            ledger=self._ledger,
            switch=self._switch,
            drainer=self._drainer,
            room=self._room,
            housekeeping=self._housekeeping,
            tally=self._tally,
            began=self._began,
            began_at=self._began_at,
        )
        link = self._link = self._tie()
        server = Server(self._app(standing), self._listener)
        async with anyio.create_task_group() as tasks:
            await tasks.start(self._hear_signals)
            tasks.start_soon(self._drainer.run)
            tasks.start_soon(server.run)
            if link is not None:
                standing.pulse = link.pulse
                self._switch.on_change = link.pulse.publish
                tasks.start_soon(link.pulse.run)
            with self._abandon:
                journal = standing.journal = await self._open_journal()
                try:
                    await self._live(journal, server)
                finally:
                    with anyio.CancelScope(shield=True):
                        # Also where it is an error that ends us.
                        self._send_away()
                        await server.end()
                        if self._stop_asked:
                            standing.lives.stop()
                            journal.note(LIVES, standing.lives.as_text())
                        await journal.close()
                        if link is not None:
                            await link.pulse.stop(self._stop_by - time.monotonic())
            await server.end()
            tasks.cancel_scope.cancel()
        logger.info("stopped")

    def _tie(self) -> Link | None:
        if self._settings.platform_url is None:
            return None
        return Link(
            self._settings.platform_url,
            settings=self._settings,
            url=self._url,
            boot_id=self._boot_id,
            version=__version__,
            began=self._began,
            secrets=self._secrets,
            vitals=VitalSigns(
                adapter=self._adapter,
                ledger=self._ledger,
                switch=self._switch,
                drainer=self._drainer,
                card=self._standing.card,
                url=self._url,
            ),
        )

    def _app(self, standing: Standing) -> ASGIApp:
        return create_app(
            codec=self._front,
            drainer=self._drainer,
            status=standing.status,
            metrics=Scrape(standing),
            ready=standing.ready,
            settings=self._settings,
            secrets=self._secrets,
            card=standing.card,
            runtime=self._adapter.name,
            delivered=self._delivered,
            boot_id=self._boot_id,
        )

    def _delivered(self, turn_id: str) -> None:
        if self._door is not None:
            self._door.delivered(turn_id)

    def _is_heard(self, turn_id: str) -> bool:
        return self._door is not None and self._door.tells(turn_id)

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

    async def _live(self, journal: Journal, server: Server) -> None:
        settings = self._settings
        standing, link = self._standing, self._link
        lives = standing.lives = Lives.parse(journal.noted(LIVES))
        lives.begin()
        journal.note(LIVES, lives.as_text())
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
        sessions = standing.sessions = Sessions(
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
        watching: list[Callable[[], None]] = [drainer.look]
        hearing: list[Callable[[Turn], None]] = [self._tally.told]
        tracer = self._traces(journal)
        if tracer is not None:
            sessions.place = tracer.place
            hearing.append(tracer.told)
        if link is not None:
            link.attend(journal, heard=self._is_heard)
            watching.append(link.pulse.publish)
            hearing.append(link.told)

        def changed() -> None:
            for look in watching:
                look()

        def left(turn_id: str, state: State | None) -> None:
            drainer.turn_left(turn_id, state)
            if link is not None:
                link.pulse.publish()

        def told(turn: Turn) -> None:
            for hear in hearing:
                hear(turn)

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
            status=standing.status,
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
            standing.working = True
            rooms.start_soon(sessions.run)
            if tracer is not None:
                rooms.start_soon(tracer.run)
            rooms.start_soon(self._open_door, journal, sessions, uploads)
            if link is not None:
                rooms.start_soon(self._tell_platform, link, sessions)
            if settings.initial_prompt is not None or settings.idle_prompt is not None:
                rooms.start_soon(self._own_prompts(journal, sessions).run)
            await drainer.stopping.wait()
            self._send_away()
            await sessions.stop()
            await server.end()
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
        self._standing.opened_after = time.monotonic() - self._began
        logger.info("open: %s", self._url)
        if self._link is not None:
            self._link.pulse.start()
        await self._runtime.run()

    async def _tell_platform(self, link: Link, sessions: Sessions) -> None:
        await self._room.opened()
        await link.tell(sessions.work)

    def _own_prompts(self, journal: Journal, sessions: Sessions) -> OwnPrompts:
        def idle() -> bool:
            quiet = not len(self._ledger) and not self._ledger.waiting
            return quiet and self._switch.opened and self._drainer.state is DrainState.SERVING

        return OwnPrompts(
            journal, settings=self._settings, submit=sessions.submit, idle=idle, clock=journal.clock
        )

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
        if not self._standing.working:
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
        if self._standing.journal is not None:
            end_this_boot(self._standing.journal)


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
