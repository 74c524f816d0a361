"""A stand-in for the Messages API whose script rides in the prompt.

For tests of runtimes that speak to it, and for demonstrations without an account: the
real runtime does real work, and what the model says is written in the message. The
grammar is in :mod:`.script`. In a test::

    async with ScriptedModel() as model:
        environ["ANTHROPIC_BASE_URL"] = model.url
        …
        assert "restarted" in str(model.requests[-1]["messages"])

In a process of its own, which prints its URL::

    python -m workspace_adapter.testing.scripted_model --port 0
"""

from .endpoint import ScriptedModel

__all__ = ["ScriptedModel"]
