# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of the client's disk."""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import NamedTuple

from .dice import Dice


class DiskTrouble(NamedTuple):
    """How often the disk fails.

    Attributes:
        read: Probability of EIO for a read.
        write: Probability of EIO for a write.
        sync: Probability of EIO for an fsync: what it should have covered is lost at a crash.
        short: Probability that a write takes less than all.
    """

    read: float = 0.0
    write: float = 0.0
    sync: float = 0.0
    short: float = 0.0


class DiskFaults:
    """Decides for each call if it fails.

    Args:
        dice: By which.
        counts: Told what failed.

    Attributes:
        trouble: How often.
        failed: Kinds of calls that failed at any time.
    """

    def __init__(self, dice: Dice, counts: Counter[str]) -> None:
        self._dice = dice
        self._counts = counts
        self.trouble = DiskTrouble()
        self.failed: set[str] = set()

    def before(self, kind: str, path: str) -> None:
        """Raise if this call fails.

        Args:
            kind: `read`, `write` or `sync`.
            path: Of the file.
        """
        probability = getattr(self.trouble, kind)
        if probability and self._dice.chance(probability):
            self.note(kind)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def short(self, count: int, path: str) -> int:
        """Return how many bytes of a write are taken."""
        if count > 1 and self.trouble.short and self._dice.chance(self.trouble.short):
            self.note("short")
            return self._dice.between(1, count - 1)
        return count

    def note(self, kind: str) -> None:
        """Count a failure."""
        self._counts[f"disk: {kind}"] += 1
        self.failed.add(kind)
