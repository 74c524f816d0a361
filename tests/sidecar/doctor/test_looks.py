from __future__ import annotations

import sqlite3
from pathlib import Path

from workspace_adapter.settings import Configuration
from workspace_adapter.sidecar.doctor import looks
from workspace_adapter.sidecar.doctor.doctor import _readable
from workspace_adapter.sidecar.doctor.finding import Finding, Status
from workspace_adapter.sidecar.journal import Journal


def view(tmp_path: Path, config: Configuration | None = None, **environ: str) -> looks.View:
    given = {
        "WORKSPACE_ID": "ws-test",
        "WORKSPACE_ADAPTER": "echo",
        "WORKSPACE_STATE_DIR": str(tmp_path / "state"),
        **environ,
    }
    config = config or Configuration()
    return looks.View(environ=given, config=config, settings=_readable(given, config), owner=None)


def told(findings: list[Finding], *statuses: Status) -> list[str]:
    return [finding.found for finding in findings if finding.status in statuses]


def test_every_problem_of_the_settings_is_said_also_pairs_beside_what_cannot_be_read(tmp_path: Path) -> None:
    found = looks.settings(
        view(
            tmp_path,
            WORKSPACE_PORT="no",
            WORKSPACE_ID="UP",
            WORKSPACE_STOP_TIMEOUT="1",
            WORKSPACE_ADAPTER="eco",
        )
    )
    words = told(found, Status.BROKEN)
    assert [word.split("=")[0] for word in words] == [
        *("WORKSPACE_ID", "WORKSPACE_PORT", "WORKSPACE_ADAPTER", "WORKSPACE_STOP_GRACE")
    ]


def test_a_misspelt_variable_and_what_the_platforms_file_has_wrong_are_warned_of(tmp_path: Path) -> None:
    file = Configuration("/configs/config.yaml", {"a2a.port": "eight"})
    found = looks.settings(view(tmp_path, file, WORKSPACE_DRIAN_CAP="7", WORKSPACE_TIER="2"))
    words = told(found, Status.WARNING)
    assert len(words) == 2
    assert "/configs/config.yaml: a2a.port='eight'" in words[0]
    assert words[1] == "WORKSPACE_DRIAN_CAP is set, and nobody reads it"
    assert "WORKSPACE_DRAIN_CAP" in found[-1].todo


def test_tools_need_a_place_for_what_they_throw_away(tmp_path: Path) -> None:
    (found,) = looks.scratch(view(tmp_path, TMPDIR=str(tmp_path)))
    assert found == (Status.OK, f"{tmp_path} can be written", "")
    (found,) = looks.scratch(view(tmp_path, TMPDIR=str(tmp_path / "none")))
    assert (found.status, found.found) == (
        Status.WARNING,
        f"{tmp_path / 'none'} cannot be written: No such file or directory",
    )
    assert list(tmp_path.iterdir()) == []


async def test_a_journal_is_whole_noted_as_damaged_too_new_no_journal_or_not_there(tmp_path: Path) -> None:
    looking = view(tmp_path)
    assert told(looks.journal(looking), Status.SKIPPED) == [f"there is no journal in {looking.state_dir} yet"]
    await (await Journal.open(looking.state_dir, boot_id="b", now=0.0)).close()
    assert told(looks.journal(looking), Status.OK)[0] == "the journal can be read: 0 turns"

    suspect = looking.state_dir / "journal.db.suspect"
    suspect.write_text("a page was torn")
    (noted,) = told(looks.journal(looking), Status.WARNING)
    assert noted == "somebody found the journal damaged: a page was torn"
    suspect.unlink()

    file = looking.state_dir / "journal.db"
    newer = sqlite3.connect(file)
    newer.execute("PRAGMA user_version = 1000")
    newer.close()
    assert "written by a newer version" in told(looks.journal(looking), Status.BROKEN)[0]
    file.write_bytes(b"no database" * 1000)
    assert "is damaged" in told(looks.journal(looking), Status.BROKEN)[0]
