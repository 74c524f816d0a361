"""The Claude runtime, turn by turn, against the real CLI."""

from __future__ import annotations

from workspace_adapter.events import Activity, TurnFinished, Usage

from .claude_stand import Stand, bash, follow, script, stand, turn

__all__ = ["stand"]


async def test_two_tool_calls_are_permitted_made_and_ended_before_the_answer(stand: Stand) -> None:
    async with stand.session() as session:
        run = await follow(
            session,
            turn(
                script(
                    bash("echo one >> effects", say="First."),
                    bash("echo two >> effects"),
                    {"text": "Both done."},
                )
            ),
        )
        assert run.finished == TurnFinished(answer="Both done.")
        assert stand.effects == ["one", "two"]
        assert [call.name for call in stand.gate.asked] == ["Bash", "Bash"]
        assert '"command": "echo one >> effects"' in stand.gate.asked[0].arguments
        assert stand.gate.ends == [(id, True) for id in stand.gate.permits]
        assert run.text == "First.\n\nBoth done."
        assert Activity("Bash") in run.events
        (usage,) = (event for event in run.events if isinstance(event, Usage))
        assert usage.input_tokens > 0
        assert usage.output_tokens > 0
        assert await stand.recover(handle=run.handle) is not None
        assert len(stand.children.pids) == 1
