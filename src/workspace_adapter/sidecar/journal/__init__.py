"""The file that knows every turn."""

from .journal import Journal
from .queries import Reader
from .records import Accepted, Child, LoggedEvent, NewEvent, NewTurn, Session, SessionSummary, new_id
from .timeline import BELIEVED, this_machine

__all__ = [
    "BELIEVED",
    "Accepted",
    "Child",
    "Journal",
    "LoggedEvent",
    "NewEvent",
    "NewTurn",
    "Reader",
    "Session",
    "SessionSummary",
    "new_id",
    "this_machine",
]
