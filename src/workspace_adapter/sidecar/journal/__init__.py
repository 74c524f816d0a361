"""The file that knows every turn."""

from .journal import Journal
from .queries import Reader
from .records import Accepted, Child, LoggedEvent, NewEvent, NewTurn, Session, SessionSummary

__all__ = [
    "Accepted",
    "Child",
    "Journal",
    "LoggedEvent",
    "NewEvent",
    "NewTurn",
    "Reader",
    "Session",
    "SessionSummary",
]
