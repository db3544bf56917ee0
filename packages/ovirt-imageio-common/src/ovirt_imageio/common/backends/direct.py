# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Direct I/O, see open(2), O_DIRECT, at any offset and length.

The kernel takes whole blocks at aligned addresses. A range with other edges is written
by read-modify-write of its first and last block, under a lock that all instances of
one file share:

    block     0         1         2         3
              |---------|---------|---------|---------|
    range          |==========================|
    how            | rmw|     direct     | rmw|

Where a file's size is not a multiple of the block, O_DIRECT would write past the end.
The file's last bytes go through the page cache and leave it at once. Meanwhile no thread
may write directly to the page that holds them, so a write to that page takes the lock as well:

    block     |---------|---------|----       |
    page      |===================|===========|
    how       | direct            |d.,locked| cached

A file that grows has its end now here, now there. It grows under the lock only. A thread that sees a
larger size therefore sees an end that no other thread changes any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
from typing import ContextManager, Iterator, Protocol

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import pieces
from ovirt_imageio.common.buffers import address, borrow


def shrunk(offset: int, size: int) -> OSError:
    """The error for a file that ends at offset, before the size that it was opened with."""
    return OSError(errno.EIO, f"the file ended at {offset}, it had {size} bytes when it was opened")


class Size(Protocol):
    """The size of a file that may grow.

    Attributes:
        value: Bytes.
    """

    value: int

    def note(self, end: int) -> None:
        """Note that the file has bytes up to end."""


class DirectFile:
    """Whole blocks behind any range that a caller wants. One instance, one thread.

    Args:
        fd: Descriptor with O_DIRECT, not owned.
        size: Of the file; a write past it makes the file grow.
        block: Bytes of a block that the kernel takes: 512 or 4096.
        lock: Shared by all instances of the file.
    """

    def __init__(self, fd: int, *, size: Size, block: int, lock: threading.Lock) -> None:
        self._fd = fd
        self._size = size
        self._block = block
        self._lock = lock

    @property
    def _mixed(self) -> int:
        """Where the page begins in which the page cache may hold the end of the file for a moment."""
        size = self._size.value
        return size // mmap.PAGESIZE * mmap.PAGESIZE if size % self._block else size

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill view. The range is inside the file.

        Raises:
            OSError: As preadv(2), and `EIO` if the file became shorter.
        """
        if self._fits(offset, view):
            self._read(offset, view, len(view))
            return
        block, end = self._block, offset + len(view)
        start = offset // block * block
        with borrow(min(defaults.PIECE, -(-end // block) * block - start)) as bounce:
            for first, count in pieces(start, end - start, len(bounce)):
                self._read(first, bounce[: -(-count // block) * block], count)
                skip = max(offset - first, 0)
                view[first + skip - offset : first + count - offset] = bounce[skip:count]

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of view; the file grows if the range passes its end.

        Raises:
            OSError: As pwrite(2).
        """
        block, end = self._block, offset + len(view)
        first = min(-(-offset // block) * block, end)
        last = max(end // block * block, first)
        if offset < first:
            self._write_edge(offset, view[: first - offset])
        if first < last:
            with self._guard(last):
                self._write_blocks(first, view[first - offset : last - offset])
                self._size.note(last)
        if last < end:
            self._write_edge(last, view[last - offset :])

    def _fits(self, offset: int, view: memoryview) -> bool:
        """Tell if the kernel takes this as it is."""
        if offset % self._block or len(view) % self._block:
            return False
        start = address(view)
        return start is not None and start % self._block == 0

    def _read(self, offset: int, view: memoryview, want: int) -> None:
        """Read blocks until want bytes are there; the end of the file may cut the last block."""
        done = 0
        while done < want:
            n = os.preadv(self._fd, [view[done:]], offset + done)
            done += n
            if done < want and (not n or n % self._block):
                raise shrunk(offset + done, self._size.value)

    def _write_blocks(self, offset: int, view: memoryview) -> None:
        if self._fits(offset, view):
            write_all(self._fd, offset, view)
            return
        with borrow(min(defaults.PIECE, len(view))) as bounce:
            for start, count in pieces(offset, len(view), len(bounce)):
                bounce[:count] = view[start - offset : start - offset + count]
                write_all(self._fd, start, bounce[:count])

    def _write_edge(self, offset: int, view: memoryview) -> None:
        """Write a part of one block."""
        start = offset // self._block * self._block
        with self._lock:
            if start + self._block > self._size.value:
                self._write_end(offset, view)
                return
            with borrow(self._block) as bounce:
                self._read(start, bounce, self._block)
                bounce[offset - start : offset - start + len(view)] = view
                write_all(self._fd, start, bounce)

    def _write_end(self, offset: int, view: memoryview) -> None:
        with self._without_direct():
            write_all(self._fd, offset, view)
            os.fdatasync(self._fd)
            os.posix_fadvise(self._fd, offset, 0, os.POSIX_FADV_DONTNEED)
        # Last: a thread that sees this size writes directly to the former end.
        self._size.note(offset + len(view))

    @contextlib.contextmanager
    def _without_direct(self) -> Iterator[None]:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        try:
            yield
        finally:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)

    def _guard(self, end: int) -> ContextManager[object]:
        return self._lock if end > self._mixed else contextlib.nullcontext()


def write_all(fd: int, offset: int, view: memoryview) -> None:
    """Write all of view at offset, however little the kernel takes at a time.

    Raises:
        OSError: As pwrite(2).
    """
    done = os.pwrite(fd, view, offset)
    while done < len(view):
        n = os.pwrite(fd, view[done:], offset + done)
        if not n:
            raise OSError(errno.EIO, f"storage took only {done} of {len(view)} bytes at {offset}")
        done += n
