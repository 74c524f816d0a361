"""The rows there are."""

import sys

from benchmarks.frame.command import run

ROWS = (
    "accept",
    "send",
    "aged",
    "permit",
    "drain",
    "gate",
    "boot",
    "stop",
    "beat",
    "beats",
    "memory",
    "resumed",
    "container",
    "queue",
    "loss",
    "proxy",
    "held",
)
"""Files of this folder, in the table's order."""

if __name__ == "__main__":
    sys.exit(run({name: f"benchmarks.{name}" for name in ROWS}, sys.argv[1:]))
