"""The one place where adapter code is fenced in."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
    except (AdapterError, JournalError):
        raise
    except Exception as error:
        logger.exception("the adapter broke its contract in %s", what)
        raise ContractBroken(f"the adapter failed in {what}: {type(error).__name__}") from error
