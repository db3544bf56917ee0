# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the zeroes of an image lie among the blocks that are hashed.

    zero extents  |      ===================   ==  |
    blocks        |-------|-------|-------|-------||
    runs          | data  | zero          | data   |
    gaps          |      =                =    ==  |

A run of whole zero blocks is not read at all. A gap is a zero run in a block that holds data as well.
A gap that is long enough to matter is not read either.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import Iterable, Iterator

from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import KiB

SHORTEST_GAP = 256 * KiB
"""A zero run within a block that is shorter is read: telling it from data costs as much."""
# Of those that are not read; 16 bytes each. An image may have millions, to bound memory.
_MOST_GAPS = 64 * 1024


class Gaps:
    """Zero runs that need not be read although their block holds data as well.

    block    |data |========== gap ==========|data|
    """

    def __init__(self) -> None:
        self._starts = array("q")
        self._stops = array("q")

    def note(self, start: int, stop: int) -> None:
        """Note a zero run, which comes in order, as far as memory allows."""
        if stop - start >= SHORTEST_GAP and len(self._starts) < _MOST_GAPS:
            self._starts.append(start)
            self._stops.append(stop)

    def next(self, offset: int, end: int) -> tuple[int, int]:
        """Return how many bytes follow that are data, and how many zeroes after them."""
        i = bisect_right(self._stops, offset)
        if i == len(self._starts) or self._starts[i] >= end:
            return end - offset, 0
        start = max(self._starts[i], offset)
        return start - offset, min(self._stops[i], end) - start


def block_runs(
    extents: Iterable[ZeroExtent], offset: int, end: int, block_size: int, gaps: Gaps | None = None
) -> Iterator[tuple[int, int, bool]]:
    """Cut a range where whole zero blocks begin and end: start, stop, zero. Lazy.

    Args:
        extents: Of the range or of more, in order; what is none of them counts as data.
        offset: Start of the range, a multiple of block_size.
        end: Of the range.
        block_size: Bytes of a block.
        gaps: Told of the zero runs that pass.
    """
    zeroes = _zero_runs(extents)
    if gaps is not None:
        zeroes = _noted(zeroes, gaps)
    return _cut(zeroes, offset, end, block_size)


def _noted(runs: Iterable[tuple[int, int]], gaps: Gaps) -> Iterator[tuple[int, int]]:
    """Note zero runs while they pass."""
    for start, stop in runs:
        gaps.note(start, stop)
        yield start, stop


def _cut(zeroes: Iterable[tuple[int, int]], offset: int, end: int, block_size: int) -> Iterator[tuple[int, int, bool]]:
    position = offset
    for start, stop in zeroes:
        first = max(-(-start // block_size) * block_size, position)
        last = end if stop >= end else stop // block_size * block_size
        if first >= last:
            continue
        if position < first:
            yield position, first, False
        yield first, last, True
        position = last
    if position < end:
        yield position, end, False


def _zero_runs(extents: Iterable[ZeroExtent]) -> Iterator[tuple[int, int]]:
    """Join zero extents, whatever else they are."""
    start = stop = -1
    for extent in extents:
        if not extent.zero:
            continue
        if extent.start != stop:
            if stop > start:
                yield start, stop
            start = extent.start
        stop = extent.start + extent.length
    if stop > start:
        yield start, stop
