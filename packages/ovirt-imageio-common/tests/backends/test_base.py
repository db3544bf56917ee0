# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The base alone, under a backend that overrides nothing of it."""

import pytest

from imageio_testing.streams import Count
from ovirt_imageio.common.backends.base import Backend, Capabilities
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent

MiB = 1 << 20


class Plain(Backend):
    """A backend without a word more than it needs."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.size = len(data)
        self.capabilities = Capabilities(can_extents=False)

    def read_into(self, offset, buf):
        memoryview(buf)[:] = self.data[offset : offset + len(buf)]

    def write(self, offset, buf):
        self.data[offset : offset + len(buf)] = buf

    def zero(self, offset, length):
        self.write(offset, bytes(length))

    def flush(self):
        pass

    def close(self):
        pass


class Chunked:
    """A peer whose body ends after this data, which is known when it comes."""

    splice_fd = None

    def __init__(self, data):
        self.data = data

    def begin(self):
        pass

    def take(self, limit):
        first, self.data = self.data[: min(limit, 3)], self.data[3:]
        return first

    def recv_into(self, view):
        part, self.data = self.data[: len(view)], self.data[len(view) :]
        view[: len(part)] = part
        return len(part)


@pytest.mark.parametrize("size", [0, 1, 3, 5000, MiB, MiB + 7, 2 * MiB])
def test_body_that_ends_early_leaves_the_rest(size):
    backend, op = Plain(bytes(2 * MiB)), Count()
    backend.receive_from(Chunked(b"x" * size), 0, 2 * MiB, op)
    assert op.done == size
    assert backend.data == b"x" * size + bytes(2 * MiB - size)


def test_nothing_is_moved_for_nothing():
    backend = Plain(b"x" * 10)
    backend.receive_from(Chunked(b"y"), 5, 0, Count())
    backend.read_from(None, 5, 0)
    backend.write_to(None, 5, 0)
    assert backend.data == b"x" * 10


class Slow:
    """A file that takes and gives a little at a time."""

    def __init__(self, data=b""):
        self.data = bytearray(data)

    def write(self, view):
        self.data += view[:1000]
        return min(len(view), 1000)

    def readinto(self, view):
        count = min(len(view), 1000, len(self.data))
        view[:count] = self.data[:count]
        del self.data[:count]
        return count


def test_files_that_take_and_give_a_little_at_a_time():
    data = bytes(range(250)) * 20
    backend, target = Plain(bytes(5000)), Slow()
    backend.read_from(Slow(data), 0, 5000)
    backend.write_to(target, 0, 5000)
    assert target.data == backend.data == data


def test_extents_are_one_of_data():
    backend = Plain(bytes(100))
    assert list(backend.extents(offset=10)) == [ZeroExtent(10, 90, False, False)]
    with pytest.raises(UnsupportedOperation, match="dirty"):
        list(backend.extents("dirty"))


# The reference.


def test_memory_tells_what_changed_since_a_checkpoint():
    memory = Memory(b"x" * 100, size=300, granularity=100)
    with MemoryBackend(memory, dirty=True) as backend, backend.clone() as other:
        memory.checkpoint()
        other.write(150, b"y")
        other.write(0, b"")
        assert list(backend.extents("dirty")) == [
            DirtyExtent(0, 100, False, False),
            DirtyExtent(100, 100, True, False),
            DirtyExtent(200, 100, False, True),
        ]
        assert list(backend.extents("dirty", offset=150, length=100)) == [
            DirtyExtent(150, 50, True, False),
            DirtyExtent(200, 50, False, True),
        ]


def test_memory_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="size 3 is less than the 4 bytes"):
        Memory(b"data", size=3)
    with pytest.raises(ValueError, match="granularity 0"):
        Memory(granularity=0)
    with pytest.raises(ValueError, match="'w'"):
        MemoryBackend(Memory(), mode="w")
