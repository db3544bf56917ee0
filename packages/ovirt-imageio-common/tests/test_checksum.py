# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import hashlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovirt_imageio.common import checksum
from ovirt_imageio.common.backends.base import NullOperation
from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import MiB

BLOCK = checksum.MIN_BLOCK_SIZE


class Source:
    """An image that notes what was read of it."""

    def __init__(self, data):
        self.data = data
        self.reads = []
        self.threads = set()

    def read_into(self, offset, buf):
        self.reads.append((offset, len(buf)))
        self.threads.add(threading.get_ident())
        buf[:] = self.data[offset : offset + len(buf)]


def by_hand(data, block_size, algorithm="blake2b"):
    """The definition: the digest of the digests of the blocks."""
    digests = [
        checksum.new_digest(algorithm, data[i : i + block_size]).digest() for i in range(0, len(data), block_size)
    ]
    return checksum.new_digest(algorithm, b"".join(digests)).hexdigest(), tuple(d.hex() for d in digests)


def extents_of(data):
    """One extent a 4 KiB granule, as its bytes are."""
    return [
        ZeroExtent(i, len(data[i : i + 4096]), not any(data[i : i + 4096]), False) for i in range(0, len(data), 4096)
    ]


@pytest.mark.parametrize("sources", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 12345])
def test_checksum_is_the_digest_of_digests(size, sources):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    result = checksum.checksum(
        [Source(data) for _ in range(sources)], size, extents_of(data), NullOperation(), block_size=BLOCK, blocks=True
    )
    assert (result.checksum, result.blocks) == by_hand(data, BLOCK)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=8), st.integers(1, 2))
def test_checksum_does_not_depend_on_how_extents_lie(parts, count):
    data = b"".join((b"\0" if zero else b"x") * (4096 * n) for n, zero in parts)
    result = checksum.checksum(
        [Source(data) for _ in range(count)], len(data), extents_of(data), NullOperation(), block_size=BLOCK
    )
    assert result.checksum == by_hand(data, BLOCK)[0]


def test_zero_extents_are_not_read():
    data = bytes(4 * BLOCK) + b"x" * BLOCK + bytes(3 * BLOCK + 5)
    source = Source(data)
    result = checksum.checksum([source], len(data), extents_of(data), NullOperation(), block_size=BLOCK)
    assert source.reads == [(4 * BLOCK, BLOCK)]
    assert result.checksum == by_hand(data, BLOCK)[0]


def test_neighbouring_zero_extents_of_two_kinds_are_not_read():
    extents = [ZeroExtent(0, BLOCK // 2, True, False), ZeroExtent(BLOCK // 2, BLOCK // 2, True, True)]
    source = Source(bytes(BLOCK))
    checksum.checksum([source], BLOCK, extents, NullOperation(), block_size=BLOCK)
    assert source.reads == []


def test_checksum_of_a_range():
    data = bytes(BLOCK) + b"x" * BLOCK + b"y" * BLOCK
    extents = [ZeroExtent(BLOCK, 2 * BLOCK, False, False)]
    result = checksum.checksum([Source(data)], 2 * BLOCK, extents, NullOperation(), offset=BLOCK, block_size=BLOCK)
    assert result.checksum == by_hand(data[BLOCK:], BLOCK)[0]


def test_blocks_are_not_kept_unless_asked_for():
    assert checksum.checksum([Source(b"")], 0, [], NullOperation()).blocks is None


@pytest.mark.parametrize("algorithm", checksum.algorithms())
def test_every_listed_algorithm_works(algorithm):
    data = b"x" * BLOCK + bytes(BLOCK)
    result = checksum.checksum(
        [Source(data)], len(data), extents_of(data), NullOperation(), block_size=BLOCK, algorithm=algorithm
    )
    assert result.checksum == by_hand(data, BLOCK, algorithm)[0]


def test_blake2_digests_have_32_bytes():
    assert checksum.new_digest("blake2b").digest_size == 32
    assert checksum.new_digest("blake2s").digest_size == 32
    assert checksum.new_digest("sha512").digest_size == hashlib.sha512().digest_size


def test_algorithms_without_fixed_length_are_not_listed():
    assert not [name for name in checksum.algorithms() if name.startswith("shake")]


@pytest.mark.parametrize("length", [0, 1, 4096, MiB, 4 * MiB, 5 * MiB + 1])
def test_zero_digest_is_that_of_zero_bytes(length):
    assert checksum.zero_digest("sha1", length) == hashlib.sha1(bytes(length)).digest()


@pytest.mark.parametrize("block_size", [0, -1, MiB - 4096, MiB + 1, 16 * MiB + 4096])
def test_block_size_out_of_range_is_named(block_size):
    with pytest.raises(ValueError, match=f"block_size {block_size}"):
        checksum.check_arguments("blake2b", block_size)


def test_unknown_algorithm_is_named_with_what_works():
    with pytest.raises(ValueError, match="'crc32'.*blake2b"):
        checksum.check_arguments("crc32", 4 * MiB)


def test_offset_inside_a_block_is_refused():
    with pytest.raises(ValueError, match="offset 4096"):
        checksum.checksum([Source(b"")], 0, [], NullOperation(), offset=4096, block_size=BLOCK)


class CancelAfter:
    def __init__(self, count):
        self.count = count
        self.done = 0

    def check(self):
        self.count -= 1
        if self.count < 0:
            raise OperationCancelled("enough")

    def advance(self, n):
        self.done += n


@pytest.mark.parametrize("sources", [1, 2])
def test_cancelling_ends_between_blocks(sources):
    data = b"x" * (20 * BLOCK)
    op = CancelAfter(3)
    with pytest.raises(OperationCancelled):
        checksum.checksum([Source(data) for _ in range(sources)], len(data), extents_of(data), op, block_size=BLOCK)
    assert op.done <= 3 * BLOCK


@pytest.mark.parametrize("sources", [1, 2])
def test_all_bytes_are_counted_once(sources):
    data = b"x" * BLOCK + bytes(3 * BLOCK) + b"y" * 100
    op = CancelAfter(10**6)
    checksum.checksum([Source(data) for _ in range(sources)], len(data), extents_of(data), op, block_size=BLOCK)
    assert op.done == len(data)


@pytest.mark.parametrize("sources", [1, 2])
def test_a_failing_source_fails_the_checksum(sources):
    class Broken(Source):
        def read_into(self, offset, buf):
            if offset == 2 * BLOCK:
                raise OSError(5, "no such sector")
            super().read_into(offset, buf)

    data = b"x" * (4 * BLOCK)
    with pytest.raises(OSError, match="no such sector"):
        checksum.checksum(
            [Broken(data) for _ in range(sources)], len(data), extents_of(data), NullOperation(), block_size=BLOCK
        )
