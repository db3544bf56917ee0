# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import random

import pytest

from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.hashing import Passed
from ovirt_imageio.client.patience import Patience
from ovirt_imageio.client.verify import VerificationFailed, check_held, compare, first_difference, verify
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.checksum import checksum
from ovirt_imageio.common.errors import PeerGone, ProtocolError, UnsupportedOperation
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.units import MiB

BLOCK = 4 * MiB
SIZE = 3 * BLOCK + 4096

KINDS = {
    "ranges": {"checksum", "checksum-range"},
    "whole": {"checksum"},
    "none": set(),
    "offered": {"checksum", "not really"},
}
"""Features of the server; `offered` is one that has no checksum though it says so."""


class Remote(MemoryBackend):
    """A server's end in memory; counts what it is asked for."""

    def __init__(self, memory, features, calls):
        super().__init__(memory, mode="r")
        self.features = features
        self.calls = calls
        self.memory = memory

    def clone(self):
        return type(self)(self.memory, self.features, self.calls)

    def read_into(self, offset, buf):
        self.calls.append(("read", offset, len(buf)))
        super().read_into(offset, buf)

    def checksum(self, *, algorithm, block_size, offset=0, length=None, blocks=False):
        self.calls.append(("checksum", offset, length))
        if "not really" in self.features:
            raise UnsupportedOperation("the server has no checksum")
        return checksum(
            [MemoryBackend(self.memory)],
            length,
            offset=offset,
            algorithm=algorithm,
            block_size=block_size,
            blocks=blocks,
        )


class Ends:
    """The same content at both ends, until a test changes one."""

    def __init__(self, kind, size=SIZE, disk_size=None):
        data = bytearray(random.Random(5).randbytes(size))
        data[BLOCK : 2 * BLOCK] = bytes(len(data[BLOCK : 2 * BLOCK]))
        self.local = Memory(bytes(data))
        self.disk = Memory(bytes(data).ljust(disk_size or size, b"d"))
        self.calls = []
        self.reads = []
        self.remote = Remote(self.disk, KINDS[kind], self.calls)
        self.passed = Passed(size)

    def open(self):
        ends = self

        class Image(MemoryBackend):
            def read_into(self, offset, buf):
                ends.reads.append(offset)
                super().read_into(offset, buf)

            def extents(self, context="zero", *, offset=0, length=None, op=None):
                yield ZeroExtent(0, BLOCK, zero=False, hole=False)
                yield ZeroExtent(BLOCK, BLOCK, zero=True, hole=True)
                yield ZeroExtent(2 * BLOCK, self.size - 2 * BLOCK, zero=False, hole=False)

        return Image(self.local, mode="r")

    def verify(self, **options):
        return verify(self.remote, self.open, self.passed, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disk_size", [SIZE, SIZE + 1000, 5 * BLOCK])
def test_equal_ends_pass_and_the_checksum_of_the_image_is_told(kind, disk_size):
    ends = Ends(kind, disk_size=disk_size)
    assert ends.verify() == checksum([MemoryBackend(ends.local)])


@pytest.mark.parametrize("kind", KINDS)
def test_checksum_of_an_empty_image_is_that_of_no_block(kind):
    ends = Ends(kind, size=0, disk_size=BLOCK)
    ends.open = lambda: MemoryBackend(ends.local)
    assert ends.verify() == checksum([MemoryBackend(Memory(b""))])
    assert ends.calls == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disk_size", [SIZE, 4 * BLOCK])
@pytest.mark.parametrize("at", [0, BLOCK - 1, BLOCK + 7, 2 * BLOCK, SIZE - 1])
def test_first_difference_is_named(kind, disk_size, at):
    ends = Ends(kind, disk_size=disk_size)
    ends.disk.data[at] ^= 1
    ends.disk.data[SIZE - 1] ^= 2
    start = at // BLOCK * BLOCK
    length = min(BLOCK, SIZE - start)
    with pytest.raises(VerificationFailed, match=f"block {at // BLOCK} .* {length} bytes at {start}$") as e:
        ends.verify()
    assert (e.value.block, e.value.offset, e.value.length) == (at // BLOCK, start, length)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_disk_has_past_the_image_does_not_matter(kind):
    ends = Ends(kind, disk_size=4 * BLOCK)
    ends.disk.data[SIZE] ^= 1
    ends.verify()


@pytest.mark.parametrize("kind", ["ranges", "whole"])
def test_blocks_that_passed_are_not_read_again(kind):
    ends = Ends(kind)
    follower = ends.passed.follow()
    follower.saw(0, ends.local.data[:BLOCK])
    follower.saw(2 * BLOCK, ends.local.data[2 * BLOCK :])
    ends.verify()
    assert ends.reads == []
    assert [call for call in ends.calls if call[0] == "read"] == []


def test_digest_of_what_passed_is_what_counts():
    # The source changed after it was sent: the disk has what was there before.
    ends = Ends("ranges")
    follower = ends.passed.follow()
    follower.saw(0, ends.local.data[:BLOCK])
    ends.local.data[5] ^= 1
    ends.verify()


def test_zero_blocks_of_both_ends_are_not_read():
    ends = Ends("none")
    ends.remote.extents = lambda context="zero", **_: iter(
        [
            ZeroExtent(0, BLOCK, False, False),
            ZeroExtent(BLOCK, BLOCK, True, True),
            ZeroExtent(2 * BLOCK, SIZE, False, False),
        ]
    )
    ends.verify()
    assert {offset // BLOCK for kind, offset, _ in ends.calls if kind == "read"} == {0, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_only_ranges_are_compared(kind):
    ends = Ends(kind)
    ends.disk.data[0] ^= 1
    ends.disk.data[2 * BLOCK + MiB] ^= 1
    ranges = [(1, 5), (MiB, 2 * BLOCK), (2 * BLOCK + MiB + 1, 100)]
    compare(ends.remote, ends.open, ranges, ends.passed)
    with pytest.raises(VerificationFailed, match="block 2"):
        compare(ends.remote, ends.open, [*ranges[:2], (2 * BLOCK + MiB, 1)], ends.passed)


class Held(MemoryBackend):
    """An image that holds some ranges, as qcow2 does, and zeroes one of them."""

    def __init__(self, *held):
        super().__init__(Memory(bytes(SIZE)), mode="r")
        self.held = held

    def extents(self, context="zero", *, offset=0, length=None, op=None):
        position = 0
        for start, count in self.held:
            yield ZeroExtent(position, start - position, zero=True, hole=True)
            yield ZeroExtent(start, count, zero=start == MiB, hole=False)
            position = start + count
        yield ZeroExtent(position, self.size - position, zero=True, hole=True)


RANGES = [(MiB, MiB), (2 * BLOCK, MiB), (2 * BLOCK + MiB, MiB)]


def test_image_that_holds_the_ranges_passes():
    check_held(lambda: Held((MiB, MiB), (2 * BLOCK, 2 * MiB)), RANGES, SIZE)
    check_held(Held, [], SIZE)


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ([(MiB, MiB)], f"^{MiB} bytes at {2 * BLOCK}: .* is missing"),
        ([(MiB, MiB), (2 * BLOCK, MiB)], f"^{MiB} bytes at {2 * BLOCK + MiB}: .* is missing"),
        ([(MiB, 2 * MiB), (2 * BLOCK, 2 * MiB)], f"^{MiB} bytes at {2 * MiB}: .* is clean"),
        ([(0, 512), (MiB, MiB), (2 * BLOCK, 2 * MiB)], "^512 bytes at 0: .* is clean"),
    ],
)
def test_image_that_holds_others_is_refused(held, text):
    with pytest.raises(VerificationFailed, match=text) as e:
        check_held(lambda: Held(*held), RANGES, SIZE)
    assert str(e.value).startswith(f"{e.value.length} bytes at {e.value.offset}")


def test_first_byte_that_differs_is_found():
    ends = Ends("none")
    assert first_difference(ends.remote, ends.open(), 0, SIZE) is None
    ends.disk.data[BLOCK + 5] ^= 1
    ends.disk.data[BLOCK + 9] ^= 1
    assert first_difference(ends.remote, ends.open(), 0, SIZE) == BLOCK + 5
    assert first_difference(ends.remote, ends.open(), BLOCK + 6, BLOCK) == BLOCK + 9


def test_broken_connection_does_not_end_the_comparison():
    ends = Ends("ranges")
    broken = []

    class Flaky(Remote):
        def checksum(self, **arguments):
            if len(broken) < 3:
                broken.append(1)
                raise PeerGone("gone")
            return super().checksum(**arguments)

    ends.remote = Flaky(ends.disk, KINDS["ranges"], ends.calls)
    ends.verify(patience=Patience(retry=Retry(attempts=5, delay=0.001)))
    assert len(broken) == 3


def test_server_that_answers_too_few_blocks_is_refused():
    ends = Ends("ranges")

    class Short(Remote):
        def checksum(self, **arguments):
            answer = super().checksum(**arguments)
            return answer._replace(blocks=answer.blocks[:-1])

    ends.remote = Short(ends.disk, KINDS["ranges"], ends.calls)
    with pytest.raises(ProtocolError, match="hashed 0 blocks, expected 1"):
        ends.verify(workers=1)
