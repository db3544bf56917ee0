# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One case against a daemon of its own, and what was seen.

Machines are never alone: seconds later the same request may take three times as long. So each slice with
the crowd is compared with the one right before it, without. The result is the median of all such pairs.
Rounds in which the host of a virtual machine took its processors away are repeated. A *twin*, a daemon
without a crowd, is asked in turn with the attacked one. Time that the twin loses meanwhile is taken by the
crowd from the machine and not from the daemon.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

from bench.machine import Usage, stolen, usage
from imageio_testing.daemon import Daemon
from imageio_testing.hostile import Target
from imageio_testing.httppeer import HttpPeer

MIB = 1 << 20
ATTACKED = 32 * MIB  # more than the kernel buffers for one connection
NORMAL = 16 * MIB
WAYS = ("unix", "tls")

_SAMPLE = 0.1  # seconds between two looks
_PAUSE = 1.0  # seconds after they have all come, and after they have gone, until that is digested
_SETTLE = 2.5  # seconds after the end: housekeeping, which gives memory back, comes each second
_PATIENCE = 120.0
_QUIET = 0.005  # part of the processors' time that may be taken away in a slice: less than decides a p99
_ATTEMPTS = 3  # for each round that is wanted, until the least disturbed are taken

Latencies = dict[str, list[float]]


@dataclass
class Found:
    """Figures of all rounds of a case; seconds and bytes.

    `busy` is the part of a processor that the daemon took, without and with the crowd. `done` is the
    part of its due steps that the crowd did. `stolen` is the part of the processors' time that the
    host took away in the worse slice of a round.
    """

    count: int
    before: list[Usage] = field(default_factory=list)
    during: list[Usage] = field(default_factory=list)
    after: list[Usage] = field(default_factory=list)
    unloaded: list[Latencies] = field(default_factory=list)
    arriving: list[Latencies] = field(default_factory=list)
    meanwhile: list[Latencies] = field(default_factory=list)
    control: list[float] = field(default_factory=list)
    busy: list[tuple[float, float]] = field(default_factory=list)
    transfers: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    stolen: list[float] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Take over what was seen in other rounds."""
        for name, value in vars(other).items():
            if isinstance(value, list):
                getattr(self, name).extend(value)


class Helper:
    """A process of this package that talks by lines."""

    def __init__(self, module: str, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"hostile.{module}", *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def hear(self) -> str:
        """Return its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args!r} ended with status {self._process.wait()}")
        return line.decode()

    def ask(self) -> str:
        """Return what it answers to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self.hear()

    @contextlib.contextmanager
    def there(self) -> Iterator[Helper]:
        """End it on leaving."""
        try:
            yield self
        finally:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            try:
                self._process.wait(_PATIENCE)
            finally:
                self._process.stdout.close()


class Victim:
    """A daemon, an image that is attacked and one that is used."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.normal = self._add("normal", NORMAL)
        self.attacked = self._add("attacked", ATTACKED)

    def _add(self, name: str, size: int) -> Target:
        path = self.daemon.folder / name
        path.write_bytes(os.urandom(size))
        path.chmod(0o666)
        ticket = self.daemon.add_ticket(f"file://{path}", size=size, timeout=3600)
        return Target.of(self.daemon, ticket, size)

    def usage(self) -> Usage:
        """Read the daemon's figures."""
        return usage(self.daemon.pid)

    def connections(self) -> tuple[int, float]:
        """Ask the control service; return open connections, and how long the answer took."""
        began = time.perf_counter()
        with HttpPeer.unix(self.daemon.control_socket) as peer:
            document = peer.request("GET", "/status").json()
        return int(document["connections"]["open"]), time.perf_counter() - began

    def transfer(self) -> float:
        """Upload and download an image; return how long that took."""
        data = os.urandom(NORMAL)
        began = time.perf_counter()
        with HttpPeer.unix(self.normal.local) as peer:
            assert peer.request("PUT", self.normal.path, body=data).status == 200
        with HttpPeer.tls("localhost", self.normal.port, ca_file=self.normal.ca_file) as peer:
            assert peer.request("GET", self.normal.path).body == data
        return time.perf_counter() - began


def measure(victim: Victim, twin: Victim, name: str, count: int, *, rounds: int, seconds: float) -> Found:
    """Send a crowd, so many times, and look."""
    targets = [json.dumps(asdict(daemon.normal)) for daemon in (victim, twin)]
    with Helper("probe", *targets).there() as probe:
        for daemon in (victim, twin):
            daemon.transfer()  # threads and buffers that any use takes are there before
        found = least_disturbed(lambda: _round(victim, probe, name, count, seconds), rounds)
    time.sleep(_SETTLE)
    found.after.append(victim.usage())
    return found


def least_disturbed(run: Callable[[], Found], rounds: int) -> Found:
    """Run rounds until so many were quiet, or the least disturbed of some more have to do."""
    seen: list[Found] = []
    while sum(found.stolen[0] <= _QUIET for found in seen) < rounds and len(seen) < _ATTEMPTS * rounds:
        seen.append(run())
    seen.sort(key=lambda found: found.stolen[0])
    for found in seen[1:rounds]:
        seen[0].add(found)
    return seen[0]


def _round(victim: Victim, probe: Helper, name: str, count: int, seconds: float) -> Found:
    found = Found(count)
    time.sleep(_PAUSE)
    probe.ask()
    before = stolen()
    seen, _ = _watch(victim, seconds)  # looking costs time too, so it is done unloaded as well
    taken = stolen() - before
    alone = (seen[-1].cpu - seen[0].cpu) / seconds
    found.unloaded.append(json.loads(probe.ask()))
    open_before, _ = victim.connections()
    found.before.append(victim.usage())
    probe.ask()
    with Helper("attack", name, str(found.count), json.dumps(asdict(victim.attacked))).there() as attack:
        attack.hear()
        time.sleep(_PAUSE)
        found.arriving.append(json.loads(probe.ask()))
        before = stolen()
        seen, control = _watch(victim, seconds)
        taken = max(taken, stolen() - before)
        found.control += control
        found.busy.append((alone, (seen[-1].cpu - seen[0].cpu) / seconds))
        found.meanwhile.append(json.loads(probe.ask()))
        found.transfers.append(victim.transfer())
        seen.append(victim.usage())
        found.done.append(json.loads(attack.ask()))
    found.during.append(Usage(*(max(values) for values in zip(*(tuple(asdict(u).values()) for u in seen)))))
    until = time.monotonic() + _PATIENCE
    while victim.connections()[0] > open_before:
        if time.monotonic() > until:
            raise SystemExit(f"connections of {name!r} are left:\n{victim.daemon.log[-3000:]}")
        time.sleep(_SAMPLE)
    found.stolen.append(taken / (seconds * (os.cpu_count() or 1)))
    return found


def _watch(victim: Victim, seconds: float) -> tuple[list[Usage], list[float]]:
    """Look at a daemon for so long; return its figures and how long its control service took."""
    seen, control = [], []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        seen.append(victim.usage())
        control.append(victim.connections()[1])
        time.sleep(_SAMPLE)
    return seen, control


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which that part of the values lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * part), len(ordered) - 1)]


def p99(slices: Sequence[Latencies], way: str) -> float:
    """Return the median of the slices' 99th percentiles, in seconds."""
    return statistics.median(percentile(found[way], 0.99) for found in slices)


def ratio(found: Found, way: str) -> float:
    """Return how much longer a request took at the 99th percentile while the crowd was there: the median."""
    pairs = zip(found.unloaded, found.meanwhile)
    return statistics.median(p99([meanwhile], way) / p99([unloaded], way) for unloaded, meanwhile in pairs)
