"""A program that becomes another one, which then ends when its parent does.

``python -I leash.py COMMAND ARGUMENT…``, with the variable ``WORKSPACE_ADAPTER_LEASH`` as
:mod:`.process` makes it. A file of its own that imports nothing of ours, because it runs
once per child, on the way to the child.
"""

import ctypes
import json
import os
import signal
import sys

VARIABLE = "WORKSPACE_ADAPTER_LEASH"
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask the kernel for SIGTERM at the parent's death, drop what is not to be inherited, go on."""
    environ = dict(os.environ)  # noqa: TID251  this process is the child whose environment it is
    leash = json.loads(environ.pop(VARIABLE))
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        sys.stderr.write("workspace_adapter: the kernel refuses PR_SET_PDEATHSIG\n")
    if os.getppid() != leash["parent"]:
        sys.exit("workspace_adapter: the parent is gone already")
    kept = {name: environ[name] for name in leash["keep"] if name in environ}
    try:
        os.execve(sys.argv[1], sys.argv[1:], kept)
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error.strerror}")


if __name__ == "__main__":
    main()
