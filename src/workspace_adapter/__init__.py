"""A workspace-side agent adapter: nothing that was accepted is ever lost."""
