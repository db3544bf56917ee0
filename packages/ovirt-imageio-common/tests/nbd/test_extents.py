# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import struct
import sys
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.common.errors import OperationCancelled, ProtocolError
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent, merge
from ovirt_imageio.common.nbd import extents, wire

DATA, ZERO, HOLE = 0, wire.STATE_ZERO, wire.STATE_ZERO | wire.STATE_HOLE


def walked(offset, end, **keys):
    """Walk a range, extent by extent."""
    return chain.from_iterable(extents.walk(offset, end, **keys))


def runs(*pairs):
    return b"".join(wire.STATUS_EXTENT.pack(*pair) for pair in pairs)


def test_base_allocation_alone_tells_no_holes():
    #   | data | hole, zero | zero | hole with data |
    base = runs((10, DATA), (10, HOLE), (10, ZERO), (10, wire.STATE_HOLE))
    assert list(extents.zero_extents(100, 40, base=base)) == [
        ZeroExtent(100, 10, False, False),
        ZeroExtent(110, 20, True, False),
        ZeroExtent(130, 10, False, False),
    ]


def test_a_hole_is_zero_and_allocated_at_no_depth():
    base = runs((10, DATA), (30, HOLE))
    depth = runs((5, 1), (15, 0), (10, 1), (10, 2))
    assert list(extents.zero_extents(0, 40, base=base, depth=depth)) == [
        # The second half of it is allocated nowhere: never call that a hole.
        ZeroExtent(0, 10, False, False),
        ZeroExtent(10, 10, True, True),
        ZeroExtent(20, 20, True, False),
    ]


@pytest.mark.parametrize("order", ["little", "big"])
def test_machines_of_either_byte_order_read_the_same(monkeypatch, order):
    """On one whose order is that of the network nothing is swapped."""
    monkeypatch.setattr(extents.sys, "byteorder", order)
    network = "!" if order == sys.byteorder else "="
    depth = struct.pack(network + "4I", 10, 1, 20, 0)
    base = struct.pack(network + "4I", 10, DATA, 20, HOLE)
    assert list(extents.zero_extents(0, 30, base=base, depth=depth)) == [
        ZeroExtent(0, 10, False, False),
        ZeroExtent(10, 20, True, True),
    ]


def test_extents_end_where_the_first_context_ends():
    found = list(extents.zero_extents(0, 100, base=runs((100, DATA)), depth=runs((30, 1))))
    assert found == [ZeroExtent(0, 30, False, False)]
    found = list(extents.zero_extents(0, 100, base=runs((20, DATA)), depth=runs((100, 1))))
    assert found == [ZeroExtent(0, 20, False, False)]


def test_extents_past_the_request_are_cut_off():
    assert list(extents.zero_extents(7, 10, base=runs((4, DATA), (1000, ZERO)))) == [
        ZeroExtent(7, 4, False, False),
        ZeroExtent(11, 6, True, False),
    ]


def test_dirty_extents_tell_zero_where_it_is_known():
    bitmap = runs((10, 1), (30, 0))
    base = runs((5, DATA), (10, ZERO), (25, DATA))
    assert list(extents.dirty_extents(0, 40, bitmap=bitmap, base=base)) == [
        DirtyExtent(0, 5, True, False),
        DirtyExtent(5, 5, True, True),
        DirtyExtent(10, 5, False, True),
        DirtyExtent(15, 25, False, False),
    ]
    assert list(extents.dirty_extents(0, 40, bitmap=bitmap)) == [
        DirtyExtent(0, 10, True, False),
        DirtyExtent(10, 30, False, False),
    ]


lists_of_runs = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=10)


@given(base=lists_of_runs, depth=lists_of_runs, length=st.integers(1, 150))
def test_overlay_agrees_with_single_bytes(base, depth, length):
    def spread(pairs):
        return [flags for size, flags in pairs for _ in range(size)]

    expected = [(bool(b & 2), bool(b & 2) and d == 0) for b, d in list(zip(spread(base), spread(depth)))[:length]]
    found = list(extents.zero_extents(50, length, base=runs(*base), depth=runs(*depth)))
    assert [kind[2:] for kind in found for _ in range(kind.length)] == expected
    position = 50
    for extent in found:
        assert extent.start == position
        position += extent.length


# Flags and levels beyond one byte, too: of levels the whole number counts, of flags the bits that are known.
_rows = st.tuples(st.integers(1, 20), st.sampled_from([0, 1, 2, 3, 256, 258]), st.sampled_from([0, 1, 2, 256, 65536]))


@given(rows=st.lists(_rows, min_size=1, max_size=10), length=st.integers(150, 250))
def test_runs_with_the_same_borders_agree_with_single_bytes(rows, length):
    base, depth = runs(*((n, b) for n, b, _ in rows)), runs(*((n, d) for n, _, d in rows))
    found = list(extents.zero_extents(50, length, base=base, depth=depth))
    expected = [(b & 2 != 0, b & 2 != 0 and d == 0) for n, b, d in rows for _ in range(n)][:length]
    assert [kind[2:] for kind in found for _ in range(kind.length)] == expected
    assert found == list(merge(found))
    assert found[0].start == 50
    assert all(type(value) is bool for kind in found for value in kind[2:])


class Server:
    """An image of single bytes that answers as much as it likes."""

    def __init__(self, image, tell, over=0):
        self.image = image
        self.tell = tell
        self.over = over
        self.asked = []

    def __call__(self, offset, length):
        self.asked.append((offset, length))
        end = min(offset + min(length, self.tell), len(self.image))
        return extents.zero_extents(
            offset, length, base=runs(*((1, ZERO if b else DATA) for b in self.image[offset : end + self.over]))
        )


@given(
    image=st.lists(st.booleans(), min_size=1, max_size=80),
    tell=st.integers(1, 100),
    over=st.integers(0, 5),
    data=st.data(),
)
def test_walk_covers_a_range_exactly(image, tell, over, data):
    offset = data.draw(st.integers(0, len(image)))
    end = data.draw(st.integers(offset, len(image)))
    server = Server(image, tell, over)
    found = list(walked(offset, end, size=len(image), block=1, ask=server))
    assert found == list(merge(found))
    assert [e.zero for e in found for _ in range(e.length)] == image[offset:end]
    assert all(a + n <= len(image) for a, n in server.asked)


@given(block=st.sampled_from([1, 2, 4, 8]), offset=st.integers(0, 63), size=st.integers(0, 64))
def test_walk_asks_for_whole_blocks(block, offset, size):
    image = [i % 3 == 0 for i in range(64)]
    end = min(offset + size, 64)
    server = Server(image, 16)
    found = list(walked(offset, end, size=64, block=block, ask=server))
    assert [e.zero for e in found for _ in range(e.length)] == image[offset:end]
    assert all(a % block == 0 and n % block == 0 for a, n in server.asked)


@pytest.mark.parametrize("block", [1, 512, 4096, 65536])
def test_walk_grows_its_requests_while_replies_are_short(block):
    """To less than 2 GiB: some servers keep lengths in signed numbers of 32 bits."""
    asked = []

    def ask(offset, length):
        asked.append(length)
        return iter([ZeroExtent(offset, length, True, False)])

    size = 64 * 1024**3
    assert sum(e.length for e in walked(0, size, size=size, block=block, ask=ask)) == size
    assert asked[:3] == [extents.FIRST_STEP, 4 * extents.FIRST_STEP, 16 * extents.FIRST_STEP]
    assert max(asked) == extents.LONGEST < 2**31
    assert len(asked) < 45


def test_walk_shrinks_its_requests_while_replies_are_long():
    asked = []

    def ask(offset, length):
        asked.append(length)
        many = 1 if len(asked) < 3 else 5000
        step = length // many
        return (ZeroExtent(offset + i * step, step, i % 2 == 0, False) for i in range(many))

    walk = walked(0, 2**40, size=2**40, block=1, ask=ask)
    while len(asked) < 6:
        next(walk)
    first = extents.FIRST_STEP
    assert asked == [first, 4 * first, 16 * first, 8 * first, 4 * first, 2 * first]


def test_walk_that_is_stopped_asks_no_more():
    asked, checks = [], []

    def ask(offset, length):
        asked.append(offset)
        return [ZeroExtent(offset, length, True, False)]

    def check():
        checks.append(len(asked))
        if len(asked) == 3:
            raise OperationCancelled("enough")

    with pytest.raises(OperationCancelled, match="enough"):
        list(walked(0, 2**40, size=2**40, block=1, ask=ask, check=check))
    assert checks == [0, 1, 2, 3]


def test_walk_asks_for_little_at_first():
    """Of extents of 512 bytes, the shortest there are, the first reply has no more than a few thousand."""
    sizes = []

    def ask(offset, length):
        sizes.append(length // 512)
        return (ZeroExtent(start, 512, start % 1024 == 0, False) for start in range(offset, offset + length, 512))

    next(walked(0, 2**40, size=2**40, block=512, ask=ask))
    assert sizes == [2048]


def test_walk_is_lazy():
    asked = []

    def ask(offset, length):
        asked.append(offset)
        return iter([ZeroExtent(offset, 1, True, False), ZeroExtent(offset + 1, length - 1, False, False)])

    walk = walked(0, 2**40, size=2**40, block=1, ask=ask)
    next(walk)
    assert asked == [0]


def test_walk_rejects_a_reply_that_tells_nothing_new():
    def nothing(offset, length):
        return iter([])

    with pytest.raises(ProtocolError, match="told nothing about the extents at 5"):
        list(walked(5, 10, size=10, block=1, ask=nothing))

    def only_before(offset, length):
        return iter([ZeroExtent(offset, 1, True, False)])

    with pytest.raises(ProtocolError, match="told nothing about the extents at 5"):
        list(walked(5, 10, size=10, block=4, ask=only_before))


@pytest.mark.parametrize(
    ("offset", "end", "asked"),
    [
        (4000, 4100, [(3584, 516)]),
        (700, 800, [(512, 512)]),
        (0, 512, [(0, 512)]),
    ],
    ids=["to the end", "within", "a block"],
)
def test_requests_are_blocks_within_the_export(offset, end, asked):
    requests = []

    def ask(start, length):
        requests.append((start, length))
        return [ZeroExtent(start, length, False, False)]

    found = list(walked(offset, end, size=4100, block=512, ask=ask))
    assert requests == asked
    assert found == [ZeroExtent(offset, end - offset, False, False)]
