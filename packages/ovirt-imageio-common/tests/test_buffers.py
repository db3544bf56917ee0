# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import mmap

import pytest

from ovirt_imageio.common import buffers


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4095, 4096, 16384, 16385, 1 << 20])
@pytest.mark.parametrize("kind", [bytearray, bytes])
def test_is_zero_finds_only_zeroes(size, kind):
    assert buffers.is_zero(kind(bytes(size)))


@pytest.mark.parametrize("size", [1, 64, 65, 4096, 16384, 16385, 1 << 20])
@pytest.mark.parametrize("kind", [bytearray, bytes])
def test_is_zero_sees_one_byte_anywhere(size, kind):
    for at in {0, size // 2, size - 1}:
        data = bytearray(size)
        data[at] = 1
        assert not buffers.is_zero(kind(data)), at


def test_is_zero_of_a_part_does_not_look_beyond_it():
    data = bytearray(b"x" + bytes(1 << 20) + b"x")
    with memoryview(data) as view:
        assert buffers.is_zero(view[1:-1])
        assert not buffers.is_zero(view[1:])


def test_aligned_starts_at_a_page():
    with buffers.aligned(100) as buf, memoryview(buf) as view:
        assert buffers.address(view) % mmap.PAGESIZE == 0
        assert bytes(view) == bytes(100)


def test_borrow_lends_one_buffer_at_a_time():
    with buffers.borrow(10) as a, buffers.borrow(10) as b:
        a[:] = b"a" * 10
        b[:] = b"b" * 10
        assert bytes(a) == b"a" * 10


@pytest.mark.parametrize("size", [1, 1 << 20, (1 << 20) + 1])
def test_borrow_lends_as_much_as_asked_for(size):
    with buffers.borrow(size) as view:
        assert len(view) == size
