"""The heartbeat's moving half, on a thread that a blocked event loop cannot silence."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ...errors import PlatformError
from ...heartbeat import Act, Identity, News, Pace, Rhythm, Vitals, Watch, heartbeat
from ...wire import BeatReply, Registration, parse_beat_reply

if TYPE_CHECKING:
    from .client import PlatformClient

logger = logging.getLogger(__name__)

LAST_BEAT = 0.4
"""Seconds that the last heartbeat may take, when everything else has stopped."""

_LOOK = 3.0
"""Seconds between two looks for what changed and nobody said, at most."""

_SIGNS = 10
"""Signs of life that the event loop leaves in the time after which it counts as blocked."""


class Pulse:
    """Registers the workspace and sends its heartbeats.

    The event loop publishes how the workspace stands; a thread says so to the platform.

    Args:
        connect: makes the client, on that thread.
        url: where the workspace is called; with ``delivery_mode`` it is what is registered.
        read: says how the workspace stands; called on the event loop.
        ask_runtime: called before, from time to time.
        wedged_after: seconds of a silent event loop that are reported.
        require_auth: told, on that thread, whether the platform wants every message signed.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], PlatformClient],
        identity: Identity,
        url: str,
        delivery_mode: str,
        pace: Pace,
        wedged_after: float,
        read: Callable[[], Vitals],
        ask_runtime: Callable[[], None],
        require_auth: Callable[[bool], None],
    ) -> None:
        self._connect = connect
        self._identity = identity
        self._url = url
        self._delivery_mode = delivery_mode
        self._pace = pace
        self._wedged_after = wedged_after
        self._read = read
        self._ask_runtime = ask_runtime
        self._require_auth = require_auth
        self.beats: Counter[str] = Counter()
        """Heartbeats of this life by what came of them: ``ok``, ``failed``."""
        self.registrations: Counter[str] = Counter()
        """Registrations, likewise."""
        self._rhythm = Rhythm(pace)
        self._watch = Watch(wedged_after)
        self._reply = BeatReply()
        self._not_registered: str | None = None
        self._not_beaten: str | None = None
        self._blocked: str | None = None
        self._vitals = Vitals()
        self._said: tuple[Vitals, bool] | None = None
        self._tried_accepting = True
        self._sign_at = time.monotonic()
        self._loop_thread = threading.get_ident()
        self._wake = threading.Event()
        self._ending = False
        self._last_beat_takes = LAST_BEAT
        self._thread: threading.Thread | None = None

    # --- on the event loop ------------------------------------------------------------

    async def run(self) -> None:
        """Leave signs of life until cancelled."""
        while True:
            self._sign_at = time.monotonic()
            if self._blocked is not None:
                self._wake.set()
            if self._thread is not None:
                if not self._thread.is_alive() and not self._ending:
                    logger.error(
                        "the heartbeats' thread failed, as said on standard error, and is started anew"
                    )
                    self._begin()
                self._ask_runtime()
                self.publish()
            await anyio.sleep(min(_LOOK, self._wedged_after / _SIGNS))

    def start(self) -> None:
        """Register and beat from now on."""
        self._loop_thread = threading.get_ident()
        self._vitals = self._read()
        self._tried_accepting = self._vitals.accepting
        self._begin()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Something changed, perhaps: a heartbeat says so at once."""
        if self._thread is None or self._ending:
            return
        vitals = self._read()
        if vitals != self._vitals:
            self._vitals = vitals
            self._wake.set()

    async def stop(self, within: float) -> None:
        """Say that there is no room here any more, and be silent.

        Args:
            within: seconds this may take.
        """
        if self._thread is None:
            return
        self._vitals = replace(self._read(), accepting=False, leaving=True)
        self._last_beat_takes = max(0.0, min(within, LAST_BEAT))
        self._ending = True
        self._wake.set()
        await anyio.to_thread.run_sync(self._thread.join, self._last_beat_takes + 0.1)

    def status(self) -> dict[str, Any]:
        """Say how the workspace and its platform stand with each other."""
        now, rhythm = time.monotonic(), self._rhythm

        def ago(at: float | None) -> float | None:
            return None if at is None else round(now - at, 1)

        return {
            "registered_seconds": ago(rhythm.registered_at),
            "answered_seconds_ago": ago(rhythm.answered_at),
            "failing": self._not_registered or self._not_beaten,
            "wedged": self._blocked or self._vitals.trouble,
            "heartbeats_ok": self.beats["ok"],
            "heartbeats_failed": self.beats["failed"],
            "generation": self._reply.generation,
            "queue_depth": self._reply.queue_depth,
            "max_concurrent_tasks": self._reply.max_concurrent_tasks,
        }

    # --- on the thread ----------------------------------------------------------------

    def _beat(self) -> None:
        client = self._connect()
        try:
            while not self._ending:
                self._wake.clear()
                wait = self._do_what_is_due(client)
                if not self._ending:
                    self._wake.wait(wait)
            if self._rhythm.answered_at is not None and not self._rhythm.failures:
                self._send(client, self._vitals, timeout=self._last_beat_takes)
        finally:
            client.close()

    def _do_what_is_due(self, client: PlatformClient) -> float:
        """Do it; return the seconds until something is due again."""
        vitals, now = self._vitals, time.monotonic()
        left = self._look(now)
        stands = {
            "changed": self._said != (vitals, self._blocked is not None),
            "urgent": vitals.accepting is not self._tried_accepting,
            "leaving": vitals.leaving,
        }
        match self._rhythm.next(now, **stands):
            case Act.REGISTER:
                self._register(client, vitals)
                return 0.0
            case Act.BEAT:
                self._send(client, vitals, timeout=self._pace.timeout)
                return 0.0
        return min(left, self._rhythm.wait(now, **stands))

    def _look(self, now: float) -> float:
        """See whether the event loop lives; return the seconds until it must be seen again."""
        silence = self._watch.silence(now, self._sign_at)
        if silence > self._watch.limit:
            where = _where(self._loop_thread)
            if self._blocked is None:
                logger.error("the event loop is blocked %s: nobody is answered until it goes on", where)
            self._blocked = f"the event loop has been blocked for {silence:.0f} s {where}"
            return self._watch.patience
        if self._blocked is not None:
            logger.info("the event loop goes on")
            self._blocked = None
        return min(self._watch.patience, self._watch.limit - silence + 0.001)

    def _register(self, client: PlatformClient, vitals: Vitals) -> None:
        body = Registration(
            workspace_id=self._identity.workspace_id,
            url=self._url,
            agent_card=vitals.agent_card,
            delivery_mode=self._delivery_mode,
            boot_id=self._identity.boot_id,
        )
        try:
            told = client.register(body.as_json(), timeout=self._pace.timeout)
        except PlatformError as error:
            self.registrations["failed"] += 1
            self._not_registered = str(error)
            news = self._rhythm.not_registered(
                time.monotonic(),
                status=error.status,
                retry_after=error.retry_after,
                chance=random.random(),
            )
            if news is News.NOT_REGISTERED:
                logger.warning(
                    "the platform does not know this workspace yet, tried again and again: %s", error
                )
            return
        self.registrations["ok"] += 1
        self._rhythm.registered(time.monotonic())
        self._not_registered = None
        logger.info("registered with the platform as %s", self._url)
        # One that does not say is another platform than one that did.
        self._hear({"require_auth": False, **told})

    def _send(self, client: PlatformClient, vitals: Vitals, *, timeout: float) -> None:
        now = time.monotonic()
        self._rhythm.beating(now, chance=random.random())
        self._tried_accepting = vitals.accepting
        says = vitals, self._blocked is not None
        body = heartbeat(
            self._identity, vitals, now=now, blocked=self._blocked, generation=self._reply.generation
        )
        answered_at = self._rhythm.answered_at or now
        try:
            told = client.heartbeat(body.as_json(), timeout=timeout)
        except PlatformError as error:
            self.beats["failed"] += 1
            self._not_beaten = str(error)
            news = self._rhythm.missed(
                time.monotonic(),
                status=error.status,
                retry_after=error.retry_after,
                chance=random.random(),
            )
            if news is News.LOST:
                logger.warning("the platform is lost, the workspace works on without it: %s", error)
            return
        self.beats["ok"] += 1
        self._said, self._not_beaten = says, None
        if self._rhythm.beaten(time.monotonic()) is News.BACK:
            logger.info("the platform is back after %.0f s", time.monotonic() - answered_at)
        self._hear(told)

    def _hear(self, told: dict[str, Any]) -> None:
        reply = parse_beat_reply(told)
        if reply.require_auth is not None and reply.require_auth is not self._reply.require_auth:
            self._require_auth(reply.require_auth)
        self._reply = replace(self._reply, **reply.as_json())


def _where(thread: int) -> str:
    """Return the line at which a thread is."""
    frame = sys._current_frames().get(thread)  # noqa: SLF001  there is no other way to ask
    if frame is None:
        return "nobody knows where"
    return f"in {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
