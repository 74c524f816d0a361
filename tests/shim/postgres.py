"""A PostgreSQL server of the tests' own: a child process, not root, on a unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path


def programs() -> Path | None:
    """Return the folder with ``initdb`` and ``postgres``, where there is one."""
    on_path = shutil.which("postgres")
    folders = [Path(os.environ["TEST_PG_BINDIR"])] if "TEST_PG_BINDIR" in os.environ else []
    folders += [Path(on_path).parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres:
    """One server; ``kill`` and ``start`` are a crash and the recovery from it."""

    def __init__(self, *settings: str) -> None:
        bindir = programs()
        assert bindir is not None
        self._bin = bindir
        self._settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix="wa-pg-"))
        self._as: dict[str, object] = {"cwd": "/"}
        if os.geteuid() == 0:  # it refuses to run as root
            user = pwd.getpwnam("postgres" if _known("postgres") else "nobody")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        self._child: subprocess.Popen[bytes] | None = None
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync",
            "-E", "UTF8", "--no-locale",
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        command = [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        for setting in ("listen_addresses=", "max_connections=60", *self._settings):
            command += ["-c", setting]
        log = (self.folder.parent / f"{self.folder.name}.log").open("ab")
        with log:
            self._child = subprocess.Popen(  # type: ignore[call-overload]
                command, stdout=log, stderr=log, start_new_session=True, **self._as
            )
        deadline = time.monotonic() + 120  # a disk that is busy with others makes it wait for its checkpoint
        while time.monotonic() < deadline and self._child.poll() is None:
            lines = _lines(self.folder / "data" / "postmaster.pid")
            if lines[:1] == [str(self._child.pid)] and lines[-1].strip() == "ready":
                return
            time.sleep(0.02)
        raise AssertionError("PostgreSQL did not start:\n" + "\n".join(_lines(Path(log.name))[-5:]))

    def kill(self) -> None:
        """End it as a lost power supply would, all its processes at once."""
        assert self._child is not None
        server = self._child.pid
        self._child.send_signal(signal.SIGSTOP)  # it starts no more of them, and ends none itself
        workers = [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]
        for pid in (*workers, server):  # each worker has a session of its own
            os.kill(pid, signal.SIGKILL)
        self._child.wait()
        while any(_runs(pid) for pid in workers):  # it would not start beside one
            time.sleep(0.005)

    def stop(self) -> None:
        """End it, and remove what it left."""
        if self._child is not None:
            self._child.send_signal(signal.SIGQUIT)
            self._child.wait(timeout=30)
        shutil.rmtree(self.folder)
        (self.folder.parent / f"{self.folder.name}.log").unlink(missing_ok=True)

    def _run(self, *command: str) -> None:
        subprocess.run(  # type: ignore[call-overload]
            [str(self._bin / command[0]), *command[1:]], check=True, capture_output=True, **self._as
        )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except FileNotFoundError:
        return []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _known(user: str) -> bool:
    return any(entry.pw_name == user for entry in pwd.getpwall())
