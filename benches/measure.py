"""What a command takes, and tables of it."""

import json
import os
import statistics
import subprocess
import sys
from typing import NamedTuple

# A process is told to have had the memory of the one that forked it: a small one does, with a clean record.
LAUNCHER = """
import json, os, resource, sys, time
began = time.monotonic()
process = os.fork()
if not process:
    os.execvp("bash", ["bash", "-ec", sys.argv[1]])
_, status, usage = os.wait4(process, 0)
wall = time.monotonic() - began
print(json.dumps([wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, usage.ru_oublock * 512, status]))
"""


class Figure(NamedTuple):
    """Of a whole command: seconds, seconds, MiB of its largest process, bytes that it had written to the disk."""

    wall: float
    cpu: float
    memory: float
    written: int


def measure(script, environment=None):
    """Runs a shell script; gives its figure and what it said on its error output."""
    # Nobody shall pay for what the one before left to be written.
    os.sync()
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER, f"exec 1>/dev/null; {script}"]
    # The figure goes through a pipe of its own.
    done = subprocess.run(launcher, capture_output=True, text=True, env=environment)
    *figure, status = json.loads(done.stdout)
    if status != 0:
        raise SystemExit(f"{script}\n{done.stderr}")
    return Figure(*figure), done.stderr


def median(figures, name):
    return statistics.median(getattr(figure, name) for figure in figures)


def ratio(ours, theirs, name):
    """Round by round, so that a slow minute counts for both."""
    return statistics.median(getattr(a, name) / getattr(b, name) for a, b in zip(ours, theirs))


def best(tools, name):
    """Of the peers, the one with the smallest median."""
    peers = {tool: figures for tool, figures in tools.items() if not tool.startswith("charon")}
    return min(peers, key=lambda tool: median(peers[tool], name))


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figures_table(tools, ours):
    rows = []
    for tool, figures in tools.items():
        is_ours = tool.startswith("charon")
        wall, cpu = ("" if is_ours else f"{ratio(ours, figures, name):.2f}" for name in ("wall", "cpu"))
        rows.append(
            [
                tool,
                f"{median(figures, 'wall'):.2f} s",
                wall,
                f"{median(figures, 'cpu'):.2f} s",
                cpu,
                f"{median(figures, 'memory'):.0f} MiB",
            ]
        )
    return markdown(["", "wall", "charon's ratio", "cpu", "charon's ratio", "memory"], rows)
