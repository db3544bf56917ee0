# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How a file or a block device makes a range read as zeroes without writing them.

    storage         sparse                      not sparse
    file            punch hole, zero range      zero range, punch hole and allocate
    block device    punch hole, BLKZEROOUT      zero range, BLKZEROOUT

Each way is tried once where storage may not know it. ext4 and xfs know all; tmpfs and
NFS 4.2 cannot zero a range; NFS 3 can do nothing of this. See fallocate(2).
"""

from __future__ import annotations

from typing import Callable

from ovirt_imageio.common import linux

_PUNCH_HOLE = linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE
_ZERO_RANGE = linux.FALLOC_FL_ZERO_RANGE | linux.FALLOC_FL_KEEP_SIZE


class Zeroing:
    """The ways that work on one file. One instance, one thread.

    Args:
        fd: Descriptor open for writing, not owned.
        device: It is a block device.
        sparse: Deallocate; else the range stays, or gets, allocated.
    """

    def __init__(self, fd: int, *, device: bool, sparse: bool) -> None:
        self._fd = fd
        self._ways: list[Callable[[int, int], None]] = [self._punch_hole if sparse else self._zero_range]
        if device:
            self._ways.append(self._zero_out)
        else:
            self._ways.append(self._zero_range if sparse else self._punch_hole_and_allocate)

    def zero(self, offset: int, length: int) -> bool:
        """Zero a range.

        Returns:
            False if storage knows no way: zeroes have to be written.

        Raises:
            OSError: Storage failed: `ENOSPC`, `EIO` and others that are not about the way.
        """
        while self._ways:
            try:
                self._ways[0](offset, length)
            except OSError as e:
                if not linux.is_unsupported(e):
                    raise
                del self._ways[0]
            else:
                return True
        return False

    def _punch_hole(self, offset: int, length: int) -> None:
        linux.fallocate(self._fd, _PUNCH_HOLE, offset, length)

    def _zero_range(self, offset: int, length: int) -> None:
        linux.fallocate(self._fd, _ZERO_RANGE, offset, length)

    def _punch_hole_and_allocate(self, offset: int, length: int) -> None:
        self._punch_hole(offset, length)
        linux.fallocate(self._fd, 0, offset, length)

    def _zero_out(self, offset: int, length: int) -> None:
        linux.zero_out(self._fd, offset, length)
