"""The contract as pytest tests of an author's own.

One line in a test module gives one test a clause::

    test_my_adapter = conformance_tests("my_pkg:MyAdapter", prompts=Prompts(answer="Say {word}."))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import anyio
import pytest

from .clauses import CLAUSES
from .conformance import check_clause
from .contract import Clause, ClauseSkipped, Prompts
from .stage import Subject


def conformance_tests(
    adapter: Subject,
    *,
    prompts: Prompts,
    environ: Mapping[str, str] | str | None = None,
    patience: float = 30.0,
    promptness: float = 5.0,
) -> Callable[..., None]:
    """Return a test function with one parameter set a clause.

    Args:
        environ: the container's environment, or the name of a fixture that gives it.

    The rest is :func:`~.conformance.check_adapter`'s.
    """

    @pytest.mark.parametrize("clause", CLAUSES, ids=[clause.name for clause in CLAUSES])
    def test(clause: Clause, request: pytest.FixtureRequest) -> None:
        given = request.getfixturevalue(environ) if isinstance(environ, str) else environ
        check = partial(
            check_clause, prompts=prompts, environ=given, patience=patience, promptness=promptness
        )
        try:
            anyio.run(check, clause, adapter)
        except ClauseSkipped as disclaimed:
            pytest.skip(str(disclaimed))

    return test
