"""A damaged journal is salvaged at the boot, and the operator is told what was lost."""

from __future__ import annotations

import json
from pathlib import Path

from .workspace import answer_of, script, workspace


async def test_status_says_what_was_saved_of_a_damaged_journal(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        body = ws.envelope(script({"answer": "kept"}))
        assert answer_of((await ws.post(body)).json()) == "kept"
        ws.terminate()
        assert await ws.exited() == 0
        journal = ws.state_dir / "journal.db"
        journal.write_bytes(b"not a database" + journal.read_bytes()[14:])
        await ws.start()
        status = json.loads(ws.command("status", "--json").stdout)
        assert status["journal_salvaged"]["why"]
        assert "lost" in status["journal_salvaged"]
        assert list(ws.state_dir.glob("journal.db.damaged-*"))
        assert (await ws.send(script({"answer": "works"}))).status_code == 200
