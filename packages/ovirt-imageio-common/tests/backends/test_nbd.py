# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD backend and its streams against a scripted server: lies, faults, and what is left afterwards."""

from __future__ import annotations

import errno
import socket
import threading

import pytest

from imageio_testing.nbdpeer import FLAGS, Image, Peer, serve
from imageio_testing.streams import Count, SocketPeer, received, sending
from ovirt_imageio.common import linux, nbd, sockets
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import (
    OperationCancelled,
    PeerGone,
    PeerTimeout,
    ProtocolError,
    RequestError,
    UnsupportedOperation,
)
from ovirt_imageio.common.nbd import wire

KiB, MiB = 1 << 10, 1 << 20

both_ways = pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])


def pattern(size):
    return (bytearray(range(1, 251)) * (size // 250 + 1))[:size]


def send(backend, offset, length, *, splice, op=None, others=()):
    """Return the bytes that a peer gets from `send_to`."""
    op = op or Count()
    return received(lambda sock: backend.send_to(SocketPeer(sock, splice=splice), offset, length, op, others=others))


def receive(backend, data, offset, length, *, splice, op=None, others=()):
    """Let a backend receive data from a peer that closes after it."""
    op = op or Count()
    sending(
        [data], lambda sock: backend.receive_from(SocketPeer(sock, splice=splice), offset, length, op, others=others)
    )
    return op


# Opening, and the end.


def test_unknown_mode_is_a_mistake():
    with pytest.raises(ValueError, match="'w'"):
        NbdBackend("nbd:unix:/nowhere", mode="w")


def test_read_only_export_is_opened_for_reading_only():
    with serve(Image(pattern(4096), flags=FLAGS | wire.FLAG_READ_ONLY)) as peer:
        with pytest.raises(UnsupportedOperation, match="is read-only"):
            NbdBackend(peer.address, mode="r+")
        with NbdBackend(peer.address) as backend:
            assert backend.capabilities.read_only
            with pytest.raises(UnsupportedOperation, match="for reading only"):
                backend.write(0, b"x")


def test_clone_is_another_connection_with_the_same_options():
    image = Image(bytearray(b"x" * 4096))
    with serve(image) as peer, NbdBackend(peer.address, mode="r+", sparse=True) as one, one.clone() as other:
        one.broken = RuntimeError("gone")
        other.zero(0, 4096)
    assert [asked.flags for asked in image.asked] == [0]


def test_setting_broken_closes_the_connection():
    with serve(Image(bytearray(4096))) as peer, NbdBackend(peer.address) as backend:
        backend.broken = None
        assert backend.broken is None
        backend.broken = RuntimeError("abandoned")
        assert str(backend.broken) == "abandoned"
        assert backend.stale()
        with pytest.raises(ProtocolError, match="abandoned"):
            backend.read_into(0, bytearray(1))


def test_connection_of_a_restarted_server_is_stale():
    hung_up = threading.Event()

    def script(talk):
        talk.negotiate(4096)
        talk.sock.close()
        hung_up.set()

    with Peer(script) as peer, NbdBackend(peer.address) as backend:
        assert hung_up.wait(10)
        assert backend.stale()
        assert backend.broken is None


def test_interrupt_ends_a_call():
    asked = threading.Event()

    def script(talk):
        talk.negotiate(4096)
        talk.request()
        asked.set()
        talk.wait_for_hangup()

    with Peer(script) as peer, NbdBackend(peer.address) as backend:
        other = threading.Thread(target=lambda: asked.wait(10) and backend.interrupt())
        other.start()
        with pytest.raises(nbd.ServerGone):
            backend.read_into(0, bytearray(1))
        other.join()
        assert backend.broken is not None


def test_flush_that_failed_is_the_last_word():
    """The server may have dropped data that it could not write: its next flush would prove nothing."""
    image = Image(bytearray(4096), errors={wire.CMD_FLUSH: 5})
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        backend.write(0, b"x")
        with pytest.raises(RequestError) as e:
            backend.flush()
        assert e.value.errno == errno.EIO
        assert backend.unflushed
        image.errors.clear()
        with pytest.raises(ProtocolError, match="EIO"):
            backend.flush()


# Whole blocks only.


def test_edges_are_read_changed_and_written():
    image = Image(pattern(10_000), block_sizes=(4096, 4096, MiB))
    expected = bytearray(image.data)
    expected[100:5000] = b"y" * 4900
    expected[8000:10_000] = bytes(2000)
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        backend.write(100, b"y" * 4900)
        assert [(a.command, a.offset, a.length) for a in image.asked] == [
            (wire.CMD_READ, 0, 4096),
            (wire.CMD_WRITE, 0, 4096),
            (wire.CMD_READ, 4096, 4096),
            (wire.CMD_WRITE, 4096, 4096),
        ]
        # The last block is short.
        backend.zero(8000, 2000)
        buf = bytearray(10_000)
        backend.read_into(0, buf)
    assert buf == image.data == expected


def test_change_inside_one_block():
    image = Image(pattern(8192), block_sizes=(4096, 4096, MiB))
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        backend.write(4096 + 7, b"abc")
        buf = bytearray(5)
        backend.read_into(4096 + 6, buf)
        assert buf[1:4] == b"abc"
    assert [(a.command, a.offset, a.length) for a in image.asked[:2]] == [
        (wire.CMD_READ, 4096, 4096),
        (wire.CMD_WRITE, 4096, 4096),
    ]


def test_edge_that_cannot_be_read_is_not_written():
    image = Image(pattern(8192), block_sizes=(4096, 4096, MiB), errors={wire.CMD_READ: 5})
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        with pytest.raises(RequestError) as e:
            backend.write(1, b"x")
        assert e.value.errno == errno.EIO
    assert [asked.command for asked in image.asked] == [wire.CMD_READ]


# Sending.


@both_ways
def test_send_of_holes(splice):
    image = Image(pattern(3 * MiB), hole_block=64 * KiB)
    image.data[MiB - 64 * KiB : MiB + 64 * KiB] = bytes(128 * KiB)
    with serve(image) as peer, NbdBackend(peer.address) as backend:
        assert send(backend, 10, 3 * MiB - 20, splice=splice) == image.data[10:-10]


@both_ways
def test_send_of_chunks_in_any_order(splice):
    data = pattern(4096)

    def script(talk):
        talk.negotiate(4096)
        asked = talk.request()
        talk.data(asked, 0, bytes(data[:10]))
        talk.data(asked, 2000, bytes(data[2000:]))
        talk.hole(asked, 10, 90)
        talk.data(asked, 100, bytes(data[100:2000]), done=True)
        talk.wait_for_hangup()

    data[10:100] = bytes(90)
    with Peer(script) as peer, NbdBackend(peer.address) as backend:
        assert send(backend, 0, 4096, splice=splice) == data
        assert backend.broken is None


@both_ways
@pytest.mark.parametrize("structured", [True, False])
def test_send_that_storage_fails_has_not_begun(splice, structured):
    image = Image(pattern(3 * MiB), structured=structured, errors={wire.CMD_READ: 5})
    with serve(image) as peer, NbdBackend(peer.address) as backend, NbdBackend(peer.address) as other:
        begun = []

        def fail(sock):
            http = SocketPeer(sock, splice=splice)
            with pytest.raises(RequestError) as e:
                backend.send_to(http, 0, 3 * MiB, Count(), others=[other])
            assert e.value.errno == errno.EIO
            begun.append(http.begun)

        assert received(fail) == b""
        assert begun == [0]
        # The one that answered lives; the other still owed an answer, which no caller would take.
        assert backend.broken is None
        assert other.broken is not None
        image.errors.clear()
        assert send(backend, 0, 100, splice=splice) == image.data[:100]


@both_ways
def test_send_fails_where_a_chunk_after_some_content_fails(splice):
    def script(talk):
        talk.negotiate(4096)
        asked = talk.request()
        talk.data(asked, 0, b"x" * 100)
        talk.error(asked, 5, "bad sector", offset=100)
        talk.data(talk.request(), 0, b"y", done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, NbdBackend(peer.address) as backend:
        with pytest.raises(RequestError, match="bad sector"):
            send(backend, 0, 4096, splice=splice)
        assert backend.broken is None
        assert send(backend, 0, 1, splice=splice) == b"y"


@both_ways
def test_send_from_a_server_that_goes_away(splice):
    def script(talk):
        talk.negotiate(2 * MiB)
        asked = talk.request()
        talk.chunk(asked, wire.REPLY_OFFSET_DATA, wire.OFFSET.pack(0) + b"x" * 1000, length=8 + MiB)

    with Peer(script) as peer, NbdBackend(peer.address) as backend:
        op = Count()
        with pytest.raises(nbd.ServerGone):
            send(backend, 0, 2 * MiB, splice=splice, op=op)
        assert backend.broken is not None
        assert op.done == 0


@both_ways
def test_send_from_a_server_that_is_gone_already(splice):
    hung_up = threading.Event()

    def script(talk):
        talk.negotiate(2 * MiB)
        talk.sock.close()
        hung_up.set()

    with Peer(script) as peer, NbdBackend(peer.address) as backend, serve(Image(bytearray(2 * MiB))) as well:
        with NbdBackend(well.address) as other:
            assert hung_up.wait(10)
            with pytest.raises(nbd.ServerGone):
                send(other, 0, 2 * MiB, splice=splice, others=[backend])
            assert backend.broken is not None
            # Its answer would have to be taken first.
            assert other.broken is not None


@both_ways
def test_send_from_a_silent_server(splice):
    def script(talk):
        talk.negotiate(2 * MiB)
        asked = talk.request()
        talk.chunk(asked, wire.REPLY_OFFSET_DATA, wire.OFFSET.pack(0) + b"x" * 1000, length=8 + MiB)
        talk.wait_for_hangup()

    with Peer(script) as peer, NbdBackend(peer.address, timeout=0.1) as backend:
        with pytest.raises(nbd.ServerTimeout):
            send(backend, 0, 2 * MiB, splice=splice)
        assert backend.broken is not None


@both_ways
def test_send_to_a_peer_that_takes_nothing(splice):
    ours, theirs = socket.socketpair()
    image = Image(pattern(4 * MiB))
    with ours, theirs, serve(image) as peer, NbdBackend(peer.address) as backend:
        http = SocketPeer(ours, splice=splice)
        sockets.set_timeouts(ours, 0.1)
        with pytest.raises(PeerTimeout if splice else Exception):
            backend.send_to(http, 0, 4 * MiB, Count())
        assert backend.broken is not None


@both_ways
def test_cancelled_send_says_so_whatever_became_of_the_peer(splice):
    """A cancel wakes the stream by shutting the peer's socket down."""
    ours, theirs = socket.socketpair()
    op = Later(OperationCancelled("cancelled"))
    with ours, serve(Image(pattern(4 * MiB))) as peer, NbdBackend(peer.address) as backend:
        theirs.close()
        with pytest.raises(OperationCancelled):
            backend.send_to(SocketPeer(ours, splice=splice), 0, 4 * MiB, op)


def _raise(error):
    raise error


def test_send_without_a_pipe_copies(monkeypatch):
    monkeypatch.setattr(linux, "pipes", linux.PipePool(0))
    image = Image(pattern(2 * MiB))
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        assert send(backend, 0, 2 * MiB, splice=True) == image.data
        receive(backend, pattern(2 * MiB)[::-1], 0, 2 * MiB, splice=True)
    assert image.data == pattern(2 * MiB)[::-1]


def test_broken_others_are_not_used():
    image = Image(pattern(4 * MiB))
    with serve(image) as peer, NbdBackend(peer.address) as one, NbdBackend(peer.address) as other:
        other.broken = RuntimeError("gone")
        assert send(one, 0, 4 * MiB, splice=True, others=[other]) == image.data


# Receiving.


@both_ways
def test_receive_that_storage_fails_counts_what_has_no_gap_before_it(splice):
    """The second of four writes fails; the connection can be used afterwards."""

    def script(talk):
        talk.negotiate(4 * MiB)
        for n in range(4):
            asked = talk.request()
            talk.error(asked, 28) if n == 1 else talk.simple(asked)
        talk.simple(talk.expect(wire.CMD_FLUSH))
        talk.wait_for_hangup()

    with Peer(script) as peer, NbdBackend(peer.address, mode="r+") as backend:
        op = Count()
        with pytest.raises(RequestError) as e:
            receive(backend, pattern(4 * MiB), 0, 4 * MiB, splice=splice, op=op)
        assert e.value.errno == errno.ENOSPC
        assert op.done == MiB
        assert backend.broken is None
        backend.flush()


@both_ways
def test_receive_for_a_server_that_goes_away(splice):
    def script(talk):
        talk.negotiate(4 * MiB)
        talk.simple(talk.request())
        talk.receive(100)

    with Peer(script) as peer, NbdBackend(peer.address, mode="r+") as backend:
        op = Count()
        with pytest.raises(nbd.ServerGone):
            receive(backend, pattern(4 * MiB), 0, 4 * MiB, splice=splice, op=op)
        assert op.done <= MiB
        assert backend.broken is not None


@both_ways
def test_receive_for_a_silent_server(splice):
    def script(talk):
        talk.negotiate(4 * MiB)
        talk.request()
        talk.wait_for_hangup()

    with Peer(script) as peer, NbdBackend(peer.address, mode="r+", timeout=0.1) as backend:
        op = Count()
        with pytest.raises(nbd.ServerTimeout):
            receive(backend, pattern(MiB), 0, MiB, splice=splice, op=op)
        assert op.done == 0


@both_ways
def test_receive_from_a_peer_that_is_silent(splice):
    ours, theirs = socket.socketpair()
    image = Image(bytearray(4 * MiB))
    with ours, theirs, serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        http, op = SocketPeer(ours, splice=splice), Count()
        theirs.sendall(b"x" * 5000)
        sockets.set_timeouts(ours, 0.1)
        with pytest.raises(PeerTimeout if splice else Exception):
            backend.receive_from(http, 0, 4 * MiB, op)
        assert backend.broken is None
        backend.flush()


class Later(Count):
    """An operation that raises an error when it is asked for the second time."""

    def __init__(self, error):
        super().__init__()
        self._errors = [None, error, error]

    def check(self):
        error = self._errors.pop(0)
        if error is not None:
            raise error


@both_ways
def test_receive_that_is_interrupted_waits_for_nobody(splice):
    """Control-C: the connection, which owes answers, is given up."""

    def script(talk):
        talk.negotiate(4 * MiB)
        talk.request()
        talk.wait_for_hangup()

    with Peer(script) as peer, NbdBackend(peer.address, mode="r+") as backend:
        with pytest.raises(KeyboardInterrupt):
            receive(backend, pattern(4 * MiB), 0, 4 * MiB, splice=splice, op=Later(KeyboardInterrupt()))
        assert backend.broken is not None


class ChunkedPeer(SocketPeer):
    """The end of its body is only known when it comes."""

    def __init__(self, data):
        self._data = memoryview(data)

    splice_fd = None

    def take(self, limit):
        return b""

    def recv_into(self, view):
        count = min(len(view), len(self._data), 60_000)
        view[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


@pytest.mark.parametrize("block", [1, 4096])
@pytest.mark.parametrize("size", [0, 1, 5000, 100_000, MiB, MiB + 5000])
@pytest.mark.parametrize("offset", [0, 4096, 5000])
def test_receive_of_a_body_that_ends_early(block, size, offset):
    image = Image(pattern(4 * MiB), block_sizes=(block, 4096, 32 * MiB))
    expected = bytearray(image.data)
    expected[offset : offset + size] = b"\xff" * size
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        op = Count()
        backend.receive_from(ChunkedPeer(b"\xff" * size), offset, 4 * MiB - offset, op)
    assert op.done == size
    assert image.data == expected


def test_receive_of_small_packets_for_whole_blocks():
    """The slots of the pipe are full long before it holds a block."""
    image = Image(bytearray(256 * KiB), block_sizes=(64 * KiB, 64 * KiB, 32 * MiB))
    data = pattern(128 * KiB)
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        pieces = [bytes(data[at : at + 3]) for at in range(0, len(data), 3)]
        sending(pieces, lambda sock: backend.receive_from(SocketPeer(sock, splice=True), 64 * KiB, len(data), Count()))
    assert image.data[64 * KiB : 192 * KiB] == data


def test_receive_of_small_packets_that_end_within_a_block():
    image = Image(bytearray(256 * KiB), block_sizes=(64 * KiB, 64 * KiB, 32 * MiB))
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        pieces = [b"xyz"] * 1000
        with pytest.raises(PeerGone):
            sending(pieces, lambda sock: backend.receive_from(SocketPeer(sock, splice=True), 0, 64 * KiB, Count()))
        assert backend.broken is None
    assert image.data == bytes(256 * KiB)


def test_receive_from_a_peer_that_resets(monkeypatch):
    with serve(Image(bytearray(MiB))) as peer, NbdBackend(peer.address, mode="r+") as backend:

        def take(sock):
            http = SocketPeer(sock, splice=True)
            reset = ConnectionResetError("reset")
            monkeypatch.setattr(linux, "_splice_of_os", lambda *args, **options: _raise(reset))
            with pytest.raises(PeerGone, match="reset"):
                backend.receive_from(http, 0, 100, Count())

        sending([b"x"], take)
        assert backend.broken is None
