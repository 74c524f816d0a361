"""What adapter authors test with."""

from .scripted_model import ScriptedModel

__all__ = ["ScriptedModel"]
