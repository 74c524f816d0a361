"""Takes all the memory there is when it is asked to."""

import workspace_adapter as wa


class HungrySession(wa.RuntimeSession):
    async def run_turn(self, turn: wa.TurnRequest) -> wa.TurnEvents:
        yield wa.Activity("thinking")
        eaten = []
        while turn.text == "eat":
            eaten.append(b"\1" * (16 << 20))
        yield wa.TurnFinished(answer=f"not hungry: {turn.text}")


class Hungry(wa.RuntimeAdapter):
    name = "hungry"
    capabilities = wa.Capabilities(gate=None)
    Session = HungrySession
