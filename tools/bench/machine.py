# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Figures of a process that the kernel keeps: CPU, memory, threads, descriptors. See proc(5)."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import dataclass
from typing import Any, Callable


@dataclass(frozen=True)
class Usage:
    """One reading of a process: seconds of CPU, bytes of memory, counts."""

    cpu: float
    rss: int
    threads: int
    fds: int


def usage(pid: int) -> Usage:
    """Read the figures of a running process."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    pages = int(fields[21])
    return Usage(
        # The clock of a process, see clock_getcpuclockid(3): proc(5) counts ticks of 10 ms.
        cpu=time.clock_gettime(~pid << 3 | 2),
        rss=pages * os.sysconf("SC_PAGE_SIZE"),
        threads=int(fields[17]),
        fds=len(os.listdir(f"/proc/{pid}/fd")),
    )


def stolen() -> float:
    """Return for how many seconds the host of this virtual machine has kept its processors, all together."""
    with open("/proc/stat") as f:
        fields = f.readline().split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Run:
    """A call that ran in a process of its own: its result, wall and CPU seconds."""

    value: Any
    wall: float
    cpu: float


def run_apart(call: Callable[[], Any]) -> Run:
    """Run call in a forked process, so that its CPU time is its own.

    The call returns something picklable; a dict with a key `wall` overrides the
    wall time measured here, which includes the fork.

    Raises:
        RuntimeError: the call failed; the text holds the child's error.
    """
    reader, writer = os.pipe()
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(call, writer)
    os.close(writer)
    with open(reader, "rb") as f:
        data = f.read()
    _, _, rusage = os.wait4(pid, 0)
    wall = time.monotonic() - start
    if not data:
        raise RuntimeError("a measured process died")
    value, error = pickle.loads(data)
    if error is not None:
        raise RuntimeError(error)
    if isinstance(value, dict) and "wall" in value:
        wall = value["wall"]
    return Run(value, wall, rusage.ru_utime + rusage.ru_stime)


def _child(call: Callable[[], Any], writer: int) -> None:
    outcome: tuple[Any, str | None]
    try:
        outcome = call(), None
    except BaseException as e:  # everything goes to the parent, which raises it
        outcome = None, f"{type(e).__name__}: {e}"
    with open(writer, "wb") as f:
        pickle.dump(outcome, f)
    os._exit(0)
