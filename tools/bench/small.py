# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Rows of small requests, idle connections, checksum, extents, and start-up."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from functools import partial
from pathlib import Path
from typing import Iterator

from bench import load
from bench.machine import run_apart, usage
from bench.rows import ROWS, Goal, Limit, Row, Sample, row
from bench.servers import BenchError, Daemon, Implementation, QemuNbd
from bench.setup import GIB, MIB, Setup
from bench.transfers import note_room

KIB = 1024
READ_ONLY = ("read",)


def _latency(sample: Sample, result: load.Latency) -> None:
    sample["p50 µs"] = result.p50 * 1e6
    sample["p99 µs"] = result.p99 * 1e6
    sample["requests/s"] = result.rate


@contextlib.contextmanager
def _served(
    setup: Setup, implementation: Implementation, *, file: bool = False, shared: int = 80
) -> Iterator[tuple[Daemon, str]]:
    """A daemon with a ticket for the dense image."""
    with contextlib.ExitStack() as stack:
        if file:
            url = f"file://{setup.dense('cached.raw', folder=setup.disk)}"
        else:
            url = stack.enter_context(QemuNbd(setup.memory, setup.dense(), shared=shared)).url
        daemon = stack.enter_context(Daemon(implementation, setup.memory, setup.keys))
        yield daemon, daemon.ticket(url, setup.size)


def _small(
    setup: Setup,
    implementation: Implementation,
    *,
    length: int,
    connections: int,
    file: bool = False,
) -> Sample:
    sample: Sample = {}
    with _served(setup, implementation, file=file) as (daemon, ticket):
        # The part that is read fits the page cache of any machine.
        window = min(setup.size, 256 * MIB)
        heads = load.random_gets(f"/images/{ticket}", window, length, 4096)
        for seconds in (0.3, setup.seconds):
            before = usage(daemon.pid).cpu
            run = run_apart(
                lambda seconds=seconds: load.small_requests(  # type: ignore[misc]
                    daemon, heads, connections=connections, seconds=seconds
                )
            )
        _latency(sample, run.value)
        after = usage(daemon.pid)
        sample["daemon CPU µs/request"] = (after.cpu - before) / run.value.count * 1e6
        note_room(sample, after)
    return sample


def _add_small_rows() -> None:
    p50, p99, rate = "p50 µs", "p99 µs", "requests/s"
    cases = (
        ("4k-nbd-1", 4, 1, False, (Goal(p50, 0.6),)),
        ("4k-nbd-8", 4, 8, False, (Goal(rate, 5), Goal(p99, 0.15))),
        ("4k-nbd-64", 4, 64, False, (Goal(rate, 7), Goal(p99, 0.1))),
        ("64k-nbd-8", 64, 8, False, (Goal(rate, 5),)),
        ("256k-nbd-8", 256, 8, False, ()),
        ("1m-nbd-8", 1024, 8, False, ()),
        ("4k-file-1", 4, 1, True, (Goal(p50, 0.3),)),
        ("4k-file-8", 4, 8, True, (Goal(rate, 10),)),
    )
    for name, kib, connections, file, goals in cases:
        where = "file on disk, cached" if file else "nbd"
        title = f"{kib} KiB GET, {where}, {connections} connection{'s' * (connections > 1)}"
        measure = partial(_small, length=kib * KIB, connections=connections, file=file)
        ROWS[name] = Row(name, title, measure, goals)


@row(
    "4k-beside-bulk",
    "4 KiB GET on another ticket while four bulk GETs run",
    Goal("requests/s", 2.5),
    Goal("p99 µs", 0.4),
)
def _beside_bulk(setup: Setup, implementation: Implementation) -> Sample:
    sample: Sample = {}
    with _served(setup, implementation) as (daemon, bulk_ticket):
        with QemuNbd(setup.memory, setup.dense()) as other:
            ticket = daemon.ticket(other.url, setup.size)
            heads = load.random_gets(f"/images/{ticket}", setup.size, 4 * KIB, 4096)
            with _bulk_meanwhile(setup, daemon, bulk_ticket):
                run = run_apart(lambda: load.small_requests(daemon, heads, connections=4, seconds=setup.seconds))
        _latency(sample, run.value)
    return sample


@contextlib.contextmanager
def _bulk_meanwhile(setup: Setup, daemon: Daemon, ticket: str) -> Iterator[None]:
    """Four bulk GETs that go round until the block ends, in a process of their own."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            end = time.monotonic() + 60
            while time.monotonic() < end:
                load.bulk_get(daemon, ticket, setup.size, streams=4, transport="unix")
        os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@row(
    "idle-500",
    "500 idle connections that each moved 8 MiB",
    Limit("RSS MiB", 40),
    Limit("threads added", 0),
    Limit("NBD added", 0),
    Limit("NBD connections", 8),
)
def _idle(setup: Setup, implementation: Implementation) -> Sample:
    count = 500
    with QemuNbd(setup.memory, setup.dense(), shared=count + 16) as nbd:
        with Daemon(implementation, setup.memory, setup.keys) as daemon:
            ticket = daemon.ticket(nbd.url, setup.size)
            path = f"/images/{ticket}"
            # Open as many NBD connections as overlapping transfers need. Now and then a client that has
            # its data asks again before its last request has given the connections back.
            load.bulk_get_each(daemon, [ticket] * 8, 8 * MIB)
            threads, opened = usage(daemon.pid).threads, _unix_connections(nbd.socket)
            with contextlib.ExitStack() as stack:
                for i in range(count):
                    sock = stack.enter_context(contextlib.closing(load.connect(daemon, "unix")))
                    load.get_once(sock, path, i * 8 * MIB % (setup.size - 8 * MIB), 8 * MIB)
                after = usage(daemon.pid)
                connections = _unix_connections(nbd.socket)
    return {
        "RSS MiB": after.rss / MIB,
        "threads": after.threads,
        "threads added": after.threads - threads,
        "fds": after.fds,
        "NBD connections": connections,
        "NBD added": connections - opened,
    }


def _unix_connections(path: str) -> int:
    """Established connections of a Unix socket's server side; see /proc/net/unix."""
    with open("/proc/net/unix") as f:
        lines = [line.split() for line in f]
    return sum(1 for fields in lines if fields[-1] == path and fields[5] == "03")


@row(
    "connections-256",
    "256 connections to one ticket on qemu-nbd --shared=8: how many are served",
    Limit("served", 256),
)
def _many_connections(setup: Setup, implementation: Implementation) -> Sample:
    count, served = 256, 0
    with _served(setup, implementation, shared=8) as (daemon, ticket):
        head = f"GET /images/{ticket} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-4095\r\n\r\n".encode()
        with contextlib.ExitStack() as stack:
            socks = []
            for _ in range(count):
                sock = stack.enter_context(contextlib.closing(load.connect(daemon, "unix")))
                sock.sendall(head)
                socks.append(sock)
            deadline = time.monotonic() + 5
            for sock in socks:
                sock.settimeout(max(0.01, deadline - time.monotonic()))
                with contextlib.suppress(OSError, BenchError):
                    load.read_head(sock, (b"206",))
                    served += 1
    return {"served": served}


def _checksum(setup: Setup, implementation: Implementation, *, image: Path, size: int) -> Sample:
    with QemuNbd(setup.memory, image) as nbd:
        with Daemon(implementation, setup.memory, setup.keys) as daemon:
            path = f"/images/{daemon.ticket(nbd.url, size)}/checksum"
            start = time.monotonic()
            cpu = usage(daemon.pid).cpu
            get_document(daemon, path)
            wall = time.monotonic() - start
            cpu = usage(daemon.pid).cpu - cpu
    return {"MiB/s": size / MIB / wall, "daemon CPU s/GiB": cpu / (size / GIB)}


def get_document(daemon: Daemon, path: str) -> tuple[float, int]:
    """GET of a document: seconds to the first byte, and its length."""
    with contextlib.closing(load.connect(daemon, "unix")) as sock:
        start = time.monotonic()
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = sock.recv(MIB)
        first = time.monotonic() - start
        if data[9:12] != b"200":
            raise BenchError(f"GET {path}: {data[:200]!r}")
        length = len(data)
        while part := sock.recv(MIB):
            length += len(part)
    return first, length


@row("checksum-dense", "checksum of a dense image", Goal("MiB/s", 1.8))
def _checksum_dense(setup: Setup, implementation: Implementation) -> Sample:
    return _checksum(setup, implementation, image=setup.dense(), size=setup.size)


@row("checksum-sparse", "checksum of 100 GiB with 256 MiB of data", Goal("MiB/s", 3))
def _checksum_sparse(setup: Setup, implementation: Implementation) -> Sample:
    size = 100 * GIB
    return _checksum(setup, implementation, image=setup.sparse(size, 256 * MIB), size=size)


@row(
    "extents-1m",
    "extents of an image with 1,000,000 extents",
    Goal("seconds", 0.34),
    Limit("first byte ms", 100),
    Limit("RSS added MiB", 64),
)
def _extents(setup: Setup, implementation: Implementation) -> Sample:
    count = 1_000_000
    image = setup.many_extents(count)
    with QemuNbd(setup.memory, image, fmt="qcow2", read_only=True) as nbd:
        with Daemon(implementation, setup.memory, setup.keys) as daemon:
            path = f"/images/{daemon.ticket(nbd.url, count * 512, ops=READ_ONLY)}/extents"
            before = usage(daemon.pid).rss
            start = time.monotonic()
            peak, (first, _) = _peak_rss(daemon.pid, lambda: get_document(daemon, path))
            wall = time.monotonic() - start
    return {
        "seconds": wall,
        "first byte ms": first * 1e3,
        "RSS added MiB": (peak - before) / MIB,
    }


def _peak_rss(pid: int, call: object) -> tuple[int, tuple[float, int]]:
    """Run call and return the largest memory of a process meanwhile with its result."""
    peak, done = usage(pid).rss, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, usage(pid).rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()  # type: ignore[operator]
    finally:
        done.set()
        watcher.join()
    return peak, result


@row("start", "daemon: start to the control socket accepting", Goal("ms", 1.0))
def _start(setup: Setup, implementation: Implementation) -> Sample:
    with Daemon(implementation, setup.memory, setup.keys) as daemon:
        return {"ms": daemon.started_in * 1e3}


@row("import", "import of the client library", Goal("ms", 1.0))
def _import(setup: Setup, implementation: Implementation) -> Sample:
    code = "import time; s = time.perf_counter(); from ovirt_imageio import client; print(time.perf_counter() - s)"
    done = subprocess.run(implementation.command("-c", code), capture_output=True, check=True)
    return {"ms": float(done.stdout) * 1e3}


_add_small_rows()
