# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The contract of backends as tests, which every backend has to pass.

    @pytest.fixture
    def make(tmp_path):
        with contextlib.ExitStack() as stack:
            yield lambda size: stack.enter_context(my_storage(tmp_path, size))

    class TestMine(conformance.Suite):
        '''Storage of mine.'''

`make(size)` returns a `Storage`. Everything is compared with bytes in memory.
"""

# ruff: noqa: D102  (the names of the tests say the rules)

from __future__ import annotations

import contextlib
import io
import mmap
import os
import random
import socket
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imageio_testing.streams import Count, PausingPeer, SocketPeer, received, sending
from ovirt_imageio.common import checksum
from ovirt_imageio.common.backends.base import Backend, NullOperation
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.errors import OperationCancelled, PeerGone, RequestError, UnsupportedOperation
from ovirt_imageio.common.extents import ZeroExtent, check_cover

KiB = 1 << 10
MiB = 1 << 20

SIZE = 3 * MiB

# Seconds; only a thread that hangs takes so long.
PATIENCE = 60.0


class Open(Protocol):
    """Opens an instance of one storage."""

    def __call__(self, mode: str = "r+", sparse: bool = False) -> Backend:
        """`mode` and `sparse` as for `backends.open`."""


@dataclass
class Storage:
    """One image to test with.

    Attributes:
        open: Opens another instance.
        size: Bytes of the image.
        unit: Its size is a multiple of this.
        writers: Instances that may write side by side.
        tells_holes: Its extents call deallocated ranges zero.
        model: Content that it should read as; the tests keep it up.
    """

    open: Open
    size: int
    unit: int = 1
    writers: int = 8
    tells_holes: bool = True
    model: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.model.extend(bytes(self.size - len(self.model)))

    def content(self) -> bytes:
        """Return the bytes that a new instance reads."""
        with self.open("r") as backend:
            return read(backend, 0, self.size)

    def change(self, offset: int, data: bytes) -> bytes:
        """Let the model have these bytes; returns them."""
        self.model[offset : offset + len(data)] = data
        return data

    def extend(self, offset: int, data: bytes) -> bytes:
        """Let the model have these bytes, past its end as well; returns them."""
        self.model.extend(bytes(max(offset + len(data) - self.size, 0)))
        self.size = len(self.model)
        return self.change(offset, data)

    def fill(self) -> None:
        """Write something different everywhere."""
        data = pattern(0, self.size)
        self.model[:] = data
        with self.open() as backend:
            for start in range(0, self.size, MiB):
                backend.write(start, data[start : start + MiB])


Make = Callable[..., Storage]


def read(backend: Backend, offset: int, length: int) -> bytes:
    """Return a range of an image; its buffer was full of something else before."""
    buf = bytearray(b"\xa5" * length)
    backend.read_into(offset, buf)
    return bytes(buf)


def pattern(offset: int, length: int) -> bytes:
    """Bytes, none of them zero, of which no two neighbouring pages are the same."""
    first = offset // 251
    line = b"".join(b"%250d\n" % (n + 1) for n in range(first, (offset + length) // 251 + 1))
    return line[offset - first * 251 :][:length]


RANGES = [
    (0, 1),
    (0, 512),
    (1, 511),
    (511, 2),
    (4096, 4096),
    (4095, 4098),
    (100, 5000),
    (64 * KiB - 1, 64 * KiB + 2),
    (MiB - 7, MiB + 14),
    (0, SIZE),
    (1, SIZE - 2),
    (SIZE - 1, 1),
    (SIZE - 4097, 4097),
]
"""Offset and length at, over and between the borders of sectors, pages, clusters, pieces."""

OUTSIDE = [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (SIZE + 4096, 4096), (1 << 62, 512)]

with_splice = pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])

_kind = st.sampled_from(["write", "zero", "flush", "read"])
_length = st.sampled_from([512, 4096, 64 * KiB])
_change = st.tuples(
    _kind,
    st.integers(0, SIZE - 1) | st.integers(0, SIZE // 4096 - 1).map(lambda n: n * 4096),
    st.integers(1, 300 * KiB) | _length,
)
# From the beginning of a thread's range; as far as its end allows.
_change_within = st.tuples(
    _kind, st.sampled_from([0, SIZE]) | st.integers(0, SIZE // 8), st.integers(1, 100 * KiB) | _length
)


def _random(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """So many examples, the same in every run; `IMAGEIO_EXAMPLES` of them in a long one."""
    return settings(
        max_examples=int(os.environ.get("IMAGEIO_EXAMPLES", examples)),
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )


class _StorageSuite:
    conformance_rows = True  # see rows.py

    @pytest.fixture
    def storage(self, make: Make) -> Storage:
        """An image of `SIZE` bytes."""
        return make(SIZE)


class ReadWriteSuite(_StorageSuite):
    """Bytes that were written, and no others, are read."""

    def test_size_is_that_of_the_image(self, storage: Storage) -> None:
        with storage.open() as backend:
            assert backend.size == SIZE

    def test_image_reads_as_it_was_made(self, storage: Storage) -> None:
        assert storage.content() == storage.model

    def test_write_is_read(self, storage: Storage) -> None:
        with storage.open() as backend, storage.open("r") as other:
            for offset, length in RANGES:
                data = storage.change(offset, pattern(offset + 17, length))
                backend.write(offset, data)
                assert read(backend, offset, length) == data, (offset, length)
                backend.flush()
                assert read(other, 0, SIZE) == storage.model, (offset, length)

    def test_read_returns_the_range(self, storage: Storage) -> None:
        storage.fill()
        with storage.open("r") as backend:
            for offset, length in RANGES:
                assert read(backend, offset, length) == storage.model[offset : offset + length], (offset, length)

    @pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "allocated"])
    def test_zero_is_read_as_zeroes(self, storage: Storage, sparse: bool) -> None:
        storage.fill()
        with storage.open(sparse=sparse) as backend, storage.open("r") as other:
            for offset, length in RANGES:
                start = max(offset - 4096, 0)
                backend.write(start, storage.change(start, pattern(start, min(length + 8192, SIZE - start))))
                backend.zero(offset, length)
                storage.change(offset, bytes(length))
                assert read(backend, offset, length) == bytes(length), (offset, length)
                backend.flush()
                assert read(other, 0, SIZE) == storage.model, (offset, length)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_write_takes_any_buffer(self, storage: Storage, kind: Callable[[bytes], Any]) -> None:
        data = pattern(0, 8192)
        with storage.open() as backend:
            backend.write(4096, kind(data))
            assert read(backend, 4096, 8192) == data

    def test_aligned_and_unaligned_memory(self, storage: Storage) -> None:
        data = pattern(0, 8192)
        with storage.open() as backend, mmap.mmap(-1, 3 * 8192) as memory, memoryview(memory) as view:
            for skip in (0, 1, 512):
                view[skip : skip + 8192] = data
                backend.write(4096, view[skip : skip + 8192])
                view[skip : skip + 8192] = bytes(8192)
                backend.read_into(4096, view[skip : skip + 8192])
                assert view[skip : skip + 8192] == data

    def test_caller_keeps_what_it_wrote(self, storage: Storage) -> None:
        data = bytearray(pattern(0, 8192))
        with storage.open() as backend:
            backend.write(0, data)
            data[:] = bytes(8192)
            assert read(backend, 0, 8192) == pattern(0, 8192)

    def test_nothing_is_a_valid_length(self, storage: Storage) -> None:
        with storage.open() as backend:
            for offset in (0, 1, SIZE):
                backend.read_into(offset, bytearray())
                backend.write(offset, b"")
                backend.zero(offset, 0)
            assert not backend.unflushed
        assert storage.content() == storage.model

    def test_range_outside_the_image_is_refused(self, storage: Storage) -> None:
        storage.fill()
        with storage.open() as backend:
            for offset, length in OUTSIDE:
                with pytest.raises(ValueError, match=str(offset)):
                    backend.read_into(offset, bytearray(length))
                with pytest.raises(ValueError, match=str(offset)):
                    backend.write(offset, b"x" * length)
                with pytest.raises(ValueError, match=str(offset)):
                    backend.zero(offset, length)
                assert backend.broken is None
                assert read(backend, 0, 16) == storage.model[:16]
        assert storage.content() == storage.model

    def test_instance_for_reading_does_not_write(self, storage: Storage) -> None:
        with storage.open("r") as backend:
            assert backend.capabilities.read_only
            with pytest.raises(UnsupportedOperation):
                backend.write(0, b"x")
            with pytest.raises(UnsupportedOperation):
                backend.zero(0, 1)
        assert storage.content() == storage.model

    @pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4096, 4097, 64 * KiB + 1, MiB + 777])
    def test_any_size(self, make: Make, size: int) -> None:
        storage = make(size)
        if size % storage.unit:
            pytest.skip(f"storage comes in units of {storage.unit} bytes")
        storage.fill()
        with storage.open() as backend:
            assert backend.size == size
            backend.zero(size // 2, size - size // 2)
            backend.flush()
        storage.model[size // 2 :] = bytes(size - size // 2)
        assert storage.content() == storage.model

    def test_flush_covers_what_was_written(self, storage: Storage) -> None:
        with storage.open() as backend:
            assert not backend.unflushed
            backend.flush()
            changes: list[Callable[[], None]] = [lambda: backend.write(0, b"x"), lambda: backend.zero(1, 1)]
            for change in changes:
                change()
                assert owes_flush(backend)
                backend.flush()
                assert not owes_flush(backend)

    def test_other_instance_sees_what_was_written(self, storage: Storage) -> None:
        with storage.open() as one, storage.open("r") as other:
            assert read(other, 0, 4096) == storage.model[:4096]
            one.write(0, pattern(0, 4096))
            one.flush()
            assert read(other, 0, 4096) == pattern(0, 4096)

    def test_close_twice(self, storage: Storage) -> None:
        backend = storage.open()
        backend.close()
        backend.close()

    @_random(15)
    @given(st.lists(_change, max_size=12), st.booleans())
    def test_random_changes(self, storage: Storage, changes: list[tuple[str, int, int]], sparse: bool) -> None:
        with storage.open(sparse=sparse) as backend:
            for kind, offset, length in changes:
                run_change(storage, backend, kind, offset, min(offset + length, SIZE))
        assert storage.content() == storage.model

    @_random(3)
    @given(st.lists(st.lists(_change_within, min_size=1, max_size=6), min_size=8, max_size=8), st.booleans())
    def test_random_changes_by_eight_threads(
        self, storage: Storage, programs: list[list[tuple[str, int, int]]], sparse: bool
    ) -> None:
        # The borders lie inside sectors, so that threads meet in the same ones.
        borders = [SIZE * n // 8 + (n % 8 and 100 + n) for n in range(9)]
        parts = list(zip(borders, borders[1:], programs))
        for first in range(0, 8, storage.writers):
            group = parts[first : first + storage.writers]
            with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(group)) as threads:
                backends = [stack.enter_context(storage.open(sparse=sparse)) for _ in group]
                started = threading.Barrier(len(group), timeout=PATIENCE)
                for done in [threads.submit(run_within, storage, *each, started) for each in zip(backends, group)]:
                    done.result()
        assert storage.content() == storage.model


class ExtentsSuite(_StorageSuite):
    """Extents cover the image, and never call data zero."""

    def test_extents_cover_the_image(self, storage: Storage) -> None:
        with storage.open() as backend:
            backend.write(MiB + 5, pattern(0, 100))
            backend.zero(2 * MiB, 64 * KiB)
            backend.flush()
            found = list(check_cover(zero_extents(backend), SIZE))
            assert_zeroes(backend, found)
        assert [pair for pair in zip(found, found[1:]) if pair[0][2:] == pair[1][2:]] == []

    def test_extents_of_a_range(self, storage: Storage) -> None:
        with storage.open() as backend:
            backend.write(MiB, b"x" * 4096)
            backend.flush()
            for offset, length in [(0, SIZE), (512, 4096), (MiB, MiB), (MiB - 1, 3), (SIZE, 0)]:
                found = list(zero_extents(backend, offset=offset, length=length))
                assert sum(extent.length for extent in found) == length
                assert not found or found[0].start == offset
                assert_zeroes(backend, found)

    def test_extents_to_the_end(self, storage: Storage) -> None:
        with storage.open("r") as backend:
            found = list(zero_extents(backend, offset=MiB))
        assert found[0].start == MiB
        assert sum(extent.length for extent in found) == SIZE - MiB

    def test_deallocated_range_is_zero(self, storage: Storage) -> None:
        storage.fill()
        with storage.open(sparse=True) as backend:
            if not backend.capabilities.can_extents or not storage.tells_holes:
                pytest.skip("storage does not tell what is allocated")
            backend.zero(MiB, MiB)
            backend.flush()
            found = list(zero_extents(backend))
        assert [(extent.start, extent.length, extent.zero) for extent in found] == [
            (0, MiB, False),
            (MiB, MiB, True),
            (2 * MiB, SIZE - 2 * MiB, False),
        ]

    def test_hole_reads_as_zeroes(self, storage: Storage) -> None:
        with storage.open("r") as backend:
            assert [extent for extent in zero_extents(backend) if extent.hole and not extent.zero] == []

    def test_extents_of_a_cancelled_operation_end(self, storage: Storage) -> None:
        with storage.open("r") as backend:
            if not backend.capabilities.can_extents:
                pytest.skip("storage is not asked")
            with pytest.raises(OperationCancelled, match="enough"):
                list(backend.extents(op=Count(limit=0)))
            assert sum(extent.length for extent in backend.extents(op=NullOperation())) == SIZE

    def test_extents_outside_the_image_are_refused(self, storage: Storage) -> None:
        with storage.open("r") as backend:
            for offset, length in OUTSIDE:
                with pytest.raises(ValueError, match=str(offset)):
                    list(backend.extents(offset=offset, length=length))

    def test_unknown_context_is_named(self, storage: Storage) -> None:
        with storage.open("r") as backend, pytest.raises((UnsupportedOperation, ValueError), match="unheard-of"):
            list(backend.extents("unheard-of"))

    def test_storage_without_bitmap_has_no_dirty_extents(self, storage: Storage) -> None:
        with storage.open("r") as backend:
            assert not backend.capabilities.can_dirty
            with pytest.raises(UnsupportedOperation):
                list(backend.extents("dirty"))

    def test_extents_of_an_empty_image(self, make: Make) -> None:
        with make(0).open("r") as backend:
            assert list(backend.extents()) == []

    def test_block_hash_is_that_of_memory(self, storage: Storage) -> None:
        with storage.open() as backend:
            backend.write(MiB + 5, pattern(0, 100))
            backend.flush()
            storage.model[MiB + 5 : MiB + 105] = pattern(0, 100)
            found = checksum.checksum([backend], extents=zero_extents(backend), block_size=MiB)
        assert found == checksum.checksum([MemoryBackend(Memory(storage.model))], block_size=MiB)


class StreamsSuite(_StorageSuite):
    """Streams move exactly their range, count it, and end when they are told to."""

    @with_splice
    def test_send(self, storage: Storage, splice: bool) -> None:
        storage.fill()
        with storage.open("r") as backend:
            for offset, length in RANGES:
                data, peer, op = sent_by(backend, offset, length, splice=splice)
                assert backend.broken is None
                assert data == storage.model[offset : offset + length], (offset, length)
                assert op.done == length
                assert peer.begun
                assert peer.began_first

    @with_splice
    def test_send_with_others(self, storage: Storage, splice: bool) -> None:
        storage.fill()
        with storage.open("r") as one, storage.open("r") as other:
            data = received(
                lambda sock: one.send_to(SocketPeer(sock, splice=splice), 1, SIZE - 2, Count(), others=[other])
            )
        assert data == storage.model[1:-1]

    @with_splice
    def test_send_sparse(self, storage: Storage, splice: bool) -> None:
        with storage.open() as backend:
            backend.write(MiB, b"x" * 4096)
            storage.model[MiB : MiB + 4096] = b"x" * 4096
            data = received(lambda sock: backend.send_to(SocketPeer(sock, splice=splice), 0, SIZE, Count()))
        assert data == storage.model

    def test_send_nothing_begins(self, storage: Storage) -> None:
        peers = []

        def send(sock: Any) -> None:
            peers.append(SocketPeer(sock, splice=True))
            backend.send_to(peers[0], 0, 0, NullOperation())

        with storage.open("r") as backend:
            assert received(send) == b""
        assert peers[0].begun

    @with_splice
    def test_stream_outside_the_image_is_refused(self, storage: Storage, splice: bool) -> None:
        def refuse(sock: Any) -> None:
            peer = SocketPeer(sock, splice=splice)
            for offset, length in OUTSIDE:
                with pytest.raises(ValueError, match=str(offset)):
                    backend.send_to(peer, offset, length, NullOperation())
                with pytest.raises(ValueError, match=str(offset)):
                    backend.receive_from(peer, offset, length, NullOperation())
            assert not peer.begun

        with storage.open() as backend:
            assert received(refuse) == b""
        assert storage.content() == storage.model

    @with_splice
    def test_send_to_a_peer_that_went_away(self, storage: Storage, splice: bool) -> None:
        storage.fill()

        def send(sock: Any) -> None:
            peer = SocketPeer(sock, splice=splice)
            with pytest.raises(PeerGone):
                backend.send_to(peer, 0, SIZE, Count())

        with storage.open("r") as backend:
            sending([], send)

    @with_splice
    def test_send_that_is_cancelled(self, storage: Storage, splice: bool) -> None:
        storage.fill()
        op = Count(limit=1)

        def send(sock: Any) -> None:
            with pytest.raises(OperationCancelled):
                backend.send_to(SocketPeer(sock, splice=splice), 0, SIZE, op)

        with storage.open("r") as backend:
            data = received(send)
        assert 0 < op.done < SIZE
        assert data[: op.done] == storage.model[: op.done]

    @with_splice
    def test_receive(self, storage: Storage, splice: bool) -> None:
        with storage.open() as backend, storage.open("r") as other:
            for offset, length in RANGES:
                data = storage.change(offset, pattern(offset + 3, length))
                op = receive(backend, [data], offset, length, splice=splice)
                assert owes_flush(backend)
                assert backend.broken is None
                assert op.done == length
                backend.flush()
                assert read(other, 0, SIZE) == storage.model, (offset, length)

    @with_splice
    def test_receive_small_pieces(self, storage: Storage, splice: bool) -> None:
        with storage.open() as backend:
            for size in (1, 64, 1000, 4095):
                data = storage.change(777, pattern(size, min(100_000, 3000 * size)))
                pieces = [data[at : at + size] for at in range(0, len(data), size)]
                receive(backend, pieces, 777, len(data), splice=splice)
                assert read(backend, 777, len(data)) == data, size
        assert storage.content() == storage.model

    @with_splice
    def test_receive_what_was_read_before(self, storage: Storage, splice: bool) -> None:
        with storage.open() as backend:
            for taken in (1, 4096, 70_000, 2 * MiB):
                data = storage.change(4096, pattern(taken, 2 * MiB))
                receive(backend, [data[taken:]], 4096, len(data), splice=splice, taken=data[:taken])
                assert read(backend, 4096, len(data)) == data, taken
        assert storage.content() == storage.model

    @with_splice
    def test_receive_leaves_what_follows(self, storage: Storage, splice: bool) -> None:
        def receive(sock: Any) -> None:
            backend.receive_from(SocketPeer(sock, splice=splice), 0, 8192, Count())
            assert sock.recv(100) == b"GET /next"

        with storage.open() as backend:
            sending([b"x" * 8192 + b"GET /next"], receive)

    @with_splice
    def test_receive_with_others(self, storage: Storage, splice: bool) -> None:
        data = pattern(9, SIZE - 2)
        if storage.writers < 2:
            pytest.skip("storage takes one writer at a time")
        with storage.open() as one, storage.open() as other:
            sending(
                [data],
                lambda sock: one.receive_from(SocketPeer(sock, splice=splice), 1, len(data), Count(), others=[other]),
            )
            one.flush()
            other.flush()
        storage.model[1:-1] = data
        assert storage.content() == storage.model

    @with_splice
    def test_receive_from_a_peer_that_goes_away(self, storage: Storage, splice: bool) -> None:
        for sent in (0, 1, 5000, MiB + 1):
            data, op = pattern(sent, 2 * MiB), Count()
            with storage.open() as backend, pytest.raises(PeerGone):
                receive(backend, [data[:sent]], MiB, len(data), splice=splice, op=op)
            assert op.done <= sent
            content = storage.content()
            assert content[MiB : MiB + op.done] == data[: op.done]
            assert content[:MiB] == storage.model[:MiB]
            assert content[MiB + sent :] == storage.model[MiB + sent :]
            storage.model[:] = content

    @with_splice
    def test_receive_that_is_cancelled(self, storage: Storage, splice: bool) -> None:
        data, op = pattern(7, 2 * MiB + 512), Count(checks=2)
        with storage.open() as backend, pytest.raises(OperationCancelled):
            receive(backend, [data], 0, len(data), splice=splice, op=op)
        assert 0 < op.done <= len(data)
        assert storage.content()[: op.done] == data[: op.done]

    @with_splice
    def test_send_to_a_peer_that_pauses(self, storage: Storage, splice: bool) -> None:
        storage.fill()
        offset, length = 777, SIZE - 2000
        ours, theirs = socket.socketpair()
        with ours, theirs, storage.open("r") as backend, storage.open("r") as other:
            peer, op = PausingPeer(ours, splice=splice), Count()
            data, pauses = b"", 0
            while op.done < length:
                backend.send_to(peer, offset + op.done, length - op.done, op, others=[other])
                pauses += peer.paused
                while len(data) < op.done - len(peer.unsent):
                    data += theirs.recv(MiB)
                data += peer.unsent
                peer.unsent, peer.paused = b"", False
            assert backend.broken is None
            assert other.broken is None
        assert pauses
        assert data == storage.model[offset : offset + length]

    @with_splice
    def test_receive_from_a_peer_that_pauses(self, storage: Storage, splice: bool) -> None:
        offset, sent = 777, 0
        data = storage.change(offset, pattern(3, 150_000))
        ours, theirs = socket.socketpair()
        with ours, theirs, storage.open() as backend:
            if not backend.can_pause:
                pytest.skip("storage cannot be left in the middle of a range")
            peer, op = PausingPeer(ours, splice=splice), Count()
            for count in (1, 4095, 65_537, len(data)):
                theirs.sendall(data[sent : sent + count])
                sent = min(sent + count, len(data))
                backend.receive_from(peer, offset + op.done, len(data) - op.done, op)
                assert backend.broken is None
                assert op.done <= sent
                assert peer.paused == (sent < len(data))
                peer.paused = False
            assert op.done == len(data)
        assert storage.content() == storage.model

    def test_write_to_a_file(self, storage: Storage) -> None:
        storage.fill()
        with storage.open("r") as backend:
            for offset, length in RANGES:
                target, op = io.BytesIO(), Count()
                backend.write_to(target, offset, length, op)
                assert target.getvalue() == storage.model[offset : offset + length], (offset, length)
                assert op.done == length

    def test_read_from_a_file(self, storage: Storage) -> None:
        with storage.open() as backend:
            for offset, length in RANGES:
                data, op = storage.change(offset, pattern(offset + 1, length)), Count()
                backend.read_from(io.BytesIO(data + b"more"), offset, length, op)
                assert op.done == length
                assert read(backend, 0, SIZE) == storage.model, (offset, length)
        assert storage.content() == storage.model

    def test_read_from_a_file_that_is_too_short(self, storage: Storage) -> None:
        with storage.open() as backend, pytest.raises(PeerGone):
            backend.read_from(io.BytesIO(b"x" * 5000), 0, 5001)


class Suite(ReadWriteSuite, ExtentsSuite, StreamsSuite):
    """All of the contract."""


class GrowthSuite:
    """Storage that grows when it is written, to the byte and never past its limit.

    `make_growing(size, limit)` returns a `Storage` of `size` bytes whose instances may make it `limit` bytes long.
    """

    conformance_rows = True  # see rows.py

    @pytest.fixture
    def growing(self, make_growing: Make) -> Storage:
        """An empty image that may have `SIZE` bytes."""
        return make_growing(0, SIZE)

    def test_write_makes_an_empty_image_as_long_as_it_reaches(self, growing: Storage) -> None:
        with growing.open() as backend, growing.open("r") as other:
            for offset, length in [(0, 1), (1, 511), (512, 4096), (5000, 100), (MiB + 3, 70_001), (SIZE - 1, 1)]:
                backend.write(offset, growing.extend(offset, pattern(offset, length)))
                assert (backend.size, other.size) == (growing.size, growing.size), offset
                assert read(other, 0, growing.size) == growing.model, offset
            backend.flush()
        assert growing.content() == growing.model

    @pytest.mark.parametrize("sparse", [False, True])
    def test_zero_makes_an_image_as_long_as_it_reaches(self, make_growing: Make, sparse: bool) -> None:
        growing = make_growing(5000, SIZE)
        growing.fill()
        with growing.open(sparse=sparse) as backend:
            for offset, length in [(4990, 20), (5010, 1), (8000, 200), (MiB + 1, MiB), (SIZE - 513, 513)]:
                growing.extend(offset, bytes(length))
                backend.zero(offset, length)
                assert backend.size == growing.size, offset
            backend.zero(100, 50)
            growing.change(100, bytes(50))
            assert backend.size == SIZE
            backend.flush()
        assert growing.content() == growing.model

    def test_zero_inside_and_write_of_nothing_grow_nothing(self, make_growing: Make) -> None:
        growing = make_growing(4096, SIZE)
        with growing.open() as backend:
            backend.zero(0, 4096)
            backend.write(MiB, b"")
            backend.zero(MiB, 0)
            assert backend.size == 4096

    def test_nothing_grows_past_the_limit(self, growing: Storage) -> None:
        with growing.open() as backend:
            for offset, length in [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (1 << 62, 512)]:
                with pytest.raises((ValueError, RequestError)):
                    backend.write(offset, bytes(length))
                with pytest.raises((ValueError, RequestError)):
                    backend.zero(offset, length)
            assert backend.size == 0

    def test_read_past_the_end_is_refused_until_it_is_there(self, growing: Storage) -> None:
        with growing.open() as backend, growing.open("r") as other:
            with pytest.raises(ValueError, match="0 bytes"):
                other.read_into(0, bytearray(1))
            backend.write(4095, b"xyz")
            assert read(other, 4094, 4) == b"\0xyz"
            with pytest.raises(ValueError, match="4098 bytes"):
                other.read_into(4097, bytearray(2))

    def test_extents_cover_what_is_there_by_now(self, growing: Storage) -> None:
        with growing.open(sparse=True) as backend, growing.open("r") as other:
            assert list(other.extents()) == []
            backend.write(MiB, growing.extend(MiB, b"x" * 4096))
            backend.zero(2 * MiB, 100)
            growing.extend(2 * MiB, bytes(100))
            extents = list(zero_extents(other))
            assert extents == list(check_cover(extents, growing.size))
            assert_zeroes(other, extents)

    @with_splice
    def test_receive_past_the_end(self, growing: Storage, splice: bool) -> None:
        with growing.open() as backend, growing.open("r") as other:
            for offset, length in [(0, 100), (100, 70_000), (MiB + 511, MiB + 2)]:
                data = growing.extend(offset, pattern(offset + 3, length))
                op = receive(backend, [data], offset, length, splice=splice)
                assert op.done == length
                assert read(other, 0, other.size) == growing.model, offset
            backend.flush()
        assert growing.content() == growing.model

    @_random(10)
    @given(changes=st.lists(_change, max_size=12), sparse=st.booleans())
    def test_random_growth(self, make_growing: Make, changes: list[tuple[str, int, int]], sparse: bool) -> None:
        growing = make_growing(0, SIZE)
        with growing.open(sparse=sparse) as backend, growing.open("r") as other:
            for kind, offset, length in changes:
                length = min(length, SIZE - offset)
                if kind == "flush":
                    backend.flush()
                elif kind == "read":
                    assert read(other, 0, other.size) == growing.model
                elif length and kind == "zero":
                    backend.zero(offset, len(growing.extend(offset, bytes(length))))
                elif length:
                    backend.write(offset, growing.extend(offset, pattern(offset + length, length)))
        assert growing.content() == growing.model

    @_random(10)
    @given(seed=st.integers(0, 1 << 30))
    def test_random_growth_by_eight_threads(self, make_growing: Make, seed: int) -> None:
        """Pieces of one image, in any order: the end of one is within the block of the next."""
        growing = make_growing(0, SIZE)
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(1, SIZE), 60))
        pieces = list(zip([0, *cuts], [*cuts, SIZE]))
        rng.shuffle(pieces)
        started = threading.Barrier(8)

        def work(number: int) -> None:
            with growing.open(sparse=bool(number % 2)) as backend:
                started.wait()
                for n, (start, end) in enumerate(pieces[number::8]):
                    zero = n % 5 == 4
                    data = bytes(end - start) if zero else pattern(start, end - start)
                    growing.model[start:end] = data
                    backend.zero(start, end - start) if zero else backend.write(start, data)
                backend.flush()

        growing.extend(0, bytes(SIZE))
        with ThreadPoolExecutor(8) as pool:
            for job in [pool.submit(work, number) for number in range(8)]:
                job.result(PATIENCE)
        assert growing.content() == growing.model


def run_change(storage: Storage, backend: Backend, kind: str, start: int, end: int) -> None:
    """Change a range of an image and its model, or compare them."""
    if kind == "write":
        storage.model[start:end] = pattern(start + end, end - start)
        backend.write(start, storage.model[start:end])
    elif kind == "zero":
        storage.model[start:end] = bytes(end - start)
        backend.zero(start, end - start)
    elif kind == "flush":
        backend.flush()
    else:
        assert read(backend, start, end - start) == storage.model[start:end]


def run_within(
    storage: Storage,
    backend: Backend,
    part: tuple[int, int, list[tuple[str, int, int]]],
    started: threading.Barrier,
) -> None:
    """Make changes between two borders, in a thread of its own that begins with the others."""
    low, high, changes = part
    started.wait()
    for kind, offset, length in changes:
        start = min(low + offset, max(high - length, low))
        run_change(storage, backend, kind, start, min(start + length, high))
        # Be in the sectors at the borders when the neighbours are.
        for size in (1, 100, 9):
            run_change(storage, backend, "write", low, low + size)
            run_change(storage, backend, "write", high - size, high)
    run_change(storage, backend, "read", low, high)


def sent_by(backend: Backend, offset: int, length: int, *, splice: bool) -> tuple[bytes, SocketPeer, Count]:
    """Return what `send_to` sends, the peer it sent to, and its operation."""
    op, peers = Count(), []

    def send(sock: Any) -> None:
        peers.append(SocketPeer(sock, splice=splice))
        backend.send_to(peers[0], offset, length, op)

    return received(send), peers[0], op


def receive(
    backend: Backend,
    pieces: Iterable[bytes],
    offset: int,
    length: int,
    *,
    splice: bool,
    taken: bytes = b"",
    op: Count | None = None,
) -> Count:
    """Let a backend receive these pieces, after what was taken before; returns its operation."""
    op = op or Count()

    def take(sock: Any) -> None:
        backend.receive_from(SocketPeer(sock, splice=splice, taken=taken), offset, length, op)

    sending(pieces, take)
    return op


def zero_extents(backend: Backend, **options: Any) -> Iterator[ZeroExtent]:
    """The zero extents of a backend."""
    for extent in backend.extents("zero", **options):
        assert isinstance(extent, ZeroExtent)
        yield extent


def owes_flush(backend: Backend) -> bool:
    """Whether something was written since the last flush; asked anew each time."""
    return backend.unflushed


def assert_zeroes(backend: Backend, extents: list[ZeroExtent]) -> None:
    """Make sure that what is said to be zero is."""
    for start, length, zero, _ in extents:
        assert not zero or read(backend, start, length) == bytes(length)
