"""The operator's commands, with the sidecar up, down and never started, by steady and shaky hands."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tracemalloc
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.conftest import require
from workspace_adapter.cli import run
from workspace_adapter.cli.printing import table
from workspace_adapter.sidecar.journal import Journal
from workspace_adapter.sidecar.journal.blobs import DIRECTORY
from workspace_adapter.sidecar.journal.measure import UPLOADS

from ..sidecar.journal.made import answered
from .workspace import ENDS, Workspace, answer_of, script, workspace

COMMANDS = (
    ("status",),
    ("drain",),
    ("turns",),
    ("turns", "list"),
    ("turns", "show", "x"),
    ("turns", "answer", "x"),
    ("turns", "cancel", "x"),
    ("turns", "release", "x"),
    ("sessions", "list"),
    ("sessions", "show", "x"),
    ("sessions", "forget", "x"),
    ("journal", "size"),
    ("journal", "export", "x"),
    ("journal", "check"),
    ("journal", "vacuum"),
)


def adapter(line: str, *, capabilities: str = "Capabilities(gate=None)") -> str:
    """Write an adapter with this line."""
    return (
        "from workspace_adapter import Capabilities, RuntimeAdapter, RuntimeSession\n"
        "class Adapter(RuntimeAdapter):\n"
        f" {line}\n capabilities = {capabilities}\n Session = RuntimeSession\n"
    )


def command(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workspace_adapter", *arguments],
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize("arguments", COMMANDS)
@pytest.mark.parametrize("kind", ["missing", "a file", "relative"])
def test_without_a_journal_a_command_names_the_directory_and_makes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], kind: str
) -> None:
    place = {"missing": tmp_path / "none", "a file": tmp_path / "file", "relative": Path("some/where")}[kind]
    (tmp_path / "file").touch()
    said = command(*arguments, WORKSPACE_STATE_DIR=str(place))
    assert said.returncode in (1, 2, 4)
    assert said.stdout == ""
    assert str(place) in said.stderr
    assert "Traceback" not in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


AS_NOBODY = """
import io, os, sys
from contextlib import redirect_stderr
from workspace_adapter.cli import run
from workspace_adapter.cli.printing import table
with redirect_stderr(io.StringIO()):  # imports everything while it can still be read
    run(sys.argv[1:], {"WORKSPACE_STATE_DIR": "/no/such"})
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(run(sys.argv[1:], os.environ))
"""


@pytest.mark.parametrize("arguments", COMMANDS)
async def test_a_user_who_may_not_read_the_state_is_told_so(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    require(os.geteuid() == 0, "only root can become another user")
    state = tmp_path / "closed" / "state"
    state.mkdir(parents=True)
    state.parent.chmod(0o700)
    said = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, *arguments],
        env={"PATH": os.environ["PATH"], "WORKSPACE_STATE_DIR": str(state)},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert said.returncode == 1
    assert str(state) in said.stderr
    assert "this command as" in said.stderr
    assert "Traceback" not in said.stderr
    assert "no sidecar runs" not in said.stderr


async def test_up_down_and_killed_every_command_has_its_answer(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30) / ("deeper" * 20)
    async with workspace(deep) as ws:
        await ws.send(script({"answer": "done"}))
        (turn,) = ws.turns()
        for state in ("up", "down", "killed"):
            status = ws.command("status", "--json")
            assert status.returncode == 0, status.stderr
            assert json.loads(status.stdout)["turns"]["answered"] == 1
            assert (json.loads(status.stdout)["state"] == "down") is (state != "up")
            assert ws.command("turns", "show", turn["id"]).returncode == 0
            for verb in ("cancel", "release"):
                said = ws.command("turns", verb, turn["id"])
                assert said.returncode == 1
                assert "answered" in said.stderr
            for verb in ("show", "answer", "cancel", "release"):
                said = ws.command("turns", verb, "x")
                assert said.returncode == 1
                assert "turns list" in said.stderr
            said = ws.command("sessions", "show", "x")
            assert (said.returncode, "sessions list" in said.stderr) == (1, True)
            (session,) = printed(ws, "sessions", "list")
            assert session["turns"] == {"answered": 1}
            assert session["runtime"] == ("open" if state == "up" else None)
            shown = printed(ws, "sessions", "show", session["id"])
            assert [recent["id"] for recent in shown["recent"]] == [turn["id"]]
            assert ws.command("turns", "answer", turn["id"][:8]).stdout == "done\n"
            assert printed(ws, "journal", "export", turn["id"])["turn"]["answer"] == "done"
            assert printed(ws, "journal", "size")["rows"]["turns"] == 1
            assert printed(ws, "journal", "check") == {"whole": True, "problems": []}
            drained = ws.command("drain", "--json")
            assert drained.returncode == (0 if state == "up" else 4)
            if state == "up":
                ws.terminate()
                assert await ws.exited() == 0
            elif state == "down":
                await ws.start()
                ws.kill_everything()


def printed(ws: Workspace, *arguments: str) -> Any:
    """What a command prints for machines."""
    said = ws.command(*arguments, "--json")
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


async def test_turns_are_listed_by_what_an_operator_knows_of_them(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        for context in ("one", "two", "one"):
            await ws.send(script({"say": "hm"}, {"answer": "done"}), context_id=context)
        newest, middle, oldest = printed(ws, "turns", "list")
        ask = partial(printed, ws, "turns", "list")
        assert ask("--session", "one") == [newest, oldest]
        assert ask("--session", "one", "--before", newest["id"]) == [oldest]
        assert ask("--state", "failed", "--state", "answered", "--limit", "1") == [newest]
        assert ask("--state", "failed") == ask("--caller", "nobody") == ask("--until", "1h") == []
        assert len(ask("--since", "1h")) == 3
        cut = ws.command("turns", "--limit", "2", "--json")
        assert cut.stderr == f"There are more; the next page: --before {middle['id']}\n"
        assert json.loads(cut.stdout) == [newest, middle]
        assert ws.command("turns", "--limit", "3").stderr == ""
        assert ask("--session", "two")[0]["expires_at"] is None
        cut = ws.command("sessions", "show", "one", "--limit", "1")
        assert f"turns list --before {newest['id']} --session one" in cut.stderr
        assert ws.command("sessions", "show", "one", "--limit", "2").stderr == ""
        cut = ws.command("sessions", "--limit", "1", "--json")
        assert "There are more" in cut.stderr
        assert [session["id"] for session in json.loads(cut.stdout)] == ["one"]
        shown = printed(ws, "turns", "show", middle["id"], "--events")
        assert shown["answer"] == "done"
        assert [event["kind"] for event in shown["events"]][:1] == ["status"]
        ambiguous = ws.command("turns", "show", "")
        assert ambiguous.returncode == 1


async def test_an_option_counts_before_the_verb_too(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        for context in ("one", "two"):
            await ws.send(script({"answer": "done"}), context_id=context)
        two, one = printed(ws, "turns", "list")
        for arguments, found in (
            (("--session", "one", "list"), [one]),
            (("--limit", "1", "list"), [two]),
            (("--limit", "1", "list", "--limit", "2"), [two, one]),
            (("--session", "one", "list", "--session", "two"), [two]),
        ):
            assert json.loads(ws.command("turns", "--json", *arguments).stdout) == found
        for noun, verb in (("sessions", ("list",)), ("journal", ("size",)), ("turns", ("show", one["id"]))):
            said = ws.command(noun, "--json", *verb)
            assert json.loads(said.stdout) == printed(ws, noun, *verb), said.stderr


async def test_several_turns_are_canceled_at_once_and_each_refusal_is_told(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_MAX_CONCURRENT_TURNS="2") as ws:
        with anyio.move_on_after(20):
            async with anyio.create_task_group() as callers:
                for name in "ab":
                    callers.start_soon(
                        ws.send, script({"tool": "sh", "input": f"echo {name} >> effects; sleep 20"})
                    )
                for name in "ab":
                    await ws.until_effect(name)
                first, second = (turn["id"] for turn in ws.turns())
                shown = ws.turn(first)
                assert "echo" in shown["message"]
                assert shown["calls"][0]["state"] == "unknown"
                said = ws.command("turns", "cancel", first, "zz", second, first, "--json")
        assert said.returncode == 1
        assert json.loads(said.stdout) == [{"turn": id, "state": "canceled"} for id in (first, second)]
        assert said.stderr == "there is no turn 'zz'; see: workspace-adapter turns list\n"


async def test_output_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        await ws.send(script({"answer": "ünprintable in ASCII"}))
        (turn,) = ws.turns()
        with Path("/dev/full").open("w") as full:
            said = subprocess.run(
                [sys.executable, "-m", "workspace_adapter", "turns"],
                env=ws.environ,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=20,
                check=False,
            )
        assert (said.returncode, said.stderr) == (1, "the output: No space left on device\n")
        ws.environ["PYTHONIOENCODING"] = "ascii"
        assert ws.command("turns", "answer", turn["id"]).stdout == "\\xfcnprintable in ASCII\n"


def test_a_copy_that_can_only_be_read_is_told_from_one_of_another_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anyio.run(made, tmp_path / "state")
    copy = tmp_path / "copy"
    copy.mkdir()
    bind = ["mount", "--bind", str(tmp_path / "state"), str(copy)]
    mounted = subprocess.run(bind, stderr=subprocess.DEVNULL, timeout=10, check=False)
    require(mounted.returncode == 0, "only who may mount has a read-only copy")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(copy)], check=True, timeout=10)
        for arguments in (("turns",), ("journal", "check")):
            assert run(arguments, {"WORKSPACE_STATE_DIR": str(copy)}) == 1
            assert "make a copy and name that in WORKSPACE_STATE_DIR" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", str(copy)], check=True, timeout=10)


def test_a_journal_that_cannot_be_used_is_told_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    anyio.run(made, tmp_path)
    journal = tmp_path / "journal.db"
    whole = journal.read_bytes()
    newer = whole[:60] + (99).to_bytes(4, "big") + whole[64:]
    torn = whole[:4096] + b"\xff" * (len(whole) - 4096)
    for content, told in (
        (b"", "the next start of the sidecar saves"),
        (b"no database" * 999, "the next start of the sidecar saves"),
        (torn, "saves what can be read"),
        (newer, "upgrade"),
    ):
        journal.write_bytes(content)
        for arguments in COMMANDS:
            code = run(arguments, {"WORKSPACE_STATE_DIR": str(tmp_path)})
            said = "".join(capsys.readouterr())
            assert code == (4 if arguments == ("drain",) else 1)
            assert told in said or arguments == ("drain",), (arguments, said)
        code = run(("journal", "check", "--json"), {"WORKSPACE_STATE_DIR": str(tmp_path)})
        said = capsys.readouterr().out
        assert (code, '"whole": false' in said) == (1, told != "upgrade")


async def made(state_dir: Path) -> None:
    """Make an empty journal."""
    await (await Journal.open(state_dir, boot_id="boot", now=1.0)).close()


def test_commands_given_at_once_wait_for_one_another(tmp_path: Path) -> None:
    anyio.run(made, tmp_path)
    vacuum = [sys.executable, "-m", "workspace_adapter", "journal", "vacuum", "--full"]
    commands = [subprocess.Popen(vacuum, env={"WORKSPACE_STATE_DIR": str(tmp_path)}) for _ in range(4)]
    assert [command.wait(20) for command in commands] == [0, 0, 0, 0]


def test_a_list_of_turns_with_large_answers_takes_the_memory_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = 2_000_000

    async def fill() -> None:
        journal = await Journal.open(tmp_path, boot_id="boot", now=1.0)
        for number in range(20):
            await answered(journal, f"m{number}", answer=f"{number}{'x' * large}")
        await journal.close()

    anyio.run(fill)
    for arguments in (("turns", "--json"), ("sessions", "show", "session")):
        tracemalloc.start()
        try:
            assert run(arguments, {"WORKSPACE_STATE_DIR": str(tmp_path)}) == 0
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 8 * large
        assert capsys.readouterr().out.count("turn-m") == 20


@pytest.mark.parametrize("when", ["soon", "12", "-3h", "2026-13-01"])
def test_a_time_that_is_none_is_refused(when: str) -> None:
    said = command("turns", f"--since={when}")
    assert said.returncode == 2
    assert "an age such as" in said.stderr


def on_control_socket(ws: Workspace, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(10)
        stream.connect(str(ws.state_dir / "control.sock"))
        stream.sendall(line)
        stream.shutdown(socket.SHUT_WR)
        heard = stream.makefile("rb").readline()
        found: dict[str, Any] = json.loads(heard) if heard else {}
        return found


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"not json\n",
        b"[" * 60_000 + b"\n",
        b"x" * 200_000,
        b"[1]\n",
        b'{"verb": ["status"]}\n',
        b'{"verb": "nap"}\n',
        b'{"verb": "drain", "wait": "soon"}\n',
        b'{"verb": "drain", "wait": NaN}\n',
        b'{"verb": "drain", "wait": -1}\n',
        b'{"verb": "drain", "wait": [1]}\n',
        b'{"verb": "cancel"}\n',
        b'{"verb": "cancel", "turn": {"a": "\\ud800"}}\n',
        b'{"verb": "release", "turn": "\\ud800"}\n',
    ],
)
async def test_nothing_said_on_the_control_socket_harms_the_sidecar(running: Workspace, line: bytes) -> None:
    with suppress(ConnectionError):  # it hangs up on what is too long
        assert "result" not in on_control_socket(running, line)
    assert "status" not in on_control_socket(running, b'{"verb": "status"}\n')
    assert on_control_socket(running, b'{"verb": "status"}\n')["result"]["state"] == "serving"
    assert answer_of((await running.send(script({"answer": "well"}))).json()) == "well"


async def test_without_file_descriptors_it_stays_up_and_goes_on_when_there_are_some(tmp_path: Path) -> None:
    async with workspace(tmp_path, WORKSPACE_LOG_LEVEL="warning") as ws:
        assert ws.process is not None
        resource.prlimit(ws.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        with ExitStack() as hogs:
            for _ in range(60):
                hogs.enter_context(socket.create_connection(("127.0.0.1", ws.port)))
            descriptors = Path(f"/proc/{ws.process.pid}/fd")
            await ws.until(lambda: len(list(descriptors.iterdir())) >= 60, "the last descriptor")
            with socket.socket(socket.AF_UNIX) as operator:
                operator.connect(str(ws.state_dir / "control.sock"))
                await ws.until(lambda: "control socket does not listen" in ws.logged(), "the warning")
        await ws.until(lambda: ws.command("status").returncode == 0, "its answer")
        assert (
            answer_of((await ws.send(script({"tool": "sh", "input": "true"}, {"answer": "x"}))).json()) == "x"
        )


async def test_a_sidecar_that_is_stuck_is_said_to_be(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        assert ws.process is not None
        ws.process.send_signal(signal.SIGSTOP)
        stuck = ws.command("status")
        assert stuck.returncode == 1
        assert "has not answered" in stuck.stderr
        ws.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> Any:
    async with workspace(tmp_path_factory.mktemp("control"), ENDS) as ws:
        yield ws


async def test_a_drain_command_that_is_stopped_does_not_claim_to_have_drained(tmp_path: Path) -> None:
    for number, code in ((signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)):
        async with workspace(tmp_path / number.name, WORKSPACE_RESTART_WINDOW="30") as ws:
            with anyio.move_on_after(20):
                async with anyio.create_task_group() as callers:
                    callers.start_soon(
                        ws.send, script({"tool": "sh", "input": "echo begun >> effects; sleep 20"})
                    )
                    await ws.until_effect("begun")
                    drain = subprocess.Popen(
                        [sys.executable, "-m", "workspace_adapter", "drain", "--wait", "20"],
                        env=ws.environ,
                        stderr=subprocess.PIPE,
                    )
                    await ws.until(lambda: "drain begins" in ws.logged(), "the drain")
                    drain.send_signal(number)
                    _, errors = drain.communicate(timeout=10)
                    assert drain.returncode == code
                    assert b"Traceback" not in errors
                    callers.cancel_scope.cancel()


async def test_a_pipe_that_closes_early_is_no_error(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        for _ in range(3):
            await ws.send(script({"answer": "x" * 2000}))
        turns = f"{sys.executable} -m workspace_adapter turns"
        piped = subprocess.run(
            ["sh", "-c", f"{turns} --json | head -c 1; {turns} | true"],
            env=ws.environ,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert piped.stderr == ""


async def test_what_callers_sent_cannot_write_on_the_operators_terminal(tmp_path: Path) -> None:
    async with workspace(tmp_path) as ws:
        sent = await ws.send(
            script({"fail": "\x1b[2J\x1b[31mgone\r\n\u202ereversed"}), context_id="a\x1b[2Jb"
        )
        listed = ws.command("turns").stdout
        assert sent.status_code == 200
        shown = ws.command("turns", "show", ws.turns()[0]["id"]).stdout
        for printed in (listed, shown):
            assert all(character.isprintable() or character == "\n" for character in printed)
        assert len(listed.splitlines()) == 2


def test_columns_stand_under_their_headings_whatever_the_alphabet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table([("A", "B"), ("漢字", "x"), ("e\u0301", "x"), ("é", "x"), ("abcd", "x")])
    assert capsys.readouterr().out.splitlines() == [
        "A     B",
        "漢字  x",
        "e\u0301     x",
        "é     x",
        "abcd  x",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("drain", "--wait", "nan"),
        ("drain", "--wait", "-1"),
        ("turns", "--limit", "0"),
        ("turns", "--limit", "99999999999999999999"),
    ],
)
def test_a_number_that_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    said = command(*arguments)
    assert said.returncode == 2
    assert arguments[1] in said.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def x(:", "SyntaxError"),
        ("raise ValueError", "ValueError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import no_such_module", "no_such_module"),
        ("", "has no attribute"),
        ("class Adapter: pass", "is not a RuntimeAdapter"),
        (adapter("pass"), "has no `name`"),
        (adapter("name = ''"), "its `name` is ''"),
        (adapter("name = '../a'"), "its `name` is '../a'"),
        (adapter(f"name = {DIRECTORY!r}"), "is a folder of ours"),
        (adapter(f"name = {UPLOADS!r}"), "is a folder of ours"),
        (adapter("name = 'a'", capabilities="None"), "its `capabilities` are None"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_named(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "broken_adapter.py").write_text(text)
    said = command(
        "config", WORKSPACE_ID="ws", WORKSPACE_ADAPTER="broken_adapter:Adapter", PYTHONPATH=str(tmp_path)
    )
    assert said.returncode == 2
    last = said.stderr.splitlines()[-1]
    assert last.startswith("WORKSPACE_ADAPTER=")
    assert why in last


async def test_a_card_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    async with workspace(tmp_path, start=False, WORKSPACE_AGENT_CARD="/no/such/card") as ws:
        ws.spawn()
        assert await ws.exited() == 2
        assert "WORKSPACE_AGENT_CARD" in ws.logged().splitlines()[-1]
        assert "Traceback" not in ws.logged()
