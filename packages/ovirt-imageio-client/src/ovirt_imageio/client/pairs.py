# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of an upload or a download, as one worker has them open.

Data that are known to be zero only by looking at them are found where looking is
cheap: in raw files, which the client reads itself. qemu-nbd looks by itself where it
writes (`detect_zeroes`).
"""

from __future__ import annotations

from typing import Any, Iterator, Protocol, Sequence

from ovirt_imageio.client.executor import CopyOperation, Pair
from ovirt_imageio.client.hashing import Followed, Follower
from ovirt_imageio.client.plan import Action
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, Capabilities, Operation, Peer, pieces
from ovirt_imageio.common.buffers import Buffer, borrow, is_zero
from ovirt_imageio.common.units import KiB

_SAMPLE = 4 * KiB
"""Bytes at the start of each piece that decide if all of it is looked at. From the page cache
they cost 2 µs for each MiB."""


class Remote(Protocol):
    """The part of the server's end that a pair needs, see `HttpBackend`."""

    @property
    def debt(self) -> Any:
        """Writes that no flush covers."""

    def assume(self, debt: Any) -> None:
        """Answer for writes of another connection."""

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

    def copy(self, offset: int, length: int, op: CopyOperation) -> None:
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
            op.advance(count, Action.SKIP if self._disk_is_zero else Action.ZERO)

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

    @property
    def debt(self) -> Any:
        """See Pair."""
        return self._remote.debt

    def assume(self, debt: Any) -> None:
        """See Pair."""
        self.owes_flush = True
        self._remote.assume(debt)

    def close(self) -> None:
        """See Pair."""
        try:
            self._remote.close()
        finally:
            self._source.close()


class DownloadPair(Pair):
    """A connection to the server and a local image.

    Args:
        remote: To read from.
        target: To write to.
        skip_zeroes: The target reads as zeroes: do not write any to it.
    """

    acknowledges = True

    def __init__(self, remote: Remote, target: Backend, *, skip_zeroes: bool = False) -> None:
        self._remote = remote
        self._target = target
        self._written = SparseTarget(target) if skip_zeroes else target

    def copy(self, offset: int, length: int, op: CopyOperation) -> None:
        """See Pair."""
        self.owes_flush = True
        self._remote.stream_read(self._written, offset, length, op)

    def zero(self, offset: int, length: int) -> None:
        """See Pair."""
        self.owes_flush = True
        self._target.zero(offset, length)

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


def zero_runs(source: Backend, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Tell data and zeroes of a range apart by looking: offset, length, zero.

    Only pieces that begin with zeroes are looked at as a whole.
    """
    start, last = offset, False
    with borrow(defaults.PIECE) as view:
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


class SparseTarget(Backend):
    """A new image that reads as zeroes: pieces of zeroes are not written to it.

    Where payload would pass us by in a pipe, the first bytes of each piece are looked at in
    the socket. Only a piece that begins with zeroes is read into memory, to look at all of it.
    """

    def __init__(self, target: Backend) -> None:
        self._target = target
        self.size = target.size
        self.capabilities: Capabilities = target.capabilities

    def receive_from(
        self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()
    ) -> None:
        """See Backend."""
        peek = getattr(peer, "peek", None) if peer.splice_fd is not None else None
        if peek is None:
            super().receive_from(peer, offset, length, op)
            return
        for start, count in pieces(offset, length):
            if is_zero(peek(min(_SAMPLE, count))):
                super().receive_from(peer, start, count, op)
            else:
                self._target.receive_from(peer, start, count, op)

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        self._target.read_into(offset, buf)

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        if not is_zero(buf):
            self._target.write(offset, buf)

    def zero(self, offset: int, length: int) -> None:
        """See Backend."""
        self._target.zero(offset, length)

    def flush(self) -> None:
        """See Backend."""
        self._target.flush()

    def close(self) -> None:
        """Leave the target open: it belongs to the pair."""
