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
