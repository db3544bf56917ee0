# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""vdsm: tickets of a host by its Unix socket, the import of virtual machines, and what its tests use.

Source: oVirt/vdsm, v4.50.7-31-gfd4b0df20,
    - lib/vdsm/storage/imagetickets.py: calls by http.client, without Content-Type, a connection for each.
    - lib/vdsm/api/vdsm-api.yml, Host.add_image_ticket: keys.
    - lib/vdsm/kvm2ovirt.py: `directio.Receive` of a disk into a file, with its progress read by another thread.
    - tests/storage/nbd_test.py: `nbd.open`, with and without a bitmap, `extents`, `read`, `write`, `flush`.

The body is always read. A status of 300 or more is an error that repeats status, reason and body.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import uuid
from typing import Any

import pytest

from clients.host import Host, raw_volume
from imageio_testing.images import same_bytes
from imageio_testing.mounts import loop_device
from imageio_testing.qemu import Fill, fill_image, make_image, needs_qemu
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

SIZE = 1 << 20


class UnixConnection(http.client.HTTPConnection):
    """The stdlib's connection, to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def call(host: Host, method: str, ticket_id: str, document: Any = None) -> tuple[int, str, bytes]:
    """Ask the control service as vdsm does."""
    assert isinstance(host.control, str)
    assert os.path.exists(host.control)  # else vdsm says that there is no daemon
    body = None if document is None else json.dumps(document).encode("utf8")
    with contextlib.closing(UnixConnection(host.control)) as connection:
        connection.request(method, f"/tickets/{ticket_id}", body=body)
        response = connection.getresponse()
        return response.status, response.reason, response.read()


@pytest.fixture
def document(tmp_path):
    """A ticket with the keys of an engine, which vdsm passes on."""
    return {
        "uuid": str(uuid.uuid4()),
        "size": SIZE,
        "url": raw_volume(tmp_path / "disk", SIZE),
        "timeout": 300,
        "inactivity_timeout": 60,
        "ops": ["write"],
        "sparse": True,
        "dirty": False,
        "transfer_id": str(uuid.uuid4()),
    }


def test_ticket_is_added_read_extended_and_removed(host, document):
    ticket_id = document["uuid"]
    assert call(host, "PUT", ticket_id, document)[0] < 300
    status, _, body = call(host, "GET", ticket_id)
    info = json.loads(body)
    assert status < 300
    assert {key: info[key] for key in document} == document
    assert (info["active"], info["transferred"]) == (False, 0)
    assert call(host, "PATCH", ticket_id, {"timeout": 600})[0] < 300
    assert json.loads(call(host, "GET", ticket_id)[2])["timeout"] == 300  # of each operation, still
    assert call(host, "DELETE", ticket_id)[0] < 300


def test_ticket_of_the_first_engines_has_five_keys(host, document):
    """vdsm's schema asks for these alone; a transfer of theirs has no id."""
    old = {key: document[key] for key in ("uuid", "size", "url", "timeout", "ops")}
    assert call(host, "PUT", old["uuid"], old)[0] < 300
    info = json.loads(call(host, "GET", old["uuid"])[2])
    assert info["transfer_id"] == f"(ticket/{old['uuid'][:18]})"
    assert info["inactivity_timeout"] == 60
    assert "filename" not in info
    assert call(host, "DELETE", old["uuid"])[0] < 300


def test_missing_ticket(host):
    for method, document in (("GET", None), ("PATCH", {"timeout": 300})):
        status, reason, body = call(host, method, str(uuid.uuid4()), document)
        assert (status, reason) == (404, "Not Found")
        assert body.decode("utf8")
    assert call(host, "DELETE", str(uuid.uuid4()))[0] < 300


@pytest.mark.parametrize("broken", [{"uuid": "x"}, {}, {"size": "1"}])
def test_refused_ticket(host, document, broken):
    ticket_id = document["uuid"]
    status, _, body = call(host, "PUT", ticket_id, {**document, **broken} if "size" in broken else broken)
    assert status >= 300
    assert body


def test_connection_that_is_idle_does_not_keep_its_ticket(host, document):
    """The engine ends a transfer while programs still have connections open."""
    ticket_id = document["uuid"]
    call(host, "PUT", ticket_id, document)
    with host.connect() as client:
        assert client.request("PUT", f"/images/{ticket_id}", body=bytes(SIZE)).status == 200
        assert call(host, "DELETE", ticket_id)[0] < 300


@pytest.mark.parametrize("length", [0, 1, 512, SIZE, SIZE + 1, 3 * SIZE + 4096])
@pytest.mark.parametrize("exists", ["empty", "allocated"])
def test_import_of_a_volume(library, tmp_path, length, exists):
    """A stream is received into a volume that is empty, or as large as the disk."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(length))
    raw_volume(tmp_path / "volume", 0 if exists == "empty" else length)
    out = library.run("vdsm_import", "stream", source, tmp_path / "volume", SIZE)
    assert json.loads(out) == {"done": length, "seen": True}
    same_bytes(source, tmp_path / "volume", size=length)


def test_import_of_a_running_machine(library, tmp_path):
    """Blocks of known size are read by position; the size is given."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 * SIZE))
    raw_volume(tmp_path / "volume", 0)
    out = library.run("vdsm_import", "blocks", source, tmp_path / "volume", SIZE)
    assert json.loads(out)["done"] == 2 * SIZE
    same_bytes(source, tmp_path / "volume", size=2 * SIZE)


def test_import_to_block_storage(library, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(os.urandom(2 * SIZE))
    (tmp_path / "device").write_bytes(b"\xff" * 3 * SIZE)
    with loop_device(tmp_path / "device") as device:
        assert json.loads(library.run("vdsm_import", "stream", source, device, SIZE))["done"] == 2 * SIZE
    assert (tmp_path / "device").read_bytes() == source.read_bytes() + b"\xff" * SIZE


@needs_qemu
def test_nbd_of_its_tests(library, tmp_path):
    """Only a server of qcow2 tells what is allocated: zeroes that were written are."""
    raw_volume(tmp_path / "raw", SIZE)
    with Server(str(tmp_path / "raw"), "raw") as server:
        found = json.loads(library.run("vdsm_nbd", "fill", server.url, SIZE))
    assert found == {"base:allocation": [[SIZE, False, False]]}
    make_image(tmp_path / "qcow2", "qcow2", SIZE)
    with Server(str(tmp_path / "qcow2"), "qcow2") as server:
        found = json.loads(library.run("vdsm_nbd", "look", server.url, SIZE))
    assert [run[2] for run in found["qemu:allocation-depth"]] == [True]


@needs_qemu
def test_nbd_of_its_tests_with_a_bitmap(library, tmp_path):
    path = tmp_path / "qcow2"
    make_image(path, "qcow2", 6 * SIZE)
    img.add_bitmap(str(path), "since")
    fill_image(path, "qcow2", [Fill(SIZE, 65536, 0xF1), Fill(2 * SIZE, 65536, 0xF2)])
    with Server(str(path), "qcow2", read_only=True, bitmap="since") as server:
        found = json.loads(library.run("vdsm_nbd", "dirty", server.url, 6 * SIZE))
    assert found == {
        "dirty": [
            [SIZE, False],
            [65536, True],
            [SIZE - 65536, False],
            [65536, True],
            [4 * SIZE - 65536, False],
        ],
        "first": "f1",
    }
