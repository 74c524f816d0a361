from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import require
from tests.shim.postgres import Postgres, programs
from workspace_adapter.queueing import Rules
from workspace_adapter.shim.store.contract import Store
from workspace_adapter.shim.store.postgres import PostgresStore
from workspace_adapter.shim.store.sqlite import SqliteStore

RULES = Rules(depth_cap=5, retention=1000.0, lease=30.0)

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for all tests; each has a schema of its own in it."""
    require(programs() is not None, "PostgreSQL (apt install postgresql)")
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass(frozen=True)
class Place:
    """Where a store is; opened again, it holds what it held."""

    kind: str
    url: str
    schema: str

    def open(self, rules: Rules = RULES) -> AbstractAsyncContextManager[Store]:
        if self.kind == "sqlite":
            return SqliteStore(Path(self.url), rules)
        return PostgresStore(self.url, rules, schema=self.schema)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    number = next(_numbers)
    if request.param == "sqlite":
        return Place("sqlite", str(tmp_path / f"shim{number}.sqlite"), "")
    server: Postgres = request.getfixturevalue("postgres")
    return Place("postgres", server.url, f"test{number}")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    async with place.open() as opened:
        yield opened
