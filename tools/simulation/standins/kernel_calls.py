# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""In place of `ovirt_imageio.common.linux`."""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import Iterator, Optional

from ovirt_imageio.common import linux as real

from ..disk import failure
from . import unknown
from .system import fcntl, opened, os, punch, zero

__getattr__ = unknown("linux")

FALLOC_FL_KEEP_SIZE = real.FALLOC_FL_KEEP_SIZE
FALLOC_FL_PUNCH_HOLE = real.FALLOC_FL_PUNCH_HOLE
FALLOC_FL_ZERO_RANGE = real.FALLOC_FL_ZERO_RANGE
Pipe = real.Pipe
is_unsupported = real.is_unsupported
knows_no_locks = real.knows_no_locks


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """See fallocate(2)."""
    if mode & FALLOC_FL_PUNCH_HOLE:
        punch(fd, offset, length)
    elif mode & FALLOC_FL_ZERO_RANGE or not mode:
        zero(fd, offset, length)
    else:
        raise failure(errno.EOPNOTSUPP)


def zero_out(fd: int, offset: int, length: int) -> None:
    """See BLKZEROOUT."""
    zero(fd, offset, length)


def is_block_device(fd: int) -> bool:
    """Tell if a descriptor is of a block device."""
    return opened(fd).node.is_device


def file_size(fd: int) -> int:
    """Bytes of a file or a device."""
    node = opened(fd).node
    if node.is_folder:
        raise failure(errno.EINVAL)
    return node.store.size


def is_tmpfs(fd: int) -> bool:
    """Tell that it is none."""
    return False


def is_local(fd: int) -> bool:
    """Tell that it is local."""
    return True


def reopen(fd: int, flags: int, path: str) -> int:
    """Open an open file again, whatever its name leads to by now."""
    return os.open(f"/proc/self/fd/{fd}", flags)


def reopen_direct(fd: int, flags: int) -> Optional[tuple[int, int]]:
    """Tell that this storage knows no direct I/O."""
    return None


def preadv_nowait(fd: int, buffers: object, offset: int) -> int:
    """Tell that this storage cannot do that."""
    raise failure(errno.EOPNOTSUPP)


def seek_data(fd: int, offset: int) -> Optional[int]:
    """Offset of the next data, None if only a hole follows."""
    return _seek(fd, offset, os.SEEK_DATA)


def seek_hole(fd: int, offset: int) -> Optional[int]:
    """Offset of the next hole; the end of the file is one."""
    return _seek(fd, offset, os.SEEK_HOLE)


def _seek(fd: int, offset: int, whence: int) -> Optional[int]:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as e:
        if e.errno == errno.ENXIO:
            return None
        raise


def born(fd: int) -> Optional[int]:
    """When a file was made."""
    return opened(fd).node.born


def rename_new(old: str, new: str) -> None:
    """See renameat2(2), RENAME_NOREPLACE."""
    os.rename(old, new, replaces=False)


def is_named(fd: int, path: str) -> bool:
    """Tell if a path names an open file itself."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def mount_of(fd: int) -> Optional[int]:
    """Tell that all is one file system."""
    return 1


def lock_bytes(fd: int, start: int, length: int = 1, *, shared: bool = False) -> bool:
    """See fcntl(2), F_OFD_SETLK."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    return True


def are_locked(fd: int, start: int, length: int = 1) -> bool:
    """See fcntl(2), F_OFD_GETLK."""
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, wanted)
    return bool(struct.unpack_from("hhqqi", answer)[0] != fcntl.F_UNLCK)


class _Pipes:
    """There are none: what splice(2) moves is seen by no simulation."""

    @contextlib.contextmanager
    def borrow(self) -> Iterator[None]:
        """Lend nothing."""
        yield None


pipes = _Pipes()
