"""The door: where A2A messages come in, from the first byte of a request to the last of its answer."""
