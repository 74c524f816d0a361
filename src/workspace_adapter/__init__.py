"""A workspace-side agent adapter: nothing that was accepted is ever lost."""

__version__ = "0.1.0"
