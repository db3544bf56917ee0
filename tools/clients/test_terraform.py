# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""terraform and other users of go-ovirt-client: whole images by Go's net/http.

Source: oVirt/go-ovirt-client, v3.2.0, a5d2d8c9,
    - disk_uploadimage.go: one PUT of the whole file, which is tried again from its first byte.
    - disk_downloadimage.go: one GET of the whole image; its size is that of Content-Length where the engine has none.
    - disk_helper_imagetransfer.go: OPTIONS to the URL of the transfer tells if it can be used: a status from 199 to
      398. A failure other than 4xx is tried three times; then comes the URL of the proxy. The answer is closed unread,
      so Go does not use that connection again. For PUT and GET, a status below 300 is success.
    - new.go: the transport, with settings of its own for TLS and therefore without HTTP/2.

oVirt/terraform-provider-ovirt, v2.2.0-11-g8e5cc3c, internal/ovirt/resource_ovirt_disk_from_image.go, uploads a file
by it. The file is raw or qcow2 as it is, so qcow2 goes to a volume that is smaller.

Go sends ``Accept-Encoding: gzip`` where the program asks for no range, and would decode what comes. The program
takes the length from Content-Length, so an encoded answer would be cut off.
"""

from __future__ import annotations

import contextlib

import pytest

from clients.host import Host, assert_content, qcow2_volume, raw_volume
from clients.wire import GO_PIECE, GoTransport
from conformance.storage import pattern
from imageio_testing.ports import held_port
from imageio_testing.qemu import Fill, make_image, needs_qemu
from imageio_testing.volatile import Volatile
from ovirt_imageio.common.qemu import img

TYPE = ("Content-Type", "application/octet-stream")
SIZE = (1 << 20) + 512
TRIES = 3


@pytest.fixture
def go(host: Host) -> GoTransport:
    return GoTransport(host.cafile)


def usable(go: GoTransport, path: str, *ports: int) -> int:
    """Return the first port whose URL can be used, that of the host before that of the proxy.

    Raises:
        AssertionError: There is none; the program cancels the transfer.
    """
    for port in ports:
        for _ in range(TRIES):
            with contextlib.suppress(OSError), go.connect(port) as connection:
                status = connection.request("OPTIONS", path).status
                if 199 <= status < 399:
                    return port
                if status < 499:
                    break
    raise AssertionError(f"failed to find a valid transfer URL: {ports}")


def upload(go: GoTransport, ticket_id: str, data: bytes, *ports: int) -> None:
    """Look for a URL, and upload all."""
    path = f"/images/{ticket_id}"
    with go.connect(usable(go, path, *ports)) as connection:
        assert connection.put(path, data, TYPE).status < 300


@needs_qemu
def test_qcow2_is_uploaded_to_file_storage(host, go, tmp_path):
    make_image(tmp_path / "image", "qcow2", 64 << 20, [Fill(0, 65536, 1), Fill(32 << 20, 1 << 20, 2)])
    data = (tmp_path / "image").read_bytes()
    ticket_id = host.add_ticket(qcow2_volume(tmp_path / "volume", 64 << 20), len(data), ["write"], sparse=True)
    upload(go, ticket_id, data, host.port)
    assert_content(host, tmp_path / "volume", data)
    assert img.compare(str(tmp_path / "image"), str(tmp_path / "volume"), fmt_a="qcow2", fmt_b="qcow2")


def test_raw_is_uploaded_to_file_storage(host, go, tmp_path):
    data = pattern(SIZE)
    ticket_id = host.add_ticket(raw_volume(tmp_path / "volume", 0), SIZE, ["write"])
    upload(go, ticket_id, data, host.port)
    assert_content(host, tmp_path / "volume", data)


def test_upload_is_on_stable_storage(host, go):
    """A PUT without a query is flushed before its answer."""
    data = pattern(SIZE)
    with Volatile(SIZE) as disk:
        ticket_id = host.add_ticket(disk.url, SIZE, ["write"])
        upload(go, ticket_id, data, host.port)
        assert disk.stable == data
        assert host.remove_ticket(ticket_id) < 300


def test_proxy_is_used_where_the_host_cannot_be_reached(host, engine_host, go, tmp_path):
    data = pattern(SIZE)
    ticket_id = host.add_ticket(raw_volume(tmp_path / "volume", 0), SIZE, ["write"])
    engine_host.add_ticket(host.image_url(ticket_id), SIZE, ["write"], uuid=ticket_id)
    with held_port() as closed:
        upload(go, ticket_id, data, closed, engine_host.port)
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
    path = f"/images/{ticket_id}"
    with go.connect(usable(go, path, host.port)) as connection:
        response = connection.request("GET", path)
    assert response.status < 300
    assert int(response.header("Content-Length") or 0) == SIZE
    assert response.body == data


def test_expired_ticket_is_an_error_for_good(host, go):
    """Neither OPTIONS nor GET is tried again after 4xx: the transfer is cancelled, and the disk removed."""
    path = "/images/no-such-ticket"
    for method in ("OPTIONS", "GET"):
        with go.connect(host.port) as connection:
            assert connection.request(method, path).status == 403
    with pytest.raises(AssertionError, match="valid transfer URL"):
        usable(go, path, host.port)
