# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Replies without a socket: bytes in, events out; one test for each lie."""

from __future__ import annotations

import contextlib
import errno
import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.common.errors import ProtocolError
from ovirt_imageio.common.nbd import wire
from ovirt_imageio.common.nbd.replies import MAX_STATUS_EXTENTS, Event, Replies, Request

BASE, DEPTH = 5, 6
CONTEXTS = {wire.BASE_ALLOCATION: BASE, wire.ALLOCATION_DEPTH: DEPTH}


def replies(structured=True):
    return Replies(structured=structured, contexts=CONTEXTS if structured else None)


def simple(handle, error=0):
    return wire.SIMPLE_REPLY.pack(wire.SIMPLE_REPLY_MAGIC, error, handle)


def chunk(handle, kind, data=b"", done=False, length=None):
    head = wire.STRUCTURED_REPLY.pack(wire.STRUCTURED_REPLY_MAGIC, int(done), kind, handle)
    return head + wire.U32.pack(len(data) if length is None else length) + data


def data(handle, offset, size, done=False):
    """Head of a content chunk; its payload is not part of what Replies sees."""
    return chunk(handle, wire.REPLY_OFFSET_DATA, wire.OFFSET.pack(offset), done, length=8 + size)


def hole(handle, offset, size, done=False):
    return chunk(handle, wire.REPLY_OFFSET_HOLE, wire.OFFSET_HOLE.pack(offset, size), done)


def none(handle, done=True):
    return chunk(handle, wire.REPLY_NONE, done=done)


def error(handle, code, text=b"", offset=None, done=True):
    body = wire.ERROR.pack(code, len(text)) + text
    if offset is None:
        return chunk(handle, wire.REPLY_ERROR, body, done)
    return chunk(handle, wire.REPLY_ERROR_OFFSET, body + wire.OFFSET.pack(offset), done)


def status(handle, context, *runs, done=False):
    body = wire.U32.pack(context) + b"".join(wire.STATUS_EXTENT.pack(*run) for run in runs)
    return chunk(handle, wire.REPLY_BLOCK_STATUS, body, done)


def feed(r, *parts):
    """Feed a stream in the portions that are asked for; return the events."""
    stream = b"".join(parts)
    events = []
    while stream:
        part, stream = stream[: r.needs], stream[r.needs :]
        assert len(part) == r.needs, "the stream ends inside a part"
        event = r.feed(memoryview(part))
        if event is not None:
            events.append(event)
    return events


def read(r, offset=1000, length=100):
    return r.expect(wire.CMD_READ, offset, length)


# Simple replies.


def test_simple_reply_to_a_read_announces_all_of_its_payload():
    r = replies(structured=False)
    request = read(r)
    assert feed(r, simple(1)) == [Event(request, 1000, 100, True, True)]
    assert request.done
    assert request.error is None
    assert len(r) == 0


@pytest.mark.parametrize("structured", [True, False])
def test_simple_reply_ends_a_request_without_payload(structured):
    r = replies(structured)
    request = r.expect(wire.CMD_WRITE, 0, 10)
    assert feed(r, simple(1)) == [Event(request, 0, 0, False, True)]
    assert request.done


@pytest.mark.parametrize("structured", [True, False])
def test_simple_error_belongs_to_its_request(structured):
    r = replies(structured)
    first, second = read(r), read(r, 0, 10)
    (event,) = feed(r, simple(2, 28))
    assert event == Event(second, 0, 0, False, True)
    assert second.error.errno == errno.ENOSPC
    assert str(second.error) == "NBD server failed read of 10 bytes at 0: ENOSPC"
    assert not first.done
    assert len(r) == 1


def test_replies_come_in_any_order():
    r = replies(structured=False)
    requests = [read(r, i * 10, 10) for i in range(3)]
    assert [e.request for e in feed(r, simple(3), simple(1), simple(2))] == [requests[2], requests[0], requests[1]]


# Structured replies.


def test_content_and_holes_cover_a_read():
    r = replies()
    q = read(r)
    events = feed(r, data(1, 1000, 60), hole(1, 1060, 30), data(1, 1090, 10, done=True))
    assert events == [
        Event(q, 1000, 60, True, False),
        Event(q, 1060, 30, False, False),
        Event(q, 1090, 10, True, True),
    ]
    assert q.done
    assert q.complete


def test_an_empty_chunk_may_end_a_read():
    r = replies()
    q = read(r)
    events = feed(r, data(1, 1000, 100), none(1))
    assert events[1] == Event(q, 0, 0, False, True)


def test_chunks_of_several_requests_mix():
    r = replies()
    a, b = read(r, 0, 20), read(r, 100, 20)
    feed(r, data(1, 10, 10), data(2, 100, 10), hole(1, 0, 10, done=True))
    assert a.done
    assert not b.done
    feed(r, data(2, 110, 10, done=True))
    assert b.complete


@given(st.data())
def test_any_cut_in_any_order_covers_a_read(d):
    size = d.draw(st.integers(2, 200))
    cuts = sorted(d.draw(st.sets(st.integers(1, size - 1), max_size=8)))
    borders = [0, *cuts, size]
    parts = d.draw(st.permutations(list(zip(borders, borders[1:]))))
    r = replies()
    q = read(r, 1000, size)
    for start, end in parts[:-1]:
        feed(r, data(1, 1000 + start, end - start))
        assert not q.complete
    start, end = parts[-1]
    feed(r, hole(1, 1000 + start, end - start, done=True))
    assert q.complete


@given(st.lists(st.tuples(st.integers(-5, 30), st.integers(0, 30)), max_size=8))
def test_deliver_agrees_with_a_set_of_bytes(chunks):
    request = Request(1, wire.CMD_READ, 0, 25)
    seen = set()
    for start, size in chunks:
        new = set(range(start, start + size))
        if not new or not new <= set(range(25)) or new & seen:
            with pytest.raises(ProtocolError):
                request.deliver(start, size)
        else:
            request.deliver(start, size)
            seen |= new
    assert request.complete == (len(seen) == 25)


def test_error_chunk_fails_its_request_with_the_servers_words():
    r = replies()
    q = read(r)
    feed(r, error(1, 5, b"bad disk"))
    assert q.done
    assert q.error.errno == errno.EIO
    assert str(q.error) == "NBD server failed read of 100 bytes at 1000: EIO (bad disk)"


def test_error_before_the_end_is_told_at_the_end():
    r = replies()
    q = read(r)
    events = feed(r, error(1, 5, offset=1050, done=False), data(1, 1000, 50), none(1))
    assert [e.done for e in events] == [False, False, True]
    assert "at offset 1050: EIO" in str(q.error)


def test_the_first_of_several_errors_counts():
    r = replies()
    q = read(r)
    feed(r, error(1, 28, done=False), error(1, 5))
    assert q.error.errno == errno.ENOSPC


def test_unknown_kinds_of_errors_are_errors():
    r = replies()
    q = read(r)
    body = wire.ERROR.pack(12, 0) + b"more that nobody knows"
    feed(r, chunk(1, wire.REPLY_ERROR_BIT + 77, body, done=True))
    assert q.error.errno == errno.ENOMEM


def test_error_of_a_flush_may_carry_its_offset():
    r = replies()
    q = r.expect(wire.CMD_FLUSH, 0, 0)
    feed(r, error(1, 5, offset=0))
    assert q.error.errno == errno.EIO


def test_block_status_holds_every_context():
    r = replies()
    q = r.expect(wire.CMD_BLOCK_STATUS, 0, 100)
    feed(r, status(1, BASE, (60, 0), (40, 3)), status(1, DEPTH, (1000, 1), done=True))
    assert q.status == {
        BASE: wire.STATUS_EXTENT.pack(60, 0) + wire.STATUS_EXTENT.pack(40, 3),
        DEPTH: wire.STATUS_EXTENT.pack(1000, 1),
    }


def test_failed_block_status_needs_no_context():
    r = replies()
    q = r.expect(wire.CMD_BLOCK_STATUS, 0, 100)
    feed(r, error(1, 22))
    assert q.error.errno == errno.EINVAL


def test_abandon_returns_what_waits():
    r = replies()
    a, b = read(r), read(r)
    feed(r, error(1, 5))
    assert r.abandon() == [b]
    assert a.done
    assert len(r) == 0


def test_request_is_named_for_people():
    assert str(Request(1, wire.CMD_WRITE_ZEROES, 5, 6)) == "zero of 6 bytes at 5"
    assert str(Request(1, 42, 5, 6)) == "42 of 6 bytes at 5"


# Lies.


def lie(stream, message, *, structured=True, command=wire.CMD_READ, offset=1000, length=100):
    r = replies(structured)
    r.expect(command, offset, length)
    with pytest.raises(ProtocolError, match=message):
        feed(r, stream)


def test_rejects_bad_magic():
    lie(b"\xde\xad\xbe\xef" + bytes(12), "reply with magic 0xdeadbeef")


def test_rejects_unknown_handle():
    lie(simple(2), "unknown handle 2", structured=False)
    lie(none(99), "unknown handle 99")


def test_rejects_a_second_reply():
    lie(data(1, 1000, 100, done=True) + none(1), "unknown handle 1")


def test_rejects_structured_reply_that_was_not_negotiated():
    lie(none(1), "structured reply, which was not negotiated", structured=False)


@pytest.mark.parametrize("command", [wire.CMD_READ, wire.CMD_BLOCK_STATUS])
def test_rejects_simple_reply_where_a_structured_one_is_due(command):
    lie(simple(1), "simple reply to .*, expected a structured one", command=command)


@pytest.mark.parametrize(
    ("begin", "command"),
    [
        (data(1, 1000, 10), wire.CMD_READ),
        (error(1, 5, done=False), wire.CMD_READ),
        (status(1, BASE, (10, 0)), wire.CMD_BLOCK_STATUS),
    ],
)
def test_rejects_simple_reply_after_a_chunk(begin, command):
    lie(begin + simple(1, 5), "mixed simple and structured replies", command=command)


@pytest.mark.parametrize(("offset", "size"), [(999, 10), (1091, 10), (1000, 101), (0, 10), (1100, 1), (2**64 - 5, 10)])
def test_rejects_chunk_outside_its_request(offset, size):
    lie(data(1, offset, size), f"{size} bytes at {offset} in reply to read of 100 bytes at 1000")
    lie(hole(1, offset, size), f"{size} bytes at {offset} in reply to read of 100 bytes at 1000")


@pytest.mark.parametrize(("offset", "size"), [(1000, 10), (1005, 1), (1009, 5), (1015, 20), (1000, 100)])
def test_rejects_bytes_delivered_twice(offset, size):
    first = data(1, 1000, 10) + data(1, 1020, 10)
    lie(first + data(1, offset, size), f"bytes at {offset} twice")


def test_rejects_missing_bytes():
    lie(data(1, 1000, 99, done=True), "left out bytes in reply to read of 100 bytes at 1000")
    lie(data(1, 1000, 40) + data(1, 1050, 50, done=True), "left out bytes")
    lie(none(1), "left out bytes")


@pytest.mark.parametrize("length", [0, 7, 8])
def test_rejects_content_chunk_without_content(length):
    lie(chunk(1, wire.REPLY_OFFSET_DATA, length=length), f"announced {length} bytes in a chunk of type 1")


def test_rejects_empty_hole():
    lie(hole(1, 1000, 0), "0 bytes at 1000")


@pytest.mark.parametrize("length", [11, 13])
def test_rejects_hole_chunk_of_wrong_length(length):
    lie(chunk(1, wire.REPLY_OFFSET_HOLE, length=length), f"announced {length} bytes in a chunk of type 2")


def test_rejects_empty_chunk_with_content():
    lie(chunk(1, wire.REPLY_NONE, length=5, done=True), "empty chunk with 5 bytes")


def test_rejects_empty_chunk_that_ends_nothing():
    lie(none(1, done=False), "empty chunk with 0 bytes or more to come")


@pytest.mark.parametrize("kind", [3, 6, wire.REPLY_BLOCK_STATUS])
def test_rejects_chunk_type_that_answers_no_read(kind):
    lie(chunk(1, kind, length=20), f"chunk of type {kind} in reply to read")


@pytest.mark.parametrize("kind", [wire.REPLY_OFFSET_DATA, wire.REPLY_OFFSET_HOLE, wire.REPLY_BLOCK_STATUS])
def test_rejects_content_in_reply_to_a_write(kind):
    lie(chunk(1, kind, length=12), f"chunk of type {kind} in reply to write", command=wire.CMD_WRITE)


@pytest.mark.parametrize("length", [0, 5, 6 + 4096 + 8 + 1, 2**32 - 1])
def test_rejects_error_of_impossible_length_before_it_is_received(length):
    r = replies()
    read(r)
    with pytest.raises(ProtocolError, match=f"announced {length} bytes in a chunk of type 32769"):
        feed(r, chunk(1, wire.REPLY_ERROR, length=length))


@pytest.mark.parametrize(
    "body",
    [
        wire.ERROR.pack(5, 4) + b"abc",
        wire.ERROR.pack(5, 2) + b"abc",
        wire.ERROR.pack(0, 0),
    ],
)
def test_rejects_malformed_error(body):
    lie(chunk(1, wire.REPLY_ERROR, body, done=True), "malformed error")


def test_rejects_error_offset_without_offset():
    lie(chunk(1, wire.REPLY_ERROR_OFFSET, wire.ERROR.pack(5, 0) + b"1234", done=True), "malformed error")


@pytest.mark.parametrize("offset", [999, 1100])
def test_rejects_error_outside_its_request(offset):
    lie(error(1, 5, offset=offset), f"error at {offset} in reply to read")


@pytest.mark.parametrize("length", [0, 4, 11, 13, 4 + 8 * (MAX_STATUS_EXTENTS + 1), 2**32 - 4])
def test_rejects_block_status_of_impossible_length_before_it_is_received(length):
    lie(
        chunk(1, wire.REPLY_BLOCK_STATUS, length=length),
        f"announced {length} bytes in a chunk of type 5",
        command=wire.CMD_BLOCK_STATUS,
    )


def test_rejects_block_status_of_unknown_context():
    lie(status(1, 99, (100, 0)), "context 99, which was not negotiated", command=wire.CMD_BLOCK_STATUS)


def test_rejects_context_twice():
    lie(status(1, BASE, (100, 0)) * 2, f"context {BASE} twice", command=wire.CMD_BLOCK_STATUS)


def test_rejects_missing_context():
    lie(status(1, BASE, (100, 0), done=True), rf"left out contexts \[{DEPTH}\]", command=wire.CMD_BLOCK_STATUS)
    lie(none(1), rf"left out contexts \[{BASE}, {DEPTH}\]", command=wire.CMD_BLOCK_STATUS)


def test_rejects_empty_extent():
    lie(status(1, BASE, (10, 0), (0, 1), (90, 0)), "empty extent", command=wire.CMD_BLOCK_STATUS)


def test_rejects_extents_that_start_past_the_request():
    lie(status(1, BASE, (100, 0), (1, 0)), "extents past the end", command=wire.CMD_BLOCK_STATUS)
    r = replies()
    r.expect(wire.CMD_BLOCK_STATUS, 0, 100)
    feed(r, status(1, BASE, (99, 0), (1000, 0)))


def test_extents_are_checked_on_machines_of_either_byte_order(monkeypatch):
    """On one whose order is that of the network nothing is swapped."""
    other = "big" if sys.byteorder == "little" else "little"
    pack = struct.Struct("=II" if sys.byteorder == "little" else "<II").pack
    monkeypatch.setattr("ovirt_imageio.common.nbd.replies.sys.byteorder", other)
    for last, wrong in ((20, False), (0, True)):
        r = replies()
        r.expect(wire.CMD_BLOCK_STATUS, 0, 30)
        extents = pack(10, 0) + pack(last, 0)
        part = chunk(1, wire.REPLY_BLOCK_STATUS, wire.U32.pack(BASE) + extents)
        with pytest.raises(ProtocolError, match="empty extent") if wrong else contextlib.nullcontext():
            feed(r, part)


@given(st.binary(max_size=200), st.booleans())
def test_noise_is_rejected_or_waited_for(noise, structured):
    r = replies(structured)
    read(r)
    stream = noise
    try:
        while len(stream) >= r.needs:
            part, stream = stream[: r.needs], stream[r.needs :]
            r.feed(part)
    except ProtocolError:
        pass
    assert 0 < r.needs <= 4 + 8 * MAX_STATUS_EXTENTS


# The shortcut for what nearly all reads are answered with.


def pick(*values):
    """The first one, or now and then another."""
    return st.one_of(st.just(values[0]), st.sampled_from(values))


@given(
    pick(wire.STRUCTURED_REPLY_MAGIC, wire.SIMPLE_REPLY_MAGIC, 0),
    pick(wire.REPLY_FLAG_DONE, 0, 3),
    pick(wire.REPLY_OFFSET_DATA, wire.REPLY_OFFSET_HOLE, wire.REPLY_NONE, wire.REPLY_ERROR, 77),
    pick(1, 2, 0),
    pick(108, 107, 109, 8, 0, 2**32 - 1),
    pick(1000, 999, 1001, 0, 2**64 - 1),
    pick(wire.CMD_READ, wire.CMD_WRITE, wire.CMD_BLOCK_STATUS),
    pick(True, False),
    pick(b"", data(1, 1000, 10), hole(1, 1050, 10), error(1, 5, done=False)),
)
def test_whole_read_takes_nothing_that_feed_would_not(
    magic, flags, kind, handle, length, offset, command, structured, before
):
    head = wire.DATA_CHUNK.pack(magic, flags, kind, handle, length, offset)
    asked, taken = [], []
    for _ in range(2):
        r = replies(structured)
        asked.append((r, r.expect(command, 1000, 100)))
        r.expect(wire.CMD_READ, 5000, 100)
        with contextlib.suppress(ProtocolError):
            feed(r, before)
    (short, q), (long, same) = asked
    taken = short.whole_read(b"xx" + head, 2, 2 + len(head))
    if taken is not None:
        assert feed(long, head) == [Event(same, 1000, 100, True, True)]
        assert (taken, q.done, q.error, len(short)) == (q, True, None, len(long))
    else:
        assert not q.done
        assert len(short) == 2


def test_whole_read_waits_for_all_of_the_head():
    r = replies()
    read(r)
    head = data(1, 1000, 100, done=True)
    for end in range(len(head)):
        assert r.whole_read(head[:end] + bytes(30), 0, end) is None
    assert r.whole_read(head, 0, len(head)) is not None
    assert len(r) == 0


def test_whole_read_takes_nothing_within_a_reply():
    r = replies()
    read(r)
    q = read(r, 5000, 100)
    whole = data(2, 5000, 100, done=True)
    r.feed(memoryview(data(1, 1000, 100))[:16])
    assert r.whole_read(whole, 0, len(whole)) is None
    assert not q.done


def test_whole_read_takes_nothing_of_a_read_that_has_begun():
    r = replies()
    read(r)
    feed(r, data(1, 1000, 10))
    whole = data(1, 1000, 100, done=True)
    assert r.whole_read(whole, 0, len(whole)) is None


# The borders of what is allowed.


def test_longest_error_message_is_taken():
    r = replies()
    q = read(r)
    assert [event.done for event in feed(r, error(1, 5, b"x" * 4096, offset=1000))] == [True]
    assert q.error.errno == errno.EIO
    read(r)
    with pytest.raises(ProtocolError, match="announced 4111 bytes"):
        feed(r, error(2, 5, b"x" * 4097, offset=1000))


def test_longest_block_status_is_taken():
    r = replies()
    r.expect(wire.CMD_BLOCK_STATUS, 0, 1 << 30)
    head = chunk(1, wire.REPLY_BLOCK_STATUS, length=4 + 8 * 1024 * 1024)
    assert feed(r, head) == []
    assert r.needs == 4 + 8 * 1024 * 1024
    r = replies()
    r.expect(wire.CMD_BLOCK_STATUS, 0, 1 << 30)
    with pytest.raises(ProtocolError, match="announced 8388620 bytes"):
        feed(r, chunk(1, wire.REPLY_BLOCK_STATUS, length=4 + 8 * (1024 * 1024 + 1)))


def test_error_of_a_request_without_a_range_may_name_its_offset_only():
    r = replies()
    r.expect(wire.CMD_FLUSH, 0, 0)
    feed(r, error(1, 5, offset=0))
    r.expect(wire.CMD_FLUSH, 0, 0)
    with pytest.raises(ProtocolError, match="an error at 1"):
        feed(r, error(2, 5, offset=1))


def test_structured_replies_have_to_be_negotiated():
    r = Replies()
    read(r)
    with pytest.raises(ProtocolError, match="not negotiated"):
        feed(r, none(1))


def test_whole_read_looks_at_nothing_past_the_end():
    r = replies()
    read(r)
    head = data(1, 1000, 100, done=True)
    # The buffer holds a rest of an earlier reply behind the bytes that have come.
    assert r.whole_read(bytes(50) + head, 50, 50 + len(head) - 1) is None
    assert len(r) == 1
