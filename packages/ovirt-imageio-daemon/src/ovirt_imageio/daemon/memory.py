# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Give memory back that many connections have left behind.

A thousand TLS connections take 40 MiB. When they end, the C library keeps nearly all of it for
the next thousand, in a heap full of holes that are never returned by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable

FEW = 200  # connections that are not worth the milliseconds


def trim() -> None:
    """Return free memory to the system, see malloc_trim(3); nothing where there is no glibc."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


class Tidier:
    """Trims when most of many connections have ended. Loop thread only.

    Args:
        trim: What returns memory.
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
