# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Give memory back that many connections have left behind.

A thousand TLS connections take 40 MiB. When they end, the C library keeps nearly all of it for
the next thousand. It stays in a heap full of holes that are never returned by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable

FEW = 200  # connections that are not worth the milliseconds

# glibc maps blocks past the mmap threshold anew each time, and returns free memory past the trim threshold.
# The kernel fills each page then, which takes longer than to encrypt it. mallopt(3), malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD = 2 * 1024 * 1024  # a worker's longest piece of encrypted data has 512 KiB
_TRIM_THRESHOLD = 4 * 1024 * 1024


def keep() -> None:
    """Let the process keep memory that bodies pass through; nothing where there is no glibc."""
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def trim() -> None:
    """Return free memory to the system, see malloc_trim(3); nothing where there is no glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Tidier:
    """Trims when most of many connections have ended. Loop thread only.

    Args:
        trim: Returns memory to the system.
    """

    def __init__(self, trim: Callable[[], object] = trim) -> None:
        self._trim = trim
        self._peak = 0

    def look(self, connections: int) -> None:
        """Look at the number of open connections; to be called now and then."""
        self._peak = max(self._peak, connections)
        if self._peak - connections >= FEW and connections * 4 <= self._peak:
            self._peak = connections
            self._trim()
