"""Messages to workspaces: read, kept, waited for, and told."""
