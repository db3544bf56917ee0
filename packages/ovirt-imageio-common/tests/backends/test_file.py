# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files beyond the conformance suite: faults, file systems that lack calls, and room on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile

import pytest

from imageio_testing.mounts import loop_device
from imageio_testing.streams import Count, SocketPeer, sending
from ovirt_imageio.common import linux
from ovirt_imageio.common.backends import direct as direct_module
from ovirt_imageio.common.backends import file as file_module
from ovirt_imageio.common.backends.direct import DirectFile, write_all
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.zeroing import Zeroing
from ovirt_imageio.common.errors import AlsoOSError, OperationCancelled, PeerGone, PeerTimeout, UnsupportedOperation
from ovirt_imageio.common.extents import ZeroExtent

KiB, MiB = 1 << 10, 1 << 20


@pytest.fixture
def path(tmp_path):
    """A file of 1 MiB and 100 bytes, all x."""
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (MiB + 100))
    return str(path)


@pytest.fixture(params=["buffered", "direct"])
def backend(request, path):
    """That file, opened either way."""
    direct = request.param == "direct"
    with FileBackend(path, mode="r+", direct=direct) as backend:
        if direct and backend.capabilities.block_size == 1:
            pytest.skip("no O_DIRECT on the file system of temporary files")
        yield backend


def failing(*codes, then=None):
    """A system call that fails with each of these errors in turn, and then does what `then` does."""
    left = list(codes)

    def call(*args, **options):
        if left:
            code = left.pop(0)
            raise OSError(code, os.strerror(code))
        return then(*args, **options) if then else None

    return call


@contextlib.contextmanager
def raises(code):
    with pytest.raises(OSError, match=rf"Errno {code}\b") as e:
        yield e
    assert e.value.errno == code


# Opening.


def test_unknown_mode_is_a_mistake(path):
    with pytest.raises(ValueError, match="'w'"):
        FileBackend(path, mode="w")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        FileBackend(str(tmp_path / "missing"))


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_image_is_refused_and_named(tmp_path, kind):
    name = str(tmp_path / "thing")
    os.mkdir(name) if kind == "folder" else os.mkfifo(name)
    with pytest.raises(OSError, match="neither") as e:
        FileBackend(name)
    assert e.value.filename == name


def test_storage_that_other_hosts_change_is_never_answered_from_memory(path, monkeypatch):
    monkeypatch.setattr(linux, "is_local", lambda fd: False)
    with FileBackend(path) as backend:
        assert not backend.can_nowait
        assert backend.read_nowait(0, 10) is None


def test_storage_without_direct_io_is_read_all_the_same(path, monkeypatch):
    monkeypatch.setattr(linux, "reopen_direct", lambda fd, flags: None)
    with FileBackend(path, direct=True) as backend:
        buf = bytearray(10)
        backend.read_into(MiB + 90, buf)
    assert buf == b"x" * 10


def test_block_device_has_as_many_writers_as_readers(path):
    """It does not grow. Edges of blocks are written under the lock that all instances share."""
    with loop_device(path) as device, FileBackend(device, mode="r+", connections=5) as backend:
        assert (backend.capabilities.max_readers, backend.capabilities.max_writers) == (5, 5)
    with FileBackend(path, mode="r+", connections=5) as backend:
        assert (backend.capabilities.max_readers, backend.capabilities.max_writers) == (5, 1)


def test_clone_has_the_same_options(path):
    with FileBackend(path, mode="r+", sparse=True, connections=3) as one, one.clone() as other:
        other.write(0, b"y")
        assert other.capabilities == one.capabilities
    with FileBackend(path) as one, one.clone() as other, pytest.raises(UnsupportedOperation):
        other.write(0, b"z")


# Errors of storage.


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_write_passes_the_error_of_storage(backend, monkeypatch, code):
    monkeypatch.setattr(direct_module.os, "pwrite", failing(code))
    with raises(code):
        backend.write(0, bytes(8192))
    assert backend.unflushed


def test_read_passes_the_error_of_storage(backend, monkeypatch):
    monkeypatch.setattr(file_module.os, "preadv", failing(errno.EIO))
    with raises(errno.EIO):
        backend.read_into(0, bytearray(8192))


def test_error_of_storage_names_the_file(path, backend, monkeypatch):
    for name in ("preadv", "pwrite", "fsync"):
        monkeypatch.setattr(file_module.os, name, failing(*[errno.EIO] * 9))
    for name in ("fallocate", "seek_data", "splice"):
        monkeypatch.setattr(linux, name, failing(*[errno.EIO] * 9))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(bytes(4096))
        calls = {
            "read": lambda: backend.read_into(0, bytearray(4096)),
            "write": lambda: backend.write(0, bytes(4096)),
            "zero": lambda: backend.zero(0, MiB),
            "extents": lambda: list(backend.extents()),
            "receive": lambda: backend.receive_from(SocketPeer(ours, splice=True), 0, 4096, Count()),
            "send": lambda: backend.send_to(SocketPeer(ours, splice=True), 0, 4096, Count()),
            "flush": backend.flush,
        }
        for name, call in calls.items():
            with pytest.raises(OSError, match=f"Errno {errno.EIO}") as e:
                call()
            assert e.value.filename == path, name


def test_error_of_the_page_cache_names_the_file(path, monkeypatch):
    ours, theirs = socket.socketpair()
    with ours, theirs, FileBackend(path, splice_out=True) as backend:
        monkeypatch.setattr(linux, "splice", failing(errno.EIO))
        with raises(errno.EIO) as e:
            backend.send_to(SocketPeer(ours, splice=True), 0, 4096, Count())
    assert e.value.filename == path


def test_error_of_the_peer_is_not_named_after_the_file(path, backend):
    class Broken(SocketPeer):
        def send_all(self, data):
            raise AlsoOSError("the server left")

    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(AlsoOSError) as e:
        backend.send_to(Broken(ours, splice=False), 0, 4096, Count())
    assert e.value.filename is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_zero_passes_the_error_of_storage(backend, monkeypatch, code):
    """Only an error that is about the way makes it try another."""
    monkeypatch.setattr(linux, "fallocate", failing(code))
    with raises(code):
        backend.zero(0, MiB)
    assert backend.unflushed


def test_write_that_storage_takes_in_parts(path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: pwrite(fd, view[:1000], offset))
    with FileBackend(path, mode="r+", direct=False) as backend:
        backend.write(5, b"y" * 2500)
    with open(path, "rb") as f:
        assert f.read(2510) == b"x" * 5 + b"y" * 2500 + b"x" * 5


def test_write_that_storage_takes_nothing_more_of_is_an_error(monkeypatch):
    counts = [10, 0]
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: counts.pop(0))
    with pytest.raises(OSError, match="10 of 20 bytes at 5"):
        write_all(-1, 5, memoryview(bytes(20)))


def test_failed_flush_is_never_followed_by_one_that_succeeds(path, monkeypatch):
    """The kernel tells an error of writing back once, and takes the lost pages for clean."""
    with FileBackend(path, mode="r+") as one, FileBackend(path, mode="r+") as other:
        one.write(0, b"y")
        other.write(1, b"y")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(errno.EIO))
            with raises(errno.EIO):
                one.flush()
        assert one.unflushed
        assert one.broken is not None
        with pytest.raises(OSError, match="an earlier flush failed"):
            other.flush()
        assert other.unflushed
    with FileBackend(path, mode="r+") as afterwards:
        afterwards.flush()


def test_flush_for_a_reader_does_nothing(path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with FileBackend(path) as backend:
        backend.flush()


# A file that becomes shorter.


def test_read_of_a_file_that_became_shorter(backend, path):
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="ended at 4096, it had 1048676") as e:
        backend.read_into(0, bytearray(8192))
    assert e.value.errno == errno.EIO
    with raises(errno.EIO):
        backend.read_into(MiB - 1, bytearray(50))


def test_extents_of_a_file_that_became_shorter(backend, path):
    os.truncate(path, 4096)
    with raises(errno.EIO):
        list(backend.extents())


def test_flush_of_a_file_that_became_shorter(backend, path):
    backend.write(0, b"y")
    os.truncate(path, 4096)
    with pytest.raises(OSError, match="ended at 4096"):
        backend.flush()
    assert backend.unflushed


def test_extents_that_make_no_sense_are_an_error(backend, monkeypatch):
    monkeypatch.setattr(linux, "seek_hole", lambda fd, offset: offset)
    with pytest.raises(OSError, match="changed"):
        list(backend.extents())


def test_extents_of_many_runs_end_when_they_are_cancelled(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, MiB)
    seeks = []

    def seek_data(fd, offset):
        seeks.append(offset)
        return offset + 4096

    monkeypatch.setattr(linux, "seek_data", seek_data)
    monkeypatch.setattr(linux, "seek_hole", lambda fd, offset: offset + 4096)
    with FileBackend(str(path)) as backend, pytest.raises(OperationCancelled):
        list(backend.extents(op=Count(checks=2)))
    assert len(seeks) == 64


def test_size_that_is_no_multiple_of_a_sector_is_kept(backend, path):
    backend.write(MiB + 50, b"y" * 50)
    backend.zero(MiB - 4096, 4096 + 60)
    backend.flush()
    assert os.path.getsize(path) == MiB + 100
    with open(path, "rb") as f:
        assert f.read()[MiB - 4097 :] == b"x" + bytes(4096 + 60) + b"y" * 40


# Room on disk.


def allocated(path):
    return os.stat(path).st_blocks * 512


def test_sparse_zeroing_gives_room_back(path):
    with FileBackend(path, mode="r+", sparse=True) as backend:
        backend.zero(0, MiB)
        backend.flush()
    assert allocated(path) < 64 * KiB


def test_other_zeroing_takes_the_room(tmp_path):
    path = tmp_path / "disk"
    path.touch()
    os.truncate(path, MiB)
    with FileBackend(str(path), mode="r+") as backend:
        backend.zero(0, MiB)
        backend.flush()
        assert [extent.length for extent in backend.extents()] == [MiB]
    assert allocated(path) >= MiB


@pytest.mark.parametrize("sparse", [True, False])
def test_file_systems_that_cannot_zero_get_zeroes(path, monkeypatch, sparse):
    monkeypatch.setattr(linux, "fallocate", failing(*[errno.EOPNOTSUPP] * 9))
    with FileBackend(path, mode="r+", sparse=sparse) as backend:
        backend.zero(10, MiB)
        backend.zero(0, 5)
    with open(path, "rb") as f:
        assert f.read() == bytes(5) + b"x" * 5 + bytes(MiB) + b"x" * 90


class Ways:
    """Records what Zeroing tries; what is in `unknown` storage does not know."""

    def __init__(self, monkeypatch, unknown=()):
        self.tried = []
        self.unknown = dict(unknown)
        names = {0: "allocate", linux.FALLOC_FL_PUNCH_HOLE | 1: "punch", linux.FALLOC_FL_ZERO_RANGE | 1: "zero"}
        monkeypatch.setattr(linux, "fallocate", lambda fd, mode, offset, length: self.call(names[mode]))
        monkeypatch.setattr(linux, "zero_out", lambda fd, offset, length: self.call("zero out"))

    def call(self, name):
        self.tried.append(name)
        if name in self.unknown:
            raise OSError(self.unknown[name], name)


@pytest.mark.parametrize(
    ("device", "sparse", "unknown", "tried", "done"),
    [
        (False, True, [], ["punch"], True),
        (False, True, ["punch"], ["punch", "zero"], True),
        (False, True, ["punch", "zero"], ["punch", "zero"], False),
        (False, False, [], ["zero"], True),
        (False, False, ["zero"], ["zero", "punch", "allocate"], True),
        (False, False, ["zero", "allocate"], ["zero", "punch", "allocate"], False),
        (True, True, ["punch"], ["punch", "zero out"], True),
        (True, False, [], ["zero"], True),
        (True, False, ["zero", "zero out"], ["zero", "zero out"], False),
    ],
)
def test_ways_to_zero(monkeypatch, device, sparse, unknown, tried, done):
    ways = Ways(monkeypatch, dict.fromkeys(unknown, errno.EOPNOTSUPP))
    zeroing = Zeroing(-1, device=device, sparse=sparse)
    assert zeroing.zero(0, 4096) is done
    assert ways.tried == tried
    # A way that storage does not know is not tried again.
    ways.tried.clear()
    assert zeroing.zero(0, 4096) is done
    assert not set(ways.tried) & set(unknown)


# Reads without waiting.


@pytest.fixture
def cached(path):
    with FileBackend(path, direct=False) as backend:
        backend.can_nowait = True
        backend._in_memory = False
        yield backend


def test_nowait_reads_what_is_in_memory(cached, monkeypatch):
    monkeypatch.setattr(linux, "preadv_nowait", os.preadv)
    assert cached.read_nowait(MiB, 100) == b"x" * 100


def test_nowait_reads_nothing_that_is_not_all_in_memory(cached, monkeypatch):
    monkeypatch.setattr(linux, "preadv_nowait", lambda fd, buffers, offset: len(buffers[0]) - 1)
    assert cached.read_nowait(0, 100) is None
    monkeypatch.setattr(linux, "preadv_nowait", failing(errno.EAGAIN))
    assert cached.read_nowait(0, 100) is None


def test_nowait_passes_the_error_of_storage(cached, monkeypatch):
    monkeypatch.setattr(linux, "preadv_nowait", failing(errno.EIO))
    with raises(errno.EIO):
        cached.read_nowait(0, 100)


def test_nowait_reads_nothing_outside_the_file(cached):
    with pytest.raises(ValueError, match="100 bytes at"):
        cached.read_nowait(MiB + 1, 100)


def test_nowait_in_memory():
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as f:
        f.write(b"x" * 100)
        f.flush()
        with FileBackend(f.name, direct=False) as backend:
            assert backend.read_nowait(10, 20) == b"x" * 20
            f.truncate(15)
            assert backend.read_nowait(10, 20) is None


@pytest.mark.parametrize(("code", "knows"), [(errno.EAGAIN, True), (errno.EOPNOTSUPP, False), (errno.ENOSYS, False)])
def test_file_systems_are_asked_once_if_they_know_nowait(path, monkeypatch, code, knows):
    monkeypatch.setattr(linux, "preadv_nowait", failing(code))
    monkeypatch.setattr(linux, "is_local", lambda fd: True)
    monkeypatch.setattr(linux, "is_tmpfs", lambda fd: False)
    with FileBackend(path, direct=False) as backend:
        assert backend.can_nowait is knows


def test_broken_storage_is_found_when_it_is_opened(path, monkeypatch):
    monkeypatch.setattr(linux, "preadv_nowait", failing(errno.EIO))
    monkeypatch.setattr(linux, "is_local", lambda fd: True)
    monkeypatch.setattr(linux, "is_tmpfs", lambda fd: False)
    with raises(errno.EIO):
        FileBackend(path, direct=False)


# Streams.


def test_receive_copies_where_no_pipe_is_left(path, monkeypatch):
    monkeypatch.setattr(linux, "pipes", linux.PipePool(0))
    with FileBackend(path, mode="r+", direct=False) as backend:
        sending([b"y" * 5000], lambda sock: backend.receive_from(SocketPeer(sock, splice=True), 3, 5000, Count()))
        buf = bytearray(5002)
        backend.read_into(2, buf)
    assert buf == b"x" + b"y" * 5000 + b"x"


def test_receive_from_a_peer_that_is_silent(path):
    ours, theirs = socket.socketpair()
    with ours, theirs, FileBackend(path, mode="r+", direct=False) as backend:
        peer = SocketPeer(ours, splice=True)
        theirs.sendall(b"y" * 10)
        linux_timeout = (0).to_bytes(8, "little") + (50_000).to_bytes(8, "little")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, linux_timeout)
        op = Count()
        with pytest.raises(PeerTimeout, match="sent nothing"):
            backend.receive_from(peer, 0, 100, op)
        assert op.done == 10


def test_receive_from_a_peer_that_resets(path, monkeypatch):
    monkeypatch.setattr(linux, "splice", failing(errno.ECONNRESET))
    with FileBackend(path, mode="r+", direct=False) as backend:
        with pytest.raises(PeerGone, match="reset"):
            sending([b"y"], lambda sock: backend.receive_from(SocketPeer(sock, splice=True), 0, 1, Count()))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_receive_passes_the_error_of_storage(path, monkeypatch, code):
    splice = linux.splice
    write = failing(code)
    monkeypatch.setattr(linux, "splice", lambda *args, **options: write() if options else splice(*args))
    with FileBackend(path, mode="r+", direct=False) as backend:
        op = Count()
        with raises(code):
            sending([b"y" * 9], lambda sock: backend.receive_from(SocketPeer(sock, splice=True), 0, 9, op))
        assert op.done == 0
        assert backend.unflushed


def test_receive_that_storage_takes_nothing_of_is_an_error(path, monkeypatch):
    splice = linux.splice
    monkeypatch.setattr(linux, "splice", lambda *args, **options: 0 if options else splice(*args))
    with FileBackend(path, mode="r+", direct=False) as backend:
        with pytest.raises(OSError, match="took none of 9 bytes at 0"):
            sending([b"y" * 9], lambda sock: backend.receive_from(SocketPeer(sock, splice=True), 0, 9, Count()))


def test_whole_file_is_one_extent_of_data_or_zero(path, backend):
    assert list(backend.extents()) == [ZeroExtent(0, MiB + 100, False, False)]
    os.truncate(path, 0)
    os.truncate(path, MiB + 100)
    assert list(backend.extents()) == [ZeroExtent(0, MiB + 100, True, False)]


def test_direct_reads_into_memory_of_any_kind(path):
    with FileBackend(path, direct=True) as backend:
        if not isinstance(backend._direct, DirectFile):
            pytest.skip("no O_DIRECT on the file system of temporary files")
        buf = memoryview(bytearray(8192 + 1))[1:]
        backend.read_into(0, buf)
        assert bytes(buf) == b"x" * 8192


def test_file_that_is_taken_away_after_it_was_closed_is_nobody_elses(path, tmp_path):
    backend = FileBackend(path, mode="r+", direct=False)
    number = backend._fd
    backend.close()
    with open(tmp_path / "other", "w+b", buffering=0) as other:
        assert other.fileno() == number
        backend.interrupt()
        other.write(b"precious")
    assert (tmp_path / "other").read_bytes() == b"precious"


def test_file_that_is_taken_away_keeps_what_it_has(path):
    with FileBackend(path, mode="r+") as backend:
        backend.interrupt()
        backend.write(0, b"y")
    with open(path, "rb") as f:
        assert f.read(1) == b"x"
