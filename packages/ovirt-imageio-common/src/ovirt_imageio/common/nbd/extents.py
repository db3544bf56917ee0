# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""From NBD block status to extents, as pure functions.

A reply holds runs of (length, flags) for each context. They start together but end
where each context likes, and their borders differ::

    base:allocation        |  data  |      zero      |  data ....  past the request
    qemu:allocation-depth  |     1      |  0  |   1   |
    extents                |  data  | z | z+h |  z   |             as far as all tell

Source: NBD proto.md, "Metadata querying", "base:allocation"; qemu docs/interop/nbd.rst.
"""

from __future__ import annotations

from typing import Callable, Iterator

from ovirt_imageio.common.errors import ProtocolError
from ovirt_imageio.common.extents import DirtyExtent, E, ZeroExtent
from ovirt_imageio.common.nbd import wire

# First block status request, grown while the replies are short: the first extents come soon, and an
# empty image of terabytes needs few requests.
FIRST_STEP = 128 * 1024**2
_FEW_EXTENTS = 4096


def walk(offset: int, end: int, *, size: int, block: int, ask: Callable[[int, int], Iterator[E]]) -> Iterator[E]:
    """Yield the extents of a range by as many block status requests as it takes.

    A reply may tell less than was asked for, or more. Requests begin and end on block
    borders; what lies outside the range is cut off. Nothing is merged.

    Args:
        offset: first byte, in bytes.
        end: past the last byte, in bytes.
        size: of the export, in bytes.
        block: requests are multiples of it, in bytes.
        ask: sends one request for (offset, length) and returns what the reply tells.

    Raises:
        ProtocolError: a reply told nothing new.
    """
    longest = _round_down(wire.MAX_LENGTH, block)
    step = FIRST_STEP
    while offset < end:
        start = _round_down(offset, block)
        length = min(step, size - start, -_round_down(start - end, block))
        count, told = 0, start
        for extent in ask(start, length):
            count += 1
            told = extent.start + extent.length
            if told > offset:
                first = max(extent.start, offset)
                yield extent._replace(start=first, length=min(told, end) - first)
        if told <= offset:
            raise ProtocolError(f"NBD server told nothing about the extents at {offset}")
        offset = told
        step = min(step * 2, longest) if count < _FEW_EXTENTS else max(step // 2, FIRST_STEP)


def _round_down(n: int, block: int) -> int:
    return n - n % block


def zero_extents(offset: int, length: int, *, base: bytes, depth: bytes | None = None) -> Iterator[ZeroExtent]:
    """Yield what a range reads as, as far as the reply tells.

    A hole is an area that reads as zeros and is allocated at no depth of the backing
    chain. Where ``base:allocation`` alone is known nothing is called a hole: its own
    "hole" flag only says that space is saved here, which a zero cluster in an overlay does as well.

    Args:
        offset: where the request started, in bytes.
        length: of the request, in bytes; what the reply tells past it is ignored.
        base: runs of ``base:allocation``.
        depth: runs of ``qemu:allocation-depth``, if known.
    """
    for start, size, status, level in _overlay(offset, length, base, depth):
        zero = bool(status & wire.STATE_ZERO)
        yield ZeroExtent(start, size, zero, zero and level == 0)


def dirty_extents(offset: int, length: int, *, bitmap: bytes, base: bytes | None = None) -> Iterator[DirtyExtent]:
    """Yield what changed since the checkpoint, as far as the reply tells.

    Args:
        offset: where the request started, in bytes.
        length: of the request, in bytes; what the reply tells past it is ignored.
        bitmap: runs of ``qemu:dirty-bitmap:NAME``.
        base: runs of ``base:allocation``; without it nothing is called zero.
    """
    for start, size, status, state in _overlay(offset, length, bitmap, base):
        zero = state is not None and bool(state & wire.STATE_ZERO)
        yield DirtyExtent(start, size, bool(status & wire.STATE_DIRTY), zero)


def _overlay(
    offset: int, length: int, first: bytes, second: bytes | None
) -> Iterator[tuple[int, int, int, int | None]]:
    """Cut two lists of runs at the borders of both: (start, length, flags, flags of the second)."""
    end = offset + length
    left: Iterator[tuple[int, int]] = wire.STATUS_EXTENT.iter_unpack(first)
    right: Iterator[tuple[int, int | None]] = iter([(length, None)])
    if second is not None:
        right = wire.STATUS_EXTENT.iter_unpack(second)
    left_size = right_size = 0
    left_flags, right_flags = 0, None
    while offset < end:
        if not left_size:
            left_size, left_flags = next(left, (0, 0))
        if not right_size:
            right_size, right_flags = next(right, (0, None))
        size = min(left_size, right_size, end - offset)
        if not size:
            return
        yield offset, size, left_flags, right_flags
        offset += size
        left_size -= size
        right_size -= size
