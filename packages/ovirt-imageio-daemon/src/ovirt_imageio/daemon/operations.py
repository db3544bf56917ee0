# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""One cancellable unit of I/O of a transfer."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import TracebackType

from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.units import format_size

from .errors import ClientLeft

READ, WRITE, ZERO, FLUSH, CHECKSUM, EXTENTS = (
    "read",
    "write",
    "zero",
    "flush",
    "checksum",
    "extents",
)

_numbers = itertools.count(1)


class Operation:
    """The work for one request: how far it is, and whether it has to end.

    A context manager, entered and left in the loop. Between, one worker thread may call
    `advance` and `check` (it is an `ovirt_imageio.common.backends.base.Operation`);
    everything else belongs to the loop.

    Attributes:
        number: Tells operations apart in the log.
        kind: ``"read"``, ``"write"``, ``"zero"``, ``"flush"``, ``"checksum"`` or ``"extents"``.
        offset: First byte.
        length: Bytes, 0 if that is not known or makes no sense.
        done: Bytes from offset on that were acknowledged or delivered.
        started: Monotonic seconds.
        cancelled: It has to end.
        waiting: Seconds that it waited for a backend and a worker.
        network: Seconds that a worker spent on sending to the client and receiving from it.
    """

    __slots__ = (
        "_on_end",
        "_wake",
        "cancelled",
        "done",
        "kind",
        "length",
        "network",
        "number",
        "offset",
        "started",
        "waiting",
    )

    def __init__(
        self,
        kind: str,
        offset: int = 0,
        length: int = 0,
        *,
        started: float = 0.0,
        on_end: Callable[[Operation, BaseException | None], None] | None = None,
    ) -> None:
        self.number = next(_numbers)
        self.kind = kind
        self.offset = offset
        self.length = length
        self.started = started
        self.done = 0
        self.waiting = self.network = 0.0
        self.cancelled = False
        self._on_end = on_end
        self._wake: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} {self.number}: {self.done} of {self.length} at {self.offset}>"

    def __enter__(self) -> Operation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the operation; whatever a cancelled one failed with, it was cancelled."""
        self._wake = None
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(self, error)
        if not self.cancelled or not isinstance(error, Exception):
            return
        if not isinstance(error, OperationCancelled):
            raise OperationCancelled(f"{self.kind} was cancelled") from error

    def advance(self, n: int) -> None:
        """Count n more bytes, in order from offset. The thread that does the work."""
        self.done += n

    def begin(self) -> None:
        """Note that the waiting is over. The thread that does the work."""
        self.waiting += max(time.monotonic() - self.started, 0.0)
        self.check()

    def describe(self) -> str:
        """Say what it does, for a log or an operator: `read of 1.00 GiB at 0`."""
        size = f" of {format_size(self.length)} at {self.offset}" if self.length else ""
        return f"{self.kind}{size}"

    def check(self) -> None:
        """Raise if the operation has to end. Any thread.

        Raises:
            OperationCancelled: It was cancelled.
        """
        if self.cancelled:
            raise OperationCancelled(f"{self.kind} was cancelled")

    def cancel(self) -> None:
        """Let the operation end at its next check, and wake what it waits for. Loop thread."""
        self.cancelled = True
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def waits_for(self, wake: Callable[[], None]) -> None:
        """Tell what ends the wait that begins, if the operation is cancelled. Loop thread.

        Raises:
            OperationCancelled: It was cancelled already.
        """
        self.check()
        self._wake = wake

    def clear_wait(self) -> None:
        """The wait is over: cancelling wakes nobody. Loop thread."""
        self._wake = None


class WhileHeard:
    """An operation for a worker, whose answer is all that comes of it: it ends as well when nobody hears that.

    Args:
        op: The operation.
        left: Tells whether the client has left for good. Any thread calls it.
    """

    __slots__ = ("_left", "_op")

    def __init__(self, op: Operation, left: Callable[[], bool]) -> None:
        self._op = op
        self._left = left

    def advance(self, n: int) -> None:
        """See Operation."""
        self._op.advance(n)

    def check(self) -> None:
        """See Operation; the look at the client costs 1 µs.

        Raises:
            OperationCancelled: It was cancelled.
            ClientLeft: No client waits for the answer.
        """
        self._op.check()
        if self._left():
            raise ClientLeft(f"the client left during {self._op.kind}")
