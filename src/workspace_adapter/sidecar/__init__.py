"""The half inside the container: everything here does I/O."""
