"""What one replica did is heard at the others, whatever it was."""

from __future__ import annotations

import anyio
import pytest

from tests.shim.postgres import Postgres
from tests.shim.store.conftest import RULES
from tests.shim.store.test_contract import ANSWER, DONE, message, online, settle
from workspace_adapter.shim.store.contract import Aim, Status, Step
from workspace_adapter.shim.store.postgres import PostgresStore

pytestmark = pytest.mark.anyio


class Heard:
    """What a replica heard."""

    def __init__(self, store: PostgresStore) -> None:
        self.words: list[tuple[str, object]] = []
        store.on_due = lambda workspace_id: self.words.append(("due", workspace_id))
        store.on_ended = lambda item_id: self.words.append(("ended", item_id))
        store.on_said = lambda item_id: self.words.append(("said", item_id))
        store.on_cycle = lambda workspace_id: self.words.append(("cycle", workspace_id))

    async def next(self, kind: str, of: object) -> None:
        """Wait for a word, and forget it with those before it."""
        with anyio.fail_after(10):
            while (kind, of) not in self.words:
                await anyio.sleep(0.005)
        self.words.clear()


async def test_what_one_replica_did_is_heard_at_the_others(postgres: Postgres) -> None:
    async with (
        PostgresStore(postgres.url, RULES, schema="heard") as one,
        PostgresStore(postgres.url, RULES, schema="heard") as other,
    ):
        there = Heard(other)
        await online(one)
        await there.next("due", "w")
        await one.enqueue(message("a"))
        await there.next("due", "w")
        (lease,) = await one.claim("w", "p")
        await one.say(lease, [b"event"], None)
        await there.next("said", lease.id)
        assert await other.said(lease.id) == [(1, b"event")]
        await settle(one, lease, DONE, answer=ANSWER)
        await there.next("ended", lease.id)
        await one.ask_cycle("w", Aim.RESTART, "why")
        await there.next("cycle", "w")
        cycle = await one.claim_cycle("p")
        assert cycle is not None
        await one.advance_cycle(cycle, Step.DONE)
        await there.next("cycle", "w")
        await one.ask_cycle("w", Aim.RESTART, "why")
        await there.next("cycle", "w")
        await one.set_status("w", Status.REMOVED, were=list(Status))
        await there.next("cycle", "w")
