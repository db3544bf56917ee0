# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparing both ends of a transfer, all of it or the ranges that were done before.

    server has checksum-range ──► digests of blocks, local ones often known from the transfer
    checksum of the image only ─► equal: all is well; else, and
    no checksum at all ─────────► both ends are read; what both know to be zero is not

The comparison is a transfer like any other: steps, workers, pairs, and repeated where
the connection breaks. A pair compares instead of copying.

The ranges that are compared, see `Scope`:

    server's disk  |  data  |  hole  | clean  | dirty  |
    WHOLE          |========|========|========|========|   as the image reads through its chain
    MOVED          |========|                 |========|
    HELD           |   and the image is allocated here |========|   and nowhere else
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from ovirt_imageio.client import plan
from ovirt_imageio.client.comparing import ComparingPair, Differences, HashingPair
from ovirt_imageio.client.executor import Executor
from ovirt_imageio.client.hashing import Passed
from ovirt_imageio.client.patience import Patience
from ovirt_imageio.client.plan import Action, Step, Steps
from ovirt_imageio.client.progress import Counter
from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import Backend, pieces
from ovirt_imageio.common.blockruns import block_runs
from ovirt_imageio.common.buffers import borrow
from ovirt_imageio.common.checksum import BLOCK_ALIGNMENT, BlockHash, ChecksumResult, zero_digest
from ovirt_imageio.common.errors import TransferError, UnsupportedOperation
from ovirt_imageio.common.units import MiB

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend

Ranges = Iterable["tuple[int, int]"]
"""Offset and length of each range, in order."""

OpenImage = Callable[[], Backend]
"""Opens the local end once more, for another thread."""

_SHARE = 64 * MiB
"""Bytes of one comparison: a worker hashes them while the server answers the others."""


class Scope(enum.Enum):
    """The part of a transfer that can be compared."""

    WHOLE = enum.auto()
    """All of the image, as it reads through its backing files."""
    MOVED = enum.auto()
    """Ranges that were moved. The others belong to a layer below that only one of the ends shows."""
    HELD = enum.auto()
    """Ranges that were moved; the image must hold no others, where a later backing file shows."""


class VerificationFailed(TransferError):
    """Both ends of a transfer hold different data.

    Attributes:
        block: Number of the first block that differs, None if only the checksums tell.
        offset: Where it begins.
        length: Bytes of it.
    """

    def __init__(self, text: str, *, block: int | None = None, offset: int = 0, length: int = 0) -> None:
        super().__init__(text)
        self.block = block
        self.offset = offset
        self.length = length


def verify(
    remote: HttpBackend,
    open_image: OpenImage,
    passed: Passed,
    *,
    workers: int = defaults.MAX_WORKERS,
    patience: Patience | None = None,
) -> ChecksumResult:
    """Make sure that an image is what the server has, up to the image's size.

    Args:
        remote: The server's end.
        open_image: Opens the local end once more.
        passed: Digests of the blocks that were hashed on their way; it knows the size.
        workers: Connections.
        patience: How to take failures that pass, and what ends it.

    Returns:
        The block hash of the image. A disk of the same size has it, too.

    Raises:
        VerificationFailed: They differ; the first block that does is named.
        OperationCancelled: patience.cancel said so.
        ImageioError: The server failed, or refused.
    """
    patience = patience or Patience()
    with open_image() as listing:
        blocks = Steps(_block_steps(listing, passed))
    theirs = None
    if _hashes_only_all(remote, passed):
        _hash(open_image, blocks, passed, workers, patience)
        theirs = _checksum_of(remote, passed, patience)
        ours = _total(blocks, passed)
        if theirs == ours.checksum:
            return ours
    if passed.size:
        _compare(remote, open_image, blocks, passed, workers, patience)
    if theirs is not None:
        raise VerificationFailed("the image has another checksum than the server's, though each block reads the same")
    return _total(blocks, passed)


def compare(
    remote: HttpBackend,
    open_image: OpenImage,
    ranges: Ranges,
    passed: Passed,
    *,
    workers: int = defaults.MAX_WORKERS,
    patience: Patience | None = None,
) -> None:
    """Make sure that ranges of an image are what the server has.

    Args:
        remote: The server's end.
        open_image: Opens the local end once more.
        ranges: In order, without overlaps; whole blocks are compared fastest.
        passed: Digests that are known; it knows the size of image and blocks.
        workers: Connections.
        patience: How to take failures that pass, and what ends it.

    Raises:
        As verify.
    """
    patience = patience or Patience()
    with open_image() as listing:
        _compare(remote, open_image, _inside(_block_steps(listing, passed), ranges), passed, workers, patience)


def check_held(open_image: OpenImage, ranges: Ranges, size: int) -> None:
    """Make sure that an image holds certain ranges, and nothing else: there a backing file shows.

    Args:
        open_image: Opens the image, which must tell holes.
        ranges: In order, without overlaps.
        size: Bytes of the image.

    Raises:
        VerificationFailed: It holds too little or too much; the first such range is named.
    """
    with open_image() as listing:
        extents: Any = listing.extents("zero")
        steps = (Step(Action.SKIP if e.hole else Action.COPY, e.start, e.length) for e in extents)
        for step, inside in plan.overlay(steps, ranges):
            if inside is (step.action is Action.COPY):
                continue
            what = "is missing in the image: a backing file would show" if inside else "is clean, but held by the image"
            raise VerificationFailed(
                f"{step.length} bytes at {step.offset}: what the server has there {what}",
                offset=step.offset,
                length=step.length,
            )


def first_difference(remote: HttpBackend, image: Backend, offset: int, length: int) -> int | None:
    """Return the offset of the first byte of a range that both ends have different; None if there is none."""
    for start, count in pieces(offset, length):
        with borrow(count) as ours, borrow(count) as theirs:
            image.read_into(start, ours)
            remote.read_into(start, theirs)
            if bytes(ours) != bytes(theirs):
                return start + next(at for at in range(count) if ours[at] != theirs[at])
    return None


def _compare(
    remote: HttpBackend,
    open_image: OpenImage,
    steps: Iterable[Step],
    passed: Passed,
    workers: int,
    patience: Patience,
) -> None:
    """Compare blocks, or parts of them."""
    by_hash = imagesapi.FEATURE_CHECKSUM_RANGE in remote.features
    found = Differences(passed)
    executor = Executor(
        lambda: ComparingPair(remote.clone(), open_image(), found, by_hash=by_hash),
        Counter(None, 0),
        workers=workers,
        **patience.manner(),
    )
    if not by_hash:
        steps = _without_common_zeroes(steps, remote, passed, patience)
    executor.run(share for step in steps for share in _shares(step))
    if found.first is not None:
        raise _differs(found.first, passed)


def _differs(block: int, passed: Passed) -> VerificationFailed:
    start = block * passed.block_size
    length = passed.end_of_block(start) - start
    return VerificationFailed(
        f"block {block} differs from the server's: {length} bytes at {start}",
        block=block,
        offset=start,
        length=length,
    )


def _inside(steps: Iterator[Step], ranges: Ranges) -> Iterator[Step]:
    return (step for step, inside in plan.overlay(steps, ranges) if inside)


def _shares(step: Step) -> Iterator[Step]:
    """Cut a step for several workers. Zeroes are hashed without being read."""
    return plan.split(step, _SHARE if step.action is Action.COPY else defaults.ZERO_LIMIT)


def _block_steps(image: Backend, passed: Passed) -> Iterator[Step]:
    extents: Any = image.extents("zero")
    for start, stop, zero in block_runs(extents, 0, passed.size, passed.block_size):
        yield Step(Action.ZERO if zero else Action.COPY, start, stop - start)


def _without_common_zeroes(
    steps: Iterable[Step], remote: HttpBackend, passed: Passed, patience: Patience
) -> Iterator[Step]:
    """Leave out what the server knows to be zero as well."""
    listing: Any = patience.persist(lambda: remote.extents("zero", offset=0, length=passed.size), "list the extents")
    runs = block_runs(listing, 0, passed.size, passed.block_size)
    zeroes = [(start, stop - start) for start, stop, zero in runs if zero]
    for step, inside in plan.overlay(steps, zeroes):
        if not (inside and step.action is Action.ZERO):
            yield step


def _hash(open_image: OpenImage, blocks: Iterable[Step], passed: Passed, workers: int, patience: Patience) -> None:
    """Hash the blocks that are not known yet."""
    hashing = Executor(
        lambda: HashingPair(open_image(), passed), Counter(None, 0), workers=workers, **patience.manner()
    )
    hashing.run(share for step in blocks if step.action is Action.COPY for share in _shares(step))


def _total(blocks: Iterable[Step], passed: Passed) -> ChecksumResult:
    """The block hash of an image whose blocks are all known."""
    total = BlockHash(passed.algorithm, passed.block_size)
    for step in blocks:
        for start, length in pieces(step.offset, step.length, passed.block_size):
            number = start // passed.block_size
            zero = step.action is Action.ZERO
            total.add(number, zero_digest(passed.algorithm, length) if zero else passed.digests[number])
    return total.result()


def _hashes_only_all(remote: HttpBackend, passed: Passed) -> bool:
    """Tell if a server of 2.x can hash what an image has to be compared with."""
    # Of a file it hashes up to the end of the last block of 4 KiB, past the image.
    same_size = passed.size == remote.size and not passed.size % BLOCK_ALIGNMENT
    by_range = imagesapi.FEATURE_CHECKSUM_RANGE in remote.features
    return imagesapi.FEATURE_CHECKSUM in remote.features and same_size and passed.size > 0 and not by_range


def _checksum_of(remote: HttpBackend, passed: Passed, patience: Patience) -> str | None:
    """Let the server hash all of its disk; None if it cannot: some offer what they do not have."""
    algorithm, block_size = passed.algorithm, passed.block_size
    try:
        answer = patience.persist(
            lambda: remote.checksum(algorithm=algorithm, block_size=block_size), "get the checksum"
        )
    except UnsupportedOperation:
        return None
    return answer.checksum
