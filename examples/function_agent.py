"""Makes an agent of an ordinary async function.

A function keeps nothing, so after a kill in the middle it is called once more, from its beginning.
`turn.prompt` tells it: that is the message, and after a kill a notice that quotes the message. Who
does not want to be told takes `turn.text`. A function that acts on the world, rather than thinks,
asks the gate before each act: see `shell_adapter.py` and `loop_agent.py`.

$ python examples/interrupt.py function_agent:FunctionAgent 'think for 3 s'
kill -9 in the middle of the turn, and a new start
I was asked:
[workspace notice: this workspace was restarted while you were working on the request below. The restart cut you off, not the user.
No tool call had been started.
Go on from where you were and finish the request.]

The request was:
think for 3 s
"""  # noqa: E501  the notice as it is

import re

import anyio
import workspace_adapter as wa


async def answer(prompt: str) -> str:
    """Stands for your function, and takes as many seconds as it is told."""
    for seconds in re.findall(r"for (\d+) s", prompt):
        await anyio.sleep(int(seconds))
    return f"I was asked:\n{prompt}"


class FunctionSession(wa.RuntimeSession):
    async def run_turn(self, turn: wa.TurnRequest) -> wa.TurnEvents:
        yield wa.Activity("thinking")
        yield wa.TurnFinished(answer=await answer(turn.prompt))


class FunctionAgent(wa.RuntimeAdapter):
    name = "function"
    capabilities = wa.Capabilities(gate=None)
    Session = FunctionSession
