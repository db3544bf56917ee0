# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""terraform and other users of go-ovirt-client: whole images by Go's net/http.

Source: oVirt/go-ovirt-client, v3.2.0, a5d2d8c9,
    disk_uploadimage.go: one PUT of the whole file, which is tried again from its first byte.
    disk_downloadimage.go: one GET of the whole image; its size is that of Content-Length where the engine has none.
    disk_helper_imagetransfer.go: a status below 300 is success.
    new.go: the transport, with settings of its own for TLS and therefore without HTTP/2.
oVirt/terraform-provider-ovirt, v2.2.0-11-g8e5cc3c, internal/ovirt/resource_ovirt_disk_from_image.go, uploads a file
by it. The file is raw or qcow2 as it is, so qcow2 goes to a volume that is smaller.

Go sends ``Accept-Encoding: gzip`` where the program asks for no range, and would decode what comes. The program
takes the length from Content-Length, so an encoded answer would be cut off.
"""

from __future__ import annotations

import pytest

from clients.host import Host, assert_content, qcow2_volume, raw_volume
from clients.wire import GO_PIECE, GoTransport
from conformance.storage import pattern
from imageio_testing.qemu import Fill, make_image, needs_qemu
from ovirt_imageio.common.qemu import img

TYPE = ("Content-Type", "application/octet-stream")
SIZE = (1 << 20) + 512


@pytest.fixture
def go(host: Host) -> GoTransport:
    return GoTransport(host.cafile)


@needs_qemu
def test_qcow2_is_uploaded_to_file_storage(host, go, tmp_path):
    make_image(tmp_path / "image", "qcow2", 64 << 20, [Fill(0, 65536, 1), Fill(32 << 20, 1 << 20, 2)])
    data = (tmp_path / "image").read_bytes()
    ticket_id = host.add_ticket(qcow2_volume(tmp_path / "volume", 64 << 20), len(data), ["write"], sparse=True)
    with go.connect(host.port) as connection:
        assert connection.put(f"/images/{ticket_id}", data, TYPE).status < 300
    assert_content(host, tmp_path / "volume", data)
    assert img.compare(str(tmp_path / "image"), str(tmp_path / "volume"), fmt_a="qcow2", fmt_b="qcow2")


def test_raw_is_uploaded_to_file_storage(host, go, tmp_path):
    data = pattern(SIZE)
    ticket_id = host.add_ticket(raw_volume(tmp_path / "volume", 0), SIZE, ["write"])
    with go.connect(host.port) as connection:
        assert connection.put(f"/images/{ticket_id}", data, TYPE).status < 300
    assert_content(host, tmp_path / "volume", data)


def test_upload_is_tried_again_from_its_beginning(host, go, tmp_path):
    """The first try ends in the middle; the second one sends all of it, on a new connection."""
    data = pattern(SIZE)
    ticket_id = host.add_ticket(raw_volume(tmp_path / "volume", 0), SIZE, ["write"])
    with go.connect(host.port) as connection:
        connection.begin_put(f"/images/{ticket_id}", SIZE, TYPE)
        connection.peer.send(data[: 3 * GO_PIECE], piece=GO_PIECE)
        connection.peer.reset()
    with go.connect(host.port) as connection:
        assert connection.put(f"/images/{ticket_id}", data, TYPE).status < 300
    assert_content(host, tmp_path / "volume", data)
    assert host.wait(ticket_id, active=False)["transferred"] == SIZE


def test_download_is_not_encoded(host, go, tmp_path):
    """Zeroes would shrink most."""
    data = pattern(4096) + bytes(SIZE - 4096)
    ticket_id = host.add_ticket(raw_volume(tmp_path / "volume", SIZE, data), SIZE, ["read"])
    with go.connect(host.port) as connection:
        response = connection.request("GET", f"/images/{ticket_id}")
    assert response.status < 300
    assert int(response.header("Content-Length") or 0) == SIZE
    assert response.body == data


def test_expired_ticket_is_an_error_for_good(host, go):
    """A status of 300 and more ends the transfer: it is cancelled, and the disk removed."""
    with go.connect(host.port) as connection:
        assert connection.request("GET", "/images/no-such-ticket").status == 403
