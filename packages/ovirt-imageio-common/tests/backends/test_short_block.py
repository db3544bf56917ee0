# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An export whose size is no multiple of its minimum block: the last block is short.

Every request has to begin at a block, and to end at one or with the export.
"""

from __future__ import annotations

import contextlib
import socket
from typing import NamedTuple

import pytest

from imageio_testing.nbdpeer import FLAGS, Image, serve
from imageio_testing.streams import Count, PausingPeer, SocketPeer, received, sending
from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import PeerGone
from ovirt_imageio.common.nbd import wire

pytestmark = pytest.mark.timeout(60)

KiB, MiB = 1 << 10, 1 << 20

both_ways = pytest.mark.parametrize("splice", [True, False], ids=["splice", "copy"])


class Row(NamedTuple):
    """Sizes of an export and of its smallest block."""

    size: int
    block: int


ROWS = [
    Row(100, 512),  # less than a block
    Row(3 * 512 + 1, 512),
    Row(4 * 4096 - 1, 4096),
    Row(2 * MiB + 100, 512),
    Row(2 * MiB + 70_000, 64 * KiB),
]


def pattern(size, seed=0):
    return bytearray(range(1 + seed, 241 + seed))[:size] * (size // 240 + 1)


@pytest.fixture(params=ROWS, ids=lambda row: f"{row.size}-{row.block}")
def row(request):
    return request.param


@pytest.fixture(params=[FLAGS, FLAGS & ~wire.FLAG_SEND_WRITE_ZEROES], ids=["zeroes", "no-zeroes"])
def image(request, row):
    """The content, which a server offers that takes nothing but whole blocks and the short one."""
    preferred = max(row.block, 4096)
    sizes = (row.block, preferred, max(32 * MiB, preferred))
    image = Image(bytearray(pattern(row.size)[: row.size]), block_sizes=sizes, flags=request.param)
    yield image
    for asked in image.asked:
        if asked.command in (wire.CMD_READ, wire.CMD_WRITE, wire.CMD_WRITE_ZEROES):
            end = asked.offset + asked.length
            assert asked.offset % row.block == 0, asked
            assert end % row.block == 0 or end == row.size, asked


@pytest.fixture
def opened(image):
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        yield backend


def ranges(row):
    """Ranges that end with the export, and one byte before."""
    for start in {0, 1, row.size // 2, max(row.size - row.block, 0), row.size - row.size % row.block, row.size - 1}:
        for end in (row.size, row.size - 1):
            if start < end:
                yield start, end - start


def sent(backend, offset, length, *, splice, others):
    """Return the bytes that a peer gets from `send_to`."""
    return received(
        lambda sock: backend.send_to(SocketPeer(sock, splice=splice), offset, length, Count(), others=others)
    )


def receive(backend, pieces, offset, length, *, splice, taken=b""):
    """Let a backend receive pieces, after what was taken before; returns its operation."""
    op = Count()
    sending(pieces, lambda sock: backend.receive_from(SocketPeer(sock, splice=splice, taken=taken), offset, length, op))
    return op


def test_read(opened, image, row):
    for offset, length in ranges(row):
        buf = bytearray(length)
        opened.read_into(offset, buf)
        assert buf == image.data[offset : offset + length], (offset, length)


def test_write(opened, image, row):
    model = bytearray(image.data)
    for seed, (offset, length) in enumerate(ranges(row)):
        model[offset : offset + length] = pattern(length, seed)[:length]
        opened.write(offset, model[offset : offset + length])
        assert image.data == model, (offset, length)


def test_zero(opened, image, row):
    for offset, length in ranges(row):
        image.data[:] = model = bytearray(pattern(row.size)[: row.size])
        model[offset : offset + length] = bytes(length)
        opened.zero(offset, length)
        assert image.data == model, (offset, length)


@both_ways
def test_send(opened, image, row, splice):
    with opened.clone() as other:
        for offset, length in ranges(row):
            data = sent(opened, offset, length, splice=splice, others=[other])
            assert data == image.data[offset : offset + length], (offset, length)


@both_ways
@pytest.mark.parametrize("piece", [None, 997, 61])
def test_receive(opened, image, row, splice, piece):
    """In one piece, and in so many that the slots of a pipe are full before a block is complete."""
    model = bytearray(image.data)
    for seed, (offset, length) in enumerate(ranges(row)):
        if piece and length > 100_000:
            continue
        data = bytes(pattern(length, seed)[:length])
        model[offset : offset + length] = data
        pieces = [data[at : at + (piece or length)] for at in range(0, length, piece or length)]
        assert receive(opened, pieces, offset, length, splice=splice).done == length
        assert image.data == model, (offset, length)


@both_ways
def test_receive_what_was_read_before(opened, image, row, splice):
    """The beginning of a body comes with its head."""
    data = bytes(pattern(row.size, 5)[: row.size])
    for taken in {1, min(row.size, row.block + 1), row.size - 1, row.size}:
        image.data[:] = bytes(row.size)
        receive(opened, [data[taken:]], 0, row.size, splice=splice, taken=data[:taken])
        assert image.data == data, taken


@both_ways
def test_receive_from_a_full_pipe(opened, image, row, splice, monkeypatch):
    """The pipe takes no more before the short block is in it: the rest is gathered in memory."""
    monkeypatch.setattr(linux.Pipe, "has_room", lambda self: False)
    length = min(row.size, 3 * row.block + row.size % row.block)
    offset = row.size - length
    offset -= offset % row.block
    data = bytes(pattern(row.size - offset, 7)[: row.size - offset])
    pieces = [data[at : at + 5000] for at in range(0, len(data), 5000)]
    sending(pieces, lambda sock: opened.receive_from(SocketPeer(sock, splice=splice), offset, len(data), Count()))
    assert image.data[offset:] == data


@both_ways
def test_receive_that_pauses_in_the_short_block(opened, image, row, splice):
    data = bytes(pattern(row.size, 3)[: row.size])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer, op, sent = PausingPeer(ours, splice=splice), Count(), 0
        theirs.setblocking(False)
        while op.done < row.size:
            limit = max(row.size - 1 if sent < row.size - 1 else row.size, 1)
            with contextlib.suppress(BlockingIOError):
                sent += theirs.send(data[sent : min(limit, sent + 150_000)])
            peer.paused = False
            opened.receive_from(peer, op.done, row.size - op.done, op)
            assert opened.broken is None
    assert image.data == data


@both_ways
def test_peer_that_leaves_within_the_short_block(opened, image, row, splice):
    data = bytes(pattern(row.size, 3)[: row.size - 1])
    op = Count()
    with pytest.raises(PeerGone):
        sending([data], lambda sock: opened.receive_from(SocketPeer(sock, splice=splice), 0, row.size, op))
    assert op.done <= len(data)
    assert opened.broken is None


def test_large_read_before_a_stream(row, monkeypatch):
    monkeypatch.setattr(defaults, "LARGE_READ_AFTER", 1)
    image = Image(bytearray(pattern(row.size)[: row.size]), block_sizes=(row.block, max(row.block, 4096), 32 * MiB))
    with serve(image) as peer, NbdBackend(peer.address) as backend:
        data = received(lambda sock: backend.send_to(SocketPeer(sock, splice=True), 0, row.size, Count()))
    assert data == image.data
    for asked in image.asked:
        end = asked.offset + asked.length
        assert asked.offset % row.block == 0, asked
        assert end % row.block == 0 or end in (row.size, 0), asked
