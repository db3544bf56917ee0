# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files sent by splice(2): where it is used, and what becomes of faults on either side."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from imageio_testing.streams import Count, SocketPeer, received
from ovirt_imageio.common import linux, sockets
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.errors import PeerGone, PeerTimeout

MiB = 1 << 20
SIZE = 2 * MiB + 100


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes((bytes(range(251)) * (SIZE // 251 + 1))[:SIZE])
    return str(path)


@pytest.fixture
def calls(monkeypatch):
    """Offsets in files that are spliced from; a function in `calls.fault` may raise instead."""

    class Calls(list):
        fault = staticmethod(lambda offset: None)

    calls, splice = Calls(), linux.splice

    def watched(*args, offset_in=None, **options):
        if offset_in is not None:
            calls.append(offset_in)
            calls.fault(offset_in)
        return splice(*args, offset_in=offset_in, **options)

    monkeypatch.setattr(linux, "splice", watched)
    return calls


def fail(code, at=0):
    def fault(offset):
        if offset >= at:
            raise OSError(code, os.strerror(code))

    return fault


def send(backend, offset, length, *, op=None):
    return received(lambda sock: backend.send_to(SocketPeer(sock, splice=True), offset, length, op or Count()))


def content(path, offset, length):
    with open(path, "rb") as f:
        return os.pread(f.fileno(), length, offset)


@pytest.mark.parametrize("by_ctypes", [False, True], ids=["os", "ctypes"])
def test_pieces_of_a_whole_pipe(path, calls, monkeypatch, by_ctypes):
    if by_ctypes:
        monkeypatch.setattr(linux, "_splice_of_os", None)
    op = Count()
    with FileBackend(path, direct=False, splice_out=True) as backend:
        assert send(backend, 4096, SIZE - 4096, op=op) == content(path, 4096, SIZE - 4096)
    assert calls == [4096, 4096 + MiB]
    assert op.done == SIZE - 4096


def test_range_that_starts_inside_a_page(path, calls):
    with FileBackend(path, direct=False, splice_out=True) as backend:
        assert send(backend, 5, 2 * MiB) == content(path, 5, 2 * MiB)
    assert calls


@pytest.mark.parametrize("options", [{"splice_out": False}, {"direct": True}], ids=["off", "direct"])
def test_not_used_where_it_is_off_or_storage_is_read_directly(path, calls, options):
    with FileBackend(path, **{"direct": False, "splice_out": True, **options}) as backend:
        if options.get("direct") and backend.capabilities.block_size == 1:
            pytest.skip("no O_DIRECT on the file system of temporary files")
        assert send(backend, 0, SIZE) == content(path, 0, SIZE)
        with backend.clone() as other:
            send(other, 0, 10)
    assert calls == []


def test_copies_where_no_pipe_is_left(path, calls, monkeypatch):
    monkeypatch.setattr(linux, "pipes", linux.PipePool(0))
    with FileBackend(path, direct=False, splice_out=True) as backend:
        assert send(backend, 3, SIZE - 3) == content(path, 3, SIZE - 3)
    assert calls == []


def test_copies_where_the_file_system_knows_no_splice(path, calls):
    calls.fault = fail(errno.EINVAL)
    op = Count()
    with FileBackend(path, direct=False, splice_out=True) as backend:
        assert send(backend, 0, SIZE, op=op) == content(path, 0, SIZE)
    assert op.done == SIZE


@pytest.mark.parametrize(("code", "at"), [(errno.EIO, 0), (errno.EIO, MiB), (errno.EINVAL, MiB)])
def test_passes_the_error_of_storage(path, calls, code, at):
    calls.fault = fail(code, at)
    op = Count()
    begun = []

    def run(sock):
        peer = SocketPeer(sock, splice=True)
        try:
            backend.send_to(peer, 0, SIZE, op)
        finally:
            begun.append(peer.begun)

    with FileBackend(path, direct=False, splice_out=True) as backend:
        with pytest.raises(OSError, match=os.strerror(code)):
            received(run)
    assert op.done == at
    assert bool(begun[0]) == bool(at)


def test_file_that_became_shorter(path):
    with FileBackend(path, direct=False, splice_out=True) as backend:
        os.truncate(path, MiB)
        with pytest.raises(OSError, match=f"ended at {MiB}"):
            send(backend, 0, SIZE)


def test_peer_that_takes_nothing(path):
    ours, theirs = socket.socketpair()
    with ours, theirs, FileBackend(path, direct=False, splice_out=True) as backend:
        peer = SocketPeer(ours, splice=True)
        sockets.set_timeouts(ours, 0.05)
        with pytest.raises(PeerTimeout):
            backend.send_to(peer, 0, SIZE, Count())


def test_peer_that_went_away(path):
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, FileBackend(path, direct=False, splice_out=True) as backend:
        with pytest.raises(PeerGone):
            backend.send_to(SocketPeer(ours, splice=True), 0, SIZE, Count())
