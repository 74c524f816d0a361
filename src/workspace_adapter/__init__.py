"""A workspace-side agent adapter: nothing that was accepted is ever lost.

The public names are what an adapter author needs; ``workspace_adapter.testing`` holds
what proves an adapter. Everything else may change without notice.
"""

from .adapter import (
    AtClosedGate,
    Capabilities,
    Children,
    DataPart,
    FilePart,
    ForgottenSession,
    InterruptedTurn,
    Part,
    Permit,
    RuntimeAdapter,
    RuntimeSession,
    SessionContext,
    StopReason,
    TextPart,
    ToolGate,
    TurnEvents,
    TurnRequest,
)
from .errors import (
    AdapterError,
    RuntimeLost,
    RuntimeUnusable,
    SessionLost,
    SettingsError,
    TurnFailed,
    WorkspaceAdapterError,
)
from .events import (
    Activity,
    Artifact,
    Finish,
    SessionBound,
    SessionHandle,
    Text,
    ToolCall,
    TurnEvent,
    TurnFinished,
    Usage,
)
from .resume import Evidence, Resumption
from .settings import setting

__version__ = "0.1.0"

__all__ = [
    "Activity",
    "AdapterError",
    "Artifact",
    "AtClosedGate",
    "Capabilities",
    "Children",
    "DataPart",
    "Evidence",
    "FilePart",
    "Finish",
    "ForgottenSession",
    "InterruptedTurn",
    "Part",
    "Permit",
    "Resumption",
    "RuntimeAdapter",
    "RuntimeLost",
    "RuntimeSession",
    "RuntimeUnusable",
    "SessionBound",
    "SessionContext",
    "SessionHandle",
    "SessionLost",
    "SettingsError",
    "StopReason",
    "Text",
    "TextPart",
    "ToolCall",
    "ToolGate",
    "TurnEvent",
    "TurnEvents",
    "TurnFailed",
    "TurnFinished",
    "TurnRequest",
    "Usage",
    "WorkspaceAdapterError",
    "__version__",
    "setting",
]
