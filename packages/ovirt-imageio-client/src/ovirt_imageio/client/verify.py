# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Comparing both ends of a transfer, all of it or the ranges that were done before.

    server has checksum-range     digests of blocks, local ones often known from the transfer
    checksum of the image only    equal: all is well; else, and
    no checksum at all            both ends are read; what both know to be zero is not

The comparison is a transfer like any other: steps, workers, pairs, and repeated where
the connection breaks. A pair compares instead of copying.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

from ovirt_imageio.client import plan
from ovirt_imageio.client.executor import Executor, Pair, Retry, persist
from ovirt_imageio.client.hashing import Passed
from ovirt_imageio.client.pairs import interrupt
from ovirt_imageio.client.plan import Action, Step
from ovirt_imageio.client.progress import Counter
from ovirt_imageio.common import defaults, imagesapi
from ovirt_imageio.common.backends.base import Backend, Operation, pieces
from ovirt_imageio.common.buffers import borrow, is_zero
from ovirt_imageio.common.checksum import (
    BLOCK_ALIGNMENT,
    DEFAULT_ALGORITHM,
    DEFAULT_BLOCK_SIZE,
    BlockDigest,
    BlockHash,
    ChecksumResult,
    block_runs,
    checksum,
    zero_digest,
)
from ovirt_imageio.common.errors import ProtocolError, TransferError
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


def local_checksum(
    open_image: OpenImage,
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
    algorithm: str = DEFAULT_ALGORITHM,
    blocks: bool = False,
    threads: int = defaults.MAX_WORKERS,
) -> ChecksumResult:
    """Hash an image on this machine.

    Args:
        open_image: Opens the image once more.
        block_size: Bytes of a block.
        algorithm: One of `checksum.algorithms()`.
        blocks: The digests of the blocks are wanted as well.
        threads: Threads that hash.

    Raises:
        ValueError: An argument makes no sense.
        What the image raises.
    """
    with ExitStack() as stack:
        listing = stack.enter_context(open_image())
        sources = [stack.enter_context(open_image()) for _ in range(threads)]
        extents: Any = listing.extents("zero")
        return checksum(sources, extents=extents, block_size=block_size, algorithm=algorithm, blocks=blocks)


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
    if by_block or not whole:
        compare(remote, open_image, [(0, passed.size)], passed, workers=workers, retry=retry)
    elif not _same_checksum(remote, open_image, passed, workers):
        compare(remote, open_image, [(0, passed.size)], passed, workers=workers, retry=retry)
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
    found = _Differences(passed)
    executor = Executor(
        lambda: _ComparingPair(remote.clone(), open_image(), found, by_hash=by_hash),
        Counter(None, 0),
        workers=workers,
        retry=retry,
    )
    with open_image() as listing:
        steps = _inside(_block_steps(listing, passed), ranges)
        if not by_hash:
            steps = _without_common_zeroes(steps, remote, passed)
        executor.run(share for step in steps for share in _shares(step))
    found.report()


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


def _same_checksum(remote: HttpBackend, open_image: OpenImage, passed: Passed, workers: int) -> bool:
    """Compare the checksum of the whole image; blocks that are not known are hashed."""
    hashing = Executor(lambda: _HashingPair(open_image(), passed), Counter(None, 0), workers=workers)
    total = BlockHash(passed.algorithm, passed.block_size)
    with open_image() as listing:
        steps = list(_block_steps(listing, passed))
    hashing.run(share for step in steps if step.action is Action.COPY for share in _shares(step))
    for step in steps:
        for start, length in pieces(step.offset, step.length, passed.block_size):
            zero = step.action is Action.ZERO
            digest = zero_digest(passed.algorithm, length) if zero else passed.digests[start // passed.block_size]
            total.add(start // passed.block_size, digest)
    answer = persist(
        lambda: remote.checksum(algorithm=passed.algorithm, block_size=passed.block_size), "get the checksum"
    )
    return answer.checksum == total.digest().hex()


class _HashingPair(Pair):
    """Hashes blocks of the local end that are not known."""

    def __init__(self, image: Backend, passed: Passed) -> None:
        self.image = image
        self.passed = passed
        self.unit = passed.block_size

    def copy(self, offset: int, length: int, op: Operation) -> None:
        """Hash a range of blocks."""
        for start, count in pieces(offset, length, self.passed.block_size):
            if start // self.passed.block_size not in self.passed.digests:
                self._hash(start, count, op)

    def zero(self, offset: int, length: int) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """See Pair."""
        self.image.close()

    def _hash(self, offset: int, length: int, op: Operation) -> None:
        digest = BlockDigest(self.passed.algorithm)
        with borrow(min(length, defaults.PIECE)) as view:
            for start, count in pieces(offset, length, len(view)):
                op.check()
                self.image.read_into(start, view[:count])
                digest.update(view[:count])
        self.passed.digests[offset // self.passed.block_size] = digest.digest()


class _Differences:
    """What several workers found to differ: the first counts."""

    def __init__(self, passed: Passed) -> None:
        self.passed = passed
        self._lock = threading.Lock()
        self._first: int | None = None

    def add(self, block: int) -> None:
        """Take note of a block that differs."""
        with self._lock:
            if self._first is None or block < self._first:
                self._first = block

    def matter(self, block: int) -> bool:
        """Tell if a block could be the first that differs."""
        return self._first is None or block < self._first

    def report(self) -> None:
        """Raise if there are any."""
        if self._first is not None:
            start = self._first * self.passed.block_size
            length = self.passed.end_of_block(start) - start
            raise VerificationFailed(
                f"block {self._first} differs from the server's: {length} bytes at {start}",
                block=self._first,
                offset=start,
                length=length,
            )


class _ComparingPair(_HashingPair):
    """Compares a range of both ends; nothing is moved or changed."""

    def __init__(self, remote: HttpBackend, image: Backend, found: _Differences, *, by_hash: bool) -> None:
        super().__init__(image, found.passed)
        self._remote = remote
        self._found = found
        self._by_hash = by_hash

    def copy(self, offset: int, length: int, op: Operation) -> None:
        """Compare a range."""
        if not self._found.matter(offset // self.passed.block_size):
            return
        start, stop = self._whole_blocks(offset, offset + length)
        if start < stop:
            super().copy(start, stop - start, op)
            self._compare_digests(start, stop, self.passed.digests.__getitem__)
        for at, count in self._rest(offset, offset + length, start, stop):
            op.check()
            self._compare_bytes(at, count)

    def zero(self, offset: int, length: int) -> None:
        """Make sure that a range is zero at the server."""
        if not self._found.matter(offset // self.passed.block_size):
            return
        start, stop = self._whole_blocks(offset, offset + length)
        if start < stop:
            self._compare_digests(start, stop, self._zero_digest)
        for at, count in self._rest(offset, offset + length, start, stop):
            with borrow(count) as view:
                self._remote.read_into(at, view)
                if not is_zero(view):
                    self._found.add(at // self.passed.block_size)

    def close(self) -> None:
        """See Pair."""
        try:
            self._remote.close()
        finally:
            super().close()

    def interrupt(self) -> None:
        """See Pair."""
        interrupt(self._remote, self.image)

    def _whole_blocks(self, offset: int, end: int) -> tuple[int, int]:
        """The part of a range that the server can hash: whole blocks of its own image."""
        if not self._by_hash:
            return offset, offset
        block_size = self.passed.block_size
        start = -(-offset // block_size) * block_size
        return start, end if end == self._remote.size else end // block_size * block_size

    def _rest(self, offset: int, end: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """What of a range is not hashed, in pieces that do not cross a block's end."""
        if start >= stop:
            start = stop = end
        for first, last in ((offset, start), (stop, end)):
            yield from pieces(first, last - first, defaults.PIECE, align=defaults.PIECE)

    def _zero_digest(self, block: int) -> bytes:
        start = block * self.passed.block_size
        return zero_digest(self.passed.algorithm, self.passed.end_of_block(start) - start)

    def _compare_digests(self, start: int, stop: int, ours: Callable[[int], bytes]) -> None:
        passed = self.passed
        answer = self._remote.checksum(
            algorithm=passed.algorithm, block_size=passed.block_size, offset=start, length=stop - start, blocks=True
        )
        theirs = answer.blocks or ()
        numbers = range(start // passed.block_size, -(-stop // passed.block_size))
        if len(theirs) != len(numbers):
            raise ProtocolError(f"the server hashed {len(theirs)} blocks, expected {len(numbers)}")
        for number, their in zip(numbers, theirs):
            if ours(number).hex() != their:
                self._found.add(number)
                return

    def _compare_bytes(self, offset: int, length: int) -> None:
        if not self._found.matter(offset // self.passed.block_size):
            return
        with borrow(length) as ours, borrow(length) as theirs:
            self.image.read_into(offset, ours)
            self._remote.read_into(offset, theirs)
            if bytes(ours) != bytes(theirs):  # memory views compare byte by byte
                self._found.add(offset // self.passed.block_size)
