# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers of tuning.py that only a daemon shows: what the loop serves itself, and how many workers there are.

A request is served in the loop if it is no longer than `inline_limit`, else by a worker. So for each
length of requests the daemon runs with that length as the limit, and with 0.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Callable

from bench import load
from bench.machine import run_apart, usage
from bench.servers import Daemon, Implementation
from bench.setup import GIB, MIB, make_keys
from ovirt_imageio.common import defaults

KIB = 1024
LENGTHS = (4 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB)
WORKERS = (1, 2, 4, defaults.WORKERS)
CONNECTIONS = 8
SECONDS = 0.5


def measure(storages: dict[str, tuple[str, int]], memory: Path, *, rounds: int) -> list[str]:
    """Measure all variants; returns the lines of a table in Markdown, under the head of `tuning.measure`."""
    keys = make_keys(memory)
    start = partial(Daemon, Implementation("3", sys.executable), memory, keys)
    lines = []
    for length in LENGTHS:
        job = f"GET of {length // KIB} KiB, {CONNECTIONS} connections"
        for limit, where in ((length, "loop"), (0, "worker")):
            with start(options={"inline_limit": limit}) as daemon:
                cells = _cells(daemon, storages, rounds, partial(_small, length=length))
            chosen = (length <= defaults.INLINE_LIMIT) == (where == "loop")
            lines.append(_line("INLINE_LIMIT", job, f"**{where}**" if chosen else where, cells))
    for count in WORKERS:
        with start(options={"max_workers": count}) as daemon:
            cells = _cells(daemon, storages, rounds, _bulk)
        shown = f"**{count}**" if count == defaults.WORKERS else f"{count}"
        lines.append(_line("WORKERS", "bulk GET, 4 streams", shown, cells))
    return lines


def _line(number: str, job: str, value: str, cells: list[str]) -> str:
    line = f"| `{number}` | {job} | {value} | {' | '.join(cells)} |"
    print(line, flush=True)
    return line


def _cells(
    daemon: Daemon,
    storages: dict[str, tuple[str, int]],
    rounds: int,
    once: Callable[[Daemon, str, int], tuple[float, float]],
) -> list[str]:
    """Measure with every storage; the first round only warms up."""
    cells = []
    for url, size in storages.values():
        ticket = daemon.ticket(url, size, ops=["read"])
        results = [once(daemon, ticket, size) for _ in range(rounds + 1)][1:]
        rate, cost = (statistics.median(values) for values in zip(*results))
        cells.append(f"{rate:,.0f} MiB/s, {cost:.2f} s/GiB" if once is _bulk else f"{rate:,.0f}/s, {cost:,.0f} µs")
    return cells


def _small(daemon: Daemon, ticket: str, size: int, *, length: int) -> tuple[float, float]:
    """Requests a second, and the daemon's CPU microseconds for one."""
    heads = load.random_gets(f"/images/{ticket}", size, length, 1024)
    before = usage(daemon.pid).cpu
    run = run_apart(lambda: load.small_requests(daemon, heads, connections=CONNECTIONS, seconds=SECONDS))
    return run.value.rate, (usage(daemon.pid).cpu - before) / run.value.count * 1e6


def _bulk(daemon: Daemon, ticket: str, size: int) -> tuple[float, float]:
    """MiB a second of four streams of a quarter each, and the daemon's CPU seconds a GiB."""
    before = usage(daemon.pid).cpu
    run = run_apart(lambda: load.bulk_get_each(daemon, [ticket] * 4, size // 4))
    return size / MIB / run.wall, (usage(daemon.pid).cpu - before) / (size / GIB)
