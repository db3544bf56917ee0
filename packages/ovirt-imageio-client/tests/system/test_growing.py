# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A file that is smaller than its ticket grows while an image is uploaded to it."""

from __future__ import annotations

import json
import random
import subprocess

import pytest

from imageio_testing import qemu
from imageio_testing.httppeer import HttpPeer, chunked, request_head
from ovirt_imageio import client
from ovirt_imageio.client.remote import OutOfBounds
from ovirt_imageio.common.errors import TransferError

pytestmark = pytest.mark.system

MiB = 1 << 20
SIZE = 6 * MiB


@pytest.fixture
def disk(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"")
    disk.chmod(0o666)
    return disk


@pytest.fixture(params=["origin", "proxy"])
def served(request, origin, proxy, disk):
    """Path of the image's ticket, and the daemon: directly, or through a proxy."""
    ticket_id = origin.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
    if request.param == "origin":
        yield origin, ticket_id
    else:
        proxied = proxy.add_ticket(f"{origin.url}/images/{ticket_id}", size=SIZE, ops=["write"])
        yield proxy, proxied
        proxy.remove_ticket(proxied)
    origin.remove_ticket(ticket_id)


def url_of(served):
    daemon, ticket_id = served
    return f"{daemon.url}/images/{ticket_id}"


def peer_of(served):
    daemon, ticket_id = served
    return HttpPeer.unix(daemon.local_socket), f"/images/{ticket_id}"


def noise(length):
    return random.Random(length).randbytes(length)


def test_options_tell_how_far_it_may_grow(served):
    peer, path = peer_of(served)
    with peer:
        assert peer.request("OPTIONS", path).json()["max_size"] == SIZE


def test_chunked_body_makes_it_grow(served, disk):
    peer, path = peer_of(served)
    data = noise(2 * MiB + 99)
    with peer:
        peer.send(request_head("PUT", path, headers=[("Transfer-Encoding", "chunked")]))
        peer.send(chunked(*(data[i : i + 70_000] for i in range(0, len(data), 70_000))))
        assert peer.response("PUT").status == 200
        assert peer.request("GET", path).body == data
    assert disk.read_bytes() == data


def test_chunks_past_the_ticket_are_416(served):
    peer, path = peer_of(served)
    with peer:
        peer.send(request_head("PUT", path, headers=[("Transfer-Encoding", "chunked")]))
        peer.send(chunked(bytes(SIZE), b"more"))
        response = peer.response("PUT")
        assert (response.status, response.header("Content-Range")) == (416, f"bytes */{SIZE}")


def test_every_request_sees_the_size_at_once(served):
    peer, path = peer_of(served)
    with peer:
        assert peer.request("GET", path).body == b""
        assert peer.request("GET", f"{path}/extents").json() == []
        assert peer.request("PUT", f"{path}?flush=n", body=noise(5000)).status == 200
        zero = json.dumps({"op": "zero", "offset": 5000, "size": MiB}).encode()
        assert peer.request("PATCH", path, body=zero).status == 200
        whole = noise(5000) + bytes(MiB)
        response = peer.request("GET", path, headers=[("Range", "bytes=4990-5009")])
        assert response.header("Content-Range") == f"bytes 4990-5009/{len(whole)}"
        assert response.body == whole[4990:5010]
        assert peer.request("GET", path).body == whole
        extents = peer.request("GET", f"{path}/extents").json()
        assert sum(extent["length"] for extent in extents) == len(whole)
        assert peer.request("GET", f"{path}/checksum").status == 200


def test_size_is_known_on_every_connection(served):
    """A proxy reaches the origin over several connections, each of which knows what it wrote itself."""
    peer, path = peer_of(served)
    slow, _ = peer_of(served)
    with peer, slow:
        first, rest = noise(2 * MiB)[:MiB], noise(2 * MiB)[MiB:]
        fields = [("Content-Range", f"bytes {MiB}-{3 * MiB - 1}/*"), ("Content-Length", str(2 * MiB))]
        slow.send(request_head("PUT", path, headers=fields) + first)
        assert peer.request("PUT", f"{path}?flush=n", body=b"x" * 5000).status == 200
        assert peer.request("GET", path).body[:5000] == b"x" * 5000
        extents = peer.request("GET", f"{path}/extents").json()
        assert sum(extent["length"] for extent in extents) >= 5000
        slow.send(rest)
        assert slow.response("PUT").status == 200
        for reader in peer, slow:
            assert reader.request("GET", path).body == b"x" * 5000 + bytes(MiB - 5000) + first + rest


def test_tickets_of_one_file_know_of_each_other(origin, disk):
    writer = origin.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
    reader = origin.add_ticket(f"file://{disk}", size=SIZE, ops=["read"])
    with HttpPeer.unix(origin.local_socket) as peer:
        assert peer.request("GET", f"/images/{reader}").body == b""
        assert peer.request("PUT", f"/images/{writer}", body=b"x" * 5000).status == 200
        assert peer.request("GET", f"/images/{reader}").body == b"x" * 5000
    origin.remove_ticket(writer)
    origin.remove_ticket(reader)


@pytest.mark.parametrize("options", [{}, {"disk_is_zero": True}, {"verify": True}, {"resume": True, "verify": True}])
def test_upload_of_a_raw_image(served, origin, disk, tmp_path, options):
    data = noise(2 * MiB) + bytes(MiB) + noise(MiB) + bytes(2 * MiB)
    (tmp_path / "image").write_bytes(data)
    client.upload(str(tmp_path / "image"), url_of(served), origin.ca_file, **options)
    assert disk.read_bytes() == data


@qemu.needs_qemu
def test_upload_of_a_qcow2_file_as_it_is(served, origin, disk, tmp_path):
    """The engine gives a ticket of `file:` for what is not raw, larger than the file is yet."""
    image = tmp_path / "image.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1g"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 5 100M 1M", image], check=True, stdout=subprocess.DEVNULL)
    client.upload(str(image), url_of(served), origin.ca_file, fmt="raw")
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, disk], check=True)


def test_client_writes_to_an_empty_file(served, origin, disk):
    with client.ImageioClient(url_of(served), origin.ca_file) as image:
        assert image.size() == 0
        image.write(1000, b"x" * 5000)
        image.zero(6000, 100)
        image.flush()
        assert image.size() == 6100
        back = bytearray(6100)
        assert image.read(0, back) == 6100
        with pytest.raises(OutOfBounds, match=f"{SIZE} bytes"):
            image.write(SIZE, b"x")
    assert disk.read_bytes() == back == bytes(1000) + b"x" * 5000 + bytes(100)


def test_image_that_is_too_large_is_refused_before_anything_is_written(served, origin, disk, tmp_path):
    (tmp_path / "image").write_bytes(noise(SIZE + 512))
    with pytest.raises(TransferError, match=f"the disk has {SIZE} bytes"):
        client.upload(str(tmp_path / "image"), url_of(served), origin.ca_file)
    assert disk.read_bytes() == b""
