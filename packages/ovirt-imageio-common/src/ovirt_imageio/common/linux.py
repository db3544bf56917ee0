# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""System calls of Linux that the standard library lacks, or lacks on Python 3.9."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import stat
import struct
import threading
from types import TracebackType
from typing import Callable, Iterator, Sequence

from ovirt_imageio.common import defaults
from ovirt_imageio.common.buffers import Buffer

# fallocate(2)
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

# linux/fs.h, as block devices understand them
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272
BLKZEROOUT = 0x127F

# fcntl(2)
F_SETPIPE_SZ = 1031
F_GETPIPE_SZ = 1032

RWF_NOWAIT = 0x08
SPLICE_F_MOVE = 0x01
SPLICE_F_NONBLOCK = 0x02
SPLICE_F_MORE = 0x04

# statfs(2)
_TMPFS_MAGIC = 0x01021994
_LOCAL_MAGICS = frozenset(
    [_TMPFS_MAGIC, 0xEF53, 0x58465342, 0x9123683E, 0x794C7630]
)  # tmpfs, ext4, xfs, btrfs, overlayfs

_libc = ctypes.CDLL(None, use_errno=True)


def _raise(name: str) -> None:
    code = ctypes.get_errno()
    raise OSError(code, f"{name}: {os.strerror(code)}")


_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Allocate, zero or deallocate a range of a file, as fallocate(2) does.

    Raises:
        OSError: As the system call, `EOPNOTSUPP` where the file system cannot.
    """
    while _fallocate(fd, mode, offset, length):
        if ctypes.get_errno() != errno.EINTR:
            _raise("fallocate")


# splice(2)

_splice = _libc.splice
_splice.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_uint,
]
_splice.restype = ctypes.c_ssize_t


def _splice_by_ctypes(
    fd_in: int, fd_out: int, count: int, *, offset_src: int | None = None, offset_dst: int | None = None, flags: int = 0
) -> int:
    src, dst = (None if o is None else ctypes.byref(ctypes.c_int64(o)) for o in (offset_src, offset_dst))
    while True:
        n = int(_splice(fd_in, src, fd_out, dst, count, flags))
        if n >= 0:
            return n
        if ctypes.get_errno() != errno.EINTR:
            _raise("splice")


_splice_of_os: Callable[..., int] | None = getattr(os, "splice", None)


def splice(
    fd_in: int, fd_out: int, count: int, *, offset_in: int | None = None, offset_out: int | None = None, flags: int = 0
) -> int:
    """Move bytes between a pipe and another descriptor inside the kernel, as splice(2) does.

    Args:
        fd_in: To read from.
        fd_out: To write to. One of both is a pipe.
        count: Most bytes to move.
        offset_in: Where to read in a file, instead of its position.
        offset_out: Where to write in a file, instead of its position.
        flags: SPLICE_F_*.

    Returns:
        Bytes moved, 0 at the end of the stream.

    Raises:
        BlockingIOError: A socket's time limit passed, or SPLICE_F_NONBLOCK was given.
        OSError: As the system call.
    """
    call = _splice_of_os or _splice_by_ctypes
    return call(fd_in, fd_out, count, offset_src=offset_in, offset_dst=offset_out, flags=flags)


class Pipe:
    """A pipe for splice(2), as large as asked for if the kernel allows that much.

    Attributes:
        read_fd: Descriptor to read from.
        write_fd: Descriptor to write to.
        size: Bytes it holds when they come in whole pages.
    """

    def __init__(self, size: int = defaults.PIPE_SIZE) -> None:
        self.read_fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(PermissionError):
            # Past the user's share of pipe pages the kernel refuses: it stays small.
            fcntl.fcntl(self.write_fd, F_SETPIPE_SZ, size)
        self.size = int(fcntl.fcntl(self.write_fd, F_GETPIPE_SZ))
        self._room = select.poll()
        self._room.register(self.write_fd, select.POLLOUT)

    def has_room(self) -> bool:
        """Tell if a splice into the pipe would not block.

        A pipe is full when its slots are, which many small packets fill long before
        its size in bytes.
        """
        return bool(self._room.poll(0))

    def read(self, count: int) -> bytes:
        """Take so many bytes out; that many are inside."""
        parts = []
        while count:
            parts.append(os.read(self.read_fd, count))
            count -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Close both ends, and drop what is inside."""
        if self.read_fd >= 0:
            os.close(self.read_fd)
            os.close(self.write_fd)
            self.read_fd = self.write_fd = -1

    def __enter__(self) -> Pipe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class PipePool:
    """A bounded number of large pipes. Any thread may borrow.

    Args:
        limit: Most pipes at a time.
        size: Bytes each must hold; one that the kernel made smaller is not lent.
    """

    def __init__(self, limit: int = defaults.MAX_PIPES, *, size: int = defaults.PIPE_SIZE) -> None:
        self._limit = limit
        self._size = size
        self._lock = threading.Lock()
        self._free: list[Pipe] = []
        self._lent = 0

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Pipe | None]:
        """Lend an empty pipe, or None where there is no further one: copy instead.

        The block leaves the pipe empty. If it raises, the pipe is closed, for its
        content is unknown.
        """
        pipe = self._take()
        clean = False
        try:
            yield pipe
            clean = True
        finally:
            if pipe is not None:
                self._give(pipe, clean)

    def close(self) -> None:
        """Close the pipes that are not lent."""
        with self._lock:
            free, self._free = self._free, []
        for pipe in free:
            pipe.close()

    def _take(self) -> Pipe | None:
        with self._lock:
            if self._lent >= self._limit:
                return None
            self._lent += 1
            if self._free:
                return self._free.pop()
        try:
            pipe = Pipe(self._size)
        except OSError:
            pipe = None
        if pipe is not None and pipe.size >= self._size:
            return pipe
        if pipe is not None:
            pipe.close()
        with self._lock:
            self._lent -= 1
        return None

    def _give(self, pipe: Pipe, clean: bool) -> None:
        with self._lock:
            self._lent -= 1
            if clean:
                self._free.append(pipe)
                return
        pipe.close()


# Reading what the page cache holds


def preadv_nowait(fd: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Read from the page cache, never from a disk. See preadv2(2), RWF_NOWAIT.

    Returns:
        Bytes read; maybe fewer than asked for, 0 at the end of the file.

    Raises:
        BlockingIOError: It would have to wait.
        OSError: `EOPNOTSUPP` where the file system knows no such reading.
    """
    return os.preadv(fd, list(buffers), offset, RWF_NOWAIT)


# Files and block devices


def is_block_device(fd: int) -> bool:
    """Tell if a descriptor is of a block device."""
    return stat.S_ISBLK(os.fstat(fd).st_mode)


def file_size(fd: int) -> int:
    """Bytes of a regular file or a block device.

    Raises:
        OSError: The descriptor is of something else.
    """
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if stat.S_ISBLK(status.st_mode):
        return _ioctl_number(fd, BLKGETSIZE64, "Q")
    raise OSError(errno.EINVAL, "neither a regular file nor a block device")


def sector_size(fd: int) -> int:
    """Bytes of a block device's logical sector: the unit of direct I/O."""
    return _ioctl_number(fd, BLKSSZGET, "i")


def zero_out(fd: int, offset: int, length: int) -> None:
    """Zero a range of a block device; the device may do that by itself."""
    fcntl.ioctl(fd, BLKZEROOUT, array.array("Q", [offset, length]).tobytes())


def _ioctl_number(fd: int, request: int, kind: str) -> int:
    value = array.array(kind, [0])
    fcntl.ioctl(fd, request, value, True)
    return int(value[0])


# Files by their names

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_RENAME_NOREPLACE = 1


class _Statx(ctypes.Structure):
    # Up to the time of birth; linux/stat.h has 256 bytes of it.
    _fields_ = (
        ("stx_mask", ctypes.c_uint32),
        ("before_btime", ctypes.c_byte * 76),
        ("btime_seconds", ctypes.c_int64),
        ("btime_nanoseconds", ctypes.c_uint32),
        ("rest", ctypes.c_byte * 164),
    )


def born(fd: int) -> int | None:
    """When an open file was made, in nanoseconds since 1970. See statx(2), STATX_BTIME.

    With its inode it tells a file from another one that got the same inode later.

    Returns:
        None where the file system or the C library does not know.
    """
    statx = getattr(_libc, "statx", None)
    buf = _Statx()
    if statx is None or statx(fd, b"", _AT_EMPTY_PATH, _STATX_BTIME, ctypes.byref(buf)):
        return None
    if not buf.stx_mask & _STATX_BTIME:
        return None
    return int(buf.btime_seconds) * 10**9 + int(buf.btime_nanoseconds)


def rename_new(old: str, new: str) -> None:
    """Rename a file to a name that no file has. See renameat2(2), RENAME_NOREPLACE.

    Where the file system does not know it, the name is looked at just before.

    Raises:
        FileExistsError: Another file has the name.
        OSError: As the system call.
    """
    call = getattr(_libc, "renameat2", None)
    if call is not None:
        if not call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE):
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), new)
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new)


def is_named(fd: int, path: str) -> bool:
    """Tell if a path names an open file itself, not a link to it."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(fd))


def mount_of(fd: int) -> int | None:
    """Number of the mount through which a file was opened, see proc(5); None without /proc."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as f:
            lines = f.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in lines:
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return int(value)
    return None


# Locks of single bytes. They belong to the open file description: fcntl(2), F_OFD_SETLK.

_FLOCK = "hhqqi"  # struct flock: type, whence, start, length, process


def lock_bytes(fd: int, start: int, length: int = 1, *, shared: bool = False) -> bool:
    """Lock bytes of an open file until it is closed. The bytes need not exist.

    Args:
        fd: Open for writing; for a shared lock for reading.
        start: First byte.
        length: How many.
        shared: Others may have such a lock as well.

    Returns:
        False if another holder has a lock that excludes this one.

    Raises:
        OSError: `ENOLCK`, `EOPNOTSUPP` or `ENOSYS` where the file system knows no locks.
    """
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, start, length, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def are_locked(fd: int, start: int, length: int = 1) -> bool:
    """Tell if another open file description, or another process, has a lock on one of the bytes.

    Raises:
        OSError: As `lock_bytes`.
    """
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def knows_no_locks(error: OSError) -> bool:
    """Tell if an error means that the file system has no locks at all."""
    return error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class _Statfs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_void_p]


def file_system(fd: int) -> int:
    """The magic number of the file system that holds an open file. See statfs(2)."""
    buf = _Statfs()
    if _libc.fstatfs(fd, ctypes.byref(buf)):
        _raise("fstatfs")
    return int(buf.f_type) & 0xFFFFFFFF


def is_tmpfs(fd: int) -> bool:
    """Tell if an open file lies in memory, so that reading it never waits."""
    return file_system(fd) == _TMPFS_MAGIC


def is_local(fd: int) -> bool:
    """Tell if an open file lies on a local file system: no other host changes it."""
    return file_system(fd) in _LOCAL_MAGICS


_DIRECT_BLOCKS = (512, 4096)


def reopen(fd: int, flags: int, path: str) -> int:
    """Open an open file again, whatever its name leads to by now. See proc(5), /proc/pid/fd.

    Args:
        fd: The file. It stays open.
        flags: To open it with, as for os.open.
        path: Its name, for errors; without /proc it is opened by it.

    Raises:
        OSError: It cannot be opened, or without /proc another file has its name.
    """
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError as e:
        if e.errno != errno.ENOENT:
            raise OSError(e.errno, os.strerror(e.errno or 0), path) from e
    status = os.fstat(fd)
    new = os.open(path, flags)
    if os.path.samestat(os.fstat(new), status):
        return new
    os.close(new)
    raise OSError(errno.ESTALE, "another file has its name by now", path)


def reopen_direct(fd: int, flags: int) -> tuple[int, int] | None:
    """Open an open file again, with O_DIRECT.

    Network file systems want to know at open(2) how a file will be used; fcntl(2) would
    not tell them.

    Args:
        fd: The file. It stays open.
        flags: To open it with, as for os.open.

    Returns:
        The new descriptor, and the smallest block that direct I/O on it takes, 512 or
        4096, found by trying; None where storage knows no direct I/O.
    """
    try:
        direct = os.open(f"/proc/self/fd/{fd}", flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as e:
        if e.errno == errno.EINVAL:
            return None
        raise
    try:
        block = sector_size(direct) if is_block_device(direct) else _probe_blocks(direct)
    except BaseException:
        os.close(direct)
        raise
    if block is None:
        os.close(direct)
        return None
    return direct, block


def _probe_blocks(fd: int) -> int | None:
    if not os.fstat(fd).st_size:
        # At the end of a file some file systems take any block.
        return _DIRECT_BLOCKS[-1]
    with mmap.mmap(-1, _DIRECT_BLOCKS[-1]) as buf, memoryview(buf) as view:
        for block in _DIRECT_BLOCKS:
            try:
                os.preadv(fd, [view[:block]], 0)
            except OSError as e:
                if e.errno != errno.EINVAL:
                    raise
            else:
                return block
    return None


def seek_data(fd: int, offset: int) -> int | None:
    """Offset of the next data at or after an offset, None if only a hole follows."""
    return _seek(fd, offset, os.SEEK_DATA)


def seek_hole(fd: int, offset: int) -> int | None:
    """Offset of the next hole at or after an offset; the end of the file is one."""
    return _seek(fd, offset, os.SEEK_HOLE)


def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as e:
        if e.errno == errno.ENXIO:
            return None
        raise


def set_nice(increment: int) -> None:
    """Make the calling thread nicer: on Linux niceness is of a thread, see sched(7)."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), increment)


def is_unsupported(error: OSError) -> bool:
    """Tell if an error means that storage cannot do something at all."""
    return error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL)


pipes = PipePool()
"""The pipes of this process: the kernel bounds those of a user, so all fast paths share them."""
