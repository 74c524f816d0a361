"""The tree of exceptions.

::

    WorkspaceAdapterError
    ├── SettingsError            the configuration cannot work
    ├── StateDirError            the state directory cannot be used
    ├── JournalError             something about the journal
    │   ├── JournalTooNew            written by a newer version
    │   ├── JournalUnavailable       it cannot be written now (disk full, I/O error)
    │   ├── JournalDamaged           part of it cannot be read; the next start salvages it
    │   └── JournalTaken             another process owns it now
    ├── StoreError               something about the shim's store
    │   ├── StoreTooNew              written by a newer version
    │   └── StoreUnavailable         it cannot be read or written now
    ├── PlatformError            the platform cannot be reached, or answers no
    ├── AddressRefused           a URL the shim may not call
    ├── WorkspaceUnreachable     a workspace that gave no response, or broke it off
    ├── ProvisionerError         a workspace could not be started or stopped
    ├── InvalidTransition        a change of state the table does not have
    ├── Refused                  a message the door does not take
    │   ├── ContentConflict          same identity, other content
    │   ├── InboxFull                no room
    │   ├── QueueFull                as many messages wait for this workspace as may
    │   ├── UnknownWorkspace         there is no such workspace
    │   ├── BadMessage               nobody could work on it
    │   └── UnknownTask              no such task, or not this caller's
    └── AdapterError             raised by runtime adapters, and only by them
        ├── TurnFailed               this turn failed; the session is good
        ├── SessionLost              the runtime no longer knows the session
        ├── RuntimeLost              the runtime died in the middle of the turn
        ├── RuntimeUnusable          it cannot be started at all
        └── ContractBroken           adapter code raised something else; raised by us for it
"""

from __future__ import annotations


class WorkspaceAdapterError(Exception):
    """Base of everything this package raises on purpose."""


class SettingsError(WorkspaceAdapterError):
    """The configuration cannot work; carries every problem, not only the first."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        """One sentence each, naming the variable and what to do."""


class StateDirError(WorkspaceAdapterError):
    """The state directory cannot be used: not writable, on a network file system, or owned."""


class JournalError(WorkspaceAdapterError):
    """Something about the journal."""


class JournalTooNew(JournalError):
    """The journal was written by a newer version; upgrade, or move it aside."""


class JournalUnavailable(JournalError):
    """The journal cannot be written now. Nothing was acknowledged; try again."""


class JournalDamaged(JournalError):
    """Part of the journal was found damaged in use; the next start saves what can be read."""


class JournalTaken(JournalError):
    """Another process took the journal over; this one may change nothing any more."""


class StoreError(WorkspaceAdapterError):
    """Something about the shim's store."""


class StoreTooNew(StoreError):
    """The store was written by a newer version; upgrade every replica."""


class StoreUnavailable(StoreError):
    """The store cannot be read or written now. Nothing was acknowledged; try again."""


class PlatformError(WorkspaceAdapterError):
    """The platform cannot be reached, or its answer is not a yes. The text says what to check."""

    def __init__(self, reason: str, *, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        """The HTTP status; ``None`` when there was no answer, or none that can be read."""
        self.retry_after = retry_after
        """Seconds it asks us to wait, where it does."""


class AddressRefused(WorkspaceAdapterError):
    """A URL the shim may not call; the text says which and why."""


class WorkspaceUnreachable(WorkspaceAdapterError):
    """A workspace gave no response to what was passed through, or broke it off; the text says why."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent
        """Whether it may have the request."""


class ProvisionerError(WorkspaceAdapterError):
    """A workspace could not be started, stopped or removed; the text says what to check."""


class InvalidTransition(WorkspaceAdapterError):
    """A change of state that the table in ``turns`` does not have."""


class Refused(WorkspaceAdapterError):
    """A message the door does not take; nothing was journalled."""


class ContentConflict(Refused):
    """A message with this identity was accepted before, with other content."""


class InboxFull(Refused):
    """No room for another accepted message now; the text names the limit."""


class QueueFull(Refused):
    """As many messages wait for this workspace as may; the text names the limit."""

    def __init__(self, depth: int) -> None:
        super().__init__(
            f"{depth} messages wait for this workspace, as many as may (SHIM_QUEUE_LIMIT): ask later"
        )
        self.depth = depth
        """Messages that wait."""


class UnknownWorkspace(Refused):
    """There is no such workspace, or it was removed."""


class BadMessage(Refused):
    """A message nobody could work on: an unknown part, a file outside the workdir."""


class UnknownTask(Refused):
    """There is no such task, or it belongs to another caller."""


class AdapterError(WorkspaceAdapterError):
    """Raised by runtime adapters, and only by them."""


class TurnFailed(AdapterError):
    """This turn failed; the session is still good.

    The text is what the asker reads. ``retryable`` says that the same message may
    be sent again with a chance of success (model unreachable, rate limit).
    """

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


class SessionLost(AdapterError):
    """The runtime no longer knows the session; a new one must be started."""


class RuntimeLost(AdapterError):
    """The runtime died in the middle of the turn; the turn is resumed by the plan."""


class RuntimeUnusable(AdapterError):
    """The runtime cannot be started at all: missing binary, wrong version, no credentials.

    A turn that meets it fails retryably; the text says what to install or set.
    """


class ContractBroken(AdapterError):
    """Adapter code raised something its contract does not have; logged with its traceback."""
