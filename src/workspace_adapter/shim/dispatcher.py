"""The one function that empties a queue: claim what a workspace has room for, send it, settle it.

Three things ring it: an enqueue or a beat through ``Store.on_due``, the sweep, and each
settlement of its own, after which there may be room again. A claim is one task of one
workspace, a dispatch one task of one lease: nothing here waits for a workspace but the
dispatch that was sent to it.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from .. import queueing
from ..errors import StoreUnavailable
from ..queueing import Lost, Reply, Rules, State, Verdict
from .store.contract import REACHABLE, Answer, Lease, Settlement, Store, Workspace
from .upstream import Sent, Upstream

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCH = 16
"""What one claim asks for; a workspace that got as much is asked for more at once."""

_RETRY = 0.25
"""Seconds between two tries while the store cannot be used."""

_PUT_BACK = 5.0
"""Seconds in which a dispatcher that is stopped puts its leases back; what it could not lapses."""


class Dispatcher:
    """Sends what waits to the workspaces that have room for it.

    Args:
        owner: the boot id of this life, which its leases carry.
        dispatches: how many may be under way at once, all workspaces together.
        suspect: told of a workspace that could not be reached, or broke off.
        jitter: gives a number between 0 and 1.
    """

    def __init__(
        self,
        store: Store,
        upstream: Upstream,
        *,
        owner: str,
        rules: Rules,
        dispatches: int = 1000,
        suspect: Callable[[str], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._owner = owner
        self._rules = rules
        self._most = dispatches
        self._suspect = suspect
        self._jitter = jitter
        self._rung: dict[str, None] = {}
        self._claiming: dict[str, bool] = {}
        """Workspaces a claim runs for, with whether it was rung for meanwhile."""
        self._reserved = 0
        """Places that running claims may fill."""
        self._held: dict[int, _Held] = {}
        self._held_of: Counter[str] = Counter()
        self._bell = anyio.Event()
        self._starved = False
        """The last dispatch found no socket."""

    def __len__(self) -> int:
        """Return how many dispatches are under way."""
        return len(self._held)

    def ring(self, workspace_id: str) -> None:
        """Say that a workspace may have something to send. On the event loop only; costs nothing."""
        if workspace_id in self._claiming:
            self._claiming[workspace_id] = True
        else:
            self._rung[workspace_id] = None
            self._bell.set()

    async def run(self) -> None:
        """Dispatch until cancelled; then put back what is held, to be joined by whoever sends it next."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._renew)
            while True:
                while (next_one := self._next()) is not None:
                    workspace_id, most = next_one
                    self._claiming[workspace_id] = False
                    self._reserved += most
                    tasks.start_soon(self._claim, tasks, workspace_id, most)
                self._bell = anyio.Event()
                await self._bell.wait()

    def _next(self) -> tuple[str, int] | None:
        """Take the workspace that was rung for first and may have more, with how much it may have.

        None may have more dispatches than are still free: so however many workspaces want all there
        are, as many as each of them has stay free for the others. One that has its share is left out;
        each of its settlements rings for it.
        """
        free = self._most - len(self._held) - self._reserved
        while free > 0 and self._rung:
            workspace_id = next(iter(self._rung))
            del self._rung[workspace_id]
            if (most := min(BATCH, (free - self._held_of[workspace_id] + 1) // 2)) > 0:
                return workspace_id, most
        return None

    async def _claim(self, tasks: TaskGroup, workspace_id: str, most: int) -> None:
        leases: list[Lease] = []
        try:
            with anyio.CancelScope(shield=True):  # what was leased is not to be left
                leases = await self._store.claim(workspace_id, self._owner, most=most)
        except StoreUnavailable as error:
            logger.debug("nothing was claimed, the next sweep rings again: %s", error)
        finally:
            self._reserved -= most
            again = self._claiming.pop(workspace_id) or len(leases) >= most
        for lease in leases:
            if (ours := self._held.get(lease.id)) is not None and not ours.lost:
                ours.lease = lease  # our own had lapsed; what was sent with it is still under way
            else:
                self._begin(tasks, lease)
        if again:
            self.ring(workspace_id)
        else:
            self._bell.set()  # what was reserved is free

    # --- one dispatch ---------------------------------------------------------------------

    def _begin(self, tasks: TaskGroup, lease: Lease) -> None:
        self._held[lease.id] = held = _Held(lease)
        self._held_of[lease.workspace_id] += 1
        tasks.start_soon(self._dispatch, tasks, held)

    async def _dispatch(self, tasks: TaskGroup, held: _Held) -> None:
        try:
            with held.scope:
                try:
                    held.verdict, held.answer = await self._come_to(held)
                    await self._settle(held)
                except anyio.get_cancelled_exc_class():
                    if not held.lost:  # we are stopped: write what is known
                        with anyio.move_on_after(_PUT_BACK, shield=True):
                            await self._settle(held)
                    raise
        finally:
            workspace_id = held.lease.workspace_id
            if self._held.get(held.lease.id) is held:
                del self._held[held.lease.id]
                if held.settled is not None and held.settled is not held.lease:
                    # It was leased to us again before we heard that it was settled.
                    self._begin(tasks, held.lease)
            self._held_of[workspace_id] -= 1
            if not self._held_of[workspace_id]:
                del self._held_of[workspace_id]
            self.ring(workspace_id)

    async def _come_to(self, held: _Held) -> tuple[Verdict, Answer | None]:
        """Send an item, and decide what becomes of it."""
        lease = held.lease
        if (verdict := queueing.outlived(lease.lapses, self._rules)) is not None:
            logger.error("queue item %s is a dead letter: %s", lease.id, verdict.because, extra=_ids(lease))
            return verdict, None
        workspace = await self._workspace(lease)
        if workspace is None or workspace.restarting or workspace.status not in REACHABLE:
            return _back(lease, "nothing is sent there now"), None

        async def said(events: Sequence[bytes], cursor: str | None) -> bool:
            return await _insist(lambda: self._store.say(held.lease, events, cursor))

        held.verdict = _back(lease, "its dispatcher stopped", taken=True)
        sent = await self._upstream.send(workspace, lease, said)
        return await self._judge(lease, sent), sent.answer

    async def _judge(self, lease: Lease, sent: Sent) -> Verdict:
        if sent.starved:
            if not self._starved:
                logger.error(
                    "this machine makes no connection any more: %s. Raise the limit of open files"
                    " (ulimit -n), or lower SHIM_DISPATCHES and SHIM_HELD_LIMIT",
                    sent.detail,
                )
            self._starved = True
            because = f"the shim has no connection left ({sent.detail})"
            return _back(lease, because, wait=self._rules.busy_wait)
        self._starved = False
        restarting = False
        if not isinstance(sent.outcome, Reply) or sent.outcome.status >= 500:
            workspace = await self._workspace(lease)
            restarting = workspace is not None and workspace.restarting
            if sent.outcome in (Lost.UNREACHED, Lost.CUT) and not restarting:
                self._suspect(lease.workspace_id)
        verdict = queueing.judge(
            sent.outcome,
            rules=self._rules,
            strikes=lease.strikes,
            restarting=restarting,
            jitter=self._jitter(),
        )
        if sent.detail:
            verdict = replace(verdict, because=f"{verdict.because} ({sent.detail})")
        if verdict.state is State.FAILED:
            logger.error("queue item %s is a dead letter: %s", lease.id, verdict.because, extra=_ids(lease))
        elif verdict.state is not State.COMPLETED:
            logger.info("queue item %s goes again: %s", lease.id, verdict.because, extra=_ids(lease))
        return verdict

    async def _workspace(self, lease: Lease) -> Workspace | None:
        return await _insist(partial(self._store.workspace, lease.workspace_id))

    async def _settle(self, held: _Held) -> None:
        """Write what becomes of an item.

        Whether its lease is over the store alone knows: until it says so, an answer that is here need not
        be fetched again.
        """
        while True:
            lease = held.lease
            settlement = Settlement(lease=lease, verdict=held.verdict, answer=held.answer)
            if all(await _insist(partial(self._store.settle, [settlement]))):
                held.settled = lease
                return
            if held.lease is lease:
                break
        logger.info("queue item %s was settled too late: its lease was lost", lease.id, extra=_ids(lease))

    # --- renewals -------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Hold what is held; of a lease that is another's now, nothing more is written."""
        while True:
            await anyio.sleep(self._rules.renewal)
            asked = list(self._held.values())
            if not asked:
                continue
            leases = [held.lease for held in asked]
            renewed = await _insist(partial(self._store.renew, leases))
            for held, lease in zip(asked, leases, strict=True):
                if lease.id not in renewed and held.lease is lease:
                    held.lose()


class _Held:
    """A lease in our hands."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.scope = anyio.CancelScope()
        self.lost = False
        self.settled: Lease | None = None
        """The lease with which it was settled."""
        self.verdict = _back(lease, "its dispatcher stopped")
        """What would be written were the dispatcher stopped now."""
        self.answer: Answer | None = None

    def lose(self) -> None:
        self.lost = True
        self.scope.cancel()


def _back(lease: Lease, because: str, *, taken: bool = False, wait: float = 0.0) -> Verdict:
    return Verdict(state=State.QUEUED, because=because, taken=taken or lease.taken, wait=wait)


async def _insist(ask: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await anyio.sleep(_RETRY)


def _ids(lease: Lease) -> dict[str, object]:
    return {"workspace_id": lease.workspace_id, "attempt": lease.attempt}
