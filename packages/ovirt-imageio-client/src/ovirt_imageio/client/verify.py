# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparing both ends of a transfer, all of it or the ranges that were done before.

    server has checksum-range     digests of blocks, local ones often known from the transfer
    checksum of the image only    equal: all is well; else, and
    no checksum, though offered   both ends are read; what both know to be zero is not

The comparison is a transfer like any other: steps, workers, pairs, and repeated where
the connection breaks. A pair compares instead of copying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from ovirt_imageio.client import plan
from ovirt_imageio.client.comparing import ComparingPair, Differences, HashingPair
from ovirt_imageio.client.executor import Executor, Retry, persist
from ovirt_imageio.client.hashing import Passed
from ovirt_imageio.client.plan import Action, Step
from ovirt_imageio.client.progress import Counter
from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import Backend, pieces
from ovirt_imageio.common.blockruns import block_runs
from ovirt_imageio.common.checksum import BLOCK_ALIGNMENT, BlockHash, zero_digest
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
    retry: Retry | None = None,
) -> None:
    """Make sure that an image is what the server has, up to the image's size.

    Args:
        remote: The server's end.
        open_image: Opens the local end once more.
        passed: Digests of the blocks that were hashed on their way; it knows the size.
        workers: Connections.
        retry: How to take failures that pass.

    Raises:
        VerificationFailed: They differ; the first block that does is named.
        ImageioError: The server failed, or refused.
    """
    if not passed.size:
        return
    # Servers of 2.x hash a file to the end of its last block of 4 KiB, past the image.
    same_size = passed.size == remote.size and not passed.size % BLOCK_ALIGNMENT
    whole = imagesapi.FEATURE_CHECKSUM in remote.features and same_size
    by_block = imagesapi.FEATURE_CHECKSUM_RANGE in remote.features
    same = None if by_block or not whole else _same_checksum(remote, open_image, passed, workers)
    if not same:
        compare(remote, open_image, [(0, passed.size)], passed, workers=workers, retry=retry)
    if same is False:
        raise VerificationFailed("the image has another checksum than the server's, though each block reads the same")


def compare(
    remote: HttpBackend,
    open_image: OpenImage,
    ranges: Ranges,
    passed: Passed,
    *,
    workers: int = defaults.MAX_WORKERS,
    retry: Retry | None = None,
) -> None:
    """Make sure that ranges of an image are what the server has.

    Args:
        remote: The server's end.
        open_image: Opens the local end once more.
        ranges: In order, without overlaps; whole blocks are compared fastest.
        passed: Digests that are known; it knows the size of image and blocks.
        workers: Connections.
        retry: How to take failures that pass.

    Raises:
        As verify.
    """
    by_hash = imagesapi.FEATURE_CHECKSUM_RANGE in remote.features
    found = Differences(passed)
    executor = Executor(
        lambda: ComparingPair(remote.clone(), open_image(), found, by_hash=by_hash),
        Counter(None, 0),
        workers=workers,
        retry=retry,
    )
    with open_image() as listing:
        steps = _inside(_block_steps(listing, passed), ranges)
        if not by_hash:
            steps = _without_common_zeroes(steps, remote, passed)
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
    """Cut a step for several workers. What is zero is hashed without being read."""
    return plan.split(step, _SHARE if step.action is Action.COPY else defaults.ZERO_LIMIT)


def _block_steps(image: Backend, passed: Passed) -> Iterator[Step]:
    extents: Any = image.extents("zero")
    for start, stop, zero in block_runs(extents, 0, passed.size, passed.block_size):
        yield Step(Action.ZERO if zero else Action.COPY, start, stop - start)


def _without_common_zeroes(steps: Iterator[Step], remote: HttpBackend, passed: Passed) -> Iterator[Step]:
    """Leave out what the server knows to be zero as well."""
    listing: Any = persist(lambda: remote.extents("zero", offset=0, length=passed.size), "list the extents")
    runs = block_runs(listing, 0, passed.size, passed.block_size)
    zeroes = [(start, stop - start) for start, stop, zero in runs if zero]
    for step, inside in plan.overlay(steps, zeroes):
        if not (inside and step.action is Action.ZERO):
            yield step


def _same_checksum(remote: HttpBackend, open_image: OpenImage, passed: Passed, workers: int) -> bool | None:
    """Compare the checksum of the whole image; blocks that are not known are hashed.

    Returns:
        None if the server has no checksum: some offer what they do not have.
    """
    hashing = Executor(lambda: HashingPair(open_image(), passed), Counter(None, 0), workers=workers)
    total = BlockHash(passed.algorithm, passed.block_size)
    with open_image() as listing:
        steps = list(_block_steps(listing, passed))
    hashing.run(share for step in steps if step.action is Action.COPY for share in _shares(step))
    for step in steps:
        for start, length in pieces(step.offset, step.length, passed.block_size):
            zero = step.action is Action.ZERO
            digest = zero_digest(passed.algorithm, length) if zero else passed.digests[start // passed.block_size]
            total.add(start // passed.block_size, digest)
    try:
        answer = persist(
            lambda: remote.checksum(algorithm=passed.algorithm, block_size=passed.block_size), "get the checksum"
        )
    except UnsupportedOperation:
        return None
    return answer.checksum == total.digest().hex()
