"""How turns look as A2A Messages, Tasks and events.

Nothing here knows the time or makes an id: whatever is rendered twice is the same twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from a2a.types.a2a_pb2 import (
    Artifact,
    Message,
    Part,
    Role,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)

from ...telling import answer_text, end_text, reason
from ...turns import TOLD, OutcomeKind, State, Turn
from ...wire import SentBytes, SentData, SentFile, SentText, parse_parts
from ..journal import LoggedEvent
from .cursor import Cursor

ANSWER = "answer"
"""The artifactId of what the agent says to the asker."""

ENDS = 2
"""How many events may end a stream: the answer, where it was not streamed, then the state."""

Event = Message | Task | TaskStatusUpdateEvent | TaskArtifactUpdateEvent

_STATES = {
    State.ACCEPTED: TaskState.TASK_STATE_SUBMITTED,
    State.RUNNING: TaskState.TASK_STATE_WORKING,
    State.PARKED: TaskState.TASK_STATE_WORKING,
    State.INTERRUPTED: TaskState.TASK_STATE_WORKING,
    State.ANSWERED: TaskState.TASK_STATE_COMPLETED,
    State.FAILED: TaskState.TASK_STATE_FAILED,
    State.CANCELED: TaskState.TASK_STATE_CANCELED,
    State.EXPIRED: TaskState.TASK_STATE_FAILED,
    State.SUSPENDED: TaskState.TASK_STATE_INPUT_REQUIRED,
}
_PAUSED = {
    State.PARKED: "stopped for a restart of the workspace; it will be continued",
    State.INTERRUPTED: "interrupted; it will be continued",
}


@dataclass(slots=True)
class Progress:
    """What a turn's event log amounts to so far."""

    n: int = 0
    """The last entry taken."""
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    _said: list[str] = field(default_factory=list)

    def take(self, events: Iterable[LoggedEvent]) -> None:
        """Take the next entries of the log."""
        for logged in events:
            self.n = logged.n
            if logged.kind == "artifact":
                self.artifacts[logged.body["id"]] = _artifact(logged.body)
            elif logged.kind == "text":
                if not logged.body["append"]:
                    self._said.clear()
                self._said.append(logged.body["text"])

    @property
    def said(self) -> str:
        """The agent's text since it was last opened anew."""
        return "".join(self._said)


# --- a turn ---------------------------------------------------------------------------


def asked_back(turn: Turn) -> bool:
    """Whether the agent waits for the asker's answer."""
    return _told_as(turn) is OutcomeKind.ASKED_BACK


def _told_as(turn: Turn) -> OutcomeKind | None:
    """What its asker is told; ``None`` while it goes on, whatever an earlier attempt came to."""
    return turn.outcome.kind if turn.outcome is not None and turn.state in TOLD else None


def task_state(turn: Turn) -> TaskState:
    """Return the A2A state of the task that this turn decides."""
    match _told_as(turn):
        case OutcomeKind.ASKED_BACK:
            return TaskState.TASK_STATE_INPUT_REQUIRED
        case OutcomeKind.REJECTED:
            return TaskState.TASK_STATE_REJECTED
        case _:
            return _STATES[turn.state]


def message(turn: Turn) -> Message:
    """Render a turn that was told as the Message which answers it."""
    metadata: dict[str, Any] = {}
    if turn.state is State.ANSWERED:
        if asked_back(turn):
            metadata["state"] = "input-required"
    else:
        metadata |= _failure(turn)
    return _message(turn, f"{turn.id}-{turn.attempt}", end_text(turn), metadata | _usage(turn))


def task(
    turn: Turn,
    *,
    progress: Progress | None,
    history: Sequence[Message] = (),
    cursor: Cursor | None = None,
) -> Task:
    """Render the task whose state this turn decides.

    Args:
        progress: what its log amounts to; ``None`` leaves the artifacts out.
        cursor: the position in the log that the task reflects. Where its end follows, it is at work: who
            reads of a task that ended reads no further, and would miss its answer.
    """
    at_work = progress is None and cursor is not None and turn.state in TOLD and cursor.end < ENDS
    metadata = {} if at_work else _outcome(turn)
    if cursor is not None:
        metadata["cursor"] = str(cursor)
    return Task(
        id=turn.task_id,
        context_id=turn.session_id,
        status=_status(turn, at_work=at_work),
        history=history,
        artifacts=_artifacts(turn, progress) if progress is not None else (),
        metadata=metadata or None,
    )


def updated_at(turn: Turn) -> float:
    """When the turn came into its state, or was last heard of."""
    return turn.ended_at or turn.last_event_at or turn.started_at or turn.accepted_at


def _status(turn: Turn, *, at_work: bool = False) -> TaskStatus:
    state = TaskState.TASK_STATE_WORKING if at_work else task_state(turn)
    if at_work:
        text = ""
    elif asked_back(turn):
        text = answer_text(turn)
    elif turn.state in (State.ACCEPTED, State.RUNNING, State.ANSWERED):
        text = ""
    else:
        text = _PAUSED.get(turn.state) or reason(turn)
    said = _message(turn, f"{turn.id}-{turn.attempt}-status", text)
    return _at(updated_at(turn), state, said)


def _artifacts(turn: Turn, progress: Progress) -> list[Artifact]:
    artifacts = list(progress.artifacts.values())
    if turn.state is State.ANSWERED:
        if not asked_back(turn):
            artifacts.append(_answer(answer_text(turn)))
    elif turn.state not in TOLD and progress.said:
        artifacts.append(_answer(progress.said))
    return artifacts


# --- its events -----------------------------------------------------------------------


def event(turn: Turn, logged: LoggedEvent) -> Event:
    """Render one entry of a turn's log."""
    body, cursor = logged.body, Cursor(turn.seq, logged.n)
    match logged.kind:
        case "text":
            return _artifact_event(turn, cursor, _answer(body["text"]), append=body["append"])
        case "artifact":
            return _artifact_event(turn, cursor, _artifact(body), last=True)
        case "activity":
            return _working(turn, logged, body["line"], {})
        case "tool":
            ended = "ended" if body.get("ok", True) else "failed"
            phase = "started" if body["phase"] == "started" else ended
            return _working(turn, logged, f"{body['name']} {phase}", {"tool": body})
        case _:
            text = body.get("text") or _PAUSED.get(body["state"], "")
            return _working(turn, logged, text, {"state": body["state"]})


def ends(turn: Turn, n: int, said: str) -> list[tuple[Cursor, Event]]:
    """Render the events that end the stream of a turn which was told.

    Args:
        n: the last entry of its log.
        said: what the stream has said; the answer is sent whole where it is another.
    """
    ends: list[tuple[Cursor, Event]] = []
    if turn.state is State.ANSWERED and not asked_back(turn) and answer_text(turn) != said:
        cursor = Cursor(turn.seq, n, 1)
        ends.append((cursor, _artifact_event(turn, cursor, _answer(answer_text(turn)), last=True)))
    cursor = Cursor(turn.seq, n, ENDS)
    ends.append((cursor, _status_event(turn, _status(turn), _outcome(turn) | {"cursor": str(cursor)})))
    return ends


def pause(turn: Turn, cursor: Cursor, why: str, *, restarting: bool) -> Event:
    """Render the event that ends a stream whose turn goes on."""
    said = _message(turn, f"{turn.id}-{cursor}-pause", why)
    status = _at(updated_at(turn), task_state(turn), said)
    return _status_event(turn, status, {"cursor": str(cursor), "restarting": restarting})


def _working(turn: Turn, logged: LoggedEvent, text: str, metadata: dict[str, Any]) -> Event:
    said = _message(turn, f"{turn.id}-{logged.n}", text)
    status = _at(logged.at, TaskState.TASK_STATE_WORKING, said)
    metadata |= {"attempt": logged.attempt, "cursor": str(Cursor(turn.seq, logged.n))}
    return _status_event(turn, status, metadata)


def _status_event(turn: Turn, status: TaskStatus, metadata: dict[str, Any]) -> Event:
    return TaskStatusUpdateEvent(
        task_id=turn.task_id, context_id=turn.session_id, status=status, metadata=metadata
    )


def _artifact_event(
    turn: Turn, cursor: Cursor, artifact: Artifact, *, append: bool = False, last: bool = False
) -> Event:
    return TaskArtifactUpdateEvent(
        task_id=turn.task_id,
        context_id=turn.session_id,
        artifact=artifact,
        append=append,
        last_chunk=last,
        metadata={"cursor": str(cursor)},
    )


# --- what was sent --------------------------------------------------------------------


def sent(turn: Turn, raw: Mapping[str, Any]) -> Message:
    """Render the message a turn answers, for a task's history."""
    parts = []
    for part in parse_parts(raw):
        match part:
            case SentText(text=text):
                parts.append(Part(text=text))
            case SentData(value=value):
                parts.append(_data(value))
            case SentFile(uri=uri, name=name, mime_type=mime_type):
                parts.append(Part(url=uri, filename=name, media_type=mime_type))
            case SentBytes(name=name, mime_type=mime_type):  # it has them already
                parts.append(Part(raw=b"", filename=name, media_type=mime_type))
    return Message(
        message_id=turn.message_id,
        context_id=turn.session_id,
        task_id=turn.task_id,
        role=Role.ROLE_USER,
        parts=parts,
    )


# --- pieces ---------------------------------------------------------------------------


def _at(when: float, state: TaskState, said: Message) -> TaskStatus:
    """Return a status of that moment, with what there is to say about it."""
    status = TaskStatus(state=state, message=said if said.parts[0].text else None)
    status.timestamp.FromMilliseconds(round(when * 1000))
    return status


def _message(turn: Turn, message_id: str, text: str, metadata: dict[str, Any] | None = None) -> Message:
    return Message(
        message_id=message_id,
        context_id=turn.session_id,
        task_id=turn.task_id,
        role=Role.ROLE_AGENT,
        parts=[Part(text=text)],
        metadata=metadata or None,
    )


def _answer(text: str) -> Artifact:
    return Artifact(artifact_id=ANSWER, name=ANSWER, parts=[Part(text=text)])


def _artifact(body: dict[str, Any]) -> Artifact:
    part = Part(text=body["text"], media_type=body["mime_type"])
    return Artifact(artifact_id=body["id"], name=body["name"], parts=[part])


def _outcome(turn: Turn) -> dict[str, Any]:
    if turn.state not in TOLD:
        return {}
    return (_failure(turn) if turn.state is not State.ANSWERED else {}) | _usage(turn)


def _failure(turn: Turn) -> dict[str, Any]:
    retryable = turn.outcome is not None and turn.outcome.retryable
    return {"state": str(turn.state), "retryable": retryable}


def _usage(turn: Turn) -> dict[str, Any]:
    if turn.outcome is None or not (turn.outcome.input_tokens or turn.outcome.output_tokens):
        return {}
    tokens = {"inputTokens": turn.outcome.input_tokens, "outputTokens": turn.outcome.output_tokens}
    return {"usage": tokens}


def _data(value: Any) -> Part:
    part = Part(metadata={"value": value})
    return Part(data=part.metadata.fields["value"])
