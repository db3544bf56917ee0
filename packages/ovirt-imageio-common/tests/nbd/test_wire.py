# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import errno
import struct

import pytest

from ovirt_imageio.common.nbd import wire


def test_request_has_28_bytes_in_network_order():
    assert wire.request(wire.CMD_READ, 1, 2, 3, flags=4).hex() == "2560951300040000" + f"{1:016x}{2:016x}{3:08x}"


def test_option_carries_the_length_of_its_data():
    assert wire.option(wire.OPT_GO, b"abc") == b"IHAVEOPT" + struct.pack("!II", 7, 3) + b"abc"


def test_go_asks_for_block_sizes():
    assert wire.go("é") == b"IHAVEOPT" + struct.pack("!III", 7, 10, 2) + "é".encode() + struct.pack("!HH", 1, 3)


def test_meta_contexts_lists_queries_after_the_export():
    data = struct.pack("!I1sII1sI2s", 1, b"e", 2, 1, b"a", 2, b"bc")
    assert wire.meta_contexts(wire.OPT_SET_META_CONTEXT, "e", ["a", "bc"]) == wire.option(10, data)


def test_string_rejects_more_than_the_protocol_allows():
    assert len(wire.string("x" * 4096)) == 4100
    with pytest.raises(ValueError, match="4097 bytes long, expected at most 4096"):
        wire.string("x" * 4097)


def test_string_keeps_bytes_that_are_no_text():
    assert wire.string("\udcff") == b"\0\0\0\1\xff"


@pytest.mark.parametrize(
    ("code", "expected"),
    [(1, errno.EPERM), (28, errno.ENOSPC), (95, errno.EOPNOTSUPP), (108, errno.ESHUTDOWN), (9999, errno.EINVAL)],
)
def test_errno_of_maps_what_the_protocol_knows(code, expected):
    assert wire.errno_of(code) == expected


def test_text_of_a_server_is_harmless():
    assert wire.text(b"no\n\x1b[1m\xff room") == "no??[1m\ufffd room"


# As the protocol document has them: tests that speak with our own numbers notice no wrong one.
NUMBERS = {
    "DEFAULT_PORT": 10809,
    "INIT_MAGIC": 0x4E42444D41474943,
    "OPTION_MAGIC": 0x49484156454F5054,
    "OLDSTYLE_MAGIC": 0x420281861253,
    "FLAG_FIXED_NEWSTYLE": 1,
    "FLAG_NO_ZEROES": 2,
    "OPT_EXPORT_NAME": 1,
    "OPT_ABORT": 2,
    "OPT_LIST": 3,
    "OPT_GO": 7,
    "OPT_STRUCTURED_REPLY": 8,
    "OPT_LIST_META_CONTEXT": 9,
    "OPT_SET_META_CONTEXT": 10,
    "OPTION_REPLY_MAGIC": 0x3E889045565A9,
    "REP_ACK": 1,
    "REP_SERVER": 2,
    "REP_INFO": 3,
    "REP_META_CONTEXT": 4,
    "REP_ERROR_BIT": 0x80000000,
    "REP_ERR_UNSUP": 0x80000001,
    "REP_ERR_POLICY": 0x80000002,
    "REP_ERR_INVALID": 0x80000003,
    "REP_ERR_PLATFORM": 0x80000004,
    "REP_ERR_TLS_REQD": 0x80000005,
    "REP_ERR_UNKNOWN": 0x80000006,
    "REP_ERR_SHUTDOWN": 0x80000007,
    "REP_ERR_BLOCK_SIZE_REQD": 0x80000008,
    "REP_ERR_TOO_BIG": 0x80000009,
    "INFO_EXPORT": 0,
    "INFO_BLOCK_SIZE": 3,
    "MAX_STRING": 4096,
    "FLAG_HAS_FLAGS": 1,
    "FLAG_READ_ONLY": 2,
    "FLAG_SEND_FLUSH": 4,
    "FLAG_SEND_FUA": 8,
    "FLAG_SEND_TRIM": 32,
    "FLAG_SEND_WRITE_ZEROES": 64,
    "FLAG_CAN_MULTI_CONN": 256,
    "FLAG_SEND_FAST_ZERO": 2048,
    "REQUEST_MAGIC": 0x25609513,
    "CMD_READ": 0,
    "CMD_WRITE": 1,
    "CMD_DISC": 2,
    "CMD_FLUSH": 3,
    "CMD_WRITE_ZEROES": 6,
    "CMD_BLOCK_STATUS": 7,
    "CMD_FLAG_NO_HOLE": 2,
    "SIMPLE_REPLY_MAGIC": 0x67446698,
    "STRUCTURED_REPLY_MAGIC": 0x668E33EF,
    "REPLY_FLAG_DONE": 1,
    "REPLY_NONE": 0,
    "REPLY_OFFSET_DATA": 1,
    "REPLY_OFFSET_HOLE": 2,
    "REPLY_BLOCK_STATUS": 5,
    "REPLY_ERROR_BIT": 0x8000,
    "REPLY_ERROR": 0x8001,
    "REPLY_ERROR_OFFSET": 0x8002,
    "STATE_HOLE": 1,
    "STATE_ZERO": 2,
    "STATE_DIRTY": 1,
    "DEFAULT_MAXIMUM_BLOCK": 0x2000000,
    "MAX_LENGTH": 0xFFFFFFFF,
    "MAX_SIZE": 0x7FFFFFFFFFFFFFFF,
}


def test_numbers_are_those_of_the_protocol():
    found = {name: value for name, value in vars(wire).items() if name.isupper() and isinstance(value, int)}
    assert found == NUMBERS


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1, 1), (5, 5), (12, 12), (22, 22), (28, 28), (75, 75), (95, 95), (108, 108), (0, 22), (2, 22), (2**32 - 1, 22)],
)
def test_error_numbers_are_those_of_linux(number, expected):
    assert wire.errno_of(number) == expected


def test_strings_are_packed_with_their_length():
    assert wire.string("") == bytes(4)
    assert wire.option(3) == b"IHAVEOPT" + struct.pack("!II", 3, 0)
