# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The ansible modules `ovirt_disk` and `ovirt_snapshot` of the collection ovirt.ovirt.

Source: oVirt/ovirt-ansible-collection,
    - 1.2.4-1 to 1.6.6-1, plugins/modules/ovirt_disk.py: the whole file by http.client; the daemon of the host, or
      the proxy if that cannot be connected to. The answer to the upload is not read. The transfer is finalized
      when the last byte was sent.
    - 3.2.2-1-9-g827dcc9, plugins/modules/ovirt_snapshot.py: the same by the proxy alone, still.
    - 2.0.0-1 and later, plugins/modules/ovirt_disk.py: the client library. Whether `proxy_url` and `max_workers` are
      taken is seen in the signature.

The collection has no tests of it. The answer that is not read is a race: the engine takes seconds before it removes
the ticket.
"""

from __future__ import annotations

import contextlib
import ssl
from http.client import HTTPSConnection

import pytest

from clients.host import assert_content, qcow2_volume, raw_volume
from clients.wire import pieces
from conformance.storage import pattern
from imageio_testing.ports import held_port
from imageio_testing.qemu import Fill, make_image, needs_qemu
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

BUF_SIZE = 128 * 1024
SIZE = 8 * BUF_SIZE + 512


def connection(host):
    """Connect as the modules do."""
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=host.cafile)
    connection = HTTPSConnection(f"localhost:{host.port}", context=context, timeout=10)
    connection.connect()
    connection.sock.settimeout(60)
    return contextlib.closing(connection)


def test_upload_whose_answer_is_not_read(host, tmp_path):
    data = pattern(SIZE)
    ticket_id = host.add_ticket(qcow2_volume(tmp_path / "volume", SIZE), SIZE, ["write"])
    with connection(host) as con:
        con.putrequest("PUT", f"/images/{ticket_id}")
        con.putheader("Content-Length", f"{SIZE}")
        con.endheaders()
        for _, piece in pieces(data, BUF_SIZE):
            con.send(piece)
        # The engine's monitor has seen all of it when it removes the ticket.
        host.wait(ticket_id, active=False, transferred=SIZE)
        assert host.remove_ticket(ticket_id) < 300
    assert_content(host, tmp_path / "volume", data)


def test_download(host, tmp_path):
    data = pattern(SIZE)
    ticket_id = host.add_ticket(raw_volume(tmp_path / "volume", SIZE, data), SIZE, ["read"])
    found = b""
    with connection(host) as con:
        con.request("GET", f"/images/{ticket_id}")
        response = con.getresponse()
        size = int(response.getheader("Content-Length") or -1)
        while len(found) < size:
            part = response.read(min(size - len(found), BUF_SIZE))
            assert part, "Socket disconnected"
            found += part
    assert found == data


@needs_qemu
@pytest.mark.parametrize("reach", ["host", "proxy"])
def test_disk_by_the_library(host, engine_host, library, tmp_path, reach):
    """The transfer has the format raw, so it goes by NBD, whatever the formats of file and disk are."""
    make_image(tmp_path / "image.qcow2", "qcow2", 4 << 20, [Fill(0, 65536, 1), Fill(2 << 20, 65536, 2)])
    img.create(str(tmp_path / "disk"), "qcow2", size=4 << 20)
    with Server(str(tmp_path / "disk"), "qcow2", shared=8) as server, held_port() as closed:
        ticket_id = host.add_ticket(server.url, 4 << 20, ["write"], sparse=True)
        engine_host.add_ticket(host.image_url(ticket_id), 4 << 20, ["write"], uuid=ticket_id, sparse=True)
        direct, by_proxy = host.image_url(ticket_id), engine_host.image_url(ticket_id)
        if reach == "proxy":
            direct = direct.replace(str(host.port), str(closed))
        library.run("ansible_disk", "upload", tmp_path / "image.qcow2", direct, by_proxy, host.cafile)
        library.run("ansible_disk", "download", tmp_path / "copy.qcow2", direct, by_proxy, host.cafile)
    assert img.compare(str(tmp_path / "image.qcow2"), str(tmp_path / "disk"), fmt_a="qcow2", fmt_b="qcow2")
    assert img.compare(str(tmp_path / "image.qcow2"), str(tmp_path / "copy.qcow2"), fmt_a="qcow2", fmt_b="qcow2")
