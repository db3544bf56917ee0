# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The one large read before bulk streams: when it is made, and that it never harms."""

from __future__ import annotations

import pytest

from imageio_testing.nbdpeer import Image, Peer, serve
from imageio_testing.streams import Count, SocketPeer, received, sending
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import ServerGone
from ovirt_imageio.common.nbd import wire

MiB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Move less than in earnest."""
    monkeypatch.setattr(defaults, "LARGE_READ", 3 * MiB)
    monkeypatch.setattr(defaults, "LARGE_READ_AFTER", 2 * MiB)


def send(backend, offset, length):
    return received(lambda sock: backend.send_to(SocketPeer(sock, splice=True), offset, length, Count()))


def receive(backend, offset, data):
    sending([data], lambda sock: backend.receive_from(SocketPeer(sock, splice=True), offset, len(data), Count()))


def large(image):
    """Offset and length of the reads that are longer than a piece."""
    return [(a.offset, a.length) for a in image.asked if a.command == wire.CMD_READ and a.length > MiB]


def test_made_once_for_an_export_when_enough_was_moved():
    image = Image(bytearray(b"x" * 4 * MiB))
    with serve(image) as peer, NbdBackend(peer.address) as one, NbdBackend(peer.address, mode="r+") as other:
        assert send(one, 0, MiB) == image.data[:MiB]
        assert large(image) == []
        receive(other, 0, b"y" * MiB)
        assert large(image) == [(0, 3 * MiB)]
        assert send(one, 0, 4 * MiB) == b"y" * MiB + b"x" * 3 * MiB
        assert large(image) == [(0, 3 * MiB)]


def test_made_inside_the_export_and_in_whole_blocks():
    image = Image(bytearray(5 * MiB), block_sizes=(65536, 65536, 32 * MiB), hole_block=65536)
    with serve(image) as peer, NbdBackend(peer.address) as backend:
        assert send(backend, 3 * MiB - 10, 2 * MiB) == bytes(2 * MiB)
    assert large(image) == [(2 * MiB, 3 * MiB)]


def test_never_larger_than_the_server_takes():
    image = Image(bytearray(5 * MiB), block_sizes=(1, 4096, 2 * MiB))
    with serve(image) as peer, NbdBackend(peer.address) as backend:
        send(backend, 0, 2 * MiB)
    assert large(image) == [(0, 2 * MiB)]


@pytest.mark.parametrize(("size", "maximum"), [(MiB, 32 * MiB), (5 * MiB, MiB)], ids=["small image", "small requests"])
def test_not_made_where_it_would_be_like_any_other(monkeypatch, size, maximum):
    monkeypatch.setattr(defaults, "LARGE_READ_AFTER", 0)
    image = Image(bytearray(size), block_sizes=(1, 4096, maximum))
    with serve(image) as peer, NbdBackend(peer.address) as backend:
        send(backend, 0, 4096)
    assert [a.length for a in image.asked if a.command == wire.CMD_READ] == [4096]


def test_switched_off():
    image = Image(bytearray(4 * MiB))
    with serve(image) as peer, NbdBackend(peer.address, large_read=False) as backend, backend.clone() as other:
        send(backend, 0, 4 * MiB)
        send(other, 0, 4 * MiB)
    assert large(image) == []


def test_not_made_over_tcp():
    image = Image(bytearray(4 * MiB))
    with serve(image, tcp=True) as peer, NbdBackend(peer.address) as backend:
        send(backend, 0, 4 * MiB)
    assert large(image) == []


@pytest.mark.parametrize("structured", [True, False])
def test_failure_of_it_does_not_matter(structured):
    image = Image(bytearray(4 * MiB), structured=structured, errors={wire.CMD_READ: 5})
    with serve(image) as peer, NbdBackend(peer.address, mode="r+") as backend:
        receive(backend, 0, b"y" * 4 * MiB)
        assert backend.broken is None
    assert image.data == b"y" * 4 * MiB
    assert len(large(image)) == 1


def test_server_that_goes_away_meanwhile():
    def script(talk):
        talk.negotiate(4 * MiB)
        asked = talk.request()
        talk.chunk(asked, wire.REPLY_OFFSET_DATA, bytes(8 + MiB), length=8 + asked.length)

    with Peer(script) as peer, NbdBackend(peer.address, mode="r+") as backend:
        with pytest.raises(ServerGone):
            receive(backend, 0, b"y" * 4 * MiB)
        assert backend.broken is not None


def test_made_for_long_reads_as_well():
    image = Image(bytearray(b"x" * 4 * MiB))
    with serve(image) as peer, NbdBackend(peer.address) as backend:
        for offset in range(0, 4 * MiB, 4096):
            backend.read_into(offset, bytearray(4096))
        assert large(image) == []
        backend.read_into(0, bytearray(MiB))
        assert large(image) == []
        backend.read_into(MiB, bytearray(MiB))
        assert large(image) == [(MiB, 3 * MiB)]
