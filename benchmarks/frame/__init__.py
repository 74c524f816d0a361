"""What all rows share: rounds, figures and their limits, the table and the picture."""

from .bench import Bench, Unmeasurable
from .figures import Figure, Limit, at_least, at_most, never

__all__ = ["Bench", "Figure", "Limit", "Unmeasurable", "at_least", "at_most", "never"]
