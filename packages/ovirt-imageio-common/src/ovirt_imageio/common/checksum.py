# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The block hash of an image: a digest of the digests of its blocks.

    image     | block 0 | block 1 | zero    | zero    | last |
    digests   | d(0)    | d(1)    | d(zero) | d(zero) | d(n) |
    checksum  digest of all of them, one behind the other

Blocks are hashed side by side, for hashlib releases the GIL, and their digests are
combined in order. A zero block has the digest of so many zero bytes, which is known
without reading it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from queue import SimpleQueue
from typing import Any, Iterable, Iterator, NamedTuple, Protocol, Sequence

from ovirt_imageio.common.buffers import Buffer, aligned, is_zero
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import KiB, MiB

DEFAULT_ALGORITHM = "blake2b"
DEFAULT_BLOCK_SIZE = 4 * MiB
MIN_BLOCK_SIZE = 1 * MiB
MAX_BLOCK_SIZE = 16 * MiB
BLOCK_ALIGNMENT = 4 * KiB

_BLAKE2_DIGEST_SIZE = 32


class Source(Protocol):
    """What blocks are read from, such as a backend. One thread uses it at a time."""

    def read_into(self, offset: int, buf: Buffer) -> None:
        """Fill buf from offset on."""


class Watch(Protocol):
    """An operation that may be cancelled."""

    def check(self) -> None:
        """Raise if it was."""

    def advance(self, n: int) -> None:
        """Count n more bytes, read or known to be zero."""


class Checksum(NamedTuple):
    """The block hash of a range.

    Attributes:
        algorithm: Name for hashlib.
        block_size: Bytes of a block; the last one may be short.
        checksum: Digest of the digests, in hexadecimal.
        blocks: Digests of the blocks, in hexadecimal; None if not asked for.
    """

    algorithm: str
    block_size: int
    checksum: str
    blocks: tuple[str, ...] | None


@cache
def algorithms() -> tuple[str, ...]:
    """The names of the algorithms of fixed digest length that work on this machine."""
    return tuple(sorted(name for name in hashlib.algorithms_guaranteed if _works(name)))


def _works(name: str) -> bool:
    if name.startswith("shake"):
        return False  # of any length
    try:
        hashlib.new(name)
    except ValueError:  # the system's policy forbids it
        return False
    return True


def new_digest(algorithm: str, data: Buffer = b"") -> Any:
    """A hashlib object, of 32 bytes for blake2b and blake2s."""
    if algorithm in ("blake2b", "blake2s"):
        return getattr(hashlib, algorithm)(data, digest_size=_BLAKE2_DIGEST_SIZE)
    return hashlib.new(algorithm, data)


def check_arguments(algorithm: str, block_size: int) -> None:
    """Refuse what cannot be computed.

    Raises:
        ValueError: It names the argument, its value, and what is expected.
    """
    if algorithm not in algorithms():
        raise ValueError(f"unsupported checksum algorithm {algorithm!r}: expected one of {', '.join(algorithms())}")
    if not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size % BLOCK_ALIGNMENT:
        raise ValueError(
            f"invalid block_size {block_size}: expected a multiple of {BLOCK_ALIGNMENT} "
            f"from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
        )


class BlockHash:
    """Combines the digests of blocks, in order. One thread.

    Args:
        algorithm: One of `algorithms()`.
        block_size: Bytes of a block.
        keep: Keep the digests of the blocks for the result.
    """

    def __init__(
        self,
        algorithm: str = DEFAULT_ALGORITHM,
        block_size: int = DEFAULT_BLOCK_SIZE,
        *,
        keep: bool = False,
    ) -> None:
        check_arguments(algorithm, block_size)
        self.algorithm = algorithm
        self.block_size = block_size
        self._all = new_digest(algorithm)
        self._blocks: list[str] | None = [] if keep else None

    def block_digest(self, data: Buffer) -> bytes:
        """The digest of one block. Any thread may call this."""
        if is_zero(data):
            with memoryview(data) as view:
                return zero_digest(self.algorithm, view.nbytes)
        return bytes(new_digest(self.algorithm, data).digest())

    def add(self, digest: bytes, count: int = 1) -> None:
        """Append the digest of one block, or of some equal ones."""
        self._all.update(digest * count)
        if self._blocks is not None:
            self._blocks.extend([digest.hex()] * count)

    def result(self) -> Checksum:
        """The block hash of what was added."""
        blocks = None if self._blocks is None else tuple(self._blocks)
        return Checksum(self.algorithm, self.block_size, self._all.hexdigest(), blocks)


@lru_cache(maxsize=32)
def zero_digest(algorithm: str, length: int) -> bytes:
    """The digest of so many zero bytes."""
    digest = new_digest(algorithm)
    step = bytes(min(length, MIN_BLOCK_SIZE)) if length else b""
    for _ in range(length // len(step) if step else 0):
        digest.update(step)
    if step:
        digest.update(step[: length % len(step)])
    return bytes(digest.digest())


def checksum(
    sources: Sequence[Source],
    length: int,
    extents: Iterable[ZeroExtent],
    op: Watch,
    *,
    offset: int = 0,
    algorithm: str = DEFAULT_ALGORITHM,
    block_size: int = DEFAULT_BLOCK_SIZE,
    blocks: bool = False,
) -> Checksum:
    """Compute the block hash of a range of an image.

    Args:
        sources: Open instances of the image; each is used by a thread of its own.
        length: Bytes of the range.
        extents: That cover the range; zero ones are not read. They may be lazy and
            come from the first source: it is not read from meanwhile.
        op: Asked between blocks if to go on.
        offset: Start of the range, a multiple of block_size.
        algorithm: One of `algorithms()`.
        block_size: Bytes of a block.
        blocks: The digests of the blocks are wanted as well.

    Raises:
        ValueError: An argument is not valid.
        What the sources and op raise.
    """
    if offset % block_size:
        raise ValueError(f"invalid offset {offset}: expected a multiple of {block_size}")
    total = BlockHash(algorithm, block_size, keep=blocks)
    runs = _block_runs(extents, offset, offset + length, block_size)
    if len(sources) == 1:
        _serial(sources[0], runs, total, op)
    else:
        _parallel(sources, runs, total, op)
    return total.result()


def _block_runs(
    extents: Iterable[ZeroExtent], offset: int, end: int, block_size: int
) -> Iterator[tuple[int, int, bool]]:
    """Cut a range where whole zero blocks begin and end: start, stop, zero."""
    position = offset
    for start, stop in _zero_runs(extents):
        first = max(-(-start // block_size) * block_size, position)
        last = end if stop >= end else stop // block_size * block_size
        if first < last:
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


def _add_zero_run(total: BlockHash, start: int, stop: int, op: Watch) -> None:
    whole, rest = divmod(stop - start, total.block_size)
    if whole:
        total.add(zero_digest(total.algorithm, total.block_size), whole)
    if rest:
        total.add(zero_digest(total.algorithm, rest))
    op.advance(stop - start)


def _serial(source: Source, runs: Iterable[tuple[int, int, bool]], total: BlockHash, op: Watch) -> None:
    view = memoryview(aligned(total.block_size))
    # The extents may come from the same source, so they are all taken before it is read.
    for start, stop, zero in list(runs):
        op.check()
        if zero:
            _add_zero_run(total, start, stop, op)
            continue
        for at in range(start, stop, total.block_size):
            op.check()
            count = min(total.block_size, stop - at)
            source.read_into(at, view[:count])
            total.add(total.block_digest(view[:count]))
            op.advance(count)


def _parallel(sources: Sequence[Source], runs: Iterable[tuple[int, int, bool]], total: BlockHash, op: Watch) -> None:
    """Hash in threads and combine in order, a bounded number of blocks ahead."""
    idle: SimpleQueue[tuple[Source, memoryview]] = SimpleQueue()
    for source in sources:
        idle.put((source, memoryview(aligned(total.block_size))))

    def work(at: int, count: int) -> bytes:
        source, view = idle.get()
        try:
            source.read_into(at, view[:count])
            return total.block_digest(view[:count])
        finally:
            idle.put((source, view))

    flying: deque[tuple[Future[bytes], int]] = deque()
    with ThreadPoolExecutor(len(sources), "checksum") as threads:
        try:
            for start, stop, zero in list(runs):
                if zero:
                    _land(flying, total, op, 0)
                    op.check()
                    _add_zero_run(total, start, stop, op)
                    continue
                for at in range(start, stop, total.block_size):
                    count = min(total.block_size, stop - at)
                    flying.append((threads.submit(work, at, count), count))
                    _land(flying, total, op, 2 * len(sources))
            _land(flying, total, op, 0)
        except BaseException:
            for future, _ in flying:
                future.cancel()
            raise


def _land(flying: deque[tuple[Future[bytes], int]], total: BlockHash, op: Watch, limit: int) -> None:
    """Add digests in order until no more than limit blocks are under way."""
    while len(flying) > limit:
        op.check()
        future, count = flying.popleft()
        total.add(future.result())
        op.advance(count)
