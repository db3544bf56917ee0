# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A regular file grows by writing and zeroing, up to a limit; nothing else does."""

from __future__ import annotations

import os
import random
import threading

import pytest

from imageio_testing.streams import Count, SocketPeer, sending
from ovirt_imageio.common.backends import open as open_backend
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.errors import OutOfRange, UnsupportedOperation
from ovirt_imageio.common.extents import ZeroExtent

KiB, MiB = 1 << 10, 1 << 20
LIMIT = 4 * MiB


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"")
    return str(path)


@pytest.fixture(params=["buffered", "direct"])
def opener(request, path):
    """Opens the file either way."""

    def open_file(**options):
        backend = FileBackend(path, mode="r+", direct=request.param == "direct", grow_to=LIMIT, **options)
        if request.param == "direct" and backend.capabilities.block_size == 1:
            backend.close()
            pytest.skip("no O_DIRECT on the file system of temporary files")
        return backend

    return open_file


def content(path):
    with open(path, "rb") as f:
        return f.read()


def noise(length, seed=1):
    return random.Random(seed).randbytes(length)


def test_empty_file_grows_with_each_write(opener, path):
    data = noise(2 * MiB + 777)
    with opener() as backend:
        assert (backend.size, backend.max_size) == (0, LIMIT)
        step = 300_001  # no block of anything
        for start in range(0, len(data), step):
            backend.write(start, data[start : start + step])
            assert backend.size == min(start + step, len(data))
        backend.flush()
    assert content(path) == data


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (1, 4095), (4095, 2), (4096, 4096), (10_000, 100_000)])
def test_gap_before_a_write_reads_as_zeroes(opener, path, offset, length):
    data = noise(length)
    with opener() as backend:
        backend.write(offset, data)
        back = bytearray(offset + length)
        backend.read_into(0, back)
        assert back == bytes(offset) + data
    assert content(path) == bytes(offset) + data


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("offset", "length"), [(0, MiB), (1000, 1), (1000, 70_001), (4096, 8192)])
def test_zeroing_past_the_end_grows(opener, path, sparse, offset, length):
    with opener(sparse=sparse) as backend:
        backend.write(0, b"x" * 5000)
        backend.zero(offset, length)
        assert backend.size == max(5000, offset + length)
    expected = bytearray(b"x" * 5000 + bytes(max(0, offset + length - 5000)))
    expected[offset : offset + length] = bytes(length)
    assert content(path) == expected


def test_sparse_zeroes_take_no_room(opener, path):
    with opener(sparse=True) as backend:
        backend.zero(0, LIMIT)
    assert os.stat(path).st_size == LIMIT
    assert os.stat(path).st_blocks * 512 <= 64 * KiB


def test_limit_is_not_passed(opener, path):
    with opener() as backend:
        for change in (backend.write, lambda offset, data: backend.zero(offset, len(data))):
            with pytest.raises(OutOfRange, match=f"2 bytes at {LIMIT - 1} is not inside the image of {LIMIT} bytes"):
                change(LIMIT - 1, b"xx")
    assert content(path) == b""


def test_reading_does_not_grow(opener, path):
    with opener() as backend, pytest.raises(OutOfRange, match="of 0 bytes"):
        backend.read_into(0, bytearray(1))


def test_without_a_limit_nothing_grows(path):
    with FileBackend(path, mode="r+") as backend, pytest.raises(OutOfRange):
        backend.write(0, b"x")


def test_file_that_is_only_read_does_not_grow(path):
    with FileBackend(path, grow_to=LIMIT) as backend, pytest.raises(UnsupportedOperation):
        backend.write(0, b"x")


def test_block_device_does_not_grow(monkeypatch, path):
    monkeypatch.setattr("ovirt_imageio.common.linux.is_block_device", lambda fd: True)
    with FileBackend(path, mode="r+", direct=False, grow_to=LIMIT) as backend:
        assert backend.max_size == 0
        with pytest.raises(OutOfRange):
            backend.write(0, b"x")


@pytest.mark.parametrize("splice", [False, True])
@pytest.mark.parametrize("step", [1000, 4095, 1 << 20])
def test_stream_makes_a_file_grow(opener, path, splice, step):
    data = noise(MiB + 12_345)

    def receive(sock):
        with opener() as backend:
            backend.write(0, b"x" * 100)
            backend.receive_from(SocketPeer(sock, splice=splice), 50, len(data), Count())
            assert backend.size == 50 + len(data)

    sending([data[i : i + step] for i in range(0, len(data), step)], receive)
    assert content(path) == b"x" * 50 + data


def test_all_instances_know_the_size(opener):
    with opener() as one, opener() as two:
        tell = two.size_teller()
        one.write(0, noise(70_000))
        assert (two.size, tell()) == (70_000, 70_000)
        back = bytearray(70_000)
        two.read_into(0, back)
        assert back == noise(70_000)
        assert sum(extent.length for extent in two.extents()) == 70_000
        two.close()
        one.write(70_000, b"more")
        assert tell() == 70_004


def test_size_is_looked_at_again_when_the_file_is_opened(opener, path):
    with opener() as one:
        one.write(0, bytes(1000))
        os.truncate(path, 500)
        with opener():
            assert one.size == 500


def test_extents_of_a_file_that_grew(path):
    with FileBackend(path, mode="r+", grow_to=LIMIT, direct=False) as backend:
        backend.write(MiB, b"x" * 4096)
        assert list(backend.extents()) == [ZeroExtent(0, MiB, True, False), ZeroExtent(MiB, 4096, False, False)]


def test_writers_side_by_side_lose_nothing(opener, path):
    """Each writes every fourth piece, so that the end of the file moves under all of them."""
    piece = 3000
    data = noise(400 * piece)
    failed = []

    def write(number):
        try:
            with opener() as backend:
                for index in range(number, 400, 4):
                    start = index * piece
                    backend.write(start, data[start : start + piece])
                backend.flush()
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert content(path) == data


def test_open_passes_the_limit_on(path):
    with open_backend(f"file://{path}", mode="r+", grow_to=LIMIT) as backend:
        backend.write(10, b"x")
    assert content(path) == bytes(10) + b"x"
