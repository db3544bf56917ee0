# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An export that ends within a block of its server, as ours and through TLS: written and read to its last byte."""

from __future__ import annotations

import json
import random
import ssl

import pytest

from imageio_testing import qemu
from imageio_testing.faults import wait_for
from imageio_testing.httppeer import HttpPeer, chunked, request_head

pytestmark = [pytest.mark.system, pytest.mark.timeout(60)]

MiB = 1 << 20
SIZE = 2 * MiB + 100
LENGTHS = [1, 100, 101, 5000, 200_000, MiB + 612, SIZE]
"""Bytes up to the end: within the short block, of a loop's request, of a worker's."""

ALLOW = ["blocksize-minimum=512", "blocksize-preferred=4K", "blocksize-maximum=32M", "blocksize-error-policy=allow"]


@pytest.fixture(params=["local", "tls", "proxy"])
def image(request, origin, proxy):
    """A connection to the image, its path, and the daemon that it is at."""
    with qemu.nbdkit("memory", str(SIZE), "--filter=blocksize-policy", *ALLOW) as url:
        ticket_id = origin.add_ticket(url, size=SIZE)
        daemon, at = origin, ticket_id
        if request.param == "proxy":
            daemon, at = proxy, proxy.add_ticket(f"{origin.url}/images/{ticket_id}", size=SIZE)
        if request.param == "tls":
            context = ssl.create_default_context(cafile=origin.ca_file)
            peer = HttpPeer.tls("localhost", origin.port, context=context)
        else:
            peer = HttpPeer.unix(daemon.local_socket)
        with peer:
            yield peer, f"/images/{at}", daemon
        if request.param == "proxy":
            proxy.remove_ticket(at)
        origin.remove_ticket(ticket_id)


def noise(length):
    return random.Random(length).randbytes(length)


def test_put_to_the_end(image):
    peer, path, daemon = image
    model = bytearray(SIZE)
    for length in LENGTHS:
        data = noise(length)
        model[SIZE - length :] = data
        fields = [("Content-Range", f"bytes {SIZE - length}-{SIZE - 1}/*")]
        assert peer.request("PUT", path, headers=fields, body=data).status == 200, length
        assert peer.request("GET", path).body == model, length
    # The answer may arrive before the worker has left.
    wait_for(lambda: not daemon.ticket(path.rpartition("/")[2])["active"], "the PUT has ended")


def test_chunks_to_the_end(image):
    peer, path, _ = image
    data = noise(SIZE)
    peer.send(request_head("PUT", path, headers=[("Transfer-Encoding", "chunked")]))
    peer.send(chunked(*(data[at : at + 70_001] for at in range(0, SIZE, 70_001))))
    assert peer.response("PUT").status == 200
    assert peer.request("GET", path).body == data


def test_zero_to_the_end(image):
    peer, path, _ = image
    model = bytearray(noise(SIZE))
    for length in LENGTHS:
        assert peer.request("PUT", path + "?flush=n", body=model).status == 200
        zero = {"op": "zero", "offset": SIZE - length, "size": length}
        assert peer.request("PATCH", path, body=json.dumps(zero).encode()).status == 200
        assert peer.request("GET", path).body == model[: SIZE - length] + bytes(length), length


def test_ranges_extents_and_checksum_reach_the_end(image):
    peer, path, _ = image
    data = noise(SIZE)
    assert peer.request("PUT", path, body=data).status == 200
    for length in LENGTHS:
        fields = [("Range", f"bytes={SIZE - length}-{SIZE - 1}")]
        assert peer.request("GET", path, headers=fields).body == data[SIZE - length :]
    assert sum(extent["length"] for extent in peer.request("GET", f"{path}/extents").json()) == SIZE
    assert peer.request("GET", f"{path}/checksum").status == 200
