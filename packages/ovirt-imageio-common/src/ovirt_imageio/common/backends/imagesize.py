# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The size of an image that may grow, as all who use it in this process know it."""

from __future__ import annotations

import threading
from typing import Callable


class ImageSize:
    """Shared by the instances of one image. Any thread.

    Attributes:
        value: Bytes; 0 before the first look.
        known: There was a look.
    """

    __slots__ = ("__weakref__", "_lock", "known", "value")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.value = 0
        self.known = False

    def look(self, ask: Callable[[], int]) -> int:
        """Let storage tell the size. Growth that `note` tells of meanwhile is not forgotten."""
        with self._lock:
            self.value, self.known = ask(), True
            return self.value

    def note_smaller(self, size: int) -> None:
        """Note that the image has no bytes past size."""
        with self._lock:
            self.value = min(self.value, size)

    def note(self, end: int) -> None:
        """Note that the image has bytes up to end."""
        if end > self.value:
            with self._lock:
                self.value = max(self.value, end)
