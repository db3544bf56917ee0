# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Digests of the blocks of an image that is uploaded, taken while its data pass.

Workers move ranges in any order, and hashing has an order of its own. A digest needs its
block from the first byte to the last. So each worker follows what passes through its own
hands, and keeps the digest of every block that it saw as a whole:

    blocks    |    0    |    1    |    2    |    3    |
    worker 1  |=============|
    worker 2                    |=======================|
    known     |    0    |                   |    3    |

A block that is not known in the end is read again, see `verify`. An image that does not pass
at all is hashed by `local_checksum`.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Callable

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.checksum import (
    DEFAULT_ALGORITHM,
    DEFAULT_BLOCK_SIZE,
    BlockDigest,
    ChecksumResult,
    checksum,
)
from ovirt_imageio.common.errors import UnsupportedOperation


class Passed:
    """Digests of the blocks that passed as a whole. Any thread may use it.

    Args:
        size: Bytes of the image.
        block_size: Bytes of a block; the last one may be short.
        algorithm: Name for hashlib.

    Attributes:
        digests: By number of the block.
    """

    def __init__(self, size: int, *, block_size: int = DEFAULT_BLOCK_SIZE, algorithm: str = DEFAULT_ALGORITHM) -> None:
        self.size = size
        self.block_size = block_size
        self.algorithm = algorithm
        self.digests: dict[int, bytes] = {}

    def follow(self) -> Follower:
        """Return what watches for one worker."""
        return Follower(self)

    def end_of_block(self, offset: int) -> int:
        """Offset after the block that offset is in."""
        return min(offset - offset % self.block_size + self.block_size, self.size)


class Follower:
    """Watches what one worker moves, in the order in which it does. One thread."""

    def __init__(self, passed: Passed) -> None:
        self._passed = passed
        self._next = -1
        self._block: BlockDigest | None = None

    def saw(self, offset: int, data: Buffer) -> None:
        """Take note of bytes that were moved."""
        with memoryview(data) as raw, raw.cast("B") as view:
            done = 0
            while done < len(view):
                block, count = self._at(offset + done, len(view) - done)
                if block is not None:
                    block.update(view[done : done + count])
                done += count
                self._moved(offset + done)

    def saw_zeroes(self, offset: int, length: int) -> None:
        """Take note of bytes that read as zeroes at both ends."""
        end = offset + length
        while offset < end:
            block, count = self._at(offset, end - offset)
            if block is not None:
                block.update_zeroes(count)
            offset += count
            self._moved(offset)

    def _at(self, offset: int, length: int) -> tuple[BlockDigest | None, int]:
        """The digest that bytes at offset belong to, None if it cannot be whole; and how many."""
        passed = self._passed
        if not offset % passed.block_size:
            self._block = BlockDigest(passed.algorithm)
        elif offset != self._next:
            self._block = None
        return self._block, min(length, passed.end_of_block(offset) - offset)

    def _moved(self, offset: int) -> None:
        self._next = offset
        passed = self._passed
        if self._block is not None and (not offset % passed.block_size or offset == passed.size):
            passed.digests[(offset - 1) // passed.block_size] = self._block.digest()
            self._block = None


class Followed(Backend):
    """A local image whose data are hashed while they are read.

    It moves data through memory: bytes that a pipe takes past us cannot be hashed.

    Args:
        backend: The image; it stays open when this is closed.
        follower: Told what passes.
    """

    def __init__(self, backend: Backend, follower: Follower) -> None:
        self._backend = backend
        self._follower = follower
        self.size = backend.size
        self.capabilities = backend.capabilities

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        self._backend.read_into(offset, buf)
        self._follower.saw(offset, buf)

    def write(self, offset: int, buf: Buffer) -> None:
        """Refuse."""
        raise UnsupportedOperation("an image that is uploaded is only read")

    def zero(self, offset: int, length: int) -> None:
        """Refuse."""
        raise UnsupportedOperation("an image that is uploaded is only read")

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def close(self) -> None:
        """Leave the image open: it belongs to the pair."""


class _Cancellable:
    """An operation that a cancel ends."""

    def __init__(self, cancel: Cancel) -> None:
        self.check = cancel.check

    def advance(self, n: int) -> None:
        """Count nothing."""


def local_checksum(
    open_image: Callable[[], Backend],
    *,
    block_size: int = DEFAULT_BLOCK_SIZE,
    algorithm: str = DEFAULT_ALGORITHM,
    blocks: bool = False,
    threads: int = defaults.MAX_WORKERS,
    cancel: Cancel | None = None,
) -> ChecksumResult:
    """Hash an image on this machine.

    Args:
        open_image: Opens the image once more.
        block_size: Bytes of a block.
        algorithm: One of `checksum.algorithms()`.
        blocks: The digests of the blocks are wanted as well.
        threads: Threads that hash.
        cancel: Ends it.

    Raises:
        ValueError: An argument makes no sense.
        Exception: As the image raised it.
    """
    with ExitStack() as stack:
        listing = stack.enter_context(open_image())
        sources = [stack.enter_context(open_image()) for _ in range(threads)]
        extents: Any = listing.extents("zero")
        op = None if cancel is None else _Cancellable(cancel)
        return checksum(sources, extents=extents, op=op, block_size=block_size, algorithm=algorithm, blocks=blocks)
