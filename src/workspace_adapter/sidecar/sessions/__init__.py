"""The sessions: each conversation driven by its own runner, one attempt after another."""
