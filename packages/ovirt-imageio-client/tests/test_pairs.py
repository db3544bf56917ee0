# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import errno
import os

import pytest

from ovirt_imageio.client.pairs import DownloadPair, SparseTarget, UploadPair, zero_runs
from ovirt_imageio.client.plan import Action
from ovirt_imageio.common.backends.base import NullOperation, pieces
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.units import KiB, MiB


class Remote(MemoryBackend):
    """A server's end in memory that remembers what it was asked for."""

    def __init__(self, memory):
        super().__init__(memory)
        self.calls = []

    def stream_write(self, src, offset, length, op):
        self.calls.append(("write", offset, length))
        buf = bytearray(length)
        src.read_into(offset, buf)
        self.write(offset, buf)
        op.advance(length)

    def stream_read(self, dst, offset, length, op):
        self.calls.append(("read", offset, length))
        for start, count in pieces(offset, length):
            buf = bytearray(count)
            self.read_into(start, buf)
            dst.write(start, buf)
            op.advance(count)

    def zero(self, offset, length):
        self.calls.append(("zero", offset, length))
        super().zero(offset, length)

    def flush(self):
        self.calls.append(("flush",))
        super().flush()


class Count(NullOperation):
    def __init__(self):
        self.total = 0
        self.by_action = dict.fromkeys(Action, 0)

    def advance(self, n, action=Action.COPY):
        self.by_action[action] += n
        self.total += n


@pytest.fixture
def data():
    """Two data pieces, two of zeroes, one that only begins with zeroes, a short zero one."""
    begins = bytes(64 * KiB) + os.urandom(MiB - 64 * KiB)
    return os.urandom(2 * MiB) + bytes(2 * MiB) + begins + bytes(512)


def test_zero_runs_are_found_by_looking(data):
    assert list(zero_runs(MemoryBackend(Memory(data)), 0, len(data))) == [
        (0, 2 * MiB, False),
        (2 * MiB, 2 * MiB, True),
        (4 * MiB, MiB, False),
        (5 * MiB, 512, True),
    ]


def test_zero_runs_of_a_part_stay_inside_it(data):
    runs = list(zero_runs(MemoryBackend(Memory(data)), 3 * MiB, 100))
    assert runs == [(3 * MiB, 100, True)]


@pytest.mark.parametrize("at", [0, MiB, 2 * MiB + 64 * KiB])
def test_error_of_the_source_is_told_as_it_is(data, at):
    class Failing(MemoryBackend):
        def read_into(self, offset, buf):
            view = memoryview(buf)
            if offset + len(view) > at:
                raise OSError(errno.EIO, "Input/output error")
            super().read_into(offset, buf)

    with pytest.raises(OSError, match="Input/output error"):
        list(zero_runs(Failing(Memory(bytes(at) + data)), 0, len(data)))


def test_upload_sends_data_and_zeroes_what_it_finds(data):
    server = Memory(b"\xff" * len(data))
    remote, op = Remote(server), Count()
    pair = UploadPair(MemoryBackend(Memory(data)), remote, detect_zeroes=True)
    pair.copy(0, len(data), op)
    assert bytes(server.data) == data
    assert [call[0] for call in remote.calls] == ["write", "zero", "write", "zero"]
    assert op.total == len(data)
    assert pair.owes_flush


def test_upload_to_a_zero_disk_sends_no_zeroes(data):
    server = Memory(bytes(len(data)))
    remote, op = Remote(server), Count()
    UploadPair(MemoryBackend(Memory(data)), remote, detect_zeroes=True, disk_is_zero=True).copy(0, len(data), op)
    assert bytes(server.data) == data
    assert {call[0] for call in remote.calls} == {"write"}
    assert op.total == len(data)


def test_upload_without_looking_is_one_request(data):
    remote = Remote(Memory(bytes(len(data))))
    UploadPair(MemoryBackend(Memory(data)), remote).copy(0, len(data), Count())
    assert remote.calls == [("write", 0, len(data))]


def test_flush_is_owed_until_it_succeeded(data):
    remote = Remote(Memory(bytes(len(data))))
    pair = UploadPair(MemoryBackend(Memory(data)), remote)
    assert not pair.owes_flush
    pair.zero(0, 10)
    assert pair.owes_flush
    pair.flush()
    assert not pair.owes_flush
    assert remote.calls[-1] == ("flush",)


def test_download_skips_pieces_of_zeroes(data):
    target = Memory(bytes(len(data)))
    written = []

    class Target(MemoryBackend):
        def write(self, offset, buf):
            written.append(offset)
            super().write(offset, buf)

    pair = DownloadPair(Remote(Memory(data)), Target(target), skip_zeroes=True)
    pair.copy(0, len(data), Count())
    assert bytes(target.data) == data
    assert written == [0, MiB, 4 * MiB]


class SplicingPeer:
    """A plain connection that brings some bytes; it knows what was peeked at and what was copied."""

    splice_fd = 0

    def __init__(self, data, *, first=1 << 30):
        self.data = data
        self.copied = 0
        self._first = first

    def peek(self, limit):
        first, self._first = self._first, 1 << 30
        return bytes(self.data[: min(limit, first)])

    def take(self, limit):
        return b""

    def recv_into(self, view):
        view[:] = self.data[: len(view)]
        self.data = self.data[len(view) :]
        self.copied += len(view)
        return len(view)


class SplicingTarget(MemoryBackend):
    """Takes bytes from a peer that never pass through memory of ours."""

    def __init__(self, memory):
        super().__init__(memory)
        self.spliced = []
        self.written = []

    def write(self, offset, buf):
        self.written.append((offset, len(buf)))
        super().write(offset, buf)

    def receive_from(self, peer, offset, length, op, *, others=()):
        self.spliced.append((offset, length))
        super().write(offset, peer.data[:length])
        peer.data = peer.data[length:]
        op.advance(length)


def test_download_looks_at_the_beginning_of_each_piece_only(data):
    class Streaming(Remote):
        def stream_read(self, dst, offset, length, op):
            dst.receive_from(peer, offset, length, op)

    peer = SplicingPeer(data)
    target, op = SplicingTarget(Memory(bytes(len(data)))), Count()
    DownloadPair(Streaming(Memory(data)), target, skip_zeroes=True).copy(0, len(data), op)
    assert bytes(target._memory.data) == data
    assert target.spliced == [(0, MiB), (MiB, MiB)]
    assert target.written == [(4 * MiB, MiB)]
    assert peer.copied == 3 * MiB + 512
    assert op.total == len(data)


def test_download_that_sees_one_zero_byte_looks_at_the_piece():
    data = bytes(1) + os.urandom(MiB - 1)
    target = SplicingTarget(Memory(bytes(MiB)))
    SparseTarget(target).receive_from(SplicingPeer(data, first=1), 0, MiB, Count())
    assert bytes(target._memory.data) == data
    assert target.written == [(0, MiB)]


def test_close_closes_both_ends_even_if_one_fails():
    closed = []

    class Broken(Remote):
        def close(self):
            raise OSError("broken")

    class Source(MemoryBackend):
        def close(self):
            closed.append(True)

    with pytest.raises(OSError, match="broken"):
        UploadPair(Source(Memory(b"")), Broken(Memory(b""))).close()
    assert closed
