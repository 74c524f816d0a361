"""Keeps notes: every message becomes a line of `notes.txt`, once, however often it is interrupted."""

import workspace_adapter as wa


class NotesSession(wa.RuntimeSession):
    async def run_turn(self, turn: wa.TurnRequest) -> wa.TurnEvents:
        notes = self.context.workdir / "notes.txt"
        line = f"{turn.id} {turn.text}"
        written = notes.read_text().splitlines() if notes.exists() else []
        if line not in written:  # else an attempt before this one wrote it
            call = wa.ToolCall(id=f"{turn.id}.{turn.attempt}", name="write", arguments=line)
            if await self.context.gate.ask(call) is wa.Permit.PARKED:
                yield wa.TurnFinished(finish=wa.Finish.PARKED)
                return
            with notes.open("a") as file:
                file.write(line + "\n")
            await self.context.gate.ended(call.id, ok=True)
            written.append(line)
        yield wa.TurnFinished(answer=f"that makes {len(written)}")


class Notes(wa.RuntimeAdapter):
    name = "notes"
    capabilities = wa.Capabilities(gate=wa.AtClosedGate.END)
    Session = NotesSession
