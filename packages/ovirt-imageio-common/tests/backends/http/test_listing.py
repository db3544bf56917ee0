# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.common.backends.http.listing import read_listing
from ovirt_imageio.common.errors import ProtocolError
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent


def source(text: bytes, piece: int):
    """Return what receives text in pieces of at most that many bytes."""
    position = 0

    def receive(view: memoryview) -> int:
        nonlocal position
        part = text[position : position + min(piece, len(view))]
        view[: len(part)] = part
        position += len(part)
        return len(part)

    return receive


@given(
    runs=st.lists(st.tuples(st.integers(1, 2**40), st.sampled_from([(0, 0), (1, 0), (1, 1)])), max_size=30),
    piece=st.sampled_from([1, 2, 7, 100, 1 << 20]),
    indent=st.sampled_from([None, 1]),
)
def test_listing_is_what_the_server_sent_in_any_pieces(runs, piece, indent):
    expected: list[ZeroExtent] = []
    documents, start = [], 0
    for length, (zero, hole) in runs:
        documents.append({"start": start, "length": length, "zero": bool(zero), "hole": bool(hole)})
        if expected and expected[-1][2:] == (bool(zero), bool(hole)):
            expected[-1] = expected[-1]._replace(length=expected[-1].length + length)
        else:
            expected.append(ZeroExtent(start, length, bool(zero), bool(hole)))
        start += length
    text = json.dumps(documents, indent=indent).encode()
    listing = read_listing(source(text, piece), "zero", start)
    assert list(listing) == expected
    assert list(listing) == expected  # as often as one likes
    assert len(listing) == len(expected)


def test_dirty_listing():
    text = b'[{"start":0,"length":5,"dirty":true}, {"start":5,"length":6,"dirty":false,"zero":true}]'
    assert list(read_listing(source(text, 10), "dirty", 11)) == [
        DirtyExtent(0, 5, True, False),
        DirtyExtent(5, 6, False, True),
    ]


def test_many_extents_take_little_memory():
    count = 40_000  # 16 MB as objects; tracemalloc makes a million slow
    position = 0
    parts = [b"["]

    def receive(view: memoryview) -> int:
        nonlocal position
        while position < count and len(parts) < 1000:
            comma = b"," if position else b""
            zero = b"true" if position % 2 else b"false"
            parts.append(b'%s{"start":%d,"length":4096,"zero":%s,"hole":false}' % (comma, position * 4096, zero))
            position += 1
            if position == count:
                parts.append(b"]")
        data = b"".join(parts)
        parts.clear()
        view[: len(data)] = data
        return len(data)

    tracemalloc.start()
    try:
        listing = read_listing(receive, "zero", count * 4096)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing) == count
    assert peak < 4 << 20


@pytest.mark.parametrize("text", [b'[{"start":0,', b"[" + b" " * 300_000])
def test_text_without_an_extent_is_bounded(text):
    with pytest.raises(ProtocolError):
        read_listing(source(text, 1 << 20), "zero", 1)


def test_endless_object_is_rejected_before_it_fills_memory():
    received = 0

    def receive(view: memoryview) -> int:
        nonlocal received
        text = b"x" * len(view) if received else b"[{" + b"x" * (len(view) - 2)
        received += len(text)
        view[:] = text
        return len(text)

    with pytest.raises(ProtocolError, match="bytes of JSON for one extent"):
        read_listing(receive, "zero", 1)
    assert received < 1 << 20


@pytest.mark.parametrize(
    ("extents", "size", "expected"),
    [
        ([(0, 0)], 0, []),
        ([(0, 4096)], 512, [ZeroExtent(0, 512, False, False)]),
        ([(0, 4096), (4096, 4096)], 4097, [ZeroExtent(0, 4097, False, False)]),
        ([(0, 4096), (4096, 4096)], 4096, [ZeroExtent(0, 4096, False, False)]),
    ],
)
def test_what_old_servers_say_of_odd_images_is_understood(extents, size, expected):
    text = json.dumps([{"start": start, "length": length, "zero": False} for start, length in extents]).encode()
    assert list(read_listing(source(text, 1 << 20), "zero", size, old_server=True)) == expected
    with pytest.raises(ProtocolError):
        read_listing(source(text, 1 << 20), "zero", size)


def test_old_servers_may_not_leave_gaps():
    text = b'[{"start": 0, "length": 5, "zero": true}, {"start": 6, "length": 5, "zero": true}]'
    with pytest.raises(ProtocolError, match="expected an extent at 5"):
        read_listing(source(text, 1 << 20), "zero", 11, old_server=True)
