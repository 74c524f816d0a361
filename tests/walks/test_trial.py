"""What `workspace-adapter try` says of adapters good and bad, run as an author runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import inherited
from workspace_adapter.testing.proc import marked

ROOT = Path(__file__).parents[2]


def attempt(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it in an author's directory."""
    kept = inherited()
    done = subprocess.run(
        [sys.executable, "-m", "workspace_adapter", "try", *arguments],
        cwd=directory,
        env={**kept, "HOME": str(directory), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return last


HOLDS = "workspace_adapter.testing:ScriptedHolds"
SLEEPS = "sleeper:Sleeper"
SLEPT = "slept \x1b[2J\x07"
"""With what a terminal would obey."""
SLOW_THEN_QUICK = """<<<[{"tool": "sh", "input": "sleep 0.8; echo one >> log"},
{"tool": "sh", "input": "echo two >> log"}, {"answer": "done"}]>>>"""


SLEEPER = """
import anyio
from workspace_adapter.runtimes.echo import EchoAdapter, EchoSession
from contextlib import asynccontextmanager
from dataclasses import dataclass
from workspace_adapter import TurnFinished, setting

@dataclass(frozen=True, kw_only=True)
class Settings:
    nap: float = setting("SLEEPER_NAP", float, "Seconds.")

class Session(EchoSession):
    def __init__(self, nap):
        self.nap = nap

    async def run_turn(self, turn):
        await anyio.sleep(self.nap)
        yield TurnFinished(answer=f"{turn.text} in attempt {turn.attempt}")

class Sleeper(EchoAdapter):
    Settings = Settings

    @asynccontextmanager
    async def open_session(self, context):
        yield Session(self.settings.nap)
"""

DIES = """
import os
import workspace_adapter as wa

class Session(wa.RuntimeSession):
    async def run_turn(self, turn):
        os._exit(7)
        yield

class Dies(wa.RuntimeAdapter):
    name = "dies"
    capabilities = wa.Capabilities(gate=None)
    Session = Session
"""

WRONG = [
    ("nowhere:Adapter", "x", 2, "No module named 'nowhere'"),
    ("broken:Adapter", "x", 2, "ValueError (boom; "),
    ("late:Adapter", "x", 2, "not imported within"),
    ("tests.walks.clumsy:RunningHangs", "x", 2, "not ready within"),
    ("dies:Dies", "x", 1, "the sidecar ended by itself, with code 7"),
    ("tests.walks.clumsy:Clumsy", "surprise", 1, "Agent error: the adapter failed in run_turn: Surprise"),
    ("tests.walks.clumsy:Clumsy", "hang", 1, "the caller's answer did not come within"),
    ("tests.walks.clumsy:Clumsy", "block", 1, "runs, but answers nobody"),
]


Tried = dict[tuple[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    """Every adapter, tried; three at a time, because they mostly wait."""
    directory = tmp_path_factory.mktemp("author")
    (directory / "sleeper.py").write_text(SLEEPER)
    (directory / "dies.py").write_text(DIES)
    (directory / "broken.py").write_text("raise ValueError('boom')")
    (directory / "late.py").write_text("import time; time.sleep(60)")

    def one(adapter: str, prompt: str) -> subprocess.CompletedProcess[str]:
        if adapter == SLEEPS:
            return attempt(directory, "--prompt", prompt, WORKSPACE_ADAPTER=adapter, SLEEPER_NAP="0.6")
        patience = () if adapter == HOLDS else ("--patience", "4")
        arguments = ("--adapter", adapter, "--prompt", prompt, "--json", *patience)
        return attempt(directory, *arguments, PYTHONPATH=str(ROOT))

    cases = [(HOLDS, SLOW_THEN_QUICK), (SLEEPS, SLEPT), *((case[0], case[1]) for case in reversed(WRONG))]
    with ThreadPoolExecutor(3) as pool:
        return dict(zip(cases, pool.map(one, *zip(*cases, strict=True)), strict=True))


def test_a_good_adapter_is_interrupted_three_times_and_answers_each_caller_once(tried: Tried) -> None:
    done = tried[HOLDS, SLOW_THEN_QUICK]
    assert done.returncode == 0, done.stdout + done.stderr
    counted = summary(done)
    assert [counted[name] for name in ("accepted", "interrupted", "answered", "repeated")] == [3, 3, 3, 0]
    fates = [(call["scene"], call["attempt"], call["fate"]) for call in counted["calls"]]
    assert (1, 1, "unknown") in fates
    assert (2, 1, "never started") in fates
    assert (3, 2, "finished (ok)") in fates
    told = [line["what"] for line in map(json.loads, done.stdout.splitlines()[:-1]) if line["who"] == "agent"]
    assert any("outcome is unknown" in what and "- sh sleep 0.8" in what for what in told)
    assert any("never started" in what and "- sh echo two" in what for what in told)


def test_an_adapter_without_tools_is_interrupted_while_its_turn_runs(tried: Tried) -> None:
    done = tried[SLEEPS, SLEPT]
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("it works") == 3
    assert r"slept \x1b[2J\x07 in attempt 2" in done.stdout
    assert "answered once, in attempt 2" in done.stdout


def test_a_turn_that_is_over_at_once_proves_nothing(tmp_path: Path) -> None:
    done = attempt(tmp_path, "--adapter", "echo")
    assert done.returncode == 3
    assert "never interrupted" in done.stdout
    assert "--prompt" in done.stdout


@pytest.mark.parametrize(("adapter", "prompt", "code", "told"), WRONG, ids=[case[3] for case in WRONG])
def test_what_is_wrong_with_an_adapter_is_said_in_words(
    tried: Tried, adapter: str, prompt: str, code: int, told: str
) -> None:
    done = tried[adapter, prompt]
    assert done.returncode == code, done.stdout + done.stderr
    assert told in done.stdout


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, "nobody reads it"])
def test_ended_in_the_middle_it_leaves_no_process_and_no_file(
    tmp_path: Path, how: signal.Signals | str
) -> None:
    mark = f"TRIAL_MARK={tmp_path}"
    command = (sys.executable, "-m", "workspace_adapter", "try", "--adapter", HOLDS, "--prompt")
    trial = subprocess.Popen(
        [*command, SLOW_THEN_QUICK],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "TRIAL_MARK": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert trial.stdout is not None
        assert trial.stderr is not None
        assert any("sends message" in line for line in iter(trial.stdout.readline, ""))
        if isinstance(how, signal.Signals):
            trial.send_signal(how)
        else:
            trial.stdout.close()
        assert trial.wait(20) == (130 if isinstance(how, signal.Signals) else 0)
        assert trial.stderr.read() == ""
        assert marked(mark) == []
        assert list(tmp_path.iterdir()) == []
    finally:
        for process in marked(mark):
            process.kill()
        trial.communicate()


def test_without_an_adapter_it_says_how_to_name_one(tmp_path: Path) -> None:
    done = attempt(tmp_path)
    assert done.returncode == 2
    assert "--adapter module:Class" in done.stderr
