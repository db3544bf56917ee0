# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The blocking driver against a scripted server."""

from __future__ import annotations

import errno
import socket
import threading
import tracemalloc

import pytest

from imageio_testing.nbdpeer import FLAGS, Image, Peer, serve
from ovirt_imageio.common import nbd
from ovirt_imageio.common.errors import OperationCancelled, ProtocolError, RequestError, UnsupportedOperation
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent
from ovirt_imageio.common.nbd import client as client_module
from ovirt_imageio.common.nbd import wire

KiB = 1024
MiB = 1024 * KiB
BASE, DEPTH, DIRTY = wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH, wire.DIRTY_BITMAP + "b"


def pattern(size):
    return (bytearray(range(251)) * (size // 251 + 1))[:size]


def commands(image):
    return [asked.command for asked in image.asked]


# Honest servers of all kinds.


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("hole_block", [0, 512])
def test_read_write_and_zero(structured, hole_block):
    image = Image(pattern(16 * KiB), structured=structured, hole_block=hole_block)
    image.data[4096:8192] = bytes(4096)
    with serve(image) as peer, nbd.Client(peer.address) as client:
        assert client.size == 16 * KiB
        buf = bytearray(b"?" * 16 * KiB)
        client.read_into(0, buf)
        assert buf == image.data
        client.write(1000, b"x" * 3000)
        client.zero(9000, 100)
        client.flush()
        client.read_into(0, buf)
        assert buf == image.data
    assert image.data[1000:4000] == b"x" * 3000
    assert image.data[9000:9100] == bytes(100)
    assert commands(image)[-2:] == [wire.CMD_FLUSH, wire.CMD_READ]


def test_long_buffers_are_cut_into_pieces():
    image = Image(bytearray(5 * MiB + 100))
    with serve(image) as peer, nbd.Client(peer.address) as client:
        data = pattern(5 * MiB)
        client.write(50, data)
        buf = bytearray(5 * MiB)
        client.read_into(50, buf)
    assert buf == data
    assert [a.length for a in image.asked] == 2 * [MiB] * 5
    assert [a.offset for a in image.asked[:5]] == [50 + i * MiB for i in range(5)]


def test_maximum_below_ours_is_kept():
    image = Image(bytearray(100 * KiB), block_sizes=(1, 4096, 32 * KiB), flags=FLAGS & ~wire.FLAG_SEND_WRITE_ZEROES)
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.write(0, b"x" * 100 * KiB)
        client.read_into(0, bytearray(100 * KiB))
        client.zero(0, 100 * KiB)
    assert max(a.length for a in image.asked) == 32 * KiB
    assert image.data == bytes(100 * KiB)


def test_empty_calls_send_nothing():
    image = Image(bytearray(10))
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.read_into(5, bytearray())
        client.write(5, b"")
        client.zero(5, 0)
        assert list(client.extents(5, 0)) == []
    assert image.asked == []


@pytest.mark.parametrize(("punch", "flags"), [(False, wire.CMD_FLAG_NO_HOLE), (True, 0)])
def test_zero_punches_holes_only_if_told(punch, flags):
    image = Image(bytearray(b"x" * 100))
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.zero(0, 100, punch_hole=punch)
    assert [(a.command, a.flags) for a in image.asked] == [(wire.CMD_WRITE_ZEROES, flags)]


def test_server_that_cannot_zero_gets_zeros():
    image = Image(bytearray(b"x" * 3 * MiB), flags=wire.FLAG_HAS_FLAGS)
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.zero(10, 2 * MiB)
    assert set(commands(image)) == {wire.CMD_WRITE}
    assert image.data == b"x" * 10 + bytes(2 * MiB) + b"x" * (MiB - 10)


def test_server_that_finds_out_late_gets_zeros():
    image = Image(bytearray(b"x" * 100), errors={wire.CMD_WRITE_ZEROES: 95})
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.zero(10, 80)
    assert commands(image) == [wire.CMD_WRITE_ZEROES, wire.CMD_WRITE]
    assert image.data == b"x" * 10 + bytes(80) + b"x" * 10


def test_zero_that_fails_is_not_tried_by_writing():
    image = Image(bytearray(b"x" * 100), errors={wire.CMD_WRITE_ZEROES: 28})
    with serve(image) as peer, nbd.Client(peer.address) as client:
        with pytest.raises(RequestError) as e:
            client.zero(10, 80)
    assert e.value.errno == errno.ENOSPC
    assert commands(image) == [wire.CMD_WRITE_ZEROES]


def test_server_without_flush_gets_none():
    image = Image(bytearray(100), flags=wire.FLAG_HAS_FLAGS)
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.flush()
    assert image.asked == []


@pytest.mark.parametrize("structured", [True, False])
def test_failed_request_leaves_the_connection_alive(structured):
    image = Image(pattern(8 * MiB), structured=structured, errors={wire.CMD_WRITE: 28})
    with serve(image) as peer, nbd.Client(peer.address) as client:
        for _ in range(3):
            with pytest.raises(RequestError, match="ENOSPC") as e:
                client.write(0, b"x" * 8 * MiB)
            assert e.value.errno == errno.ENOSPC
            assert client.broken is None
            assert client.in_flight == 0
        buf = bytearray(8 * MiB)
        client.read_into(0, buf)
    assert buf == image.data


def test_write_beyond_the_end_of_space_stops_sending():
    image = Image(bytearray(64 * MiB), errors={wire.CMD_WRITE: 28})
    with serve(image) as peer, nbd.Client(peer.address) as client:
        with pytest.raises(RequestError):
            client.write(0, bytes(64 * MiB))
    assert len(image.asked) == 4


# Extents.


def extents(image, *args, **options):
    with serve(image) as peer, nbd.Client(peer.address, **options) as client:
        return list(client.extents(*args))


def test_extents_are_merged_over_contexts():
    status = {BASE: [(100, 0), (50, 3), (50, 3), (200, 3)], DEPTH: [(150, 1), (250, 0)]}
    assert extents(Image(bytearray(400), status=status)) == [
        ZeroExtent(0, 100, False, False),
        ZeroExtent(100, 50, True, False),
        ZeroExtent(150, 250, True, True),
    ]


def test_extents_of_a_range_are_exact():
    image = Image(bytearray(4096 * 4), status={BASE: [(4096, 0), (3 * 4096, 2)]}, block_sizes=(4096, 4096, MiB))
    assert extents(image, 100, 5000) == [ZeroExtent(100, 3996, False, False), ZeroExtent(4096, 1004, True, False)]
    assert [(a.offset, a.length) for a in image.asked] == [(0, 8192)]


def test_extents_without_block_status_are_one_of_data():
    image = Image(bytearray(400))
    assert extents(image, 10, 100) == [ZeroExtent(10, 100, False, False)]
    assert image.asked == []


def test_dirty_extents_of_the_only_bitmap():
    status = {BASE: [(300, 0), (100, 2)], DIRTY: [(200, 1), (200, 0)]}
    assert extents(Image(bytearray(400), status=status), 0, None, "dirty", dirty=True) == [
        DirtyExtent(0, 200, True, False),
        DirtyExtent(200, 100, False, False),
        DirtyExtent(300, 100, False, True),
    ]


@pytest.mark.parametrize(("bitmap", "dirty"), [("b", True), ("c", False)])
def test_dirty_extents_of_a_named_bitmap(bitmap, dirty):
    status = {BASE: [(400, 0)], DIRTY: [(400, 1)], wire.DIRTY_BITMAP + "c": [(400, 0)]}
    found = extents(Image(bytearray(400), status=status), 0, None, "dirty", bitmap=bitmap)
    assert found == [DirtyExtent(0, 400, dirty, False)]


def test_dirty_extents_need_a_bitmap():
    with serve(Image(bytearray(400), status={BASE: [(400, 0)]})) as peer:
        with nbd.Client(peer.address, dirty=True) as client:
            with pytest.raises(UnsupportedOperation, match="it has no bitmap"):
                client.extents(context="dirty")


@pytest.mark.parametrize(("offset", "length"), [(-1, 5), (0, 401), (401, 0), (5, -1)])
def test_extents_outside_the_export_are_a_mistake(offset, length):
    with pytest.raises(ValueError, match="outside the export of 400 bytes"):
        extents(Image(bytearray(400)), offset, length)


def test_unknown_context_is_a_mistake():
    with pytest.raises(ValueError, match="unknown context 'holes'"):
        extents(Image(bytearray(400)), 0, None, "holes")


def test_short_and_long_block_status():
    def script(talk):
        talk.negotiate(1000, contexts={BASE: 1})
        runs = [[(10, 0)], [(5, 0), (500, 2)], [(100000, 2)]]
        for r in runs:
            asked = talk.expect(wire.CMD_BLOCK_STATUS)
            talk.status(asked, 1, r, done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        assert list(client.extents()) == [ZeroExtent(0, 15, False, False), ZeroExtent(15, 985, True, False)]


@pytest.mark.parametrize("context", ["zero", "dirty"])
def test_extents_that_are_stopped_leave_the_connection_alive(context):
    image = Image(bytearray(64 * MiB), status={BASE: [(64 * MiB, 2)], DIRTY: [(64 * MiB, 1)]})
    answers = []

    def check():
        answers.append(len(image.asked))
        if len(answers) == 3:
            raise OperationCancelled("enough")

    with serve(image) as peer, nbd.Client(peer.address, dirty=True) as client:
        with pytest.raises(OperationCancelled, match="enough"):
            list(client.extents(context=context, check=check))
        assert answers == [0, 1, 2]
        assert client.broken is None
        client.read_into(0, bytearray(1))
    assert commands(image) == [wire.CMD_BLOCK_STATUS] * 2 + [wire.CMD_READ]


def test_a_million_extents_in_bounded_memory():
    """As many as fit a reply are 8 MiB on the wire; what they mean is told one after another."""
    count = 1 << 20
    runs = (wire.STATUS_EXTENT.pack(1, 0) + wire.STATUS_EXTENT.pack(1, wire.STATE_ZERO)) * (count // 2)

    def script(talk):
        talk.negotiate(count, contexts={BASE: 1})
        asked = talk.expect(wire.CMD_BLOCK_STATUS)
        talk.chunk(asked, wire.REPLY_BLOCK_STATUS, wire.U32.pack(1) + runs, done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        extents = client.extents()
        assert next(extents) == ZeroExtent(0, 1, False, False)
        tracemalloc.start()
        try:
            for start in range(1, 10_000):
                assert next(extents)[:3] == (start, 1, bool(start % 2))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1_000_000


# Out of order, and lies that need a stream.


def test_replies_out_of_order_find_their_buffers():
    def script(talk):
        talk.negotiate(4 * MiB, structured=False)
        asked = [talk.expect(wire.CMD_READ) for _ in range(4)]
        for a in reversed(asked):
            talk.simple(a, bytes([a.offset // MiB]) * a.length)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        buf = bytearray(4 * MiB)
        client.read_into(0, buf)
    assert [buf[i * MiB] for i in range(4)] == [0, 1, 2, 3]
    assert [buf[i * MiB - 1] for i in range(1, 5)] == [0, 1, 2, 3]


def test_early_reply_is_kept_until_it_is_wanted():
    def script(talk):
        talk.negotiate(20)
        first, second = talk.request(), talk.request()
        talk.data(second, 10, b"b" * 5)
        talk.data(first, 0, b"a" * 10, done=True)
        talk.data(second, 15, b"c" * 5, done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        first = client.start_read(0, length=10)
        second = client.start_read(10, length=10)
        one, two = memoryview(bytearray(10)), memoryview(bytearray(10))
        client.finish_read(first, one)
        client.finish_read(second, two)
    assert one == b"a" * 10
    assert two == b"bbbbbccccc"


def test_error_in_the_middle_of_a_read_fails_only_that_read():
    def script(talk):
        talk.negotiate(30)
        asked = talk.request()
        talk.data(asked, 0, b"a" * 10)
        talk.error(asked, 5, "bad sector", offset=10, done=False)
        talk.hole(asked, 20, 10, done=True)
        asked = talk.request()
        talk.data(asked, 0, b"b" * 30, done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        buf = bytearray(30)
        with pytest.raises(RequestError, match=r"at offset 10: EIO \(bad sector\)"):
            client.read_into(0, buf)
        client.read_into(0, buf)
        assert buf == b"b" * 30
        assert client.broken is None


def broken_by(reply, error=ProtocolError, match="", **options):
    """A server that answers the first read with a reply; the client must close the connection."""
    closed = threading.Event()

    def script(talk):
        talk.negotiate(4096, **options)
        reply(talk, talk.expect(wire.CMD_READ))
        if error is not nbd.ServerGone:
            talk.wait_for_hangup()
        closed.set()

    with Peer(script) as peer:
        client = nbd.Client(peer.address, timeout=0.05 if error is nbd.ServerTimeout else 10)
        with pytest.raises(error, match=match) as e:
            client.read_into(0, bytearray(4096))
        assert client.broken is e.value
        assert client.sock.fileno() == -1
        assert closed.wait(10)
        with pytest.raises(ProtocolError, match="is closed: "):
            client.flush()
        assert client.stale()
        client.close()


def test_chunk_outside_its_request_closes_the_connection():
    broken_by(lambda t, a: t.data(a, 4000, bytes(97), done=True), match="97 bytes at 4000")


def test_byte_delivered_twice_closes_the_connection():
    def reply(talk, asked):
        talk.data(asked, 0, bytes(4096))
        talk.data(asked, 10, bytes(10), done=True)

    broken_by(reply, match="bytes at 10 twice")


def test_missing_byte_closes_the_connection():
    broken_by(lambda t, a: t.data(a, 1, bytes(4095), done=True), match="left out bytes")


def test_huge_length_closes_the_connection_before_memory_is_taken():
    broken_by(
        lambda t, a: t.chunk(a, wire.REPLY_OFFSET_DATA, wire.OFFSET.pack(0), length=2**32 - 1), match="4294967287"
    )


def test_bad_magic_closes_the_connection():
    broken_by(lambda t, a: t.send(b"HTTP/1.1 200 OK\r\n"), match="reply with magic 0x48545450")


def test_unknown_handle_closes_the_connection():
    def reply(talk, asked):
        talk.send(wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, 0, 77))

    broken_by(reply, match="unknown handle 77", structured=False)


@pytest.mark.parametrize("structured", [True, False])
def test_server_that_hangs_up_is_gone(structured):
    broken_by(lambda t, a: None, nbd.ServerGone, "closed after 0 of 16 bytes", structured=structured)


def test_server_that_hangs_up_within_payload_is_gone():
    def reply(talk, asked):
        talk.simple(asked, bytes(100))

    broken_by(reply, nbd.ServerGone, "closed after 100 of 4096 bytes", structured=False)


def test_silent_server_runs_into_the_timeout():
    broken_by(lambda t, a: None, nbd.ServerTimeout, r"did not respond in 0.05 seconds")


def test_server_that_takes_nothing_runs_into_the_timeout():
    released = threading.Event()

    def script(talk):
        talk.negotiate(64 * MiB)
        released.wait(10)

    with Peer(script) as peer, nbd.Client(peer.address, timeout=0.05) as client:
        with pytest.raises(nbd.ServerTimeout):
            client.write(0, bytes(64 * MiB))
        released.set()
        assert isinstance(client.broken, nbd.ServerTimeout)


def test_server_that_hangs_up_within_a_write_is_gone():
    def script(talk):
        talk.negotiate(64 * MiB)
        talk.receive(1000)

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        with pytest.raises(nbd.ServerGone, match="lost connection to NBD server"):
            client.write(0, bytes(64 * MiB))


def test_extents_that_tell_nothing_close_the_connection():
    def script(talk):
        talk.negotiate(8192, contexts={BASE: 1}, block_sizes=(4096, 4096, MiB))
        asked = talk.expect(wire.CMD_BLOCK_STATUS)
        talk.status(asked, 1, [(50, 0)], done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        with pytest.raises(ProtocolError, match="told nothing about the extents at 100"):
            list(client.extents(100))
        assert client.broken is not None


# Ending.


def test_close_says_goodbye():
    said = []

    def script(talk):
        talk.negotiate(10)
        said.append(wire.REQUEST.unpack(talk.receive(wire.REQUEST.size)))

    with Peer(script) as peer:
        client = nbd.Client(peer.address)
        assert repr(client) == f"<Client {peer.address} size=10>"
        client.close()
        client.close()
    assert said[0][2] == wire.CMD_DISC


def test_idle_connection_that_the_server_closed_is_stale():
    go = threading.Event()

    def script(talk):
        talk.negotiate(10)
        go.wait(10)

    with Peer(script) as peer:
        with nbd.Client(peer.address) as client:
            assert not client.stale()
            go.set()
            client.sock.recv(1)
            assert client.stale()


def test_interrupt_wakes_a_waiting_thread():
    asked = threading.Event()

    def script(talk):
        talk.negotiate(10)
        talk.request()
        asked.set()
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:

        def interrupt():
            asked.wait(10)
            client.interrupt()

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(nbd.ServerGone):
            client.read_into(0, bytearray(10))
        thread.join()
        client.interrupt()


def test_handed_over_connection_cannot_be_used():
    with serve(Image(bytearray(10))) as peer, nbd.Client(peer.address) as client:
        client.start_read(0, memoryview(bytearray(10)))
        with pytest.raises(ValueError, match="1 requests in flight"):
            client.hand_over()
        client.serve()
        while client.in_flight:
            client.serve()
        client.hand_over()
        with pytest.raises(ProtocolError, match="handed over"):
            client.read_into(0, bytearray(10))


# Requests on the wire, to the bit.


def test_requests_carry_what_was_asked_for_and_no_more():
    image = Image(bytearray(100))
    with serve(image) as peer, nbd.Client(peer.address) as client:
        client.read_into(1, bytearray(2))
        client.write(3, b"four")
        client.zero(5, 6)
        client.flush()
        assert client.finish(client.start_read(7, length=8)) is None
    assert [(a.flags, a.command, a.offset, a.length) for a in image.asked] == [
        (0, wire.CMD_READ, 1, 2),
        (0, wire.CMD_WRITE, 3, 4),
        (wire.CMD_FLAG_NO_HOLE, wire.CMD_WRITE_ZEROES, 5, 6),
        (0, wire.CMD_FLUSH, 0, 0),
        (0, wire.CMD_READ, 7, 8),
    ]


def test_goodbye_is_a_bare_request():
    said = []

    def script(talk):
        talk.negotiate(10)
        said.append(wire.REQUEST.unpack(talk.receive(wire.REQUEST.size)))

    with Peer(script) as peer:
        nbd.Client(peer.address).close()
    assert said == [(wire.REQUEST_MAGIC, 0, wire.CMD_DISC, 0, 0, 0)]


def test_no_goodbye_while_a_request_is_in_flight():
    rest = []

    def script(talk):
        talk.negotiate(10)
        talk.request()
        rest.append(talk.sock.recv(100))

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        client.start_read(0, memoryview(bytearray(10)))
    assert rest == [b""]


def test_closed_and_broken_connections_are_stale():
    with serve(Image(bytearray(10))) as peer:
        with nbd.Client(peer.address) as client:
            client.close()
            assert client.stale()
        with nbd.Client(peer.address) as client:
            client.fail(RuntimeError("no more"))
            assert client.stale()


def test_no_bitmap_is_asked_for_unless_told():
    image = Image(bytearray(100), status={BASE: [(100, 0)], DIRTY: [(100, 1)]})
    with serve(image) as peer, nbd.Client(peer.address) as client:
        assert client.export.dirty_context is None
        assert client.export.can_extents


def test_impossible_time_limit_leaves_nothing_open():
    with serve(Image(bytearray(10))) as peer:
        with pytest.raises(OverflowError):
            nbd.Client(peer.address, timeout=float("inf"))


def test_long_zero_is_asked_for_in_steps():
    asked = []

    def script(talk):
        talk.negotiate(3 << 30)
        for _ in range(3):
            request = talk.expect(wire.CMD_WRITE_ZEROES)
            asked.append((request.offset, request.length))
            talk.simple(request)
        talk.wait_for_hangup()

    with Peer(script) as peer, nbd.Client(peer.address) as client:
        client.zero(512, (5 << 29) + 1)
    assert asked == [(512, 1 << 30), (512 + (1 << 30), 1 << 30), (512 + (2 << 30), (1 << 29) + 1)]


def test_long_hole_clears_the_buffer():
    size = 2 * MiB + 512
    image = Image(bytearray(size), hole_block=size)
    with serve(image) as peer, nbd.Client(peer.address) as client:
        buf = memoryview(bytearray(b"x" * size))
        client.finish(client.start_read(0, buf))
    assert buf == bytes(size)


def test_broken_connection_is_not_used():
    with serve(Image(bytearray(10))) as peer, nbd.Client(peer.address) as client:
        client.start_read(0, memoryview(bytearray(10)))
        client.fail(RuntimeError("no more"))
        assert client.in_flight == 0
        for use in (client.receive, client.hand_over, lambda: client.send(wire.CMD_FLUSH, 0, 0)):
            with pytest.raises(ProtocolError, match="is closed: .*no more"):
                use()


@pytest.mark.parametrize("at_once", [0, 1, 27, 28, 29, 99, 100])
def test_write_of_which_the_socket_takes_a_part(at_once):
    class Slow:
        def sendmsg(self, parts):
            self.taken = b"".join(parts)[:at_once]
            return len(self.taken)

        def sendall(self, data):
            assert len(data)
            self.taken += data

    sock = Slow()
    head, payload = bytes(range(28)), bytes(range(100, 172))
    client_module._send_all(sock, head, payload)
    assert sock.taken == head + payload


def test_serve_returns_what_came():
    with serve(Image(bytearray(10))) as peer, nbd.Client(peer.address) as client:
        request = client.start_write(0, memoryview(b"x"))
        event = client.serve()
        assert (event.request, event.done) == (request, True)


def test_send_tells_that_the_connection_broke():
    with serve(Image(bytearray(10))) as peer, nbd.Client(peer.address) as client:
        client.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(nbd.ServerGone):
            client.send(wire.CMD_FLUSH, 0, 0)
        assert isinstance(client.broken, nbd.ServerGone)


def test_error_of_the_caller_is_raised_as_it_is():
    with serve(Image(bytearray(10))) as peer, nbd.Client(peer.address) as client:
        error = RuntimeError("no more")
        with pytest.raises(RuntimeError) as e:
            client.give_up(error)
        assert e.value is error
        assert error.__cause__ is None
