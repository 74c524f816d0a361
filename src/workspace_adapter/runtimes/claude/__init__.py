"""Claude Code as a runtime, driven by the Claude Agent SDK."""

from .adapter import ClaudeAdapter
from .settings import ClaudeSettings

__all__ = ["ClaudeAdapter", "ClaudeSettings"]
