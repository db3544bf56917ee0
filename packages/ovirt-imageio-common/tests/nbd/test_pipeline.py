# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The non-blocking driver against a scripted server."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import select
import termios
import threading
import time

import pytest

from imageio_testing.nbdpeer import FLAGS, Image, Peer, serve
from ovirt_imageio.common import nbd
from ovirt_imageio.common.errors import ProtocolError, RequestError, UnsupportedOperation
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent
from ovirt_imageio.common.nbd import wire

KiB = 1024
MiB = 1024 * KiB
BASE, DEPTH, DIRTY = wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH, wire.DIRTY_BITMAP + "b"

PATIENCE = 10.0


def pattern(size):
    return (bytearray(range(251)) * (size // 251 + 1))[:size]


class Owner:
    """A loop's part for its pipeline, and the answers that it was called back with.

    Attributes:
        pipeline: The pipeline.
        answers: Of each request that was answered, in that order: name, data, error.
    """

    def __init__(self, peer, *, dirty=False):
        self.pipeline = nbd.Pipeline(nbd.Client(peer.address, dirty=dirty))
        self.answers = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.pipeline.close()

    def told(self, name):
        """A callback for a request of this name."""
        return lambda data, error: self.answers.append((name, data, error))

    def run(self, count=1):
        """Drive the pipeline until so many requests are answered; return the last answer's data and error."""
        poll = select.poll()
        while len(self.answers) < count and self.pipeline.broken is None:
            if self.pipeline.wants_write:
                self.pipeline.on_writable()
                continue
            poll.register(self.pipeline.fileno(), select.POLLIN)
            assert poll.poll(PATIENCE * 1000), f"{len(self.answers)} of {count} requests answered"
            self.pipeline.on_readable()
        assert len(self.answers) >= count
        return self.answers[-1][1:]


@contextlib.contextmanager
def owner(image, **options):
    with serve(image) as peer, Owner(peer, **options) as found:
        yield found


# Honest servers of all kinds.


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("hole_block", [0, 512])
@pytest.mark.parametrize("whole", [True, False])
def test_read_write_zero_and_flush(structured, hole_block, whole):
    image = Image(pattern(16 * KiB), structured=structured, hole_block=hole_block, whole=whole)
    image.data[4096:8192] = bytes(4096)
    with owner(image) as o:
        o.pipeline.read(0, 16 * KiB, o.told("read"))
        assert o.run() == (image.data, None)
        o.pipeline.write(1000, b"x" * 3000, o.told("write"))
        o.pipeline.zero(9000, 100, o.told("zero"))
        o.pipeline.flush(o.told("flush"))
        assert o.pipeline.in_flight == 3
        o.run(4)
        assert o.answers[1:] == [(name, None, None) for name in ("write", "zero", "flush")]
        assert o.pipeline.in_flight == 0
    assert image.data[1000:4000] == b"x" * 3000
    assert image.data[9000:9100] == bytes(100)


def test_requests_wait_for_the_next_flush_of_output():
    image = Image(bytearray(8192))
    with owner(image) as o:
        for n in range(8):
            o.pipeline.read(n * 1024, 1024, o.told(n))
        assert o.pipeline.wants_write
        assert o.pipeline.in_flight_bytes == 8192
        o.run(8)
        assert not o.pipeline.wants_write
        assert o.pipeline.in_flight_bytes == 0
    assert [asked.offset for asked in image.asked] == [n * 1024 for n in range(8)]
    assert [name for name, _, _ in o.answers] == list(range(8))


def test_replies_in_any_order_find_their_callbacks():
    def script(talk):
        talk.negotiate(4096, structured=False)
        for asked in reversed([talk.request() for _ in range(4)]):
            talk.simple(asked, bytes([asked.offset // 1024]) * asked.length)
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        for n in range(4):
            o.pipeline.read(n * 1024, 1024, o.told(n))
        o.run(4)
    assert o.answers == [(n, bytes([n]) * 1024, None) for n in (3, 2, 1, 0)]


@pytest.mark.parametrize("size", [128 * KiB, 3 * MiB], ids=["around the buffer", "long"])
@pytest.mark.parametrize("whole", [True, False])
def test_payload_that_the_input_buffer_does_not_hold(size, whole):
    image = Image(pattern(size) + bytearray(100), whole=whole)
    with owner(image) as o:
        o.pipeline.read(0, 10, o.told("short"))
        o.pipeline.read(0, size, o.told("long"))
        o.pipeline.read(size - 5, 10, o.told("after"))
        o.run(3)
    assert [data for _, data, _ in o.answers] == [image.data[:10], image.data[:size], image.data[size - 5 : size + 5]]


@pytest.mark.parametrize("structured", [True, False])
def test_long_and_short_replies_mixed_find_their_callbacks(structured):
    image = Image(pattern(MiB), structured=structured, whole=True)
    lengths = [64 * KiB] * 3 + [100] * 4 + [64 * KiB, 4096] + [96 * KiB] * 3 + [1]
    with owner(image) as o:
        for n, length in enumerate(lengths):
            o.pipeline.read(n * 1001, length, o.told(n))
        o.pipeline.write(MiB - 10, b"0123456789", o.told("write"))
        o.run(len(lengths) + 1)
        assert o.pipeline.in_flight_bytes == 0
    for n, data, error in o.answers[:-1]:
        assert (data, error) == (image.data[n * 1001 :][: lengths[n]], None)


def test_payload_of_a_long_reply_is_received_where_it_stays():
    image = Image(pattern(64 * KiB), whole=True)
    with owner(image) as o:
        o.pipeline.read(0, 64 * KiB, o.told("read"))
        o.pipeline.flush_output()
        wait_until_unread(o.pipeline.fileno(), 64 * KiB + wire.DATA_CHUNK.size)
        assert o.run() == (image.data, None)
    # Payload that was copied out of the input buffer would be bytes.
    assert type(o.answers[0][1]) is bytearray


def wait_until_unread(fd, count):
    """Wait until so many bytes have arrived, see FIONREAD in unix(7)."""
    deadline = time.monotonic() + PATIENCE
    unread = array.array("i", [0])
    while unread[0] < count:
        assert time.monotonic() < deadline, f"{unread[0]} of {count} bytes have come"
        fcntl.ioctl(fd, termios.FIONREAD, unread)


def test_replies_that_arrive_byte_by_byte():
    def script(talk):
        talk.negotiate(4096)
        send = talk.send
        talk.send = lambda *parts: [send(bytes([byte])) for byte in b"".join(parts)]
        asked = talk.request()
        talk.data(asked, 0, b"ab")
        talk.hole(asked, 2, 2)
        talk.data(asked, 4, b"cd", done=True)
        talk.simple(talk.request())
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(0, 6, o.told("read"))
        o.pipeline.flush(o.told("flush"))
        o.run(2)
    assert o.answers == [("read", b"ab\0\0cd", None), ("flush", None, None)]


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (1, 1), (511, 2), (700, 1500), (4000, 100), (4095, 5)])
@pytest.mark.parametrize("whole", [True, False])
def test_reads_of_any_alignment_ask_for_whole_blocks(offset, length, whole):
    image = Image(pattern(4100), block_sizes=(512, 4096, 64 * KiB), whole=whole)
    with owner(image) as o:
        o.pipeline.read(offset, length, o.told("read"))
        assert o.run() == (image.data[offset : offset + length], None)
    (asked,) = image.asked
    assert asked.offset % 512 == 0
    assert (asked.offset + asked.length) % 512 == 0 or asked.offset + asked.length == 4100


def test_a_read_of_the_longest_length_stays_below_the_maximum_of_the_server():
    image = Image(bytearray(64 * KiB), block_sizes=(512, 4096, 8 * KiB))
    with owner(image) as o:
        assert o.pipeline.max_length == 8 * KiB - 2 * 511
        o.pipeline.read(1, o.pipeline.max_length, o.told("read"))
        data, error = o.run()
    assert error is None
    assert len(data) == 8 * KiB - 2 * 511


@pytest.mark.parametrize(("punch", "flags"), [(False, wire.CMD_FLAG_NO_HOLE), (True, 0)])
def test_zero_punches_holes_only_if_told(punch, flags):
    image = Image(bytearray(b"x" * 100))
    with owner(image) as o:
        o.pipeline.zero(0, 100, o.told("zero"), punch_hole=punch)
        o.run()
    assert [(asked.command, asked.flags) for asked in image.asked] == [(wire.CMD_WRITE_ZEROES, flags)]


def test_server_that_cannot_zero_gets_zeros():
    image = Image(bytearray(b"x" * 3 * MiB), flags=wire.FLAG_HAS_FLAGS)
    with owner(image) as o:
        o.pipeline.zero(10, 2 * MiB + 5, o.told("zero"))
        assert o.run() == (None, None)
    assert image.data == b"x" * 10 + bytes(2 * MiB + 5) + b"x" * (MiB - 15)
    assert [asked.command for asked in image.asked] == [wire.CMD_WRITE]


def test_server_that_finds_out_late_gets_zeros():
    image = Image(bytearray(b"x" * 100), errors={wire.CMD_WRITE_ZEROES: 95})
    with owner(image) as o:
        o.pipeline.zero(10, 80, o.told("zero"))
        assert o.run() == (None, None)
    assert [asked.command for asked in image.asked] == [wire.CMD_WRITE_ZEROES, wire.CMD_WRITE]
    assert image.data == b"x" * 10 + bytes(80) + b"x" * 10


def test_zero_that_is_too_long_to_be_written_is_refused():
    image = Image(bytearray(16 * KiB), errors={wire.CMD_WRITE_ZEROES: 95}, block_sizes=(1, 4096, 8 * KiB))
    with owner(image) as o:
        o.pipeline.zero(0, 16 * KiB, o.told("zero"))
        _, error = o.run()
    assert isinstance(error, RequestError)
    assert error.errno == errno.EOPNOTSUPP


def test_zero_that_fails_is_not_tried_by_writing():
    image = Image(bytearray(b"x" * 100), errors={wire.CMD_WRITE_ZEROES: 28})
    with owner(image) as o:
        o.pipeline.zero(10, 80, o.told("zero"))
        _, error = o.run()
    assert error.errno == errno.ENOSPC
    assert [asked.command for asked in image.asked] == [wire.CMD_WRITE_ZEROES]


def test_server_without_flush_gets_none():
    image = Image(bytearray(100), flags=wire.FLAG_HAS_FLAGS)
    with owner(image) as o:
        o.pipeline.flush(o.told("flush"))
        assert o.answers == []  # no callback from within the call
        assert o.pipeline.wants_write
        assert o.run() == (None, None)
    assert image.asked == []


def test_callback_may_submit_more():
    with owner(Image(pattern(100))) as o:

        def more(data, error):
            o.told("first")(data, error)
            o.pipeline.read(50, 5, o.told("second"))

        o.pipeline.read(0, 5, more)
        o.run(2)
        assert [name for name, _, _ in o.answers] == ["first", "second"]
        assert o.answers[1][1] == pattern(100)[50:55]


# Extents.


STATUS = {
    BASE: [(4096, 0), (8192, 3), (4096, 0)],
    DEPTH: [(8192, 1), (4096, 0), (4096, 1)],
    DIRTY: [(512, 1), (15872, 0)],
}


def test_zero_extents():
    with owner(Image(bytearray(16 * KiB), status=STATUS)) as o:
        o.pipeline.status(0, 16 * KiB, "zero", o.told("status"))
        found, error = o.run()
    assert error is None
    assert found == [
        ZeroExtent(0, 4096, False, False),
        ZeroExtent(4096, 4096, True, False),
        ZeroExtent(8192, 4096, True, True),
        ZeroExtent(12288, 4096, False, False),
    ]


def test_dirty_extents():
    with owner(Image(bytearray(16 * KiB), status=STATUS), dirty=True) as o:
        o.pipeline.status(100, 8192, "dirty", o.told("status"))
        found, _ = o.run()
    assert found == [
        DirtyExtent(100, 412, True, False),
        DirtyExtent(512, 3584, False, False),
        DirtyExtent(4096, 4196, False, True),
    ]


def test_extents_are_asked_for_in_whole_blocks():
    image = Image(bytearray(16 * KiB), status=STATUS, block_sizes=(512, 4096, MiB))
    with owner(image) as o:
        o.pipeline.status(5000, 100, "zero", o.told("status"))
        assert o.run() == ([ZeroExtent(5000, 100, True, False)], None)
    assert (image.asked[0].offset, image.asked[0].length) == (4608, 512)


def test_block_status_that_the_input_buffer_does_not_hold():
    count = 17_000
    image = Image(bytearray(count), status={BASE: [(1, n & 2) for n in range(count)]})
    with owner(image) as o:
        o.pipeline.status(0, count, "zero", o.told("status"))
        o.pipeline.read(0, 10, o.told("read"))
        o.run(2)
    assert len(o.answers[0][1]) == count // 2
    assert o.answers[1] == ("read", bytearray(10), None)


def test_failed_block_status():
    image = Image(bytearray(4096), status={BASE: [(4096, 0)]}, errors={wire.CMD_BLOCK_STATUS: 5})
    with owner(image) as o:
        o.pipeline.status(0, 4096, "zero", o.told("status"))
        found, error = o.run()
        assert found is None
        assert error.errno == errno.EIO
        assert o.pipeline.broken is None


def test_extents_that_tell_nothing_break_the_connection():
    def script(talk):
        talk.negotiate(8192, contexts={BASE: 1}, block_sizes=(4096, 4096, MiB))
        asked = talk.request()
        talk.status(asked, 1, [(10, 0)], done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.status(100, 100, "zero", o.told("status"))
        _, error = o.run()
        assert isinstance(error, ProtocolError)
        assert o.pipeline.broken is error


# Mistakes of callers.


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (8192, 1), (8191, 2)])
def test_ranges_outside_the_export_are_a_mistake(offset, length):
    with owner(Image(bytearray(8192), status={BASE: [(8192, 0)]})) as o:
        calls = [
            lambda: o.pipeline.read(offset, length, o.told("read")),
            lambda: o.pipeline.write(offset, bytes(length), o.told("write")),
            lambda: o.pipeline.zero(offset, length, o.told("zero")),
            lambda: o.pipeline.status(offset, length, "zero", o.told("status")),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="outside the export"):
                call()
        assert o.pipeline.in_flight == 0


def test_too_long_and_unaligned_requests_are_a_mistake():
    with owner(Image(bytearray(MiB), block_sizes=(512, 4096, 64 * KiB))) as o:
        with pytest.raises(ValueError, match="too long"):
            o.pipeline.read(0, 64 * KiB, o.told("read"))
        for call in (o.pipeline.write, lambda offset, data, told: o.pipeline.zero(offset, len(data), told)):
            with pytest.raises(ValueError, match="not aligned"):
                call(1, bytes(512), o.told("x"))
            with pytest.raises(ValueError, match="not aligned"):
                call(0, bytes(513), o.told("x"))
        assert o.pipeline.in_flight == 0


def test_the_last_block_may_be_short():
    image = Image(bytearray(1000), block_sizes=(512, 4096, 64 * KiB))
    with owner(image) as o:
        o.pipeline.write(512, b"x" * 488, o.told("write"))
        assert o.run() == (None, None)
    assert image.data[512:] == b"x" * 488


def test_extents_that_were_not_negotiated_are_refused():
    with owner(Image(bytearray(100))) as o:
        with pytest.raises(UnsupportedOperation, match="block status"):
            o.pipeline.status(0, 100, "zero", o.told("status"))
        with pytest.raises(UnsupportedOperation, match="bitmap"):
            o.pipeline.status(0, 100, "dirty", o.told("status"))
        with pytest.raises(ValueError, match="unheard-of"):
            o.pipeline.status(0, 100, "unheard-of", o.told("status"))


# Faults.


@pytest.mark.parametrize("structured", [True, False])
def test_failed_request_leaves_the_connection_alive(structured):
    image = Image(pattern(100), structured=structured, errors={wire.CMD_WRITE: 28})
    with owner(image) as o:
        o.pipeline.write(0, b"x" * 10, o.told("write"))
        _, error = o.run()
        assert error.errno == errno.ENOSPC
        o.pipeline.read(0, 100, o.told("read"))
        assert o.run(2) == (pattern(100), None)
        assert o.pipeline.in_flight_bytes == 0


def test_error_in_the_middle_of_a_read_fails_only_that_read():
    def script(talk):
        talk.negotiate(4096)
        first, second = talk.request(), talk.request()
        talk.data(first, 0, b"x" * 100)
        talk.error(first, 5, "bad sector", offset=100, done=False)
        talk.chunk(first, wire.REPLY_NONE, done=True)
        talk.data(second, 0, b"y" * 10, done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(0, 200, o.told("first"))
        o.pipeline.read(0, 10, o.told("second"))
        o.run(2)
        assert o.pipeline.broken is None
    assert "bad sector" in str(o.answers[0][2])
    assert o.answers[1] == ("second", b"y" * 10, None)


def test_lies_break_the_connection_and_fail_everything():
    def script(talk):
        talk.negotiate(4096)
        first = talk.request()
        talk.request()
        talk.data(first, 8192, b"x", done=True)
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(0, 100, o.told("first"))
        o.pipeline.read(100, 100, o.told("second"))
        o.run(2)
        assert isinstance(o.pipeline.broken, ProtocolError)
        assert [error for _, _, error in o.answers] == 2 * [o.pipeline.broken]
        with pytest.raises(ProtocolError, match="is closed"):
            o.pipeline.read(0, 1, o.told("third"))
        with pytest.raises(ProtocolError, match="is closed"):
            o.pipeline.flush(o.told("fourth"))


def test_server_that_hangs_up_is_gone():
    def script(talk):
        talk.negotiate(4096)
        talk.request()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(0, 100, o.told("read"))
        _, error = o.run()
        assert isinstance(error, nbd.ServerGone)
        assert o.pipeline.broken is error
        assert o.pipeline.in_flight_bytes == 0


@pytest.mark.parametrize("size", [100, MiB], ids=["in the buffer", "where it belongs"])
def test_server_that_hangs_up_within_the_last_payload_is_gone(size):
    """Its reply was announced as the last of the request, so nothing else would tell the caller."""

    def script(talk):
        talk.negotiate(size, structured=False)
        asked = talk.request()
        talk.simple(asked, b"x" * (size - 1))

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(0, size, o.told("read"))
        data, error = o.run()
    assert data is None
    assert isinstance(error, nbd.ServerGone)


def test_server_that_hangs_up_before_a_request_is_gone_when_it_is_sent():
    hung_up = threading.Event()

    def script(talk):
        talk.negotiate(4096)
        talk.sock.close()
        hung_up.set()

    with Peer(script) as peer, Owner(peer) as o:
        assert hung_up.wait(PATIENCE)
        o.pipeline.write(0, b"x", o.told("write"))
        _, error = o.run()
        assert isinstance(error, nbd.ServerGone)
        assert isinstance(error.__cause__, OSError)


def test_output_that_the_server_does_not_take_waits():
    taken = threading.Event()

    def script(talk):
        talk.negotiate(32 * MiB)
        assert taken.wait(PATIENCE)
        talk.simple(talk.request())
        talk.wait_for_hangup()

    data = bytes(pattern(9 * MiB))
    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.write(0, data, o.told("write"))
        o.pipeline.flush_output()
        assert o.pipeline.wants_write
        o.pipeline.on_writable()
        assert o.pipeline.wants_write
        taken.set()
        assert o.run() == (None, None)
        assert not o.pipeline.wants_write


# The end.


def test_close_says_goodbye():
    commands = []

    def script(talk):
        talk.negotiate(4096)
        commands.append(wire.REQUEST.unpack(talk.receive(wire.REQUEST.size))[2])

    with Peer(script) as peer:
        o = Owner(peer)
        o.pipeline.close()
        o.pipeline.close()
        assert o.pipeline.fileno() == -1
    assert commands == [wire.CMD_DISC]


def test_close_fails_what_is_in_flight():
    with Peer(lambda talk: (talk.negotiate(4096), talk.wait_for_hangup())) as peer, Owner(peer) as o:
        o.pipeline.read(0, 100, o.told("read"))
        o.pipeline.flush_output()
        why = RuntimeError("the ticket was removed")
        o.pipeline.close(why)
        assert o.answers == [("read", None, why)]


def test_close_fails_a_flush_that_was_not_told_yet():
    with owner(Image(bytearray(100), flags=wire.FLAG_HAS_FLAGS)) as o:
        o.pipeline.flush(o.told("flush"))
        o.pipeline.close()
        ((_, _, error),) = o.answers
        assert isinstance(error, nbd.ServerGone)


def test_goodbye_to_a_server_that_is_gone_does_no_harm():
    hung_up = threading.Event()

    def script(talk):
        talk.negotiate(4096)
        talk.sock.close()
        hung_up.set()

    with Peer(script) as peer, Owner(peer) as o:
        assert hung_up.wait(PATIENCE)
        o.pipeline.close()
        assert o.pipeline.fileno() == -1


def test_flags_are_those_of_the_export():
    with owner(Image(bytearray(100), flags=FLAGS)) as o:
        assert o.pipeline.export.can_multi_conn
        assert o.pipeline.block_size == 1


# Requests on the wire, to the bit.


def sent(talk, count):
    """Heads of so many requests: flags, command, offset, length; payload is thrown away."""
    heads = []
    for _ in range(count):
        _, flags, command, _, offset, length = wire.REQUEST.unpack(talk.receive(wire.REQUEST.size))
        heads.append((flags, command, offset, length))
        if command == wire.CMD_WRITE:
            talk.receive(length)
    return heads


def test_requests_carry_what_was_asked_for_and_no_more():
    heads = []

    def script(talk):
        talk.negotiate(4096)
        heads.extend(sent(talk, 4))
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(1, 2, o.told("read"))
        o.pipeline.write(3, b"four", o.told("write"))
        o.pipeline.zero(5, 6, o.told("zero"))
        o.pipeline.flush(o.told("flush"))
        assert o.pipeline.in_flight_bytes == 2 + 4
        o.pipeline.flush_output()
    assert heads == [
        (0, wire.CMD_READ, 1, 2),
        (0, wire.CMD_WRITE, 3, 4),
        (wire.CMD_FLAG_NO_HOLE, wire.CMD_WRITE_ZEROES, 5, 6),
        (0, wire.CMD_FLUSH, 0, 0),
    ]


def test_goodbye_is_a_bare_request():
    said = []

    def script(talk):
        talk.negotiate(4096)
        said.append(wire.REQUEST.unpack(talk.receive(wire.REQUEST.size)))

    with Peer(script) as peer:
        Owner(peer).pipeline.close()
    assert said == [(wire.REQUEST_MAGIC, 0, wire.CMD_DISC, 0, 0, 0)]


@pytest.mark.parametrize("begun", [True, False], ids=["in flight", "not sent yet"])
def test_no_goodbye_while_a_request_waits(begun):
    rest = []

    def script(talk):
        talk.negotiate(4096)
        if begun:
            talk.request()
        rest.append(talk.sock.recv(100))

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.read(0, 100, o.told("read"))
        if begun:
            o.pipeline.flush_output()
        o.pipeline.close()
    assert rest == [b""]


def test_broken_connection_has_nothing_to_send():
    with serve(Image(bytearray(4096))) as peer, Owner(peer) as o:
        o.pipeline.read(0, 100, o.told("read"))
        o.pipeline.close()
        assert not o.pipeline.wants_write


def test_zero_of_the_longest_length_that_can_be_written_is():
    image = Image(bytearray(b"x" * 64 * KiB), block_sizes=(1, 4096, 32 * KiB), errors={wire.CMD_WRITE_ZEROES: 95})
    with owner(image) as o:
        o.pipeline.zero(0, o.pipeline.max_length, o.told("zero"))
        assert o.run() == (None, None)
    assert image.data == bytes(32 * KiB) + b"x" * 32 * KiB


def test_zeros_that_must_be_written_are_checked_like_a_write():
    plain = FLAGS & ~wire.FLAG_SEND_WRITE_ZEROES
    with owner(Image(bytearray(64 * KiB), block_sizes=(512, 4096, 32 * KiB), flags=plain)) as o:
        for offset, length, why in [(1, 512, "not aligned"), (0, 64 * KiB, "too long"), (0, 65 * KiB, "outside")]:
            with pytest.raises(ValueError, match=why):
                o.pipeline.zero(offset, length, o.told("zero"))
        assert o.pipeline.in_flight == 0


@pytest.mark.parametrize(
    ("size", "offset", "length", "asked"),
    [
        (4100, 4000, 100, (3584, 516)),
        (4100, 700, 100, (512, 512)),
        (8 << 30, 700, 6 << 30, (512, 2**31 - 64 * KiB)),
    ],
    ids=["to the end", "within", "longer than a request"],
)
def test_block_status_is_asked_for_in_blocks_within_the_export(size, offset, length, asked):
    heads = []

    def script(talk):
        talk.negotiate(size, contexts={BASE: 1}, block_sizes=(512, 4096, MiB))
        heads.extend(sent(talk, 1))
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        o.pipeline.status(offset, length, "zero", o.told("status"))
        o.pipeline.flush_output()
    assert heads == [(0, wire.CMD_BLOCK_STATUS, *asked)]


def test_bytes_in_flight_are_those_of_whole_blocks():
    with owner(Image(bytearray(4096), block_sizes=(512, 4096, 64 * KiB))) as o:
        o.pipeline.read(700, 1500, o.told("read"))
        assert o.pipeline.in_flight_bytes == 4 * 512
        o.run()
        assert o.pipeline.in_flight_bytes == 0


def test_replies_that_come_together_are_all_taken():
    def whole(asked):
        head = (wire.STRUCTURED_REPLY_MAGIC, wire.REPLY_FLAG_DONE, wire.REPLY_OFFSET_DATA, asked.handle)
        return wire.DATA_CHUNK.pack(*head, 8 + asked.length, asked.offset) + b"x" * asked.length

    def script(talk):
        talk.negotiate(4096)
        talk.send(*(whole(talk.request()) for _ in range(3)))
        talk.wait_for_hangup()

    with Peer(script) as peer, Owner(peer) as o:
        for n in range(3):
            o.pipeline.read(n * 100, 100, o.told(n))
        o.run(3)
        assert o.answers == [(n, b"x" * 100, None) for n in range(3)]
