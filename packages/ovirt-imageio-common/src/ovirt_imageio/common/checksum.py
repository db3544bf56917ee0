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

import functools
import hashlib
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Protocol, Sequence

from ovirt_imageio.common import defaults
from ovirt_imageio.common.blockruns import SHORTEST_GAP, Gaps, block_runs
from ovirt_imageio.common.buffers import Buffer, borrow, is_zero
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import KiB, MiB

DEFAULT_ALGORITHM = "blake2b"
DEFAULT_BLOCK_SIZE = 4 * MiB
MIN_BLOCK_SIZE = 1 * MiB
MAX_BLOCK_SIZE = 16 * MiB
BLOCK_ALIGNMENT = 4 * KiB

_DIGEST_SIZES = {"blake2b": 32, "blake2s": 32}
"""Digests shorter than the algorithm's own, as the contract says."""

_ZEROES = bytes(1 * MiB)

_SHORT = 128 * KiB
"""Blocks up to this are hashed by one thread: handing one over costs as much as hashing it."""


class Source(Protocol):
    """Storage that blocks are read from, such as a backend. One thread uses it at a time."""

    @property
    def size(self) -> int:
        """Bytes of the image."""

    def read_into(self, offset: int, buf: Buffer) -> None:
        """Fill buf from offset on."""


class Watch(Protocol):
    """An operation that may be cancelled; `check` is called by several threads."""

    def check(self) -> None:
        """Raise if it was cancelled."""

    def advance(self, n: int) -> None:
        """Count n more bytes, in order, hashed or known to be zero."""


class ChecksumResult(NamedTuple):
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
    blocks: tuple[str, ...] | None = None


@functools.cache
def algorithms() -> tuple[str, ...]:
    """Return the algorithms of fixed digest length that work on this machine, sorted."""
    return tuple(sorted(name for name in hashlib.algorithms_available if _works(name)))


def _works(name: str) -> bool:
    try:
        return hashlib.new(name, usedforsecurity=False).digest_size > 0
    except ValueError:
        # The system's policy forbids it, or its library no longer has it.
        return False


def check_algorithm(algorithm: str) -> None:
    """Refuse an algorithm that is unknown here.

    Raises:
        ValueError: It names the algorithm, and those that work.
    """
    if algorithm not in algorithms():
        raise ValueError(f"unsupported algorithm {algorithm[:50]!r}: expected one of {', '.join(algorithms())}")


def check_arguments(algorithm: str, block_size: int) -> None:
    """Refuse what a server computes for no client.

    Raises:
        ValueError: It names the argument, its value, and what is expected.
    """
    check_algorithm(algorithm)
    if not MIN_BLOCK_SIZE <= block_size <= MAX_BLOCK_SIZE or block_size % BLOCK_ALIGNMENT:
        raise ValueError(
            f"invalid block_size {block_size}: expected a multiple of {BLOCK_ALIGNMENT} "
            f"from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
        )


def check_range(offset: int, length: int, *, size: int, block_size: int) -> None:
    """Refuse a range that does not consist of blocks of the image.

    Args:
        offset: Start of the range, where a block starts.
        length: Bytes; the range ends where a block ends, or with the image.
        size: Bytes of the image.
        block_size: Bytes of a block.

    Raises:
        ValueError: It names the argument, its value, and what is expected.
    """
    if offset < 0 or offset % block_size:
        raise ValueError(f"invalid offset {offset}: expected a multiple of the block size {block_size}")
    if length < 0 or offset + length > size:
        raise ValueError(f"invalid length {length} at {offset}: the image has {size} bytes")
    if length % block_size and offset + length != size:
        raise ValueError(f"invalid length {length}: expected a multiple of the block size {block_size}")


def new_digest(algorithm: str) -> Any:
    """Return an empty hashlib object, of 32 bytes for blake2b and blake2s.

    A policy such as FIPS forbids algorithms for security; here they tell images apart.
    """
    if algorithm in _DIGEST_SIZES:
        return getattr(hashlib, algorithm)(digest_size=_DIGEST_SIZES[algorithm])
    return hashlib.new(algorithm, usedforsecurity=False)


@functools.lru_cache(maxsize=64)
def zero_digest(algorithm: str, length: int) -> bytes:
    """Return the digest of so many zero bytes."""
    digest = new_digest(algorithm)
    _update_with_zeroes(digest, length)
    return bytes(digest.digest())


@functools.lru_cache(maxsize=64)
def _begun_with_zeroes(algorithm: str, length: int) -> Any:
    """Return the state after so many zero bytes, to be copied."""
    digest = new_digest(algorithm)
    _update_with_zeroes(digest, length)
    return digest


def _update_with_zeroes(digest: Any, length: int) -> None:
    whole, rest = divmod(length, len(_ZEROES))
    for _ in range(whole):
        digest.update(_ZEROES)
    digest.update(memoryview(_ZEROES)[:rest])


class BlockDigest:
    """The digest of one block that comes in pieces; zero pieces are only counted.

    Args:
        algorithm: One of `algorithms()`.
    """

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._digest: Any = None
        self._zeroes = 0

    def update_zeroes(self, length: int) -> None:
        """Append so many zero bytes."""
        self._zeroes += length

    def update(self, data: Buffer) -> None:
        """Append bytes."""
        with memoryview(data) as view:
            if is_zero(view):
                self._zeroes += view.nbytes
                return
            self._catch_up()
            self._digest.update(view)

    def digest(self) -> bytes:
        """Return the digest of what came so far."""
        if self._digest is None:
            return zero_digest(self._algorithm, self._zeroes)
        self._catch_up()
        return bytes(self._digest.digest())

    def _catch_up(self) -> None:
        """Hash the zeroes that were counted; those at the start were hashed once for all blocks."""
        zeroes, self._zeroes = self._zeroes, 0
        if self._digest is None:
            whole = zeroes - zeroes % SHORTEST_GAP
            self._digest = _begun_with_zeroes(self._algorithm, whole).copy()
            zeroes -= whole
        _update_with_zeroes(self._digest, zeroes)


def block_digest(algorithm: str, data: Buffer) -> bytes:
    """Return the digest of one block. Thread-safe; hashing releases the GIL."""
    block = BlockDigest(algorithm)
    block.update(data)
    return block.digest()


class BlockHash:
    """The block hash of an image whose blocks come in any order. Thread-safe.

    Threads hash side by side. Digests wait only for those of the blocks before them, so
    memory is bounded by how far blocks overtake each other.

    Args:
        algorithm: One of `algorithms()`.
        block_size: Bytes of a block, 1 or more.
        keep: Keep the digests of the blocks for the result.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self, algorithm: str = DEFAULT_ALGORITHM, block_size: int = DEFAULT_BLOCK_SIZE, *, keep: bool = False
    ) -> None:
        check_algorithm(algorithm)
        if block_size < 1:
            raise ValueError(f"invalid block_size {block_size}: expected 1 byte or more")
        self.algorithm = algorithm
        self.block_size = block_size
        self._lock = threading.Lock()
        self._total = new_digest(algorithm)
        self._next = 0
        self._waiting: dict[int, tuple[bytes, int]] = {}
        self._blocks: list[str] | None = [] if keep else None

    def update_block(self, index: int, data: Buffer) -> None:
        """Hash the content of a block.

        Args:
            index: Of the block, from 0.
            data: All of the block; only the last one of an image is short.

        Raises:
            ValueError: data is empty or too long, or the block was given before.
        """
        with memoryview(data) as view:
            self._check_length(view.nbytes)
            self.add(index, block_digest(self.algorithm, view))

    def zero_block(self, index: int, length: int) -> None:
        """Add a block that reads as zeroes.

        Raises:
            ValueError: length is not that of a block, or the block was given before.
        """
        self._check_length(length)
        self.add(index, zero_digest(self.algorithm, length))

    def add(self, index: int, digest: bytes, count: int = 1) -> None:
        """Add the digest of a block, or of several equal ones from index on.

        Raises:
            ValueError: A block was given before.
        """
        with self._lock:
            if index < self._next or index in self._waiting:
                raise ValueError(f"block {index} was hashed before")
            self._waiting[index] = digest, count
            while self._next in self._waiting:
                first, repeat = self._waiting.pop(self._next)
                self._next += repeat
                self._total.update(first * repeat)
                if self._blocks is not None:
                    self._blocks.extend([first.hex()] * repeat)

    def digest(self) -> bytes:
        """Return the digest of the digests of all blocks.

        Raises:
            ValueError: A block is missing.
        """
        with self._lock:
            if self._waiting:
                raise ValueError(f"block {self._next} is missing, block {min(self._waiting)} was hashed")
            return bytes(self._total.digest())

    def result(self) -> ChecksumResult:
        """Return the block hash of the image.

        Raises:
            ValueError: A block is missing.
        """
        checksum = self.digest().hex()
        blocks = None if self._blocks is None else tuple(self._blocks)
        return ChecksumResult(self.algorithm, self.block_size, checksum, blocks)

    def _check_length(self, length: int) -> None:
        if not 0 < length <= self.block_size:
            raise ValueError(f"block of {length} bytes: expected 1 to {self.block_size}")


def checksum(
    sources: Sequence[Source],
    length: int | None = None,
    *,
    extents: Iterable[ZeroExtent] | None = None,
    op: Watch | None = None,
    offset: int = 0,
    algorithm: str = DEFAULT_ALGORITHM,
    block_size: int = DEFAULT_BLOCK_SIZE,
    blocks: bool = False,
    size: int | None = None,
) -> ChecksumResult:
    """Compute the block hash of an image or of some of its blocks.

    Args:
        sources: Open instances of the image, at least one; each hashes in a thread of
            its own. Memory is 1 MiB for each.
        length: Bytes of the range; None means to the end of the image.
        extents: Of the range or of more, in order: zero blocks are not read. They may be
            lazy and come from one of the sources, which is not read from before they
            end. None: everything is read.
        op: Asked between pieces if to go on, and told of every block, in order.
        offset: Start of the range, a multiple of block_size.
        algorithm: One of `algorithms()`.
        block_size: Bytes of a block, 1 or more.
        blocks: The digests of the blocks are wanted as well.
        size: Bytes of the sources that count as the image, which ends there; None means all.

    Raises:
        ValueError: An argument is not valid.
        Exception: The sources, extents or op raised it.
    """
    total = BlockHash(algorithm, block_size, keep=blocks)
    size = sources[0].size if size is None else min(size, sources[0].size)
    length = size - offset if length is None else length
    check_range(offset, length, size=size, block_size=block_size)
    watch = op or _Unwatched()
    gaps = Gaps()
    runs = list(block_runs(_watched(extents or (), watch), offset, offset + length, block_size, gaps))
    data_blocks = sum(-(-(stop - start) // block_size) for start, stop, zero in runs if not zero)
    count = 1 if block_size <= _SHORT else max(data_blocks, 1)
    _Hashing(sources[:count], total, watch, gaps).run(runs)
    return total.result()


class _Unwatched:
    def check(self) -> None: ...

    def advance(self, n: int) -> None: ...


class _Task:
    """A call that runs once, in the first thread that takes it.

    An executor that could not start a thread has queued the call all the same, for those that it has.
    """

    def __init__(self, call: Callable[[], bytes]) -> None:
        self.promise: Future[bytes] = Future()
        self._call = call
        self._free = threading.Lock()

    def run(self) -> None:
        """Run the call, unless another thread took it."""
        if not self._free.acquire(blocking=False) or not self.promise.set_running_or_notify_cancel():
            return
        try:
            self.promise.set_result(self._call())
        except BaseException as e:
            self.promise.set_exception(e)
            del self  # the error's traceback keeps this frame: all would live on in a cycle


class _Hashing:
    """Blocks on their way from several sources to one hash."""

    def __init__(self, sources: Sequence[Source], total: BlockHash, op: Watch, gaps: Gaps) -> None:
        self._gaps = gaps
        self._sources = sources
        self._total = total
        self._op = op
        self._index = 0
        self._ended = False
        self._idle: SimpleQueue[Source] = SimpleQueue()
        # Digests in order: digest or its promise, bytes of a block, blocks.
        self._flying: deque[tuple[Future[bytes] | bytes, int, int]] = deque()

    def run(self, runs: Iterable[tuple[int, int, bool]]) -> None:
        if len(self._sources) == 1:
            # Nothing to gain from a thread.
            for start, stop, zero in runs:
                self._add_zeroes(start, stop) if zero else self._hash_here(start, stop)
            self._land(0)
            return
        for source in self._sources:
            self._idle.put(source)
        with ThreadPoolExecutor(len(self._sources), "checksum") as threads:
            try:
                for start, stop, zero in runs:
                    self._add_zeroes(start, stop) if zero else self._hash_beside(threads, start, stop)
                self._land(0)
            except BaseException:
                self._ended = True
                for promise, _, _ in self._flying:
                    if isinstance(promise, Future):
                        promise.cancel()
                raise

    def _hash_here(self, start: int, stop: int) -> None:
        for at in range(start, stop, self._total.block_size):
            count = min(self._total.block_size, stop - at)
            self._flying.append((self._hash(self._sources[0], at, count), count, 1))
            self._land(0)

    def _hash_beside(self, threads: ThreadPoolExecutor, start: int, stop: int) -> None:
        for at in range(start, stop, self._total.block_size):
            count = min(self._total.block_size, stop - at)
            # One more for each source, so that none waits for us.
            self._land(2 * len(self._sources) - 1)
            task = _Task(functools.partial(self._hash_any, at, count))
            self._flying.append((task.promise, count, 1))
            try:
                threads.submit(task.run)
            except RuntimeError:  # the system starts no more threads
                task.run()

    def _hash_any(self, offset: int, length: int) -> bytes:
        source = self._idle.get()
        try:
            return self._hash(source, offset, length)
        finally:
            self._idle.put(source)

    def _hash(self, source: Source, offset: int, length: int) -> bytes:
        block = BlockDigest(self._total.algorithm)
        end = offset + length
        with borrow(min(length, defaults.PIECE)) as view:
            while offset < end and not self._ended:
                self._op.check()
                data, zeroes = self._gaps.next(offset, end)
                if data:
                    piece = view[: min(len(view), data)]
                    source.read_into(offset, piece)
                    block.update(piece)
                    offset += len(piece)
                else:
                    block.update_zeroes(zeroes)
                    offset += zeroes
        return block.digest()

    def _add_zeroes(self, start: int, stop: int) -> None:
        """Add blocks that are known to be zero."""
        whole, rest = divmod(stop - start, self._total.block_size)
        for length, count in ((self._total.block_size, whole), (rest, 1)):
            if length and count:
                self._op.check()
                self._flying.append((zero_digest(self._total.algorithm, length), length, count))
        self._land(2 * len(self._sources) - 1)

    def _land(self, limit: int) -> None:
        """Add digests in order until no more than limit are under way."""
        while len(self._flying) > limit:
            promise, length, count = self._flying[0]
            digest = promise.result() if isinstance(promise, Future) else promise
            self._flying.popleft()
            self._total.add(self._index, digest, count)
            self._index += count
            self._op.advance(length * count)


def _watched(extents: Iterable[ZeroExtent], op: Watch) -> Iterator[ZeroExtent]:
    """Ask now and then if to go on: an image may have a million extents."""
    for number, extent in enumerate(extents):
        if number % 1024 == 0:
            op.check()
        yield extent
