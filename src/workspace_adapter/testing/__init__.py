"""What adapter authors test with.

Everything is imported when it is first used: a sidecar that runs a fake needs no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conformance import NotConformant, Report, check_adapter
    from .contract import Prompts
    from .fakes import ScriptedEnds, ScriptedHolds
    from .platform import ContractBroken, FakePlatform, Fault, Times
    from .scripted_model import ScriptedModel
    from .suite import conformance_tests

__all__ = [
    "ContractBroken",
    "FakePlatform",
    "Fault",
    "NotConformant",
    "Prompts",
    "Report",
    "ScriptedEnds",
    "ScriptedHolds",
    "ScriptedModel",
    "Times",
    "check_adapter",
    "conformance_tests",
]

_ROOMS = {
    "ContractBroken": "platform",
    "FakePlatform": "platform",
    "Fault": "platform",
    "NotConformant": "conformance",
    "Prompts": "contract",
    "Report": "conformance",
    "ScriptedEnds": "fakes",
    "ScriptedHolds": "fakes",
    "ScriptedModel": "scripted_model",
    "Times": "platform",
    "check_adapter": "conformance",
    "conformance_tests": "suite",
}


def __getattr__(name: str) -> Any:
    """Import the room that has this name."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    return getattr(import_module(f".{_ROOMS[name]}", __name__), name)
