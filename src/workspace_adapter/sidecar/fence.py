"""The one place where code that is not ours is fenced in."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from ..errors import AdapterError, ContractBroken, JournalError

logger = logging.getLogger(__name__)


@contextmanager
def fence(what: str) -> Iterator[None]:
    """Run adapter code, so that nothing it raises outside its contract gets further.

    Raises:
        AdapterError: as the adapter raised it; ``ContractBroken`` for everything else,
            which is logged once, here, with its traceback.
    """
    try:
        yield
    except (AdapterError, JournalError, GeneratorExit):
        raise
    except BaseException as error:
        # Not only an Exception: libraries call sys.exit, and await what they cancelled themselves.
        if not isinstance(error, Exception) and _is_cancellation(error) and cancelled_by_us():
            raise
        if (ours := _journal_error(error)) is not None:
            raise ours from error
        logger.exception("the adapter broke its contract in %s", what)
        raise ContractBroken(f"the adapter failed in {what}: {type(error).__name__}") from error


@contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Run what a library does beside the work: a failure is logged, and nobody else hears of it."""
    try:
        yield
    except Exception:
        logger.exception("%s failed, the workspace goes on without it", what)


def _journal_error(error: BaseException) -> JournalError | None:
    """Return the journal's own error where the adapter's task groups have wrapped it."""
    while isinstance(error, BaseExceptionGroup) and (found := error.subgroup(JournalError)) is not None:
        error = found.exceptions[0]
    return error if isinstance(error, JournalError) else None


def _is_cancellation(error: BaseException) -> bool:
    try:
        return isinstance(error, anyio.get_cancelled_exc_class())
    except RuntimeError:  # no event loop runs
        return False


def cancelled_by_us() -> bool:
    """Whether a scope that encloses this task's present place was cancelled."""
    return anyio.current_effective_deadline() == -math.inf
