"""What the figures are, each beside its limit or its peer; see README.md."""
