# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract between storage and the code that moves its bytes.

A backend is one open connection to one image. It has no position: every call names
its offset, so calls of several requests never depend on each other. One thread uses
an instance at a time; more instances of the same image work side by side.

Streams are the long way between a backend and the other end of a network connection,
a `Peer`. The base moves them through a buffer; a backend overrides `send_to` and
`receive_from` where it knows a shorter way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Callable, Hashable, Iterator, NamedTuple, Protocol, Sequence, TypeVar

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.pausing import is_paused
from ovirt_imageio.common.buffers import Buffer, borrow
from ovirt_imageio.common.errors import OutOfRange, PeerGone, UnsupportedOperation
from ovirt_imageio.common.extents import Extent, ZeroExtent


class Peer(Protocol):
    """The other end of a stream. One thread uses it at a time.

    It may know more than this: how to keep account, see `note_wait`, and that a stream is to be
    left for a while, see `ovirt_imageio.common.backends.pausing`.
    """

    @property
    def splice_fd(self) -> int | None:
        """Descriptor of a plain socket for splice(2); None where payload must pass through memory, as with TLS."""

    def begin(self) -> None:
        """Called when the first payload is at hand, before its first byte. Idempotent.

        A server sends the head of its response here, so that an error of storage can
        still be told before.
        """

    def send_all(self, data: Buffer) -> None:
        """Send all of data.

        Raises:
            PeerGone: The peer went away.
        """

    def take(self, limit: int) -> bytes:
        """Return payload that was read from the socket before, at most limit bytes."""

    def recv_into(self, view: memoryview) -> int:
        """Receive into view: at least one byte, 0 at the end of a body of unknown length or if paused.

        Raises:
            PeerGone: The stream ended before the body did.
        """


class Operation(Protocol):
    """One unit of I/O that another thread may watch and cancel."""

    def advance(self, n: int) -> None:
        """Count n more bytes, in order from the start of the operation.

        Writes count when storage has acknowledged them, reads when they were sent.
        """

    def check(self) -> None:
        """Called between pieces.

        Raises:
            OperationCancelled: The operation is to end.
        """


class NullOperation:
    """An operation without a watcher."""

    def advance(self, n: int) -> None:
        """Count nothing."""

    def check(self) -> None:
        """Never cancelled."""


class Reader(Protocol):
    """Something to read a stream from, such as a binary file."""

    def readinto(self, view: memoryview, /) -> int | None:
        """Fill the beginning of view; 0 at the end."""


class Writer(Protocol):
    """Something to write a stream to, such as a binary file."""

    def write(self, view: memoryview, /) -> int | None:
        """Write from the beginning of view; None means all of it."""


class Capabilities(NamedTuple):
    """Abilities of a backend; asked once, when it was opened.

    Attributes:
        max_readers: Instances that may read side by side.
        max_writers: Instances that may write side by side.
        block_size: Bytes of the storage's own block; any offset and length work, those
            that are multiples of it work best.
        can_zero: Zeroing costs less than writing zeroes.
        can_extents: `extents("zero")` tells allocation; else it is one data extent.
        can_dirty: `extents("dirty")` works.
        can_flush: There is something to flush.
        multi_conn: A flush of one instance covers what all instances wrote.
        read_only: Writing is refused.
        resizable: Other programs may change the size while the image is open, see `measure`.
    """

    max_readers: int = 1
    max_writers: int = 1
    block_size: int = 1
    can_zero: bool = True
    can_extents: bool = False
    can_dirty: bool = False
    can_flush: bool = True
    multi_conn: bool = False
    read_only: bool = False
    resizable: bool = False


B = TypeVar("B", bound="Backend")


class Backend(ABC):
    """An open image. One instance, one thread.

    Attributes:
        size: Bytes of the image.
        capabilities: Abilities of the backend.
        unflushed: Something was written and acknowledged since the last flush.
        flush_under_way: Mark of a flush that a server has not answered, or has refused; None if there is none.
        broken: Why the instance must not be used again, None while it may.
        tells_life: `life` decides what a flush covers, not `capabilities.multi_conn`.
        life: Identity of the storage that acknowledged the unflushed writes, or the last flush. It is equal for two
            instances if a flush of one covers the writes of the other. It does not change while something is
            unflushed. None: nothing was acknowledged yet.
        read_only_reason: Why writing is refused, in words, if it is.
        no_dirty_reason: Why there are no dirty extents, in words, if there are none.
        can_pause: `receive_from` returns early when its peer is paused, and may be called
            again for the rest.
    """

    size: int
    capabilities: Capabilities
    unflushed: bool = False
    flush_under_way: object = None
    broken: BaseException | None = None
    tells_life: bool = False
    life: Hashable = None
    can_pause: bool = True
    read_only_reason: str = "the image was opened for reading only"
    no_dirty_reason: str = "it has no bitmap"

    @property
    def max_size(self) -> int:
        """Bytes up to which writing may make the image grow; its size if it does not grow."""
        return self.size

    def size_teller(self) -> Callable[[], int]:
        """Return what tells the size from now on, from any thread, also when this instance is closed."""
        size = self.size
        return lambda: size

    def measure(self) -> int:
        """Ask storage how large the image is by now, where that may have changed, and return it.

        Raises:
            As read_into.
        """
        return self.size

    @abstractmethod
    def read_into(self, offset: int, buf: Buffer) -> None:
        """Fill buf with the bytes from offset on.

        Raises:
            ValueError: The range is not inside the image.
            OSError: Storage failed.
            ImageioError: The server of the storage failed.
        """

    @abstractmethod
    def write(self, offset: int, buf: Buffer) -> None:
        """Write all of buf at offset; it is acknowledged, not yet flushed.

        Raises:
            As read_into, and UnsupportedOperation if the image is read-only.
        """

    @abstractmethod
    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; deallocate it if the image was opened sparse.

        Raises:
            As write.
        """

    @abstractmethod
    def flush(self) -> None:
        """Bring what this instance wrote to stable storage; see `capabilities.multi_conn`.

        Storage may forget what it could not write, so that the next flush succeeds without
        it: an instance whose flush failed sets `broken`.

        Raises:
            OSError: Storage failed: data may be lost.
            ImageioError: The server of the storage failed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the image. Writes that were not flushed may be lost. Idempotent."""

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """Tell what of a range is data, in order, merged, without gaps.

        Args:
            context: `zero` or `dirty`.
            offset: Start of the range.
            length: Bytes of the range; None means to the end of the image.
            op: Asked between requests to storage if to go on: one extent may take many.

        Raises:
            OperationCancelled: op said so.
            UnsupportedOperation: The context is not known for this image.
        """
        if context != "zero":
            raise UnsupportedOperation(f"this storage has no {context!r} extents")
        length = self.size - offset if length is None else length
        self.check_range(offset, length)
        if length:
            yield ZeroExtent(offset, length, zero=False, hole=False)

    def send_to(
        self,
        peer: Peer,
        offset: int,
        length: int,
        op: Operation,
        *,
        others: Sequence[Backend] = (),
    ) -> None:
        """Send a range to a peer.

        Args:
            peer: Where to send.
            offset: Start of the range.
            length: Bytes of the range.
            op: Told of each piece sent, and asked if to go on.
            others: Further instances of the same image to read with meanwhile.

        A peer that is paused leaves the rest: op was told of what was sent.

        Raises:
            OperationCancelled: op said so.
            PeerGone: The peer went away.
            As read_into. If peer.begin was not called, nothing was sent.
        """
        self.check_range(offset, length)
        if not length:
            peer.begin()
            return
        with borrow(min(length, defaults.PIECE)) as view:
            for start, count in self.pieces(offset, length):
                op.check()
                self.read_into(start, view[:count])
                peer.begin()
                peer.send_all(view[:count])
                op.advance(count)
                if is_paused(peer):
                    return

    def receive_from(
        self,
        peer: Peer,
        offset: int,
        length: int,
        op: Operation,
        *,
        others: Sequence[Backend] = (),
    ) -> None:
        """Receive a range from a peer; return when all of it is acknowledged.

        Args:
            peer: Where to receive from.
            offset: Start of the range.
            length: Bytes of the range; a peer that ends with 0 before, or is paused, leaves the rest.
            op: Told of each piece acknowledged, and asked if to go on.
            others: Further instances of the same image to write with meanwhile.

        Raises:
            OperationCancelled: op said so.
            PeerGone: The peer went away.
            As write.
        """
        self.check_write(offset, length)
        if not length:
            return
        with borrow(min(length, defaults.PIECE)) as view:
            for start, count in self.pieces(offset, length):
                got = fill_from(peer, view[:count])
                op.check()
                if got:
                    self.write(start, view[:got])
                    op.advance(got)
                if got < count:
                    return

    def read_from(self, reader: Reader, offset: int, length: int, op: Operation | None = None) -> None:
        """Write a range with what a reader gives.

        Raises:
            PeerGone: The reader ended before.
            As write.
        """
        self.check_write(offset, length)
        op = op or NullOperation()
        if not length:
            return
        with borrow(min(length, defaults.PIECE)) as view:
            for start, count in self.pieces(offset, length):
                _read_exactly(reader, view[:count], start)
                op.check()
                self.write(start, view[:count])
                op.advance(count)

    def write_to(self, writer: Writer, offset: int, length: int, op: Operation | None = None) -> None:
        """Read a range into a writer.

        Raises:
            As read_into.
        """
        self.check_range(offset, length)
        op = op or NullOperation()
        if not length:
            return
        with borrow(min(length, defaults.PIECE)) as view:
            for start, count in self.pieces(offset, length):
                op.check()
                self.read_into(start, view[:count])
                _write_all(writer, view[:count])
                op.advance(count)

    def check_range(self, offset: int, length: int) -> None:
        """Refuse a range that is not inside the image; storage is asked again before.

        Raises:
            OutOfRange: It names the range and the image's size.
        """
        end = offset + length
        if offset < 0 or length < 0 or (end > self.size and end > self.measure()):
            raise OutOfRange(f"range of {length} bytes at {offset} is not inside the image of {self.size} bytes")

    def check_write(self, offset: int, length: int) -> None:
        """Refuse a change of an image that is read-only, or of a range that cannot become a part of it.

        Raises:
            UnsupportedOperation: The image was opened for reading only; see `read_only_reason`.
            OutOfRange: It names the range and the size that the image may have.
        """
        if self.capabilities.read_only:
            raise UnsupportedOperation(self.read_only_reason)
        limit = self.max_size
        if offset < 0 or length < 0 or offset + length > limit:
            raise OutOfRange(f"range of {length} bytes at {offset} is not inside the image of {limit} bytes")

    def pieces(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Cut a range into pieces that start, after the first, where the storage's blocks do."""
        return pieces(offset, length, align=self.capabilities.block_size)

    def __enter__(self: B) -> B:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def note_wait(peer: Peer, seconds: float, *, sent: int = 0, received: int = 0) -> None:
    """Tell a peer that keeps account of it how long bytes took that went past its methods.

    Args:
        peer: Owner of the descriptor that was used.
        seconds: How long that took.
        sent: Bytes that it took.
        received: Bytes that it sent.

    Raises:
        PeerTimeout: It moves next to nothing.
    """
    spend = getattr(peer, "spend", None)
    if spend is not None:
        spend(seconds, sent, received)


def pieces(offset: int, length: int, size: int = defaults.PIECE, *, align: int = 1) -> Iterator[tuple[int, int]]:
    """Cut a range: offset and length of each piece.

    Args:
        offset: Start of the range.
        length: Bytes of the range.
        size: Most bytes of a piece.
        align: Divisor of size, and of every offset but the first. If it divides offset,
            only the last piece is short.
    """
    end = offset + length
    while offset < end:
        count = min(size - offset % align, end - offset)
        yield offset, count
        offset += count


def fill_from(peer: Peer, view: memoryview) -> int:
    """Fill view from a peer, first with what it has read already.

    Returns:
        Bytes; fewer than asked for only at the end of a body of unknown length.
    """
    first = peer.take(len(view))
    view[: len(first)] = first
    done = len(first)
    while done < len(view):
        n = peer.recv_into(view[done:])
        if not n:
            break
        done += n
    return done


def _read_exactly(reader: Reader, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        n = reader.readinto(view[done:])
        if not n:
            raise PeerGone(f"the source ended {len(view) - done} bytes before {offset + len(view)}")
        done += n


def _write_all(writer: Writer, view: memoryview) -> None:
    done = 0
    while done < len(view):
        n = writer.write(view[done:])
        done += len(view) - done if n is None else n
