"""Adapters we ship; found by name at run time, each vendor SDK behind an extra."""
