# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of an upload or a download, as one worker has them open.

Data that are known to be zero only by looking at them are found where looking is
cheap: in raw files, which the client reads itself. qemu-nbd looks by itself where it
writes (`detect_zeroes`).
"""

from __future__ import annotations

import threading
from typing import Iterator, Protocol

from ovirt_imageio.client.executor import Pair
from ovirt_imageio.client.hashing import Followed, Follower
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, Capabilities, Operation, pieces
from ovirt_imageio.common.buffers import Buffer, aligned, is_zero
from ovirt_imageio.common.units import KiB

_SAMPLE = 4 * KiB
"""Bytes at the start of each piece that decide if it is worth looking at all of it: from
the page cache 2 µs for each MiB."""

_LOOK_AGAIN = 8
"""After a request without a zero piece so many go without looking."""


class Remote(Protocol):
    """What a pair needs of the server's end, see `HttpBackend`."""

    unflushed: bool

    def stream_write(self, src: Backend, offset: int, length: int, op: Operation) -> None:
        """One PUT, fed by src."""

    def stream_read(self, dst: Backend, offset: int, length: int, op: Operation) -> None:
        """One GET, drained by dst."""

    def zero(self, offset: int, length: int) -> None:
        """One PATCH."""

    def flush(self) -> None:
        """One PATCH."""

    def close(self) -> None:
        """Close the connection."""


class UploadPair(Pair):
    """A local image and a connection to the server.

    Args:
        source: To read from.
        remote: To write to.
        detect_zeroes: Look for zeroes in the data.
        disk_is_zero: Zeroes that are found need not be written.
        follower: Told what passes.
    """

    def __init__(
        self,
        source: Backend,
        remote: Remote,
        *,
        detect_zeroes: bool = False,
        disk_is_zero: bool = False,
        follower: Follower | None = None,
    ) -> None:
        self._source = source
        self._sent = source if follower is None else Followed(source, follower)
        self._follower = follower
        self._remote = remote
        self._detect = detect_zeroes
        self._disk_is_zero = disk_is_zero

    def copy(self, offset: int, length: int, op: Operation) -> None:
        """See Pair."""
        if not self._detect:
            self.owes_flush = True
            self._remote.stream_write(self._sent, offset, length, op)
            return
        for start, count, zero in zero_runs(self._source, offset, length):
            op.check()
            if not zero:
                self.owes_flush = True
                self._remote.stream_write(self._sent, start, count, op)
                continue
            if not self._disk_is_zero:
                self.zero(start, count)
            elif self._follower is not None:
                self._follower.saw_zeroes(start, count)
            op.advance(count)

    def zero(self, offset: int, length: int) -> None:
        """See Pair."""
        self.owes_flush = True
        self._remote.zero(offset, length)
        if self._follower is not None:
            self._follower.saw_zeroes(offset, length)

    def flush(self) -> None:
        """See Pair."""
        self._remote.flush()
        self.owes_flush = False

    def close(self) -> None:
        """See Pair."""
        try:
            self._remote.close()
        finally:
            self._source.close()

    def interrupt(self) -> None:
        """See Pair."""
        interrupt(self._remote, self._source)


class DownloadPair(Pair):
    """A connection to the server and a local image.

    Args:
        remote: To read from.
        target: To write to.
        hunt: Tells when to look for zeroes; None never does.
        follower: Told what passes.
    """

    acknowledges = True

    def __init__(
        self, remote: Remote, target: Backend, *, hunt: ZeroHunt | None = None, follower: Follower | None = None
    ) -> None:
        self._remote = remote
        self._target = target
        self._follower = follower
        self._hunt = hunt

    def copy(self, offset: int, length: int, op: Operation) -> None:
        """See Pair."""
        self.owes_flush = True
        hunt = self._hunt if self._hunt is not None and self._hunt.due() else None
        sparse = SparseTarget(self._target) if hunt is not None else None
        target: Backend = sparse or self._target
        if self._follower is not None:
            target = Followed(target, self._follower)
        self._remote.stream_read(target, offset, length, op)
        if hunt is not None and sparse is not None:
            hunt.result(found=sparse.skipped > 0)

    def zero(self, offset: int, length: int) -> None:
        """See Pair."""
        self.owes_flush = True
        self._target.zero(offset, length)
        if self._follower is not None:
            self._follower.saw_zeroes(offset, length)

    def flush(self) -> None:
        """See Pair."""
        self._target.flush()
        self.owes_flush = False

    def close(self) -> None:
        """See Pair."""
        try:
            self._remote.close()
        finally:
            self._target.close()

    def interrupt(self) -> None:
        """See Pair."""
        interrupt(self._remote, self._target)


def interrupt(*ends: object) -> None:
    """Wake a thread that waits for one of the ends, where the end knows how."""
    for end in ends:
        wake = getattr(end, "interrupt", None)
        if wake is not None:
            wake()


def zero_runs(source: Backend, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Tell data and zeroes of a range apart by looking: offset, length, zero.

    Only pieces that begin with zeroes are looked at as a whole.
    """
    start, last = offset, False
    with aligned(defaults.PIECE) as buf, memoryview(buf) as view:
        for at, count in pieces(offset, length):
            zero = _piece_is_zero(source, at, view[:count])
            if zero is not last and at > start:
                yield start, at - start, last
                start = at
            last = zero
    if offset + length > start:
        yield start, offset + length - start, last


def _piece_is_zero(source: Backend, offset: int, view: memoryview) -> bool:
    sample = min(_SAMPLE, len(view))
    source.read_into(offset, view[:sample])
    if not is_zero(view[:sample]):
        return False
    source.read_into(offset + sample, view[sample:])
    return is_zero(view)


class ZeroHunt:
    """Decides if looking for zeroes pays: as long as some are found. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wait = 0

    def due(self) -> bool:
        """Tell if the next request is to be looked through."""
        with self._lock:
            if self._wait:
                self._wait -= 1
                return False
            return True

    def result(self, *, found: bool) -> None:
        """Tell what came of it."""
        with self._lock:
            self._wait = 0 if found else _LOOK_AGAIN


class SparseTarget(Backend):
    """A new image that reads as zeroes: pieces of zeroes are not written to it.

    Attributes:
        skipped: Bytes not written.
    """

    def __init__(self, target: Backend) -> None:
        self._target = target
        self.size = target.size
        self.capabilities: Capabilities = target.capabilities
        self.skipped = 0

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        self._target.read_into(offset, buf)

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        if is_zero(buf):
            self.skipped += len(buf)
        else:
            self._target.write(offset, buf)

    def zero(self, offset: int, length: int) -> None:
        """See Backend."""
        self._target.zero(offset, length)

    def flush(self) -> None:
        """See Backend."""
        self._target.flush()

    def close(self) -> None:
        """Leave the target open: it belongs to the pair."""
