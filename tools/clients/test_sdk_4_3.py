# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The examples of SDK 4.3, which many scripts of users were made from: http.client, without a library.

Source: oVirt/ovirt-engine-sdk, tag 4.3.4 and before, sdk/examples,
    upload_disk.py: the whole file by one PUT with Content-Length, in pieces of 128 KiB; wants 200.
    download_disk.py: the whole image by GET with the engine's signed ticket in Authorization; wants 200 or 204,
        and Content-Length.
    upload_ova_as_vm.py: as upload_disk.py, with Authorization and a Content-Range with a total.
    upload_disk_snapshots.py: pieces of 8 MiB with Content-Range and Authorization, on one connection. It does not
        read the answers, so http.client refuses its second piece; here they are read.
    download_disk_snapshots.py: as download_disk.py, in pieces of 64 MiB.

All go by the engine's proxy unless the user asks for the host's daemon. Pieces are smaller here.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection

import pytest

from clients.host import Host, assert_content, qcow2_volume, raw_volume
from clients.wire import pieces
from conformance.storage import pattern
from imageio_testing.qemu import Fill, make_image, needs_qemu

BUF_SIZE = 128 * 1024
CHUNK_SIZE = 8 * BUF_SIZE
SIZE = 3 * CHUNK_SIZE + 512

# A signed ticket of an engine is base64 of JSON with a certificate and a signature, some 3 KiB long.
SIGNED = "eyJzYWx0Ijoi" + "T1ZpcnQ0" * 400 + "In0="


@contextlib.contextmanager
def connect(door: Host) -> Iterator[HTTPSConnection]:
    """Connect as the examples do."""
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=door.cafile)
    with contextlib.closing(HTTPSConnection("localhost", door.port, context=context, timeout=30)) as connection:
        yield connection


@pytest.fixture(params=["host", "proxy"])
def door(request, host, engine_host):
    """The daemon that the example talks to."""
    return host if request.param == "host" else engine_host


def add_ticket(door: Host, host: Host, url: str, size: int, op: str) -> str:
    """Add a ticket to the host, and to the proxy if the example talks to that."""
    ticket_id = host.add_ticket(url, size, [op])
    if door is not host:
        door.add_ticket(host.image_url(ticket_id), size, [op], uuid=ticket_id)
    return ticket_id


def put_whole(connection: HTTPSConnection, path: str, data: bytes, *fields: tuple[str, str]) -> int:
    """Send a file by one PUT, piece by piece, and return the status."""
    connection.putrequest("PUT", path)
    for name, value in (*fields, ("Content-Length", f"{len(data)}")):
        connection.putheader(name, value)
    connection.endheaders()
    for _, piece in pieces(data, BUF_SIZE):
        connection.send(piece)
    return connection.getresponse().status


@needs_qemu
def test_upload_disk(door, host, tmp_path):
    make_image(tmp_path / "image", "qcow2", 64 << 20, [Fill(0, 1 << 20, 1)])
    data = (tmp_path / "image").read_bytes()
    ticket_id = add_ticket(door, host, qcow2_volume(tmp_path / "volume", 64 << 20), len(data), "write")
    with connect(door) as connection:
        assert put_whole(connection, f"/images/{ticket_id}", data) == 200
        # The transfer is finalized while the connection is open.
        assert host.remove_ticket(ticket_id) < 300
    assert_content(host, tmp_path / "volume", data)


def test_upload_of_old_engines_and_ova(door, host, tmp_path):
    data = pattern(SIZE)
    ticket_id = add_ticket(door, host, raw_volume(tmp_path / "volume", 0), SIZE, "write")
    fields = (("Authorization", SIGNED), ("Content-Range", f"bytes 0-{SIZE - 1}/{SIZE}"))
    with connect(door) as connection:
        assert put_whole(connection, f"/images/{ticket_id}", data, *fields) == 200
    assert_content(host, tmp_path / "volume", data)


def test_upload_snapshot_piece_by_piece(door, host, tmp_path):
    data = pattern(SIZE)
    ticket_id = add_ticket(door, host, raw_volume(tmp_path / "volume", 0), SIZE, "write")
    headers = {"Authorization": SIGNED}
    with connect(door) as connection:
        for offset, piece in pieces(data, CHUNK_SIZE):
            headers["Content-Range"] = f"bytes {offset}-{offset + len(piece) - 1}/{SIZE}"
            connection.request("PUT", f"/images/{ticket_id}", piece, headers=headers)
            response = connection.getresponse()
            assert (response.status, response.reason, response.read()) == (200, "OK", b"")
    assert_content(host, tmp_path / "volume", data)


@pytest.mark.parametrize("chunk", [BUF_SIZE, 64 * BUF_SIZE])
def test_download_disk_and_snapshot(door, host, tmp_path, chunk):
    data = pattern(SIZE)
    ticket_id = add_ticket(door, host, raw_volume(tmp_path / "volume", SIZE, data), SIZE, "read")
    found = b""
    with connect(door) as connection:
        connection.request("GET", f"/images/{ticket_id}", headers={"Authorization": SIGNED})
        response = connection.getresponse()
        assert response.status in (200, 204)
        size = int(response.getheader("Content-Length") or -1)
        while len(found) < size:
            part = response.read(min(size - len(found), chunk))
            assert part, "Socket disconnected"
            found += part
        assert host.remove_ticket(ticket_id) < 300
    assert found == data


def test_refused_download_says_why(door):
    """The reason is printed, and 512 bytes of the body."""
    with connect(door) as connection:
        connection.request("GET", "/images/no-such-ticket", headers={"Authorization": SIGNED})
        response = connection.getresponse()
        assert (response.status, response.reason) == (403, "Forbidden")
        assert response.read(512)
