# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage in a regular file or on a block device.

Two ways to the storage:

    buffered    regular files on local file systems: the page cache answers small reads
                without waiting, and splice(2) moves what a socket brings into it
    direct      block devices and network file systems, which other hosts change: only
                O_DIRECT sees what is there now, and leaves nothing stale behind

Direct I/O takes whole blocks at aligned addresses. A range with other edges is written
by read-modify-write of its first and last block, under a lock that all instances of
one file share:

    block     0         1         2         3
              |---------|---------|---------|---------|
    range          |==========================|
    how            | rmw|     direct     | rmw|

Where a file's size is not a multiple of the block, its last bytes go through the page
cache, for O_DIRECT would write past the end.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from typing import Callable, Iterator, Sequence

from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends.base import (
    Backend,
    Capabilities,
    Operation,
    Peer,
    pieces,
)
from ovirt_imageio.common.buffers import Buffer, aligned
from ovirt_imageio.common.errors import ConnectionTimeout, PeerGone, UnsupportedOperation
from ovirt_imageio.common.extents import Extent, ZeroExtent, merge

_PUNCH = linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE
_ZERO_RANGE = linux.FALLOC_FL_ZERO_RANGE | linux.FALLOC_FL_KEEP_SIZE


class _Edges:
    """The lock of one file's shared blocks."""

    __slots__ = ("__weakref__", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()


_edges: weakref.WeakValueDictionary[tuple[int, int], _Edges] = weakref.WeakValueDictionary()
_edges_lock = threading.Lock()


def _edges_of(fd: int) -> _Edges:
    status = os.fstat(fd)
    key = (-1, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)
    with _edges_lock:
        edges = _edges.get(key)
        if edges is None:
            edges = _edges[key] = _Edges()
        return edges


class FileBackend(Backend):
    """A regular file or a block device. One instance, one thread.

    Args:
        path: Of the file.
        mode: `r` to read, `r+` to read and write. The file must exist.
        sparse: Zeroing deallocates.
        connections: How many instances read side by side.
        direct: Use O_DIRECT; None decides by where the file lies.

    Attributes:
        can_nowait: `read_nowait` may answer.

    Raises:
        OSError: The file cannot be opened, or is neither a file nor a block device.
    """

    def __init__(
        self,
        path: str,
        *,
        mode: str = "r",
        sparse: bool = False,
        connections: int = defaults.MAX_CONNECTIONS,
        direct: bool | None = None,
    ) -> None:
        self.path = path
        self._sparse = sparse
        self._flags = (os.O_RDONLY if mode == "r" else os.O_RDWR) | os.O_CLOEXEC
        # Not to wait for a writer of a FIFO, which is refused below.
        self._fd = os.open(path, self._flags | os.O_NONBLOCK)
        self._cached = -1
        try:
            self.size = linux.file_size(self._fd)
            self._device = linux.is_block_device(self._fd)
            self._block = self._choose_block(direct)
            if self._block > 1:
                os.close(self._fd)
                self._fd = -1
                self._fd = os.open(path, self._flags | os.O_DIRECT)
            os.set_blocking(self._fd, True)
            self._edges = _edges_of(self._fd)
            self._memory_fs = not self._device and linux.is_tmpfs(self._fd)
        except OSError as e:
            self.close()
            e.filename = path
            raise
        self.can_nowait = self._block == 1 and not self._device and linux.is_local(self._fd)
        self._zero_ways = self._ways_to_zero()
        self.capabilities = Capabilities(
            max_readers=connections,
            max_writers=1,
            block_size=self._block,
            can_zero=True,
            can_extents=not self._device,
            multi_conn=True,
            read_only=mode == "r",
        )

    def _choose_block(self, direct: bool | None) -> int:
        """The unit of direct I/O, 1 for buffered."""
        if direct is None:
            direct = self._device or not linux.is_local(self._fd)
        return (linux.direct_block_size(self.path) or 1) if direct else 1

    # Reading

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend.

        Raises:
            OSError: `EIO` also if the file became shorter than it was when opened.
        """
        with memoryview(buf) as raw, raw.cast("B") as view:
            self.check_range(offset, len(view))
            if self._block == 1 or not len(view):
                self._read(self._fd, offset, view)
            else:
                self._read_direct(offset, view)

    def _read(self, fd: int, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            n = os.preadv(fd, [view[done:]], offset + done)
            if not n:
                raise OSError(
                    errno.EIO,
                    f"the file ended at {offset + done}, it had {self.size} bytes when opened",
                    self.path,
                )
            done += n

    def _read_direct(self, offset: int, view: memoryview) -> None:
        block = self._block
        with aligned(min(defaults.PIECE, len(view) + 2 * block)) as buf:
            with memoryview(buf) as bounce:
                step = len(bounce) // block * block
                done = 0
                while done < len(view):
                    start = (offset + done) // block * block
                    skip = offset + done - start
                    want = min(step, skip + len(view) - done)
                    count = -(-want // block) * block
                    got = self._read_blocks(start, bounce[:count], want)
                    part = min(got, want) - skip
                    view[done : done + part] = bounce[skip : skip + part]
                    done += part

    def _read_blocks(self, start: int, bounce: memoryview, want: int) -> int:
        """Read whole blocks; the end of the file may cut the last one."""
        got = os.preadv(self._fd, [bounce], start)
        if got < want and (got % self._block or not got):
            raise OSError(
                errno.EIO,
                f"the file ended at {start + got}, it had {self.size} bytes when opened",
                self.path,
            )
        return got

    def read_nowait(self, offset: int, length: int) -> bytearray | None:
        """Read what is in memory already, without ever waiting for a disk.

        Returns:
            The bytes; None if a part of them is not at hand: `read_into` in a thread
            that may wait.
        """
        if not self.can_nowait:
            return None
        self.check_range(offset, length)
        buf = bytearray(length)
        try:
            if self._memory_fs:
                n = os.preadv(self._fd, [buf], offset)
            else:
                n = linux.preadv_nowait(self._fd, [buf], offset)
        except BlockingIOError:
            return None
        except OSError as e:
            if not linux.is_unsupported(e):
                raise
            self.can_nowait = False
            return None
        return buf if n == length else None

    # Writing

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend.

        Raises:
            OSError: `ENOSPC` where storage is full.
        """
        with memoryview(buf) as raw, raw.cast("B") as view:
            self._check_write(offset, len(view))
            self.unflushed = True
            if self._block == 1:
                self._write(self._fd, offset, view)
            else:
                self._write_direct(offset, view)

    def _write(self, fd: int, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done:], offset + done)

    def _write_direct(self, offset: int, view: memoryview) -> None:
        """Cut a range at blocks: an edge, whole blocks, an edge."""
        block, end = self._block, offset + len(view)
        first = min(-(-offset // block) * block, end)
        last = max(end // block * block, first)
        if offset < first:
            self._write_edge(offset, view[: first - offset])
        if first < last:
            with aligned(min(defaults.PIECE, last - first)) as buf, memoryview(buf) as bounce:
                for start, count in pieces(first, last - first, len(bounce)):
                    bounce[:count] = view[start - offset : start - offset + count]
                    self._write(self._fd, start, bounce[:count])
        if last < end:
            self._write_edge(last, view[last - offset :])

    def _write_edge(self, offset: int, view: memoryview) -> None:
        """Write a part of one block."""
        block = self._block
        start = offset // block * block
        with self._edges.lock:
            if start + block > self.size:
                self._write(self._cached_fd(), offset, view)
                os.fdatasync(self._cached)
                os.posix_fadvise(self._cached, start, block, os.POSIX_FADV_DONTNEED)
                return
            with aligned(block) as buf, memoryview(buf) as bounce:
                self._read(self._fd, start, bounce)
                bounce[offset - start : offset - start + len(view)] = view
                self._write(self._fd, start, bounce)

    def _cached_fd(self) -> int:
        if self._cached < 0:
            self._cached = os.open(self.path, self._flags)
        return self._cached

    # Zeroing

    def zero(self, offset: int, length: int) -> None:
        """See Backend. Where the file system cannot zero, zeroes are written.

        Raises:
            OSError: `ENOSPC` where storage is full.
        """
        self._check_write(offset, length)
        if not length:
            return
        self.unflushed = True
        start, stop = offset, offset + length
        if self._device:
            block = self._block if self._block > 1 else linux.sector_size(self._fd)
            start = min(-(-offset // block) * block, stop)
            stop = max(stop // block * block, start)
            self._write_zeroes(offset, start - offset)
        if start < stop:
            self._zero_blocks(start, stop - start)
        self._write_zeroes(stop, offset + length - stop)

    def _zero_blocks(self, offset: int, length: int) -> None:
        """Take the first way that works here; one that does not is not tried again."""
        while self._zero_ways:
            try:
                self._zero_ways[0](offset, length)
            except OSError as e:
                if not linux.is_unsupported(e):
                    raise
                del self._zero_ways[0]
            else:
                return
        self._write_zeroes(offset, length)

    def _ways_to_zero(self) -> list[Callable[[int, int], None]]:
        if self._device:
            first = self._punch if self._sparse else self._zero_range
            return [first, self._zero_out]
        if self._sparse:
            return [self._punch, self._zero_range]
        return [self._zero_range, self._punch_and_allocate]

    def _punch(self, offset: int, length: int) -> None:
        linux.fallocate(self._fd, _PUNCH, offset, length)

    def _zero_range(self, offset: int, length: int) -> None:
        linux.fallocate(self._fd, _ZERO_RANGE, offset, length)

    def _punch_and_allocate(self, offset: int, length: int) -> None:
        """What tmpfs and NFS 4.2 can do."""
        linux.fallocate(self._fd, _PUNCH, offset, length)
        linux.fallocate(self._fd, 0, offset, length)

    def _zero_out(self, offset: int, length: int) -> None:
        linux.zero_out(self._fd, offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        if not length:
            return
        with aligned(min(length, defaults.PIECE)) as buf, memoryview(buf) as view:
            for start, count in pieces(offset, length, len(view)):
                self.write(start, view[:count])

    def flush(self) -> None:
        """See Backend. Covers what all instances of the file wrote, see fsync(2)."""
        if not self.capabilities.read_only:
            os.fsync(self._fd)
        self.unflushed = False

    # Streams

    def receive_from(
        self,
        peer: Peer,
        offset: int,
        length: int,
        op: Operation,
        *,
        others: Sequence[Backend] = (),
    ) -> None:
        """See Backend. From a plain socket payload goes into the page cache by splice(2)."""
        if self._block > 1 or self._device or peer.splice_fd is None:
            super().receive_from(peer, offset, length, op, others=others)
            return
        self._check_write(offset, length)
        with linux.pipes.borrow() as pipe:
            if pipe is not None:
                self._splice_from(peer, pipe, offset, length, op)
                return
        super().receive_from(peer, offset, length, op, others=others)

    def _splice_from(self, peer: Peer, pipe: linux.Pipe, offset: int, length: int, op: Operation) -> None:
        end = offset + length
        fd = peer.splice_fd
        assert fd is not None
        while offset < end and (first := peer.take(min(defaults.PIECE, end - offset))):
            self.write(offset, first)
            offset += len(first)
            op.advance(len(first))
        self.unflushed = True
        while offset < end:
            have = fill_pipe(fd, pipe, min(defaults.PIECE, end - offset))
            op.check()
            left = have
            while left:
                n = linux.splice(pipe.read_fd, self._fd, left, offset_out=offset + have - left)
                left -= n
            offset += have
            op.advance(have)

    # Allocation

    def extents(self, context: str = "zero", *, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See Backend. Holes of a file read as zeroes; a block device is all data."""
        if context != "zero" or self._device:
            return super().extents(context, offset=offset, length=length)
        length = self.size - offset if length is None else length
        self.check_range(offset, length)
        return merge(self._zero_extents(offset, offset + length))

    def _zero_extents(self, offset: int, end: int) -> Iterator[ZeroExtent]:
        while offset < end:
            data = linux.seek_data(self._fd, offset)
            data = end if data is None else min(data, end)
            if data > offset:
                yield ZeroExtent(offset, data - offset, zero=True, hole=False)
            if data == end:
                return
            hole = linux.seek_hole(self._fd, data)
            hole = end if hole is None else min(hole, end)
            if hole <= data:
                raise OSError(errno.EIO, f"the file changed while its extents were read at {data}", self.path)
            yield ZeroExtent(data, hole - data, zero=False, hole=False)
            offset = hole

    def close(self) -> None:
        """See Backend."""
        for fd in (self._fd, self._cached):
            if fd >= 0:
                os.close(fd)
        self._fd = self._cached = -1

    def _check_write(self, offset: int, length: int) -> None:
        if self.capabilities.read_only:
            raise UnsupportedOperation(f"{self.path} was opened for reading")
        self.check_range(offset, length)


def fill_pipe(fd: int, pipe: linux.Pipe, want: int) -> int:
    """Splice from a socket into an empty pipe: as much as comes and fits.

    Returns:
        Bytes in the pipe, at least 1.

    Raises:
        PeerGone: The stream ended.
        ConnectionTimeout: The socket's time limit passed.
    """
    have = 0
    while have < want and (not have or pipe.has_room()):
        try:
            n = linux.splice(fd, pipe.write_fd, want - have)
        except BlockingIOError as e:
            raise ConnectionTimeout("the other end sent nothing for too long") from e
        except ConnectionError as e:
            raise PeerGone(f"the connection broke: {e}") from e
        if not n:
            raise PeerGone("the connection was closed before the end of the data")
        have += n
    return have
