# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import hashlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovirt_imageio.common import blockruns, checksum
from ovirt_imageio.common.errors import OperationCancelled
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import MiB

BLOCK = checksum.MIN_BLOCK_SIZE


class Source:
    """An image that notes what was read of it."""

    def __init__(self, data):
        self.data = data
        self.size = len(data)
        self.reads = []
        self.threads = set()

    def read_into(self, offset, buf):
        self.reads.append((offset, len(buf)))
        self.threads.add(threading.get_ident())
        buf[:] = self.data[offset : offset + len(buf)]


def digest(algorithm, data):
    size = {"digest_size": 32} if algorithm.startswith("blake2") else {}
    new = getattr(hashlib, algorithm) if size else lambda data: hashlib.new(algorithm, data)
    return new(data, **size).digest()


def by_hand(data, block_size, algorithm="blake2b"):
    """The definition: the digest of the digests of the blocks."""
    digests = [digest(algorithm, data[i : i + block_size]) for i in range(0, len(data), block_size)]
    return digest(algorithm, b"".join(digests)).hex(), tuple(d.hex() for d in digests)


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
        [Source(data) for _ in range(sources)], size, extents=extents_of(data), block_size=BLOCK, blocks=True
    )
    assert (result.checksum, result.blocks) == by_hand(data, BLOCK)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 600), st.booleans()), max_size=8), st.integers(1, 2))
def test_checksum_does_not_depend_on_how_extents_lie(parts, count):
    data = b"".join((b"\0" if zero else b"x") * (4096 * n) for n, zero in parts)
    result = checksum.checksum(
        [Source(data) for _ in range(count)], len(data), extents=extents_of(data), block_size=BLOCK
    )
    assert result.checksum == by_hand(data, BLOCK)[0]


def test_zero_extents_are_not_read():
    data = bytes(4 * BLOCK) + b"x" * BLOCK + bytes(3 * BLOCK + 5)
    source = Source(data)
    result = checksum.checksum([source], len(data), extents=extents_of(data), block_size=BLOCK)
    assert source.reads == [(4 * BLOCK, BLOCK)]
    assert result.checksum == by_hand(data, BLOCK)[0]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_checksum_is_the_same_where_the_system_starts_no_more_threads(monkeypatch, most):
    """The second of three, say, could not be started, and the checksum of a daemon was 500."""
    data = b"".join(bytes([number]) * BLOCK for number in range(1, 9))
    start, started = threading.Thread.start, []

    def limited(thread):
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    sources = [Source(data) for _ in range(3)]
    result = checksum.checksum(sources, len(data), extents=extents_of(data), block_size=BLOCK, blocks=True)
    assert (result.checksum, result.blocks) == by_hand(data, BLOCK)
    assert sum(len(source.reads) for source in sources) == 8
    assert len(started) == most


def test_failure_without_threads_is_told(monkeypatch):
    class Broken(Source):
        def read_into(self, offset, buf):
            raise OSError("bad sector")

    def none(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    data = bytes(range(1, 129)) * (4 * BLOCK // 128)
    with pytest.raises(OSError, match="bad sector"):
        checksum.checksum([Broken(data), Broken(data)], len(data), extents=extents_of(data), block_size=BLOCK)


@pytest.mark.parametrize("sources", [1, 2])
def test_long_zero_runs_beside_data_of_their_block_are_not_read(sources):
    quarter = BLOCK // 4
    data = bytes(quarter) + b"a" * quarter + bytes(quarter) + b"b" * quarter
    data += b"c" * 4096 + bytes(BLOCK - 8192) + b"d" * 4096 + bytes(BLOCK) + b"e" * 10 + bytes(BLOCK - 4096)
    given = [Source(data) for _ in range(sources)]
    result = checksum.checksum(given, len(data), extents=extents_of(data), block_size=BLOCK, blocks=True)
    assert (result.checksum, result.blocks) == by_hand(data, BLOCK)
    reads = sorted(read for source in given for read in source.reads)
    assert reads == [
        (quarter, quarter),
        (3 * quarter, quarter),
        (BLOCK, 4096),
        (2 * BLOCK - 4096, 4096),
        (3 * BLOCK, 4096),
    ]


def test_short_zero_runs_are_read_with_the_data_around_them():
    data = (b"x" * 4096 + bytes(4096)) * (BLOCK // 8192)
    source = Source(data)
    result = checksum.checksum([source], len(data), extents=extents_of(data), block_size=BLOCK)
    assert source.reads == [(0, BLOCK)]
    assert result.checksum == by_hand(data, BLOCK)[0]


def test_zero_runs_past_what_memory_allows_are_read(monkeypatch):
    monkeypatch.setattr(blockruns, "_MOST_GAPS", 1)
    data = (b"x" * (BLOCK // 2) + bytes(BLOCK // 2)) * 3
    source = Source(data)
    result = checksum.checksum([source], len(data), extents=extents_of(data), block_size=BLOCK)
    assert source.reads == [(0, BLOCK // 2), (BLOCK, BLOCK), (2 * BLOCK, BLOCK)]
    assert result.checksum == by_hand(data, BLOCK)[0]


def test_neighbouring_zero_extents_of_two_kinds_are_not_read():
    extents = [ZeroExtent(0, BLOCK // 2, True, False), ZeroExtent(BLOCK // 2, BLOCK // 2, True, True)]
    source = Source(bytes(BLOCK))
    checksum.checksum([source], BLOCK, extents=extents, block_size=BLOCK)
    assert source.reads == []


def test_checksum_of_a_range():
    data = bytes(BLOCK) + b"x" * BLOCK + b"y" * BLOCK
    extents = [ZeroExtent(BLOCK, 2 * BLOCK, False, False)]
    result = checksum.checksum([Source(data)], 2 * BLOCK, extents=extents, offset=BLOCK, block_size=BLOCK)
    assert result.checksum == by_hand(data[BLOCK:], BLOCK)[0]


def test_blocks_are_not_kept_unless_asked_for():
    assert checksum.checksum([Source(b"")], 0, extents=[]).blocks is None


@pytest.mark.parametrize("algorithm", checksum.algorithms())
def test_every_listed_algorithm_works(algorithm):
    data = b"x" * BLOCK + bytes(BLOCK)
    result = checksum.checksum(
        [Source(data)], len(data), extents=extents_of(data), block_size=BLOCK, algorithm=algorithm
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
        checksum.checksum([Source(bytes(8192))], 4096, extents=[], offset=4096, block_size=BLOCK)


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
        checksum.checksum(
            [Source(data) for _ in range(sources)], len(data), extents=extents_of(data), op=op, block_size=BLOCK
        )
    assert op.done <= 3 * BLOCK


@pytest.mark.parametrize("sources", [1, 2])
def test_all_bytes_are_counted_once(sources):
    data = b"x" * BLOCK + bytes(3 * BLOCK) + b"y" * 100
    op = CancelAfter(10**6)
    checksum.checksum(
        [Source(data) for _ in range(sources)], len(data), extents=extents_of(data), op=op, block_size=BLOCK
    )
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
        checksum.checksum([Broken(data) for _ in range(sources)], len(data), extents=extents_of(data), block_size=BLOCK)


def test_everything_is_read_without_extents():
    source = Source(bytes(2 * BLOCK))
    result = checksum.checksum([source], block_size=BLOCK)
    assert source.reads == [(0, BLOCK), (BLOCK, BLOCK)]
    assert result.checksum == by_hand(source.data, BLOCK)[0]


def test_large_blocks_are_read_in_pieces():
    data = bytes(BLOCK) + b"x" * BLOCK + bytes(2 * BLOCK)
    source = Source(data)
    result = checksum.checksum([source], block_size=4 * BLOCK)
    assert max(length for _, length in source.reads) == MiB
    assert result.checksum == by_hand(data, 4 * BLOCK)[0]


def test_extents_are_taken_before_their_source_is_read():
    source = Source(b"x" * (4 * BLOCK))

    def lazy():
        for extent in extents_of(source.data):
            assert source.reads == []
            yield extent

    checksum.checksum([source, Source(source.data)], extents=lazy(), block_size=BLOCK)
    assert source.reads


@pytest.mark.parametrize(("offset", "length"), [(-BLOCK, BLOCK), (0, BLOCK - 1), (0, 9 * BLOCK), (BLOCK, -BLOCK)])
def test_range_that_is_not_of_blocks_is_refused(offset, length):
    with pytest.raises(ValueError, match="invalid (offset|length)"):
        checksum.checksum([Source(bytes(4 * BLOCK))], length, offset=offset, block_size=BLOCK)


def test_range_may_end_with_the_image_inside_a_block():
    data = b"x" * (BLOCK + 7)
    result = checksum.checksum([Source(data)], 7, offset=BLOCK, block_size=BLOCK)
    assert result.checksum == by_hand(data[BLOCK:], BLOCK)[0]


def test_range_may_end_where_less_than_the_source_counts_as_the_image():
    data = b"x" * (4 * BLOCK)
    result = checksum.checksum([Source(data)], BLOCK + 7, size=BLOCK + 7, block_size=BLOCK)
    assert result.checksum == by_hand(data[: BLOCK + 7], BLOCK)[0]
    with pytest.raises(ValueError, match="invalid length"):
        checksum.checksum([Source(data)], BLOCK + 8, size=BLOCK + 7, block_size=BLOCK)


def test_cancelling_ends_the_reading_of_extents():
    extents = (ZeroExtent(i, 1, False, False) for i in range(10**9))
    with pytest.raises(OperationCancelled):
        checksum.checksum([Source(bytes(BLOCK))], extents=extents, op=CancelAfter(2), block_size=BLOCK)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_block_hash_takes_blocks_in_any_order(order):
    data = [b"a" * BLOCK, bytes(BLOCK), b"b" * BLOCK, bytes(BLOCK), b"c" * 10]
    total = checksum.BlockHash(block_size=BLOCK, keep=True)
    for index in order:
        if any(data[index]):
            total.update_block(index, data[index])
        else:
            total.zero_block(index, len(data[index]))
    result = total.result()
    assert (result.checksum, result.blocks) == by_hand(b"".join(data), BLOCK)


def test_block_hash_names_a_missing_block():
    total = checksum.BlockHash(block_size=BLOCK)
    total.update_block(1, b"x")
    with pytest.raises(ValueError, match="block 0 is missing"):
        total.digest()


def test_block_hash_refuses_a_block_twice():
    total = checksum.BlockHash(block_size=BLOCK)
    total.zero_block(0, BLOCK)
    with pytest.raises(ValueError, match="block 0 was hashed before"):
        total.zero_block(0, BLOCK)


@pytest.mark.parametrize("length", [0, BLOCK + 1])
def test_block_hash_refuses_a_length_that_no_block_has(length):
    with pytest.raises(ValueError, match=f"block of {length} bytes"):
        checksum.BlockHash(block_size=BLOCK).zero_block(0, length)


def test_algorithm_that_the_system_forbids_is_not_listed(monkeypatch):
    new = hashlib.new

    def forbid(name, **options):
        if name == "md5":
            raise ValueError("disabled for FIPS")
        return new(name, **options)

    monkeypatch.setattr(checksum.hashlib, "new", forbid)
    checksum.algorithms.cache_clear()
    try:
        assert "md5" not in checksum.algorithms()
        assert "blake2b" in checksum.algorithms()
    finally:
        checksum.algorithms.cache_clear()
