# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import random

import pytest

from ovirt_imageio.client.hashing import Followed, Passed, local_checksum
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.checksum import block_digest, checksum
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.units import KiB, MiB

SIZE = 3 * MiB + 512


@pytest.fixture
def data():
    return random.Random(1).randbytes(MiB) + bytes(MiB) + random.Random(2).randbytes(SIZE - 2 * MiB)


def digests(data, *numbers):
    return {n: block_digest("blake2b", data[n * MiB : (n + 1) * MiB]) for n in numbers}


def test_what_passes_in_order_is_known_as_a_whole(data):
    passed = Passed(SIZE, block_size=MiB)
    follower = passed.follow()
    for start in range(0, SIZE, 384 * KiB):
        follower.saw(start, data[start : start + 384 * KiB])
    assert passed.digests == digests(data, 0, 1, 2, 3)


def test_one_piece_of_several_blocks_is_cut(data):
    passed = Passed(SIZE, block_size=MiB)
    passed.follow().saw(0, data)
    assert passed.digests == digests(data, 0, 1, 2, 3)


def test_block_that_begins_elsewhere_is_not_known(data):
    passed = Passed(SIZE, block_size=MiB)
    passed.follow().saw(512 * KiB, data[512 * KiB :])
    assert passed.digests == digests(data, 1, 2, 3)


def test_block_with_a_gap_is_not_known(data):
    passed = Passed(SIZE, block_size=MiB)
    follower = passed.follow()
    follower.saw(0, data[: 64 * KiB])
    follower.saw(128 * KiB, data[128 * KiB : 2 * MiB])
    assert passed.digests == digests(data, 1)


def test_repeated_request_begins_again(data):
    passed = Passed(SIZE, block_size=MiB)
    follower = passed.follow()
    follower.saw(0, b"x" * 64 * KiB)
    follower.saw(0, data[:MiB])
    assert passed.digests == digests(data, 0)


def test_zeroes_continue_a_block(data):
    passed = Passed(SIZE, block_size=MiB)
    follower = passed.follow()
    follower.saw(0, data[:MiB])
    follower.saw_zeroes(MiB, 512 * KiB)
    follower.saw(MiB + 512 * KiB, data[MiB + 512 * KiB :])
    assert passed.digests == digests(data, 0, 1, 2, 3)


def test_two_workers_do_not_disturb_each_other(data):
    passed = Passed(SIZE, block_size=MiB)
    one, other = passed.follow(), passed.follow()
    one.saw(0, data[: 512 * KiB])
    other.saw(2 * MiB, data[2 * MiB :])
    one.saw(512 * KiB, data[512 * KiB : MiB])
    assert passed.digests == digests(data, 0, 2, 3)


def test_followed_image_hashes_what_is_read_and_cannot_be_changed(data):
    passed = Passed(SIZE, block_size=MiB)
    memory = Memory(data)
    image = Followed(MemoryBackend(memory), passed.follow())
    assert image.size == SIZE
    buf = bytearray(MiB)
    image.read_into(0, buf)
    image.read_into(2 * MiB, buf)
    for change in (lambda: image.zero(0, MiB), lambda: image.write(0, b"w")):
        with pytest.raises(UnsupportedOperation, match="only read"):
            change()
    image.flush()
    image.close()
    assert passed.digests == digests(bytes(memory.data), 0, 2)


def test_local_checksum_is_that_of_the_content(data):
    memory = Memory(data)
    assert local_checksum(lambda: MemoryBackend(memory)) == checksum([MemoryBackend(memory)])
