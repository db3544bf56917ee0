# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage in a regular file or on a block device.

Two ways to the storage:

    Buffered    Regular files on local file systems. The page cache answers small reads
                without waiting. By splice(2) bytes move from a socket into the cache,
                and from the cache into a socket.
    Direct      Block devices and network file systems, which other hosts change. Only
                O_DIRECT sees what is there now, and leaves nothing stale behind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time
import weakref
from typing import Any, Callable, Iterator, Sequence

from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends import filesplice
from ovirt_imageio.common.backends.base import Backend, Capabilities, NullOperation, Operation, Peer, note_wait
from ovirt_imageio.common.backends.direct import DirectFile, shrunk, write_all
from ovirt_imageio.common.backends.imagesize import ImageSize
from ovirt_imageio.common.backends.pausing import is_paused, note_silence
from ovirt_imageio.common.backends.zeroing import Zeroing
from ovirt_imageio.common.buffers import Buffer, borrow
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import Naming, PeerGone
from ovirt_imageio.common.extents import Extent, ZeroExtent, merge

_PAGE = 4096
"""Zeroing less than this would pass through the page cache even with direct I/O."""

# Runs of data that are looked for between two looks at the cancel flag. On a network file system each
# may take a millisecond.
_SEEKS = 64

_MODES = {"r": os.O_RDONLY, "r+": os.O_RDWR}


class _Shared:
    """State that all open instances of one file share.

    Attributes:
        lock: Held while a part of a block is changed, or the file grows by direct I/O.
        flush_error: Why a flush failed. The kernel tells each descriptor once, and takes
            the pages that it could not write for clean, so no later flush may succeed.
    """

    __slots__ = ("__weakref__", "flush_error", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.flush_error: OSError | None = None


_open_files: weakref.WeakValueDictionary[tuple[int, int], _Shared] = weakref.WeakValueDictionary()
# A size lives longer than its instances: a pool that closed them still asks for it.
_sizes: weakref.WeakValueDictionary[tuple[int, int], ImageSize] = weakref.WeakValueDictionary()
_open_files_lock = threading.Lock()


def _shared_by(fd: int) -> tuple[_Shared, ImageSize]:
    status = os.fstat(fd)
    # A device may have several nodes.
    key = (-1, status.st_rdev) if stat.S_ISBLK(status.st_mode) else (status.st_dev, status.st_ino)
    with _open_files_lock:
        return _open_files.setdefault(key, _Shared()), _sizes.setdefault(key, ImageSize())


class FileBackend(Backend):
    """A regular file or a block device. One instance, one thread.

    Args:
        path: Of the file, which must exist.
        mode: `r` to read, `r+` to read and write.
        sparse: Zeroing deallocates.
        connections: How many instances may read side by side, and write to a block device. A file has one writer:
            it may grow.
        direct: Use O_DIRECT where storage knows it; None decides by what storage it is.
        splice_out: Send by splice(2) where possible, see `filesplice`.
        cancel: Takes the file away from this instance and its clones, see `interrupt`.
        grow_to: Bytes up to which writing and zeroing make a regular file larger; 0 for no growth.
            A block device never grows.
        held: The file, open; it stays so, and the caller's. It is opened again, whatever its name leads to
            by now. None opens what has the name.

    Attributes:
        path: As given.
        can_nowait: `read_nowait` may answer.

    Raises:
        ValueError: Unknown mode.
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
        splice_out: bool = False,
        cancel: Cancel | None = None,
        grow_to: int = 0,
        held: int | None = None,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"unknown mode {mode!r}: expected 'r' or 'r+'")
        self.path = path
        self._named = Naming(path)
        self._options: dict[str, Any] = {"mode": mode, "sparse": sparse, "connections": connections, "direct": direct}
        self._options.update(splice_out=splice_out, cancel=cancel, grow_to=grow_to, held=held)
        self._cancel = cancel if mode == "r+" else None
        self._wake: object = None
        self._leaving = threading.Lock()
        # O_NONBLOCK: not to wait for the writer of a FIFO, which is refused below.
        flags = _MODES[mode] | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(path, flags) if held is None else linux.reopen(held, flags, path)
        try:
            with self._named:
                block = self._choose_way(mode, direct)
        except OSError:
            self.close()
            raise
        self.capabilities = Capabilities(
            max_readers=connections,
            max_writers=connections if self._device else 1,
            block_size=block,
            can_zero=True,
            can_extents=not self._device,
            multi_conn=True,
            read_only=mode == "r",
            resizable=not self._device,
        )
        self._zeroing = Zeroing(self._fd, device=self._device, sparse=sparse)
        self._grow_to = 0 if self._device else grow_to
        self._sends_pages = splice_out and not self._direct and not self._device
        if self._cancel is not None:
            self._wake = self._cancel.add(self.interrupt)

    def _choose_way(self, mode: str, direct: bool | None) -> int:
        """Set up buffered or direct I/O, and return its block."""
        linux.file_size(self._fd)  # refuses what is neither a file nor a block device
        self._device = linux.is_block_device(self._fd)
        self._shared, self._size = _shared_by(self._fd)
        self.measure()
        self._direct: DirectFile | None = None
        self.can_nowait = self._in_memory = False
        if direct is None:
            direct = self._device or not linux.is_local(self._fd)
        found = linux.reopen_direct(self._fd, _MODES[mode]) if direct else None
        if found:
            os.close(self._fd)
            self._fd, block = found
            self._direct = DirectFile(self._fd, size=self._size, block=block, lock=self._shared.lock)
            return block
        os.set_blocking(self._fd, True)
        if not self._device and linux.is_local(self._fd):
            self._in_memory = linux.is_tmpfs(self._fd)
            self.can_nowait = self._in_memory or _knows_nowait(self._fd)
        return 1

    @property
    def size(self) -> int:  # type: ignore[override]
        """Bytes of the file; every instance in this process knows at once when one of them makes it grow."""
        return self._size.value

    @property
    def max_size(self) -> int:
        """See Backend."""
        return max(self._size.value, self._grow_to)

    def size_teller(self) -> Callable[[], int]:
        """See Backend."""
        size = self._size
        return lambda: size.value

    def measure(self) -> int:
        """See Backend. For a buffered file it never waits."""
        with self._shared.lock:  # not while the end passes through the page cache
            return self._size.look(lambda: linux.file_size(self._fd))

    def clone(self) -> FileBackend:
        """Open the same path, or the file that is held, once more, for another thread."""
        return FileBackend(self.path, **self._options)

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend.

        Raises:
            OSError: `EIO` also if the file became shorter than it was when it was opened.
        """
        with self._named, memoryview(buf) as raw, raw.cast("B") as view:
            self.check_range(offset, len(view))
            if not view:
                return
            if self._direct:
                self._direct.read_into(offset, view)
                return
            done = 0
            while done < len(view):
                n = os.preadv(self._fd, [view[done:]], offset + done)
                if not n:
                    raise shrunk(offset + done, self.size)
                done += n

    def read_nowait(self, offset: int, length: int) -> bytearray | None:
        """Read what is in memory already, without ever waiting for a disk.

        Returns:
            The bytes; None if some of them are not at hand: use `read_into` in a thread
            that may wait.

        Raises:
            ValueError: The range is not inside the image.
            OSError: Storage failed.
        """
        self.check_range(offset, length)
        if not self.can_nowait:
            return None
        buf = bytearray(length)
        if self._in_memory:
            return buf if os.preadv(self._fd, [buf], offset) == length else None
        try:
            return buf if linux.preadv_nowait(self._fd, [buf], offset) == length else None
        except BlockingIOError:
            return None

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend.

        Raises:
            OSError: `ENOSPC` where storage is full.
        """
        with self._named, memoryview(buf) as raw, raw.cast("B") as view:
            self.check_write(offset, len(view))
            if not view:
                return
            self.unflushed = True
            if self._direct:
                self._direct.write(offset, view)
            else:
                write_all(self._fd, offset, view)
                self._size.note(offset + len(view))

    def zero(self, offset: int, length: int) -> None:
        """See Backend. Where storage knows no way to zero, zeroes are written.

        Raises:
            OSError: `ENOSPC` where storage is full.
        """
        self.check_write(offset, length)
        if not length:
            return
        self.unflushed = True
        start, end = offset, offset + length
        if end > self._size.value:
            # One byte makes the file grow and cannot cut off what another writer adds, as ftruncate(2) could.
            self.write(end - 1, b"\0")
        if self._direct or self._device:
            # Edges under the lock, by direct I/O: nothing else may touch the page cache.
            start = min(-(-offset // _PAGE) * _PAGE, end)
            end = max(end // _PAGE * _PAGE, start)
        self._write_zeroes(offset, start - offset)
        if start < end:
            with self._named:
                done = self._zeroing.zero(start, end - start)
            if not done:
                self._write_zeroes(start, end - start)
        self._write_zeroes(end, offset + length - end)

    def _write_zeroes(self, offset: int, length: int) -> None:
        if not length:
            return
        with borrow(min(length, defaults.PIECE)) as view:
            view[:] = bytes(len(view))
            for start, count in self.pieces(offset, length):
                self.write(start, view[:count])

    def flush(self) -> None:
        """See Backend. Covers what all instances of the file wrote, see fsync(2).

        Raises:
            OSError: Storage failed, now or at an earlier flush of any instance that was
                open together with this one. Data written since then may be lost.
        """
        if self.capabilities.read_only:
            return
        earlier = self._shared.flush_error
        if earlier:
            raise OSError(earlier.errno, f"an earlier flush failed: {earlier.strerror}", self.path) from earlier
        with self._named:
            try:
                os.fsync(self._fd)
            except OSError as e:
                if self._cancel is not None:
                    self._cancel.check()  # it was not the file that failed
                self._shared.flush_error = self.broken = e
                raise
            if not self._device:
                known = self.size  # before the look: another instance may make it grow
                size = linux.file_size(self._fd)
                if size < known:
                    raise shrunk(size, known)
        self.unflushed = False

    def send_to(self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()) -> None:
        """See Backend. With `splice_out` payload goes from the page cache to a plain socket by splice(2)."""
        if self._sends_pages and length and peer.splice_fd is not None:
            self.check_range(offset, length)
            with contextlib.suppress(filesplice.CannotSplice), self._named, linux.pipes.borrow() as pipe:
                if pipe is not None:
                    filesplice.send(self._fd, self.size, pipe, peer, offset, length, op)
                    return
        super().send_to(peer, offset, length, op, others=others)

    def receive_from(
        self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()
    ) -> None:
        """See Backend. From a plain socket payload goes into the page cache by splice(2)."""
        if not self._direct and not self._device and peer.splice_fd is not None:
            self.check_write(offset, length)
            with self._named, linux.pipes.borrow() as pipe:
                if pipe is not None:
                    self._splice_from(peer, pipe, offset, length, op)
                    return
        super().receive_from(peer, offset, length, op, others=others)

    def _splice_from(self, peer: Peer, pipe: linux.Pipe, offset: int, length: int, op: Operation) -> None:
        end = offset + length
        while offset < end:
            op.check()
            first = peer.take(min(defaults.PIECE, end - offset))
            count = len(first)
            if first:
                self.write(offset, first)
            else:
                count = _splice_in(peer, pipe, min(defaults.PIECE, end - offset))
                if not count:
                    return
                self.unflushed = True
                self._splice_out(pipe, offset, count)
            offset += count
            op.advance(count)

    def _splice_out(self, pipe: linux.Pipe, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            n = linux.splice(pipe.read_fd, self._fd, end - offset, offset_out=offset)
            if not n:
                raise OSError(errno.EIO, f"storage took none of {end - offset} bytes at {offset}")
            offset += n
            self._size.note(offset)

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """See Backend. Unallocated ranges read as zeroes; a block device is all data.

        `hole` is never set: nothing lies behind a raw image that could show through.

        Raises:
            OSError: `EIO` also if the file became shorter than it was when it was opened.
        """
        if context != "zero" or self._device:
            return super().extents(context, offset=offset, length=length, op=op)
        length = self.size - offset if length is None else length
        self.check_range(offset, length)
        return self._listed(merge(self._zero_extents(offset, offset + length, op or NullOperation())))

    def _listed(self, extents: Iterator[ZeroExtent]) -> Iterator[ZeroExtent]:
        with self._named:
            yield from extents

    def _zero_extents(self, offset: int, end: int, op: Operation) -> Iterator[ZeroExtent]:
        number = 0
        while offset < end:
            if number % _SEEKS == 0:
                op.check()
            number += 1
            data = self._next_data(offset, end)
            if data > offset:
                yield ZeroExtent(offset, data - offset, zero=True, hole=False)
            if data == end:
                return
            hole = linux.seek_hole(self._fd, data)
            if hole is None or hole <= data:
                raise OSError(errno.EIO, f"the file changed at {data} while its extents were read")
            hole = min(hole, end)
            yield ZeroExtent(data, hole - data, zero=False, hole=False)
            offset = hole

    def _next_data(self, offset: int, end: int) -> int:
        data = linux.seek_data(self._fd, offset)
        if data is not None:
            return min(data, end)
        # Nothing but a hole up to the end of the file, wherever that is by now.
        size = linux.file_size(self._fd)
        if size < end:
            raise shrunk(size, self.size)
        return end

    def interrupt(self) -> None:
        """Take the file away: what the thread that uses it does from now on changes nothing. Any thread may call.

        A system call that runs cannot be woken, and ends as it would have. A closed file is left
        alone: its number may be another file's by now.
        """
        nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            with self._leaving:
                if self._fd >= 0:
                    os.dup2(nowhere, self._fd, inheritable=False)
        finally:
            os.close(nowhere)

    def close(self) -> None:
        """See Backend."""
        if self._cancel is not None:
            self._cancel.remove(self._wake)
        with self._leaving:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
        # A closed instance does not keep the error of a flush for instances that are opened later.
        self._shared = _Shared()
        self.can_nowait = False


def _knows_nowait(fd: int) -> bool:
    try:
        linux.preadv_nowait(fd, [bytearray(1)], 0)
    except BlockingIOError:
        return True
    except OSError as e:
        if not linux.is_unsupported(e):
            raise
        return False
    return True


def _splice_in(peer: Peer, pipe: linux.Pipe, want: int) -> int:
    """Move what a peer sent into an empty pipe: as much as is there and fits, 0 if it is paused."""
    assert peer.splice_fd is not None
    while not is_paused(peer):
        began = time.monotonic()
        try:
            n = linux.splice(peer.splice_fd, pipe.write_fd, want)
        except BlockingIOError:
            note_silence(peer, began, receiving=True)
            continue
        except ConnectionError as e:
            raise PeerGone(f"the connection to the peer broke: {e}") from e
        note_wait(peer, time.monotonic() - began, received=n)
        if not n:
            raise PeerGone(f"the peer closed the connection, {want} bytes or more are missing")
        return n
    return 0
