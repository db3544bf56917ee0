# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How cost grows: with transfers, connections, the size of an image, and its extents.

Each row has a metric for each step, `UNIT at N`, which report.py draws as a curve.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import Callable

from bench import load
from bench.machine import run_apart, usage
from bench.rows import ROWS, Row, Sample
from bench.servers import Daemon, Implementation, QemuNbd
from bench.setup import GIB, MIB, Setup
from bench.small import READ_ONLY, get_document

KIB = 1024
TRANSFERS = (1, 4, 16, 64)
CONNECTIONS = (1, 10, 100, 1000)
SIZES = (MIB, GIB, 64 * GIB, 8192 * GIB)
EXTENTS = (1, 1000, 30_000, 1_000_000)


@dataclass(frozen=True)
class Curve:
    """A figure: what its axes are, and which row holds its points."""

    name: str
    row: str
    title: str
    x: str
    unit: str


CURVES = (
    Curve("scale-transfers", "scale-transfers", "Bulk GET of several transfers, together", "transfers", "MiB/s"),
    Curve(
        "scale-connections",
        "scale-connections",
        "4 KiB GET beside idle connections, CPU",
        "connections",
        "µs CPU/request",
    ),
    Curve("scale-memory", "scale-connections", "Memory of connections that moved 1 MiB", "connections", "MiB RSS"),
    Curve("scale-size", "scale-size", "Extents of an empty image", "GiB", "ms"),
    Curve("scale-extents", "scale-extents", "Extents of an image", "extents", "ms"),
)


def _transfers(setup: Setup, implementation: Implementation) -> Sample:
    """Each transfer has a ticket of its own, on one server; all together read the image once."""
    sample: Sample = {}
    with QemuNbd(setup.memory, setup.dense(), shared=4 * max(TRANSFERS), read_only=True) as nbd:
        with Daemon(implementation, setup.memory, setup.keys) as daemon:
            for count in TRANSFERS:
                share = setup.size // count
                tickets = [daemon.ticket(nbd.url, setup.size, ops=READ_ONLY) for _ in range(count)]
                before = usage(daemon.pid).cpu
                run = run_apart(partial(load.bulk_get_each, daemon, tickets, share))
                sample[f"MiB/s at {count}"] = setup.size / MIB / run.wall
                sample[f"CPU s/GiB at {count}"] = (usage(daemon.pid).cpu - before) / (setup.size / GIB)
            sample["threads"] = usage(daemon.pid).threads
    return sample


def _connections(setup: Setup, implementation: Implementation) -> Sample:
    """One connection works while the others, which moved a little before, are idle."""
    sample: Sample = {}
    image = setup.dense()
    for count in CONNECTIONS:
        with Daemon(implementation, setup.memory, setup.keys) as daemon, contextlib.ExitStack() as stack:
            ticket = daemon.ticket(f"file://{image}", setup.size)
            heads = load.random_gets(f"/images/{ticket}", setup.size, 4 * KIB, 1024)
            for _ in range(count - 1):
                sock = stack.enter_context(contextlib.closing(load.connect(daemon, "unix")))
                load.get_once(sock, f"/images/{ticket}", 0, MIB)
            sample[f"MiB RSS at {count}"] = usage(daemon.pid).rss / MIB
            before = usage(daemon.pid).cpu
            run = run_apart(partial(load.small_requests, daemon, heads, connections=1, seconds=setup.seconds / 4))
            sample[f"µs CPU/request at {count}"] = (usage(daemon.pid).cpu - before) / run.value.count * 1e6
            sample[f"threads at {count}"] = usage(daemon.pid).threads
    return sample


def _documents(setup: Setup, implementation: Implementation, images: dict[float, Callable[[], QemuNbd]]) -> Sample:
    sample: Sample = {}
    for x, serve in images.items():
        with serve() as nbd, Daemon(implementation, setup.memory, setup.keys) as daemon:
            ticket = daemon.ticket(nbd.url, nbd.size, ops=READ_ONLY)
            path = f"/images/{ticket}/extents"
            if x < max(EXTENTS):
                get_document(daemon, path)  # opens the storage
            start = time.monotonic()
            get_document(daemon, path)
            sample[f"ms at {x:g}"] = (time.monotonic() - start) * 1e3
    return sample


def _sizes(setup: Setup, implementation: Implementation) -> Sample:
    def serve(size: int) -> QemuNbd:
        return QemuNbd(setup.memory, setup.sparse(size, 0), size=size, read_only=True)

    return _documents(setup, implementation, {size / GIB: partial(serve, size) for size in SIZES})


def _extents(setup: Setup, implementation: Implementation) -> Sample:
    def serve(count: int) -> QemuNbd:
        image = setup.many_extents(max(count, 2))
        return QemuNbd(setup.memory, image, fmt="qcow2", size=max(count, 2) * 512, read_only=True)

    return _documents(setup, implementation, {count: partial(serve, count) for count in EXTENTS})


ROWS["scale-transfers"] = Row("scale-transfers", "1 to 64 transfers at once, bulk GET, unix", _transfers)
ROWS["scale-connections"] = Row("scale-connections", "1 to 1,000 connections, all but one idle", _connections)
ROWS["scale-size"] = Row("scale-size", "extents of empty images, 1 MiB to 8 TiB", _sizes)
ROWS["scale-extents"] = Row("scale-extents", "1 to 1,000,000 extents", _extents)
