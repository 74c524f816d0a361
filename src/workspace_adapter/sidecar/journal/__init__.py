"""The file that knows every turn."""

from .journal import Accepted, Child, Journal, LoggedEvent, NewEvent, NewTurn, Session

__all__ = ["Accepted", "Child", "Journal", "LoggedEvent", "NewEvent", "NewTurn", "Session"]
