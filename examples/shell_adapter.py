"""Takes every message for a shell command, and runs none twice.

$ python examples/interrupt.py shell_adapter:ShellAdapter 'echo begun; sleep 9; echo done'
kill -9 in the middle of the turn, and a new start
Agent error: the workspace was restarted during this command; it may have run"""

import anyio
import workspace_adapter as wa


class ShellSession(wa.RuntimeSession):
    async def run_turn(self, turn: wa.TurnRequest) -> wa.TurnEvents:
        begun = self.context.state_dir / turn.id
        if begun.exists():  # a model would be told so in turn.note, and look for itself
            raise wa.TurnFailed("the workspace was restarted during this command; it may have run")
        call = wa.ToolCall(id=f"{turn.id}.{turn.attempt}", name="sh", arguments=turn.text)
        if await self.context.gate.ask(call) is wa.Permit.PARKED:
            yield wa.TurnFinished(finish=wa.Finish.PARKED)
            return
        begun.touch()
        environ = self.context.children.environ()
        done = await anyio.run_process(turn.text, check=False, cwd=self.context.workdir, env=environ)
        await self.context.gate.ended(call.id, ok=done.returncode == 0)
        yield wa.TurnFinished(answer=done.stdout.decode(errors="replace"))


class ShellAdapter(wa.RuntimeAdapter):
    name = "shell"
    capabilities = wa.Capabilities(gate=wa.AtClosedGate.END)
    Session = ShellSession
