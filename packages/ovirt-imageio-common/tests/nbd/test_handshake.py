# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Negotiation without a socket: each test plays the server's bytes."""

from __future__ import annotations

import errno

import pytest

from ovirt_imageio.common.errors import ProtocolError, RequestError, UnsupportedOperation
from ovirt_imageio.common.nbd import handshake, wire
from ovirt_imageio.common.nbd.handshake import Export, list_exports, negotiate

FIXED = wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
FLAGS = wire.FLAG_HAS_FLAGS | wire.FLAG_SEND_FLUSH
BASE = (1, wire.BASE_ALLOCATION)
DEPTH = (2, wire.ALLOCATION_DEPTH)


def play(steps, server):
    """Run a negotiation against the bytes of a server; return its result and what was sent."""
    sent = b""
    pos = 0
    data = b""
    try:
        while True:
            step = steps.send(data) if data else next(steps)
            data = b""
            if isinstance(step, bytes):
                sent += step
            else:
                data = server[pos : pos + step]
                pos += step
                assert len(data) == step, f"the client wants {step} bytes more than the server said"
    except StopIteration as e:
        assert pos == len(server), f"{len(server) - pos} bytes were not read"
        return e.value, sent


def greeting(flags=FIXED):
    return b"NBDMAGIC" + b"IHAVEOPT" + wire.HANDSHAKE_FLAGS.pack(flags)


def reply(option, kind, data=b""):
    return wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def ack(option):
    return reply(option, wire.REP_ACK)


def contexts(*pairs, option=wire.OPT_SET_META_CONTEXT):
    return b"".join(
        reply(option, wire.REP_META_CONTEXT, wire.U32.pack(number) + name.encode()) for number, name in pairs
    ) + ack(option)


def info(kind, data):
    return reply(wire.OPT_GO, wire.REP_INFO, wire.INFO.pack(kind) + data)


def export_info(size=4096, flags=FLAGS):
    return info(wire.INFO_EXPORT, wire.EXPORT.pack(size, flags))


def blocks(minimum, preferred, maximum):
    return info(wire.INFO_BLOCK_SIZE, wire.BLOCK_SIZES.pack(minimum, preferred, maximum))


STRUCTURED = ack(wire.OPT_STRUCTURED_REPLY)
SIMPLE = reply(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_UNSUP)
GO = export_info() + ack(wire.OPT_GO)


def refuse(option, error, text=b""):
    return reply(option, error, text)


def test_negotiate_with_a_current_server():
    server = greeting() + STRUCTURED + contexts(BASE, DEPTH) + blocks(512, 4096, 1 << 20) + GO
    export, sent = play(negotiate("disk"), server)
    assert export == Export(
        "disk",
        4096,
        FLAGS,
        minimum_block=512,
        preferred_block=4096,
        maximum_block=1 << 20,
        structured=True,
        contexts={wire.BASE_ALLOCATION: 1, wire.ALLOCATION_DEPTH: 2},
    )
    assert export.can_extents
    assert export.can_flush
    assert not export.can_zero
    assert not export.read_only
    assert not export.can_multi_conn
    assert export.dirty_context is None
    assert sent == (
        wire.CLIENT_FLAGS.pack(FIXED)
        + wire.option(wire.OPT_STRUCTURED_REPLY)
        + wire.meta_contexts(wire.OPT_SET_META_CONTEXT, "disk", [wire.BASE_ALLOCATION, wire.ALLOCATION_DEPTH])
        + wire.go("disk")
    )


def test_negotiate_answers_only_flags_that_the_server_has():
    _, sent = play(negotiate(""), greeting(wire.FLAG_FIXED_NEWSTYLE | 0x8000) + SIMPLE + GO)
    assert sent.startswith(wire.CLIENT_FLAGS.pack(wire.FLAG_FIXED_NEWSTYLE))


def test_without_structured_replies_no_context_is_asked_for():
    export, sent = play(negotiate("", dirty=True), greeting() + SIMPLE + GO)
    assert not export.structured
    assert not export.can_extents
    assert b"base:allocation" not in sent


def test_refused_contexts_read_as_none():
    server = greeting() + STRUCTURED + refuse(wire.OPT_SET_META_CONTEXT, wire.REP_ERR_UNSUP) + GO
    export, _ = play(negotiate(""), server)
    assert export.structured
    assert not export.can_extents


def test_dirty_finds_the_only_bitmap():
    name = "qemu:dirty-bitmap:b1"
    listed = contexts((0, name), option=wire.OPT_LIST_META_CONTEXT)
    server = greeting() + STRUCTURED + listed + contexts(BASE, DEPTH, (3, name)) + GO
    export, sent = play(negotiate("e", dirty=True), server)
    assert export.dirty_context == name
    assert export.require_dirty() == name
    assert export.bitmaps == ("b1",)
    assert wire.meta_contexts(wire.OPT_LIST_META_CONTEXT, "e", ["qemu:dirty-bitmap:"]) in sent
    assert export.by_name({1: b"a", 2: b"b", 3: b"c"}) == {
        wire.BASE_ALLOCATION: b"a",
        wire.ALLOCATION_DEPTH: b"b",
        name: b"c",
    }


def test_dirty_takes_none_of_several_bitmaps():
    pairs = [(0, "qemu:dirty-bitmap:a"), (0, "qemu:dirty-bitmap:b"), (0, "other:thing")]
    listed = contexts(*pairs, option=wire.OPT_LIST_META_CONTEXT)
    server = greeting() + STRUCTURED + listed + contexts(BASE) + GO
    export, sent = play(negotiate("", dirty=True), server)
    assert export.bitmaps == ("a", "b")
    assert b"bitmap:a" not in sent
    with pytest.raises(UnsupportedOperation, match="several bitmaps, name one of a, b"):
        export.require_dirty()


def test_a_named_bitmap_is_asked_for_at_once():
    name = "qemu:dirty-bitmap:b"
    export, sent = play(negotiate("", bitmap="b"), greeting() + STRUCTURED + contexts(BASE, (9, name)) + GO)
    assert export.dirty_context == name
    assert sent.count(b"qemu:dirty-bitmap") == 1


def test_export_without_bitmap_has_no_dirty_context():
    server = greeting() + STRUCTURED + refuse(wire.OPT_LIST_META_CONTEXT, wire.REP_ERR_UNKNOWN) + contexts(BASE) + GO
    export, _ = play(negotiate("e", dirty=True), server)
    with pytest.raises(UnsupportedOperation, match="no dirty extents of NBD export 'e': it has no bitmap"):
        export.require_dirty()


@pytest.mark.parametrize(("flags", "padding"), [(FIXED, 0), (wire.FLAG_FIXED_NEWSTYLE, 124)])
def test_server_without_go_gets_export_name(flags, padding):
    server = greeting(flags) + SIMPLE + refuse(wire.OPT_GO, wire.REP_ERR_UNSUP)
    export, sent = play(negotiate("e"), server + wire.EXPORT.pack(77, FLAGS) + bytes(padding))
    assert (export.size, export.flags, export.name) == (77, FLAGS, "e")
    assert sent.endswith(wire.option(wire.OPT_EXPORT_NAME, b"e"))


def test_server_without_fixed_newstyle_gets_export_name_only():
    export, sent = play(negotiate("e"), greeting(0) + wire.EXPORT.pack(77, FLAGS) + bytes(124))
    assert export.size == 77
    assert sent == wire.CLIENT_FLAGS.pack(0) + wire.option(wire.OPT_EXPORT_NAME, b"e")


def test_flags_mean_nothing_without_has_flags():
    export, _ = play(negotiate(""), greeting() + SIMPLE + export_info(flags=wire.FLAG_READ_ONLY) + ack(wire.OPT_GO))
    assert not export.read_only


def test_every_flag_is_told():
    bits = wire.FLAG_READ_ONLY | wire.FLAG_SEND_WRITE_ZEROES | wire.FLAG_CAN_MULTI_CONN
    export, _ = play(negotiate(""), greeting() + SIMPLE + export_info(flags=1 | bits) + ack(wire.OPT_GO))
    assert export.read_only
    assert export.can_zero
    assert export.can_multi_conn
    assert not export.can_flush


def test_unknown_information_is_skipped():
    server = greeting() + SIMPLE + info(2, b"a description") + GO
    export, _ = play(negotiate(""), server)
    assert export.size == 4096


def test_maximum_block_is_a_multiple_of_the_minimum():
    export, _ = play(negotiate(""), greeting() + SIMPLE + blocks(4096, 4096, wire.MAX_LENGTH) + GO)
    assert export.maximum_block == wire.MAX_LENGTH - 4095


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (b"HTTP/1.1" * 2, "not an NBD server: its greeting is 0x485454502f312e31"),
        (b"NBDMAGIC" + b"\x00\x00\x42\x02\x81\x86\x12\x53", "oldstyle"),
        (b"NBDMAGIC" + b"\0" * 8, "magic 0x0 in its greeting"),
        (greeting() + b"\0" * 20, "magic 0x0, expected"),
        (greeting() + ack(wire.OPT_GO), "replied to option 7, expected 8"),
        (
            greeting() + wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, 8, wire.REP_ERR_POLICY, 1 << 31),
            "announced 2147483648 bytes for option 8, expected at most 8256",
        ),
        (greeting() + reply(8, wire.REP_INFO), "unexpected reply type 3 about structured replies"),
        (greeting() + STRUCTURED + reply(10, wire.REP_SERVER), "malformed reply of type 2 and 0 bytes to option 10"),
        (greeting() + STRUCTURED + reply(10, wire.REP_META_CONTEXT, b"abc"), "malformed reply of type 4 and 3 bytes"),
        (greeting() + STRUCTURED + contexts((1, "other:x")), "'other:x', which was not asked for"),
        (greeting() + STRUCTURED + contexts(BASE, (2, BASE[1])), r"'base:allocation' \(2\) twice"),
        (greeting() + STRUCTURED + contexts(BASE, (1, DEPTH[1])), r"'qemu:allocation-depth' \(1\) twice"),
        (greeting() + SIMPLE + ack(wire.OPT_GO), "without telling its size"),
        (greeting() + SIMPLE + reply(wire.OPT_GO, wire.REP_SERVER), "unexpected reply type 2 about export 'e'"),
        (greeting() + SIMPLE + reply(wire.OPT_GO, wire.REP_INFO, b"\0"), "malformed reply of type 3 and 1 bytes"),
        (greeting() + SIMPLE + info(wire.INFO_EXPORT, bytes(9)), "malformed reply of type 3 and 11 bytes"),
        (greeting() + SIMPLE + info(wire.INFO_BLOCK_SIZE, bytes(13)), "malformed reply of type 3 and 15 bytes"),
        (greeting() + SIMPLE + blocks(0, 4096, 1 << 20), "impossible block sizes: 0, 4096, 1048576"),
        (greeting() + SIMPLE + blocks(3, 4096, 1 << 20), "impossible block sizes"),
        (greeting() + SIMPLE + blocks(131072, 131072, 1 << 20), "impossible block sizes"),
        (greeting() + SIMPLE + blocks(512, 256, 1 << 20), "impossible block sizes"),
        (greeting() + SIMPLE + blocks(512, 1000, 1 << 20), "impossible block sizes"),
        (greeting() + SIMPLE + blocks(512, 512, 511), "impossible block sizes"),
        (greeting() + SIMPLE + export_info(size=1 << 63) + ack(7), "has 9223372036854775808 bytes, expected at most"),
    ],
)
def test_negotiate_rejects(server, message):
    with pytest.raises(ProtocolError, match=message):
        play(negotiate("e"), server)


@pytest.mark.parametrize(
    ("error", "number", "message"),
    [
        (wire.REP_ERR_UNKNOWN, errno.ENOENT, "NBD export 'e': no such export"),
        (wire.REP_ERR_POLICY, errno.EPERM, "forbidden by the server's policy"),
        (wire.REP_ERR_TLS_REQD, errno.EPERM, "the server requires TLS, which is not supported"),
        (wire.REP_ERR_SHUTDOWN, errno.ESHUTDOWN, "shutting down"),
        (wire.REP_ERROR_BIT + 99, errno.EINVAL, "refused with error 0x80000063"),
    ],
)
def test_refused_export_is_a_request_error(error, number, message):
    with pytest.raises(RequestError, match=message) as e:
        play(negotiate("e"), greeting() + SIMPLE + refuse(wire.OPT_GO, error, b"go\naway"))
    assert e.value.errno == number
    assert str(e.value).endswith("(go?away)")


def test_server_that_requires_tls_says_so_early():
    with pytest.raises(RequestError, match="requires TLS"):
        play(negotiate("e"), greeting() + refuse(wire.OPT_STRUCTURED_REPLY, wire.REP_ERR_TLS_REQD))


def test_endless_replies_end(monkeypatch):
    monkeypatch.setattr(handshake, "MAX_REPLIES", 3)
    with pytest.raises(ProtocolError, match="more than 3 replies about export"):
        play(negotiate("e"), greeting() + SIMPLE + info(9, b"") * 3)
    with pytest.raises(ProtocolError, match="more than 3 metadata contexts"):
        play(negotiate("e"), greeting() + STRUCTURED + contexts((1, "a"), (2, "b"), (3, "c"), (4, "d")))
    with pytest.raises(ProtocolError, match="more than 3 exports"):
        play(list_exports(), greeting() + reply(wire.OPT_LIST, wire.REP_SERVER, wire.string("x")) * 3)


def test_list_exports_returns_names():
    server = greeting() + b"".join(
        reply(wire.OPT_LIST, wire.REP_SERVER, data)
        for data in (wire.string(""), wire.string("é") + b"details", wire.string("c/d"))
    )
    names, sent = play(list_exports(), server + ack(wire.OPT_LIST))
    assert names == ("", "é", "c/d")
    assert sent.endswith(wire.option(wire.OPT_LIST) + wire.option(wire.OPT_ABORT))


@pytest.mark.parametrize("data", [b"", b"\0\0\0\5abc"])
def test_list_exports_rejects_a_malformed_name(data):
    with pytest.raises(ProtocolError, match="malformed reply of type 2"):
        play(list_exports(), greeting() + reply(wire.OPT_LIST, wire.REP_SERVER, data))


def test_list_exports_refused():
    with pytest.raises(RequestError, match="list exports: forbidden") as e:
        play(list_exports(), greeting() + refuse(wire.OPT_LIST, wire.REP_ERR_POLICY))
    assert e.value.errno == errno.EPERM
    with pytest.raises(RequestError, match="old negotiation") as e:
        play(list_exports(), greeting(0))
    assert e.value.errno == errno.EOPNOTSUPP


def test_too_long_export_name_is_the_callers_mistake():
    with pytest.raises(ValueError, match="4097 bytes"):
        play(negotiate("x" * 4097), greeting() + SIMPLE)


def test_what_nobody_told_of_an_export():
    assert Export("e", 9, FLAGS) == Export(
        "e",
        9,
        FLAGS,
        minimum_block=1,
        preferred_block=4096,
        maximum_block=32 * 1024**2,
        structured=False,
        contexts={},
        bitmaps=(),
    )


@pytest.mark.parametrize(
    "agreed",
    [
        GO,
        refuse(wire.OPT_GO, wire.REP_ERR_UNSUP) + wire.EXPORT.pack(4096, FLAGS),
    ],
    ids=["go", "export name"],
)
def test_server_that_tells_no_block_sizes(agreed):
    export, _ = play(negotiate("e"), greeting() + SIMPLE + agreed)
    assert export == Export("e", 4096, FLAGS)


def test_flags_without_has_flags_read_as_none():
    export, _ = play(negotiate(""), greeting() + SIMPLE + export_info(flags=wire.FLAG_READ_ONLY) + ack(wire.OPT_GO))
    assert export.flags == 0


def test_longest_reply_largest_export_and_extreme_block_sizes_are_taken():
    longest = info(9, bytes(8256 - wire.INFO.size))
    for sizes in [(65536, 65536, 65536), (512, 512, 512)]:
        server = greeting() + SIMPLE + longest + blocks(*sizes) + export_info(size=2**63 - 1) + ack(wire.OPT_GO)
        export, _ = play(negotiate(""), server)
        assert export.size == 2**63 - 1
        assert (export.minimum_block, export.preferred_block, export.maximum_block) == sizes


def test_bitmap_that_the_server_lists_and_does_not_select():
    listed = contexts((0, "qemu:dirty-bitmap:b"), (0, ""), option=wire.OPT_LIST_META_CONTEXT)
    export, _ = play(negotiate("", dirty=True), greeting() + STRUCTURED + listed + contexts(BASE) + GO)
    assert export.bitmaps == ("b",)
    with pytest.raises(UnsupportedOperation, match="it has no bitmap"):
        export.require_dirty()
