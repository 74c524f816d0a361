"""Which workspaces are dead: found not running, and not by mistake.

A workspace is suspected when it cannot be reached, falls silent, or its process is gone.
It is dead once its provisioner says so twice; what beat a moment ago, or is just being
started, has to be found so for longer. Whoever dies again and again is revived more and
more slowly, and in the end not at all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import anyio

from ..errors import StoreUnavailable, UnknownWorkspace
from .provisioners.contract import Provisioner
from .store.contract import DORMANT, OVER, REACHABLE, Aim, Cycle, Status, Store, Workspace

RECENT = 15.0
"""Seconds since a beat within which a provisioner's no may be a mistake."""

SETTLE = 30.0
"""Seconds since a cycle began within which it may be, too."""

STRIKES = 30.0
"""Seconds within which the second no must come; a later one is the first of another two."""

_APART = {True: 0.5, False: 2.0}
"""Seconds between two noes that count, of a provisioner that is certain or not."""

STABLE = 60.0
"""Seconds a revived workspace must live for its death to be its first."""

CRASHES = 8
"""Revivals in a row that did not hold, after which there is no other."""

GIVEN_UP = "given_up"
"""Noted of the cycle that says so: until another was asked for, nothing is revived."""

_LONGEST = 60.0


def dead(
    noes: Sequence[float], workspace: Workspace, latest: Cycle | None, *, certain: bool, now: float
) -> bool:
    """Say whether a workspace is dead.

    Args:
        noes: when its provisioner said that it does not run; UTC epoch seconds.
        latest: its latest cycle.
        certain: a beat cannot contradict the provisioner.
    """
    counted = [at for at in noes if now - at <= STRIKES]
    if not counted or counted[-1] - counted[0] < _APART[certain]:
        return False
    if certain:
        return True
    # The store's clock may be another, or have been set: what is far ahead is no moment ago either.
    if workspace.beat_at is not None and abs(now - workspace.beat_at) <= RECENT:
        return False
    settling = latest is not None and latest.began_at is not None and abs(now - latest.began_at) <= SETTLE
    return not settling or counted[-1] - counted[0] >= RECENT


def crashes(cycles: Sequence[Cycle], *, now: float) -> int:
    """Count the revivals in a row that did not hold.

    Args:
        cycles: the workspace's, the latest first. One of another aim ends the row: somebody looked after it.
    """
    count, died = 0, now
    for cycle in cycles:
        if cycle.step not in OVER:
            continue
        if cycle.aim is not Aim.REVIVE or died - (cycle.ended_at or died) > STABLE + _LONGEST:
            break
        count, died = count + 1, cycle.asked_at
    return count


def wait(count: int) -> float:
    """Return the seconds between a death and the revival, after so many crashes."""
    return min(_LONGEST, 2.0 ** (count - 1)) if count else 0.0


def gives_up(cycles: Sequence[Cycle]) -> str | None:
    """Say why a workspace is not revived once more; ``None``: it is."""
    if (count := crashes(cycles, now=cycles[0].asked_at if cycles else 0.0)) < CRASHES:
        return None
    return f"it died {count} times in a row soon after it was started: see its log, mend it, and restart it"


class Deaths:
    """Looks at suspected workspaces, and asks for the revival of dead ones.

    Args:
        interval: seconds between two looks.
    """

    def __init__(
        self, store: Store, provisioners: Mapping[str, Provisioner], *, interval: float = 1.0
    ) -> None:
        self._store = store
        self._provisioners = provisioners
        self._interval = interval
        self._suspects: dict[str, _Suspect] = {}
        self._bell = anyio.Event()

    def suspect(self, workspace_id: str) -> None:
        """Say that a workspace may be dead. On the event loop only; costs nothing."""
        if workspace_id not in self._suspects:
            self._suspects[workspace_id] = _Suspect()
            self._bell.set()

    async def run(self) -> None:
        """Look until cancelled."""
        await self._recall()
        while True:
            self._bell = anyio.Event()
            for provisioner in self._provisioners.values():
                for workspace_id in provisioner.ended():
                    self._suspects.setdefault(workspace_id, _Suspect())
            now = time.monotonic()
            async with anyio.create_task_group() as looks:
                for workspace_id, suspect in list(self._suspects.items()):
                    if suspect.look_at <= now:
                        looks.start_soon(self._look, workspace_id, suspect)
            if self._suspects:
                await anyio.sleep(_APART[True])
            else:
                with anyio.move_on_after(self._interval):
                    await self._bell.wait()

    async def _recall(self) -> None:
        """Suspect who is offline: whoever did before may have died with that."""
        after = ""
        while True:
            try:
                page = await self._store.workspaces(after=after)
            except StoreUnavailable:
                await anyio.sleep(self._interval)
                continue
            if not page:
                return
            after = page[-1].id
            for workspace in page:
                if workspace.status is Status.OFFLINE and workspace.provisioner in self._provisioners:
                    self.suspect(workspace.id)

    async def _look(self, workspace_id: str, suspect: _Suspect) -> None:
        try:
            again = await self._next_look(workspace_id, suspect)
        except StoreUnavailable:
            return
        except UnknownWorkspace:
            again = None
        if again is None:
            self._suspects.pop(workspace_id, None)
        else:
            suspect.look_at = time.monotonic() + again

    async def _next_look(self, workspace_id: str, suspect: _Suspect) -> float | None:
        """Look at a workspace; return the seconds until the next look, ``None`` for never."""
        workspace = await self._store.workspace(workspace_id)
        if workspace is None or workspace.status in DORMANT:
            return None
        provisioner = self._provisioners.get(workspace.provisioner)
        cycles = await self._store.cycles(workspace_id)
        latest = cycles[0] if cycles else None
        if provisioner is None or (
            latest is not None and (latest.step not in OVER or latest.notes.get(GIVEN_UP))
        ):
            return None
        if await provisioner.running(workspace) is not False:
            return None
        now = time.time()
        suspect.noes = [*(at for at in suspect.noes if now - at <= STRIKES), now]
        if not dead(suspect.noes, workspace, latest, certain=provisioner.certain, now=now):
            return _APART[provisioner.certain]
        # Counted here, since the clock that the cycle's end was written by may be another.
        left = wait(crashes(cycles, now=now)) - (time.monotonic() - suspect.since)
        if left > 0:
            return left
        await self._store.set_status(workspace_id, Status.OFFLINE, were=REACHABLE)
        await self._store.ask_cycle(workspace_id, Aim.REVIVE, "it is dead")
        return None


class _Suspect:
    """A workspace that may be dead."""

    def __init__(self) -> None:
        self.noes: list[float] = []
        """When its provisioner said that it does not run."""
        self.since = time.monotonic()
        self.look_at = 0.0
