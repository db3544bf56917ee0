# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Pairs that compare both ends instead of copying, and what they find.

A block is compared by its digest where the server has `checksum-range` and all of the block
is compared; else both ends are read.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Callable, Iterator

from ovirt_imageio.client.executor import CopyOperation, Pair
from ovirt_imageio.client.hashing import Passed
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, Operation, pieces
from ovirt_imageio.common.buffers import borrow, is_zero
from ovirt_imageio.common.checksum import BlockDigest, zero_digest
from ovirt_imageio.common.errors import ProtocolError

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend


class HashingPair(Pair):
    """Hashes blocks of the local end that are not known."""

    def __init__(self, image: Backend, passed: Passed) -> None:
        self.image = image
        self.passed = passed
        self.unit = passed.block_size

    def copy(self, offset: int, length: int, op: CopyOperation) -> None:
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


class Differences:
    """Differences that several workers found: the first counts.

    Attributes:
        passed: Digests that are known, and the sizes.
        first: Number of the first block that differs; None as long as there is none.
    """

    def __init__(self, passed: Passed) -> None:
        self.passed = passed
        self._lock = threading.Lock()
        self.first: int | None = None

    def add(self, block: int) -> None:
        """Take note of a block that differs."""
        with self._lock:
            if self.first is None or block < self.first:
                self.first = block

    def matter(self, block: int) -> bool:
        """Tell if a block could be the first that differs."""
        return self.first is None or block < self.first


class ComparingPair(HashingPair):
    """Compares a range of both ends; nothing is moved or changed."""

    def __init__(self, remote: HttpBackend, image: Backend, found: Differences, *, by_hash: bool) -> None:
        super().__init__(image, found.passed)
        self._remote = remote
        self._found = found
        self._by_hash = by_hash

    def copy(self, offset: int, length: int, op: CopyOperation) -> None:
        """Compare a range."""
        if not self._found.matter(offset // self.passed.block_size):
            return
        start, stop = self._whole_blocks(offset, offset + length)
        if start < stop:
            super().copy(start, stop - start, op)
            self._compare_digests(start, stop, self.passed.digests.__getitem__)
        for block, parts in self._rest(offset, offset + length, start, stop):
            self._compare_block(block, parts, op)

    def zero(self, offset: int, length: int) -> None:
        """Make sure that a range is zero at the server."""
        if not self._found.matter(offset // self.passed.block_size):
            return
        start, stop = self._whole_blocks(offset, offset + length)
        if start < stop:
            self._compare_digests(start, stop, self._zero_digest)
        for block, parts in self._rest(offset, offset + length, start, stop):
            if not all(self._reads_zero(at, count) for at, count in parts):
                self._found.add(block)

    def close(self) -> None:
        """See Pair."""
        try:
            self._remote.close()
        finally:
            super().close()

    def _whole_blocks(self, offset: int, end: int) -> tuple[int, int]:
        """The part of a range that the server can hash: whole blocks of its own image."""
        if not self._by_hash:
            return offset, offset
        block_size = self.passed.block_size
        start = -(-offset // block_size) * block_size
        return start, end if end == self._remote.size else end // block_size * block_size

    def _rest(self, offset: int, end: int, start: int, stop: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Blocks of a range that the server does not hash: number of each, and its pieces."""
        if start >= stop:
            start = stop = end
        block_size = self.passed.block_size
        for first, last in ((offset, start), (stop, end)):
            for at, count in pieces(first, last - first, block_size, align=block_size):
                yield at // block_size, list(pieces(at, count, defaults.PIECE, align=defaults.PIECE))

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

    def _compare_block(self, block: int, parts: list[tuple[int, int]], op: Operation) -> None:
        """Read a block, or what is asked for of it, at both ends; a whole one is hashed on its way."""
        digest = BlockDigest(self.passed.algorithm)
        for at, count in parts:
            op.check()
            if not self._found.matter(block):
                return
            with borrow(count) as ours, borrow(count) as theirs:
                self.image.read_into(at, ours)
                self._remote.read_into(at, theirs)
                if bytes(ours) != bytes(theirs):  # memory views compare byte by byte
                    self._found.add(block)
                digest.update(ours)
        start = block * self.passed.block_size
        if parts[0][0] == start and sum(parts[-1]) == self.passed.end_of_block(start):
            self.passed.digests[block] = digest.digest()

    def _reads_zero(self, offset: int, length: int) -> bool:
        with borrow(length) as view:
            self._remote.read_into(offset, view)
            return is_zero(view)
