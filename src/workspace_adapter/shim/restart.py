"""The restart cycle: signal, await the answer, stop, start, wait for a new boot id.

::

    asked ► signal ► stop ► start ► wait ► done          restart
    asked ────────────────► start ► wait ► done          revive (it is dead), resume
    asked ► signal ► stop ────────────────► done         pause, remove

Each step is written before its work begins, and its work may be done twice. So whoever
has the cycle next, another replica or the next start, does the step it finds again.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio

from .. import wire
from ..errors import ProvisionerError, StoreUnavailable, UnknownWorkspace, WorkspaceUnreachable
from .deaths import GIVEN_UP, gives_up
from .front.identity import CONTAINER
from .provisioners.contract import SECRET_FILE, TOKEN_FILE, Provisioner, environment
from .provisioners.external import ExternalProvisioner
from .store.contract import DORMANT, OVER, REACHABLE, Aim, Cycle, Role, Status, Step, Store, Workspace
from .upstream import Upstream

logger = logging.getLogger(__name__)

_AWAKE = frozenset(Status) - DORMANT
_TRIES = (1.0, 2.0, 4.0)
"""Seconds before a provisioner that failed is asked once more."""
_MOST = 64
"""Cycles that one replica runs at once."""
_POLL = 1.0
"""Seconds between two looks for cycles that nobody rang for."""
_LOOK = 0.25
"""Seconds between two looks whether a started workspace registered, behind what is heard of it."""
_RELEASE = 2.0
"""Seconds in which a shim that is stopped leaves its cycles to the next; otherwise they lapse."""
_ANSWER_LIMIT = 1 << 20
_SHOWN = 20
"""Ids of turns that are kept of an acknowledgement's lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """The cycle's times, in seconds."""

    drain: float = 60.0
    """How long the signal's acknowledgement is waited for."""
    grace: float = 15.0
    """Between SIGTERM and SIGKILL."""
    start: float = 120.0
    """How long a started workspace may take to register."""
    renewal: float = 8.0
    """How often a cycle's owner renews it."""


@dataclass(frozen=True, slots=True)
class _Move:
    """What a step came to."""

    step: Step
    notes: Mapping[str, Any] = field(default_factory=dict)
    boot_before: str | None = None


class Restarts:
    """Runs the cycles that were asked for, and goes on with those that others left.

    Args:
        owner: the boot id of this life.
        provisioners: by the names that workspaces have them by; ``external`` is always there.
        mint: makes a workspace's token; returns it with its digest.
        environ: the shim's own environment, of which a workspace gets what its spec names.
        platform_url: where workspaces reach the shim.
        suspect: told of a workspace that a cycle left dead.
    """

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        provisioners: Mapping[str, Provisioner],
        *,
        owner: str,
        mint: Callable[[], tuple[str, str]],
        environ: Mapping[str, str],
        platform_url: str,
        times: Times | None = None,
        suspect: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._provisioners = {"external": ExternalProvisioner(), **provisioners}
        self._owner = owner
        self._mint = mint
        self._environ = environ
        self._platform_url = platform_url
        self._times = times or Times()
        self._suspect = suspect
        self._bell = anyio.Event()
        self._awaited: dict[str, anyio.Event] = {}
        self._running: set[int] = set()

    def __len__(self) -> int:
        """Return how many cycles this replica runs."""
        return len(self._running)

    def ring(self, workspace_id: str) -> None:
        """Say that a cycle was asked for, or ended. On the event loop only."""
        self._bell.set()
        self.heard(workspace_id)

    def heard(self, workspace_id: str) -> None:
        """Say that a workspace registered. On the event loop only."""
        if awaited := self._awaited.get(workspace_id):
            awaited.set()

    async def run(self) -> None:
        """Run cycles until cancelled; whoever comes next goes on with those under way."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._bell = anyio.Event()
                try:
                    while len(self._running) < _MOST and (
                        cycle := await self._store.claim_cycle(self._owner)
                    ):
                        self._running.add(cycle.id)
                        tasks.start_soon(self._work, cycle)
                except StoreUnavailable:
                    pass  # the sweep says so
                with anyio.move_on_after(_POLL):
                    await self._bell.wait()

    # --- one cycle ------------------------------------------------------------------------

    async def _work(self, cycle: Cycle) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._renew, cycle, tasks.cancel_scope)
                while (left := await self._go_on(cycle)) is not None:
                    cycle = left
                    await anyio.sleep(_POLL)
                tasks.cancel_scope.cancel()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_RELEASE, shield=True), suppress(StoreUnavailable):
                await self._store.release_cycle(cycle)
            raise
        finally:
            self._running.discard(cycle.id)
            self._bell.set()

    async def _renew(self, cycle: Cycle, scope: anyio.CancelScope) -> None:
        """Hold the cycle; another owner's is not ours to go on with."""
        while True:
            await anyio.sleep(self._times.renewal)
            try:
                held = await self._store.renew_cycle(cycle)
            except StoreUnavailable:
                continue
            if not held:
                logger.info("cycle %d is another replica's now", cycle.id, extra=_ids(cycle))
                scope.cancel()

    async def _go_on(self, cycle: Cycle) -> Cycle | None:
        """Do step after step; return the cycle where the store failed, to be gone on with."""
        try:
            while cycle.step not in OVER:
                # What was taken from us while the store was away, or we were, may be over by now.
                moved = cycle if await self._store.renew_cycle(cycle) else None
                if moved is not None:
                    workspace = await self._store.workspace(cycle.workspace_id)
                    move = await self._step(cycle, workspace)
                    if move.step in OVER:
                        await self._store.set_restarting(cycle.workspace_id, False, of=cycle)
                    moved = await self._store.advance_cycle(
                        cycle, move.step, notes=move.notes, boot_before=move.boot_before
                    )
                if moved is None:
                    logger.info("cycle %d is another replica's now", cycle.id, extra=_ids(cycle))
                    return None
                cycle = moved
        except StoreUnavailable:
            return cycle
        except UnknownWorkspace:
            logger.info("workspace %s was removed under cycle %d", cycle.workspace_id, cycle.id)
            return None
        self._tell(cycle)
        return None

    async def _step(self, cycle: Cycle, workspace: Workspace | None) -> _Move:
        if workspace is None or workspace.status is Status.REMOVED:
            return _done("the workspace is removed")
        provisioner = self._provisioners.get(workspace.provisioner)
        if provisioner is None:
            return _failed(
                f"the shim has no provisioner {workspace.provisioner}: set it up, or let go of the workspace"
                " (PATCH its provisioner to external)"
            )
        if cycle.step is not Step.ASKED:
            await self._store.set_restarting(workspace.id, True, of=cycle)
        match cycle.step:
            case Step.ASKED:
                return await self._asked(cycle, workspace, provisioner)
            case Step.SIGNAL:
                return _Move(Step.STOP, {"signal": await self._signal(cycle, workspace, provisioner)})
            case Step.STOP:
                return await self._stop(cycle, workspace, provisioner)
            case Step.START:
                return await self._start(cycle, workspace, provisioner)
            case _:
                return await self._wait(cycle, workspace, provisioner)

    async def _asked(self, cycle: Cycle, workspace: Workspace, provisioner: Provisioner) -> _Move:
        """Decide whether there is anything to do, and have at hand what it needs."""
        dormant = workspace.status in DORMANT
        match cycle.aim:
            case Aim.PAUSE:
                # A pause whose stop failed has left it running: the next one must stop it.
                stopped = isinstance(provisioner, ExternalProvisioner) or (
                    dormant and await provisioner.running(workspace) is False
                )
                if dormant and stopped:
                    return _done("it is paused already")
                await self._store.set_status(workspace.id, Status.PAUSED, were=_AWAKE, of=cycle)
            case Aim.RESUME:
                if not dormant:
                    return _done("it is not paused")
            case Aim.RESTART | Aim.REVIVE:
                if dormant:
                    return _done("it is paused: resume it")
        if cycle.aim is Aim.REVIVE:
            if await provisioner.running(workspace):
                return _done("it runs again")
            if why := gives_up(await self._store.cycles(workspace.id)):
                await self._store.set_status(workspace.id, Status.FAILED, were=_AWAKE, of=cycle)
                return _Move(Step.FAILED, {"because": why, GIVEN_UP: True})
        if cycle.aim in _STARTS:
            try:
                await _insisted(lambda: provisioner.prepare(workspace))
            except ProvisionerError as error:
                if cycle.aim is Aim.REVIVE:
                    await self._store.set_status(workspace.id, Status.FAILED, were=_AWAKE, of=cycle)
                return _failed(f"nothing was stopped, since nothing could be started: {error}")
        step = Step.START if cycle.aim in (Aim.REVIVE, Aim.RESUME) else Step.SIGNAL
        return _Move(step, boot_before=workspace.boot_id)

    async def _signal(
        self, cycle: Cycle, workspace: Workspace, provisioner: Provisioner
    ) -> Mapping[str, Any]:
        """Say that a restart is pending, and wait until the workspace says that it is safe to stop.

        Whatever it says, the cycle goes on; a workspace without a signal is stopped as it is.
        """
        if workspace.url is None:
            return {"acknowledged": False, "because": "it has no URL"}
        if await provisioner.running(workspace) is False:
            return {"acknowledged": False, "because": "it does not run"}
        drain, began = self._times.drain, time.monotonic()
        told: Mapping[str, Any]
        try:
            with anyio.fail_after(drain + 2):
                told = await self._acknowledged(workspace, cycle)
        except WorkspaceUnreachable as error:
            told = {"acknowledged": False, "because": str(error)}
        except TimeoutError:
            told = {"acknowledged": False, "because": f"no answer within {drain + 2:g} s"}
        if not told["acknowledged"]:
            logger.warning(
                "workspace %s did not acknowledge the restart signal, and is stopped as it is: %s",
                workspace.id,
                told["because"],
                extra=_ids(cycle),
            )
        return {**told, "waited_ms": _ms(began)}

    async def _acknowledged(self, workspace: Workspace, cycle: Cycle) -> Mapping[str, Any]:
        body = wire.restart_pending(workspace.id, str(cycle.id), drain=self._times.drain)
        headers = {"Content-Type": "application/json", "X-Restart-Signal": "true"}
        answer = bytearray()
        async with self._upstream.open(
            workspace, "POST", "/signals/restart_pending", headers, json.dumps(body).encode()
        ) as response:
            async for chunk in response.chunks():
                answer += chunk
                if len(answer) > _ANSWER_LIMIT:
                    break
        if response.status != 200:
            return {"acknowledged": False, "because": f"it answered {response.status}"}
        return _acknowledgement(bytes(answer))

    async def _stop(self, cycle: Cycle, workspace: Workspace, provisioner: Provisioner) -> _Move:
        began = time.monotonic()
        try:
            await _insisted(lambda: provisioner.stop(workspace, self._times.grace))
            if cycle.aim is Aim.REMOVE:
                await _insisted(lambda: provisioner.remove(workspace))
        except ProvisionerError as error:
            return _failed(f"it could not be stopped: {error}")
        notes = {"stop": {"took_ms": _ms(began)}}
        match cycle.aim:
            case Aim.PAUSE:
                return _done("it is paused", notes)
            case Aim.REMOVE:
                await self._store.set_status(workspace.id, Status.REMOVED, were=frozenset(Status), of=cycle)
                return _done("it is removed", notes)
        if isinstance(provisioner, ExternalProvisioner):
            return _Move(Step.START, notes)
        ended = await self._store.workspace(workspace.id)  # it may have restarted by itself since
        return _Move(Step.START, notes, ended.boot_id if ended is not None else None)

    async def _start(self, cycle: Cycle, workspace: Workspace, provisioner: Provisioner) -> _Move:
        if cycle.aim is Aim.RESUME:
            await self._store.set_status(workspace.id, Status.PROVISIONING, were={Status.PAUSED}, of=cycle)
            if isinstance(provisioner, ExternalProvisioner):
                return _done("nobody stopped it: it is sent messages again with its next beat")
        # What runs was started by whoever had the cycle before, and may have registered already.
        if isinstance(provisioner, ExternalProvisioner) or await provisioner.running(workspace):
            return _Move(Step.WAIT)
        await self._store.set_status(workspace.id, Status.PROVISIONING, were=_AWAKE, of=cycle)
        began = time.monotonic()
        try:
            await _insisted(lambda: self._start_with_a_token(workspace, provisioner))
        except ProvisionerError as error:
            return await self._not_started(cycle, workspace, f"it could not be started: {error}")
        return _Move(Step.WAIT, {"start": {"took_ms": _ms(began)}})

    async def _start_with_a_token(self, workspace: Workspace, provisioner: Provisioner) -> None:
        token, digest = self._mint()
        await self._store.add_token(digest, role=Role.WORKSPACE, workspace_id=workspace.id, label=CONTAINER)
        secrets = {TOKEN_FILE: token}
        if workspace.secret:
            secrets[SECRET_FILE] = workspace.secret
        environ = environment(
            workspace,
            own=self._environ,
            platform_url=self._platform_url,
            drain=self._times.drain,
            grace=self._times.grace,
        )
        await provisioner.start(workspace, environ, secrets)

    async def _wait(self, cycle: Cycle, workspace: Workspace, provisioner: Provisioner) -> _Move:
        """Wait for a life that was not seen before."""
        external = isinstance(provisioner, ExternalProvisioner)
        patience = min(self._times.start, self._times.drain) if external else self._times.start
        began, looked, dead = time.monotonic(), time.monotonic(), 0
        see = f": see {provisioner.log(workspace.id)}"
        awaited = anyio.Event()
        try:
            while True:
                awaited = self._awaited[workspace.id] = anyio.Event()
                now = await self._store.workspace(workspace.id)
                if now is None or now.status in DORMANT:
                    return _done("it was taken away meanwhile")
                if _is_new(now, cycle, stopped=not external):
                    return _done("a new life registered", {"wait": {"took_ms": _ms(began)}})
                if time.monotonic() - began > patience:
                    if external:
                        return _done(f"nobody restarted it within {patience:g} s; it is sent messages again")
                    return await self._not_started(
                        cycle, workspace, f"it did not register within {patience:g} s{see}"
                    )
                if time.monotonic() - looked > _POLL:
                    looked = time.monotonic()
                    dead = dead + 1 if await provisioner.running(workspace) is False else 0
                    if stronger := await self._stronger(cycle):
                        return _done(f"cut short: {stronger} was asked for")
                    if dead == 2:
                        return await self._not_started(
                            cycle, workspace, f"it ended before it registered{see}"
                        )
                with anyio.move_on_after(_LOOK):
                    await awaited.wait()
        finally:
            if self._awaited.get(workspace.id) is awaited:
                del self._awaited[workspace.id]

    async def _stronger(self, cycle: Cycle) -> Aim | None:
        """Return what was asked for meanwhile, where that needs no workspace that runs."""
        (latest, *_) = await self._store.cycles(cycle.workspace_id, most=1)
        return latest.aim if latest.id != cycle.id and latest.aim.outranks(cycle.aim) else None

    async def _not_started(self, cycle: Cycle, workspace: Workspace, why: str) -> _Move:
        await self._store.set_status(workspace.id, Status.FAILED, were=_AWAKE, of=cycle)
        return _failed(why)

    def _tell(self, cycle: Cycle) -> None:
        told = (cycle.workspace_id, cycle.aim, cycle.notes.get("because"))
        if cycle.step is Step.FAILED:
            logger.error("workspace %s: %s failed: %s", *told, extra=_ids(cycle))
            if cycle.aim in _STARTS:
                self._suspect(cycle.workspace_id)
        else:
            logger.info("workspace %s: %s done: %s", *told, extra=_ids(cycle))


_STARTS: Collection[Aim] = frozenset({Aim.RESTART, Aim.REVIVE, Aim.RESUME})


def _is_new(workspace: Workspace, cycle: Cycle, *, stopped: bool) -> bool:
    """Whether a workspace registered since: a life of its own, or, where lives have no name, any."""
    if workspace.status not in REACHABLE:
        return False
    if workspace.boot_id is None:
        return stopped
    return workspace.boot_id != cycle.boot_before


def _acknowledgement(body: bytes) -> Mapping[str, Any]:
    """Read what a workspace said to the signal; only the beginning of its lists is kept."""
    try:
        result = json.loads(body)["result"]
        if result["acknowledged"] is not True:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"acknowledged": False, "because": "its answer is no acknowledgement"}
    told: dict[str, Any] = {"acknowledged": True}
    for name in ("drained", "finished", "took_ms"):
        if isinstance(value := result.get(name), bool | int | float):
            told[name] = value
    for name in ("parked", "held", "running"):
        if isinstance(turns := result.get(name), list):
            told[name] = [str(turn)[:200] for turn in turns[:_SHOWN]]
            if len(turns) > _SHOWN:
                told[f"{name}_count"] = len(turns)
    return told


async def _insisted(ask: Callable[[], Awaitable[None]]) -> None:
    """Ask a provisioner again when it fails.

    Raises:
        ProvisionerError: the last time.
    """
    for wait in _TRIES:
        try:
            return await ask()
        except ProvisionerError as error:
            logger.info("a provisioner failed and is asked again in %g s: %s", wait, error)
            await anyio.sleep(wait)
    return await ask()


def _done(outcome: str, notes: Mapping[str, Any] | None = None) -> _Move:
    return _Move(Step.DONE, {**(notes or {}), "because": outcome})


def _failed(outcome: str) -> _Move:
    return _Move(Step.FAILED, {"because": outcome})


def _ms(since: float) -> int:
    return math.ceil((time.monotonic() - since) * 1000)


def _ids(cycle: Cycle) -> dict[str, object]:
    return {"workspace_id": cycle.workspace_id, "cycle_id": cycle.id}
