# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""How much of an image was moved, each byte counted once."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Progress:
    """A set of byte ranges, merged. One thread.

        starts   0        200
        ends       100         250
                 |###|....|####|

    Sequential work keeps it at one range. 16 bytes a range, so that random writes all over
    an image stay affordable.

    Attributes:
        total: Bytes in the set.
    """

    __slots__ = ("_ends", "_starts", "total")

    def __init__(self) -> None:
        self.total = 0
        self._starts = array("q")
        self._ends = array("q")

    def __len__(self) -> int:
        """Return the number of separate ranges."""
        return len(self._starts)

    def add(self, offset: int, length: int) -> None:
        """Add a range, in bytes. Bytes that are there already do not count again."""
        if length <= 0:
            return
        starts, ends, end = self._starts, self._ends, offset + length
        # Ranges first to last - 1 touch or overlap the new one.
        first = bisect_left(ends, offset)
        last = bisect_right(starts, end, first)
        if first == last:
            starts.insert(first, offset)
            ends.insert(first, end)
            self.total += length
            return
        known = sum(ends[i] - starts[i] for i in range(first, last))
        offset, end = min(offset, starts[first]), max(end, ends[last - 1])
        starts[first], ends[first] = offset, end
        if last - first > 1:
            del starts[first + 1 : last], ends[first + 1 : last]
        self.total += end - offset - known

    def total_with(self, ranges: Iterable[tuple[int, int]]) -> int:
        """Return the total as if (offset, length) ranges were added too."""
        # A thousand clients may be reading the same: that is one range.
        longest: dict[int, int] = {}
        for offset, length in ranges:
            if length > longest.get(offset, 0):
                longest[offset] = length
        running = Progress()
        for offset, length in longest.items():
            running.add(offset, length)
        new = sum(end - start - self._covered(start, end) for start, end in zip(running._starts, running._ends))
        return self.total + new

    def _covered(self, start: int, end: int) -> int:
        """Bytes of a range that the set holds."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end, first)
        return sum(min(end, self._ends[i]) - max(start, self._starts[i]) for i in range(first, last))
