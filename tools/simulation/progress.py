# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A caller's progress that does not believe what it is told, and may cancel."""

from __future__ import annotations

from typing import Optional

from .kernel import active


class Cancelled(Exception):
    """The caller does not want the transfer any more."""


class Watch:
    """Counts what a transfer tells.

    Args:
        cancel: Bytes after which it raises; None for never.

    Attributes:
        size: As the transfer told.
        done: Bytes counted.
        wrong: Figures that were told and cannot be.
    """

    def __init__(self, cancel: Optional[int] = None) -> None:
        self._cancel = cancel
        self._inside = False
        self._size: Optional[int] = None
        self.phase = "moving"
        self.done = 0
        self.wrong: list[str] = []

    @property
    def size(self) -> Optional[int]:
        """Bytes in all."""
        return self._size

    @size.setter
    def size(self, size: Optional[int]) -> None:
        if self._size is not None:
            self.wrong.append(f"progress was told the size twice: {self._size} and {size}")
        self._size = size

    def update(self, n: int) -> None:
        """Count more bytes."""
        if self._inside:
            self.wrong.append("two threads called progress at a time")
        self._inside = True
        active().turn()
        if n <= 0:
            self.wrong.append(f"progress was told of {n} bytes")
        self.done += n
        if self._size is None or self.done > self._size:
            self.wrong.append(f"progress was told of {self.done} bytes of {self._size}")
        self._inside = False
        if self._cancel is not None and self.done >= self._cancel:
            raise Cancelled("enough")
