"""One page of the tasks a caller may list."""

from __future__ import annotations

from a2a.types import a2a_pb2 as a2a

from ...turns import Turn
from . import rendering
from .refusal import bad_params
from .tasks import Tasks

_SIZE = 50
_LARGEST = 100


def page(tasks: Tasks, params: a2a.ListTasksRequest, caller: str | None) -> a2a.ListTasksResponse:
    """Return the page asked for: latest change first, as the protocol wants it.

    Raises:
        Refusal: a parameter is out of its range.
    """
    size = params.page_size if params.HasField("page_size") else _SIZE
    if not 1 <= size <= _LARGEST:
        raise bad_params(f"pageSize must be between 1 and {_LARGEST}")
    history = history_length(params)
    found = [turns for turns in tasks.all_of(caller) if _matches(turns[-1], params)]
    found.sort(key=lambda turns: _rank(turns[-1]), reverse=True)
    rest = found
    if params.page_token:
        after = _read_token(params.page_token)
        rest = [turns for turns in found if _rank(turns[-1]) < after]
    shown = rest[:size]
    return a2a.ListTasksResponse(
        tasks=[tasks.task(turns, history=history, artifacts=params.include_artifacts) for turns in shown],
        next_page_token=_token(shown[-1][-1]) if len(rest) > size else "",
        page_size=size,
        total_size=len(found),
    )


def history_length(params: a2a.GetTaskRequest | a2a.ListTasksRequest) -> int | None:
    """Return how many messages of its history a task is to show; ``None`` all.

    Raises:
        Refusal: it is negative.
    """
    if not params.HasField("history_length"):
        return None
    if params.history_length < 0:
        raise bad_params("historyLength must not be negative")
    return params.history_length


def _matches(turn: Turn, params: a2a.ListTasksRequest) -> bool:
    if params.context_id and turn.session_id != params.context_id:
        return False
    if params.status and rendering.task_state(turn) != params.status:
        return False
    if not params.HasField("status_timestamp_after"):
        return True
    since: int = params.status_timestamp_after.ToMilliseconds()
    return _rank(turn)[0] >= since


def _rank(turn: Turn) -> tuple[int, int]:
    """Its place in the list: when it changed last, in milliseconds, then its arrival."""
    return round(rendering.updated_at(turn) * 1000), turn.seq


def _token(turn: Turn) -> str:
    return ".".join(str(number) for number in _rank(turn))


def _read_token(token: str) -> tuple[int, int]:
    at, dot, seq = token.partition(".")
    if not (dot and at.removeprefix("-").isdecimal() and seq.isdecimal()):
        raise bad_params("pageToken is none that this workspace gave")
    return int(at), int(seq)
