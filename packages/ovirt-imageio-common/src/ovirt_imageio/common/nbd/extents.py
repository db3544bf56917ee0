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

import sys
from array import array
from itertools import accumulate, repeat
from typing import Callable, Iterable, Iterator, Optional, Tuple

from ovirt_imageio.common.errors import ProtocolError
from ovirt_imageio.common.extents import DirtyExtent, E, ZeroExtent, clip, merge
from ovirt_imageio.common.nbd import wire

# Bytes of the first block status request, grown while the replies are short. The first extents come
# soon: of 512 bytes each after 2 ms, where 16 MiB took 36 to 80 ms. All of them come no later. An
# empty image of terabytes needs few requests.
FIRST_STEP = 1024**2
_FEW_EXTENTS = 4096
# Most bytes of a request. The protocol allows 4 GiB, but some servers keep the length in a signed
# number. A multiple of every minimum block, which is at most 64 KiB ("Block size constraints").
LONGEST = 2**31 - 64 * 1024

_Cuts = Iterable[Tuple[int, int, int, Optional[int]]]


def walk(
    offset: int,
    end: int,
    *,
    size: int,
    block: int,
    ask: Callable[[int, int], Iterable[E]],
    check: Callable[[], None] | None = None,
) -> Iterator[list[E]]:
    """Yield the extents of a range, in lists, by as many block status requests as it takes.

    A reply may tell less than was asked for, or more. Requests begin and end on block
    borders; what lies outside the range is cut off. Where two replies meet, neighbours of one kind
    are joined, inside of one `ask` has done so. A list may be empty. No code of ours runs for each
    extent: a million feel it.

    Args:
        offset: first byte, in bytes.
        end: past the last byte, in bytes.
        size: of the export, in bytes.
        block: requests are multiples of it, in bytes.
        ask: sends one request for (offset, length) and returns what the reply tells.
        check: called before each request; raises to send no more.

    Raises:
        ProtocolError: a reply told nothing new.
        Exception: what check raises.
    """
    return _joined(_replies(offset, end, size=size, block=block, ask=ask, check=check))


def _joined(replies: Iterable[list[E]]) -> Iterator[list[E]]:
    """Hold back the last extent of each list: the next one may go on with it."""
    held: list[E] = []
    for extents in replies:
        if held and extents:
            extents[:1] = merge([held[0], extents[0]])
        held = extents[-1:] or held
        yield extents[:-1]
    yield held


def _replies(
    offset: int,
    end: int,
    *,
    size: int,
    block: int,
    ask: Callable[[int, int], Iterable[E]],
    check: Callable[[], None] | None,
) -> Iterator[list[E]]:
    """Yield what each reply tells of a range."""
    step = FIRST_STEP
    while offset < end:
        start = _round_down(offset, block)
        length = min(step, size - start, -_round_down(start - end, block))
        if check is not None:
            check()
        found = list(ask(start, length))
        told = found[-1].start + found[-1].length if found else start
        if told <= offset:
            raise ProtocolError(f"NBD server told nothing about the extents at {offset}")
        step = min(step * 4, LONGEST) if len(found) < _FEW_EXTENTS else max(step // 2, FIRST_STEP)
        yield list(clip(found, offset, end - offset)) if start < offset or told > end else found
        offset = told


def _round_down(n: int, block: int) -> int:
    return n - n % block


def zero_extents(offset: int, length: int, *, base: bytes, depth: bytes | None = None) -> list[ZeroExtent]:
    """Return what a range reads as, merged, as far as the reply tells.

    A hole is an area that reads as zeros and is allocated at no depth of the backing
    chain. Where ``base:allocation`` alone is known nothing is called a hole. Its own
    "hole" flag only says that space is saved here, and a zero cluster in an overlay saves space too.

    Args:
        offset: where the request started, in bytes.
        length: of the request, in bytes; what the reply tells past it is ignored.
        base: runs of ``base:allocation``.
        depth: runs of ``qemu:allocation-depth``, if known.
    """
    columns = _plain_columns(length, base, depth) if depth is not None else None
    if columns is not None:
        lengths, kinds = columns
        rows = zip(accumulate(lengths, initial=offset), lengths, map(_IS_ZERO, kinds), map(_IS_HOLE, kinds))
        return list(map(tuple.__new__, repeat(ZeroExtent), rows))
    flag = wire.STATE_ZERO
    found = (
        ZeroExtent(start, size, status & flag != 0, status & flag != 0 and level == 0)
        for start, size, status, level in _overlay(offset, length, base, depth)
    )
    return list(merge(found))


# Kinds of extents as bytes: what both contexts say, joined by "and".
_ZERO, _HOLE = 1, 3
_IS_ZERO = (False, True, True, True).__getitem__
_IS_HOLE = (False, False, False, True).__getitem__
_OF_FLAGS = bytes(_HOLE if flags & wire.STATE_ZERO else 0 for flags in range(256))
_OF_LEVEL = bytes([_HOLE]) + bytes([_ZERO]) * 255
_NEIGHBOURS = tuple(bytes([kind, kind]) for kind in (0, _ZERO, _HOLE))


def _plain_columns(length: int, base: bytes, depth: bytes) -> tuple[array[int], bytes] | None:
    """Lengths and kinds, where nothing is to be cut or merged: no loop of ours.

    As qcow2 tells it. None where it is not as simple.
    """
    # The last byte of flags has all that count, the last one of a level lower than 256 is the level.
    if any(depth[i::8].strip(b"\0") for i in (4, 5, 6)):
        return None
    lengths, _ = _columns(base)
    others, _ = _columns(depth)
    if lengths != others or sum(lengths) > length:
        return None
    zero, level = base[7::8].translate(_OF_FLAGS), depth[7::8].translate(_OF_LEVEL)
    both = int.from_bytes(zero, "big") & int.from_bytes(level, "big")
    kinds = both.to_bytes(len(zero), "big")
    if any(pair in kinds for pair in _NEIGHBOURS):
        return None
    return lengths, kinds


def dirty_extents(offset: int, length: int, *, bitmap: bytes, base: bytes | None = None) -> list[DirtyExtent]:
    """Return what changed since the checkpoint, merged, as far as the reply tells.

    Args:
        offset: where the request started, in bytes.
        length: of the request, in bytes; what the reply tells past it is ignored.
        bitmap: runs of ``qemu:dirty-bitmap:NAME``.
        base: runs of ``base:allocation``; without it nothing is called zero.
    """
    changed, zero, new = wire.STATE_DIRTY, wire.STATE_ZERO, tuple.__new__
    found = (
        new(DirtyExtent, (start, size, status & changed != 0, state is not None and state & zero != 0))
        for start, size, status, state in _overlay(offset, length, bitmap, base)
    )
    return list(merge(found))


def _overlay(offset: int, length: int, first: bytes, second: bytes | None) -> _Cuts:
    """Cut two lists of runs at the borders of both: (start, length, flags, flags of the second)."""
    lengths, flags = _columns(first)
    others: Iterable[int | None] = repeat(None)
    same = True
    if second is not None:
        other_lengths, others = _columns(second)
        same = lengths == other_lengths
    if not same or not lengths or sum(lengths) > length:
        return _cut(offset, length, first, second)
    # Mostly the borders are the same, as qcow2 has them: nothing is to be cut.
    return zip(accumulate(lengths, initial=offset), lengths, flags, others)


def _columns(runs: bytes) -> tuple[array[int], array[int]]:
    """Lengths and flags."""
    numbers = array("I", runs)
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers[::2], numbers[1::2]


def _cut(offset: int, length: int, first: bytes, second: bytes | None) -> _Cuts:
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
