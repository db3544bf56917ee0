# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Work that was done, in numbers: of one transfer, and of the daemon since it started.

Belongs to the loop's thread: counting needs no lock.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable

from ovirt_imageio.common.units import format_size

_SAMPLES = 10


class OperationStats:
    """Operations of one kind.

    Attributes:
        count: how many have ended, those that failed included.
        errors: how many of them failed.
        size: bytes.
        seconds: from begin to end, summed over operations.
        network: of these, those spent on sending to clients and receiving from them.
        waiting: of these, those spent on waiting for a connection to storage and a worker. The
            rest was spent on storage.
    """

    __slots__ = ("count", "errors", "network", "seconds", "size", "waiting")

    def __init__(self) -> None:
        self.count = self.errors = self.size = 0
        self.seconds = self.network = self.waiting = 0.0

    @property
    def storage(self) -> float:
        """Seconds spent on storage, our own work included."""
        return max(self.seconds - self.network - self.waiting, 0.0)

    def add(self, size: int, seconds: float, network: float, waiting: float, failed: bool) -> None:
        """Count one finished operation."""
        self.count += 1
        self.errors += failed
        self.size += size
        self.seconds += seconds
        self.network += network
        self.waiting += waiting

    def to_json(self) -> dict[str, float]:
        """Return the numbers as `GET /status` shows them."""
        return {
            "count": self.count,
            "errors": self.errors,
            "size": self.size,
            "seconds": self.seconds,
            "network": self.network,
            "waiting": self.waiting,
        }

    def summary(self) -> str:
        """Write it for the log: `3 ops, 1.0 GiB, 0.52 s, 1.9 GiB/s`, and where time went if known."""
        parts = [f"{self.count} op{'s'[: self.count != 1]}"]
        if self.size:
            parts.append(format_size(self.size))
        parts.append(f"{self.seconds:.2f} s")
        if self.size and self.seconds:
            parts.append(f"{format_size(int(self.size / self.seconds))}/s")
        if self.network or self.waiting:
            parts.append(f"storage {self.storage:.2f} s, network {self.network:.2f} s, waiting {self.waiting:.2f} s")
        if self.errors:
            parts.append(f"{self.errors} failed")
        return ", ".join(parts)


class Durations:
    """How many operations of each kind ended within which time, for a histogram.

    Attributes:
        counts: for each kind, operations by the first of `BOUNDS` (seconds) that they did not
            exceed. The last count is of those that took longer than all.
    """

    BOUNDS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Count one operation."""
        counts = self.counts.get(kind)
        if counts is None:
            counts = self.counts[kind] = [0] * (len(self.BOUNDS) + 1)
        counts[bisect_left(self.BOUNDS, seconds)] += 1


class Stats:
    """Statistics by kind of operation ("read", "write", "zero", ...).

    Args:
        parent: counts everything as well, so that totals need no summing up.
        durations: where the time of each operation is counted as well.

    Attributes:
        errors: failures by the name of the exception.
    """

    __slots__ = ("_all", "_durations", "_parent", "errors", "operations")

    def __init__(self, parent: Stats | None = None, *, durations: Durations | None = None) -> None:
        self.operations: dict[str, OperationStats] = {}
        self.errors: dict[str, int] = {}
        self._parent = parent
        self._durations: tuple[Durations, ...] = () if parent is None else parent._durations
        if durations is not None:
            self._durations += (durations,)
        self._all: dict[str, tuple[OperationStats, ...]] = {}  # by kind: ours and those of the parents

    def error(self, error: BaseException) -> None:
        """Count a failure."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1
        if self._parent is not None:
            self._parent.error(error)

    def record(
        self,
        kind: str,
        size: int,
        *,
        seconds: float,
        network: float = 0.0,
        waiting: float = 0.0,
        failed: bool = False,
    ) -> None:
        """Count one finished operation that moved `size` bytes in so many seconds; see `OperationStats`."""
        for stats in self._all.get(kind) or self._of(kind):
            stats.add(size, seconds, network, waiting, failed)
        for durations in self._durations:
            durations.add(kind, seconds)

    def _of(self, kind: str) -> tuple[OperationStats, ...]:
        """Return where operations of a kind are counted."""
        own = self.operations.setdefault(kind, OperationStats())
        above = self._parent._of(kind) if self._parent is not None else ()
        self._all[kind] = found = (own, *above)
        return found

    @property
    def size(self) -> int:
        """Bytes moved by all operations."""
        return sum(stats.size for stats in self.operations.values())

    def summary(self) -> str:
        """Write it for the log: `[read 3 ops, 1.0 GiB, …] [flush 1 op, 0.01 s]`."""
        parts = [f"[{kind} {stats.summary()}]" for kind, stats in self.operations.items()]
        return " ".join(parts) or "[no operations]"


class Meter:
    """How fast a number grows: over the last samples, which are taken every second or so.

    A transfer that moves small ranges has pauses; over ten seconds they do not show.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def sample(self, now: float, value: int) -> None:
        """Remember a value. `now` in monotonic seconds."""
        self._samples.append((now, value))

    def rate(self, now: float, value: int) -> int:
        """Return the growth a second since the oldest sample."""
        if not self._samples or now <= self._samples[0][0]:
            return 0
        since, before = self._samples[0]
        return int((value - before) / (now - since))


class Totals:
    """Work of the daemon since it started.

    Args:
        clock: monotonic seconds.

    Attributes:
        operations: of all transfers.
        durations: how long they took.
        requests: responses by service and status.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.durations = Durations()
        self.operations = Stats(durations=self.durations)
        self.requests: Counter[tuple[str, int]] = Counter()
        self._clock = clock
        self._started = clock()

    def response(self, service: str, status: int) -> None:
        """Count a response."""
        self.requests[service, status] += 1

    @property
    def uptime(self) -> float:
        """Seconds since the daemon started."""
        return self._clock() - self._started

    def summary(self) -> str:
        """Write it for the log, when the daemon stops."""
        total = sum(self.requests.values())
        failed = sum(n for (_, status), n in self.requests.items() if status >= 400)
        text = f"{total} requests, {failed} refused or failed in {self.uptime:.0f} s"
        return f"{text} {self.operations.summary()}"
