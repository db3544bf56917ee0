# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory for payload: aligned buffers, and telling zeroes from data."""

from __future__ import annotations

import ctypes
import mmap
from typing import Union

Buffer = Union[bytes, bytearray, memoryview, mmap.mmap]

_libc = ctypes.CDLL(None, use_errno=True)
_memcmp = _libc.memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_memcmp.restype = ctypes.c_int

_HEAD = 64
"""Data rarely begins with so many zero bytes; looking there first costs less than a call."""

_SHORT = 4096
"""Up to here comparing bytes objects is cheaper than calling into libc by ctypes."""

_ZEROES = bytes(_SHORT)


def aligned(size: int) -> mmap.mmap:
    """Return a zeroed buffer whose address is a multiple of the page size.

    Args:
        size: Bytes, at least 1. O_DIRECT needs this alignment, see open(2).
    """
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def is_zero(buf: Buffer) -> bool:
    """Tell if a contiguous buffer holds nothing but zero bytes.

    An empty buffer does. Large buffers are compared with themselves, shifted by one
    byte: 55 GB/s at 1 MiB.
    """
    with memoryview(buf) as raw, raw.cast("B") as view:
        size = len(view)
        if view[:_HEAD] != _ZEROES[: min(size, _HEAD)]:
            return False
        if size <= _SHORT:
            return view == _ZEROES[:size]
        if view.readonly:
            # ctypes takes no address of read-only memory.
            return all(
                view[o : o + _SHORT] == _ZEROES[: min(_SHORT, size - o)]
                for o in range(0, size, _SHORT)
            )
        start = ctypes.addressof(ctypes.c_char.from_buffer(view))
        return int(_memcmp(start, start + 1, size - 1)) == 0
