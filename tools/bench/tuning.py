# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the numbers of `ovirt_imageio.common.defaults` come from: python -m bench.tuning [--out FILE].

Streams between a socket and NBD servers of several speeds, and requests to a daemon before them,
with one number changed at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator

from bench import tuning_daemon
from bench.machine import usage
from bench.servers import QemuNbd, Server, wait_for
from bench.setup import MIB
from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends.base import NullOperation
from ovirt_imageio.common.backends.nbd import NbdBackend

TOP = Path(__file__).resolve().parents[2]
ROUNDS = 3
KIB = 1024

VARIANTS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("read", "PIECE", (256 * KIB, 512 * KIB, MIB, 4 * MIB)),
    ("write", "PIECE", (256 * KIB, 512 * KIB, MIB)),
    ("read", "READ_CONNECTIONS", (1, 2, 4)),
    ("write", "WRITES_IN_FLIGHT", (1, 2, 4, 8, 16)),
    ("write", "NBD_SNDBUF", (256 * KIB, MIB, 4 * MIB)),
    ("read", "NBD_RCVLOWAT", (1, 256 * KIB, MIB)),
    ("read", "PIPE_SIZE", (64 * KIB, 256 * KIB, MIB)),
)


class Peer:
    """One end of a socket pair, as `ovirt_imageio.common.backends.base.Peer`."""

    def __init__(self, sock: socket.socket) -> None:
        self.splice_fd = sock.fileno()
        self.chunked = False
        self.recv_into = sock.recv_into
        self.send_all: Any = sock.sendall

    def begin(self) -> None:
        """Send nothing."""

    def take(self, limit: int) -> bytes:
        """Nothing was received before."""
        return b""


class Nbdkit(Server):
    """A server of memory that takes its time for each request."""

    def __init__(self, folder: Path, size: int, delay: str) -> None:
        self.socket = str(folder / f"nbdkit-{delay}.sock")
        command = ["nbdkit", "-f", "-U", self.socket, "--filter=delay", "memory", str(size)]
        self.process = subprocess.Popen([*command, f"rdelay={delay}", f"wdelay={delay}"])
        wait_for(lambda: os.path.exists(self.socket), "nbdkit", self.process)

    @property
    def url(self) -> str:
        """Of the export."""
        return f"nbd:unix:{self.socket}"


@contextlib.contextmanager
def storages(memory: Path, disk: Path) -> Iterator[dict[str, tuple[str, int]]]:
    """Servers by name: URL and bytes to move."""
    size = 256 * MIB
    with contextlib.ExitStack() as stack:
        images = []
        for folder in (memory, disk):
            path = folder / "tuning.raw"
            with open(path, "wb") as f:
                for _ in range(size // (16 * MIB)):
                    f.write(os.urandom(16 * MIB))
            images.append(path)
        yield {
            "tmpfs": (stack.enter_context(QemuNbd(memory, images[0])).url, size),
            "disk, cache=none": (stack.enter_context(QemuNbd(memory, images[1], cache="none")).url, size),
            "1 ms": (stack.enter_context(Nbdkit(memory, size, "1ms")).url, size // 2),
            "10 ms": (stack.enter_context(Nbdkit(memory, size, "10ms")).url, size // 8),
        }


def stream(url: str, size: int, job: str) -> tuple[float, float]:
    """Move bytes; returns MiB/s and CPU seconds per GiB of the side that speaks NBD."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, defaults.HTTP_SNDBUF)
        pid = os.fork()
        if pid == 0:
            _other_end(theirs, size, job)
        count = defaults.READ_CONNECTIONS if job == "read" else 1
        first, *rest = backends = [NbdBackend(url, mode="r" if job == "read" else "r+") for _ in range(count)]
        cpu, start = usage(os.getpid()).cpu, time.monotonic()
        move = first.send_to if job == "read" else first.receive_from
        move(Peer(ours), 0, size, NullOperation(), others=rest)
        wall, cpu = time.monotonic() - start, usage(os.getpid()).cpu - cpu
        for backend in backends:
            backend.close()
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    return size / MIB / wall, cpu / (size / (1024 * MIB))


def _other_end(sock: socket.socket, size: int, job: str) -> None:
    buffer = bytearray(MIB)
    left = size
    while left:
        left -= sock.recv_into(buffer) if job == "read" else sock.send(buffer)
    time.sleep(60)  # until it is ended: an end of the stream would be an error


def measure(storage: dict[str, tuple[str, int]]) -> list[str]:
    """Measure all variants; returns the lines of a table in Markdown."""
    lines = [f"| number | job | value | {' | '.join(storage)} |", "|---|---|---|" + "---|" * len(storage)]
    for job, name, values in VARIANTS:
        default = getattr(defaults, name)
        results: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for _ in range(ROUNDS):
            for value in values:
                setattr(defaults, name, value)
                linux.pipes = linux.PipePool(size=defaults.PIPE_SIZE)
                for where, (url, size) in storage.items():
                    results.setdefault((value, where), []).append(stream(url, size, job))
        setattr(defaults, name, default)
        for value in values:
            cells = []
            for where in storage:
                rates, costs = zip(*results[value, where])
                cells.append(f"{statistics.median(rates):,.0f} MiB/s, {statistics.median(costs):.2f} s/GiB")
            shown = f"{value:,}" if value < KIB else f"{value // KIB:,} KiB"
            mark = f"**{shown}**" if value == default else shown
            lines.append(f"| `{name}` | {job} | {mark} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Entry point."""
    p = argparse.ArgumentParser(prog="python -m bench.tuning", description=__doc__)
    p.add_argument("--out", type=Path, help="file for the table")
    options = p.parse_args()
    (TOP / ".bench").mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="imageio-", dir="/dev/shm") as memory,
        tempfile.TemporaryDirectory(dir=TOP / ".bench") as disk,
        storages(Path(memory), Path(disk)) as servers,
    ):
        lines = measure(servers) + tuning_daemon.measure(servers, Path(memory), rounds=ROUNDS)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
