# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of a transfer as a value: extents become steps. Pure.

Each extent asks for one of three things, or was done in an earlier run:

    COPY ── its bytes are read here and written there
    ZERO ── the other end is told to make the range read as zeroes
    SKIP ── the other end already has the right bytes, or shall keep its own
    DONE ── an earlier run did it, and it is as it was

    extents:  |  data          |  zero  |  data  |  zero, hole           |
    steps:    |  COPY  |  COPY |  ZERO  |  COPY  |  SKIP or ZERO         |

Long steps are cut at multiples of a limit, so that several workers share them and a
failure repeats little. Steps are made lazily, in order, and cover the image exactly.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from array import array
from typing import Callable, Iterable, Iterator, NamedTuple, TypeVar

from ovirt_imageio.common import defaults
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent
from ovirt_imageio.common.units import MiB

SHORTEST_CUT = 8 * MiB
"""At 8 MiB the cost of an HTTP request is no longer measurable."""

STEPS_PER_WORKER = 4
"""Cuts of a dense image for each worker, so that all of them end at about the same time."""


class Action(enum.IntEnum):
    """The kind of a step. Small integers, for queues hold a million of them."""

    COPY = 0
    ZERO = 1
    SKIP = 2
    DONE = 3


class Step(NamedTuple):
    """One idempotent part of a transfer: doing it again changes nothing.

    Attributes:
        action: The kind of the step.
        offset: First byte.
        length: Bytes, at least 1.
    """

    action: Action
    offset: int
    length: int

    @property
    def end(self) -> int:
        """Offset after the last byte."""
        return self.offset + self.length


class Steps:
    """Steps in little memory, 17 bytes each: there may be millions.

    Args:
        steps: The first ones.
    """

    def __init__(self, steps: Iterable[Step] = ()) -> None:
        self._actions = array("B")
        self._offsets = array("Q")
        self._lengths = array("Q")
        for step in steps:
            self.append(step)

    def append(self, step: Step) -> None:
        """Add a step."""
        self._actions.append(step.action)
        self._offsets.append(step.offset)
        self._lengths.append(step.length)

    def __len__(self) -> int:
        return len(self._actions)

    def __getitem__(self, number: int) -> Step:
        return Step(Action(self._actions[number]), self._offsets[number], self._lengths[number])

    def __iter__(self) -> Iterator[Step]:
        for number in range(len(self)):
            yield self[number]

    def digest(self) -> str:
        """Return what tells this plan from others, however its steps are cut."""
        digest = hashlib.blake2b(digest_size=16)
        last = Step(Action.SKIP, 0, 0)
        for step in self:
            if step.action is last.action and step.offset == last.end:
                last = last._replace(length=last.length + step.length)
            else:
                digest.update(_STEP.pack(*last))
                last = step
        digest.update(_STEP.pack(*last))
        return digest.hexdigest()


_STEP = struct.Struct("<BQQ")

E = TypeVar("E", ZeroExtent, DirtyExtent)


def upload_steps(
    extents: Iterable[ZeroExtent],
    *,
    disk_is_zero: bool = False,
    backing_chain: bool = True,
    copy_limit: int = defaults.EXTENT_LIMIT,
) -> Iterator[Step]:
    """Plan an upload.

    Args:
        extents: Of the source, in order.
        disk_is_zero: The disk reads as zeroes already: zero extents need no request.
        backing_chain: False when only the top image of a chain is uploaded: holes are
            what it does not hold, and leave the disk's backing chain visible. Zeroes
            that it holds hide that chain, so `disk_is_zero` has no say.
        copy_limit: Most bytes of a COPY step.
    """

    def choose(extent: ZeroExtent) -> Action:
        if extent.hole and not backing_chain:
            return Action.SKIP
        if extent.zero:
            return Action.SKIP if disk_is_zero and backing_chain else Action.ZERO
        return Action.COPY

    return _steps(extents, choose, copy_limit)


def download_steps(
    extents: Iterable[ZeroExtent],
    *,
    has_backing: bool = False,
    target_is_zero: bool = True,
    copy_limit: int = defaults.EXTENT_LIMIT,
) -> Iterator[Step]:
    """Plan the download of a whole image.

    Args:
        extents: Of the server, in order.
        has_backing: The new image has a backing file: what is a hole at the server shall
            show it, and what is zero there must hide it.
        target_is_zero: The target is new and reads as zeroes; a device does not.
        copy_limit: Most bytes of a COPY step.
    """

    def choose(extent: ZeroExtent) -> Action:
        if has_backing:
            if extent.hole:
                return Action.SKIP
            return Action.ZERO if extent.zero else Action.COPY
        if extent.zero:
            return Action.SKIP if target_is_zero else Action.ZERO
        return Action.COPY

    return _steps(extents, choose, copy_limit)


def incremental_steps(
    extents: Iterable[DirtyExtent], *, cluster: int | None = None, copy_limit: int = defaults.EXTENT_LIMIT
) -> Iterator[Step]:
    """Plan the download of what changed since a checkpoint.

    Clean ranges stay unallocated; ranges that changed to zeroes must hide the backing
    file.

    Args:
        extents: Dirty extents of the server, in order.
        cluster: Bytes that the new image takes whole from itself or a backing file, if it gets
            its backing file later; see `whole_clusters`.
        copy_limit: Most bytes of a COPY step.
    """
    if cluster is not None:
        extents = whole_clusters(extents, cluster)

    def choose(extent: DirtyExtent) -> Action:
        if not extent.dirty:
            return Action.SKIP
        return Action.ZERO if extent.zero else Action.COPY

    return _steps(extents, choose, copy_limit)


def whole_clusters(extents: Iterable[DirtyExtent], cluster: int) -> Iterator[DirtyExtent]:
    """Count as dirty what is clean in a cluster that is dirty elsewhere.

    An image without a backing file has zeroes in the rest of a cluster that is written in part.
    A backing file that it gets later does not show there. A bitmap may be finer than that.

    extents   |  clean      | dirty |  clean            |
    clusters  |         |         |         |         |
    result    |  clean  |  dirty            |  clean  |

    Args:
        extents: In order. Of a clean range the server sends what it sends of any.
        cluster: Bytes, counted from the start of the image.
    """
    ahead = _clean_joined(extents)
    extent = next(ahead, None)
    while extent is not None:
        after = next(ahead, None)
        if extent.dirty:
            yield extent
        else:
            yield from _clean_clusters(extent, cluster, is_last=after is None)
        extent = after


def _clean_clusters(extent: DirtyExtent, cluster: int, *, is_last: bool) -> Iterator[DirtyExtent]:
    """Cut a clean extent between dirty ones where whole clusters begin and end."""
    end = extent.start + extent.length
    first = min(-(-extent.start // cluster) * cluster, end)
    last = end if is_last else max(first, end // cluster * cluster)
    for start, stop, dirty in ((extent.start, first, True), (first, last, False), (last, end, True)):
        if stop > start:
            yield DirtyExtent(start, stop - start, dirty, zero=False)


def _clean_joined(extents: Iterable[DirtyExtent]) -> Iterator[DirtyExtent]:
    """One extent for clean neighbours. Whether they are zero does not matter."""
    clean: DirtyExtent | None = None
    for extent in extents:
        if not extent.length:
            continue
        if clean is not None and not extent.dirty:
            clean = clean._replace(length=clean.length + extent.length)
            continue
        if clean is not None:
            yield clean
        clean = None if extent.dirty else extent
        if extent.dirty:
            yield extent
    if clean is not None:
        yield clean


def copy_limit(size: int, workers: int) -> int:
    """Choose how many bytes one COPY step may have.

    Args:
        size: Bytes of the image.
        workers: Workers that share the steps.

    Returns:
        A multiple of 1 MiB from SHORTEST_CUT to `defaults.EXTENT_LIMIT`.
    """
    share = size // (max(workers, 1) * STEPS_PER_WORKER)
    whole = -(-share // MiB) * MiB
    return min(max(whole, SHORTEST_CUT), defaults.EXTENT_LIMIT)


def split(step: Step, limit: int) -> Iterator[Step]:
    """Cut a step at multiples of limit. A step without work stays whole."""
    if step.action in (Action.SKIP, Action.DONE):
        yield step
        return
    offset = step.offset
    while offset < step.end:
        end = min(step.end, offset - offset % limit + limit)
        yield Step(step.action, offset, end - offset)
        offset = end


def resumed(steps: Iterable[Step], done: Iterable[tuple[int, int]]) -> Iterator[Step]:
    """Leave out of a plan what an earlier run did.

    Args:
        steps: In order.
        done: Offset and length of each range, in order, without overlaps.
    """
    for step, inside in overlay(steps, done):
        yield step._replace(action=Action.DONE) if inside else step


def overlay(steps: Iterable[Step], ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[Step, bool]]:
    """Cut steps where ranges begin and end, and tell which parts are inside one.

    steps    |  COPY            |  ZERO      |  COPY       |
    ranges          |==================|  |==|
    result   | COPY |  COPY in  | in   |ZERO |in| COPY     |

    Args:
        steps: In order.
        ranges: Offset and length of each, in order, without overlaps.
    """
    ahead = iter(ranges)
    start, stop = next(ahead, _NOWHERE)
    stop += start
    for step in steps:
        offset = step.offset
        while offset < step.end:
            while stop <= offset:
                start, stop = next(ahead, _NOWHERE)
                stop += start
            inside = start <= offset
            end = min(step.end, stop if inside else start)
            yield Step(step.action, offset, end - offset), inside
            offset = end


_NOWHERE = (1 << 64, 1)


def _steps(extents: Iterable[E], choose: Callable[[E], Action], limit: int) -> Iterator[Step]:
    for step in _joined(extents, choose):
        yield from split(step, limit if step.action is Action.COPY else defaults.ZERO_LIMIT)


def _joined(extents: Iterable[E], choose: Callable[[E], Action]) -> Iterator[Step]:
    """One step for neighbours that ask for the same."""
    last: Step | None = None
    for extent in extents:
        if not extent.length:
            continue
        action = choose(extent)
        if last is not None and last.action is action:
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = Step(action, extent.start, extent.length)
    if last is not None:
        yield last
