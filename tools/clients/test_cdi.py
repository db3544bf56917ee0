# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""KubeVirt's Containerized Data Importer: disks by extents with Go's net/http, and its own test set-up.

Source: kubevirt/containerized-data-importer, c07cdb6f (after v1.66.0),
    - pkg/importer/imageio-datasource.go: OPTIONS for the feature `extents`; GET of ``/extents``. Each extent that is
      not zero has a GET with a Range, whose Content-Length has to be that of the range. Without the feature there is
      one GET, which has to be 200. To keep a slow import alive, the first 512 bytes are read again.
    - pkg/importer/http-datasource.go, createHTTPClient: the default transport, which offers HTTP/2.
    - tools/image-io/99-cdi.conf, myticket.json: the configuration and a ticket of its tests.
    - manifests/templates/imageio.yaml.in, tests/imageio-inventory.go: how they start the daemon and add tickets.

A server that lacks `features` in its answer to OPTIONS, or that does not answer with JSON, is read as a whole.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile

import pytest

from clients.host import Host, raw_volume
from clients.wire import GoConnection, GoTransport
from imageio_testing.qemu import Fill, MiB, content, make_image, needs, needs_qemu
from ovirt_imageio.common.qemu.nbd import Server

SIZE = 8 * MiB
FILLS = [Fill(0, 65536, 1), Fill(2 * MiB, MiB, 2), Fill(SIZE - 65536, 65536, 3)]

DROPINS = {
    "99-cdi.conf": """\
[tls]
key_file = /tmp/certs/tls.key
cert_file = /tmp/certs/tls.crt
ca_file = /tmp/certs/tls.crt

[control]
transport = unix
socket = /tmp/daemon.sock

[remote]
port = 12345
host =

[daemon]
group_name = root
user_name = root
poll_interval = 0.1
buffer_size = 131072
drop_privileges = false

[local]
socket =
"""
}
"""Its keys with the values that matter: an empty host, an empty socket, and a key of version 1."""


@pytest.fixture
def go(host):
    return GoTransport(host.cafile, http2=True)


def has_extents(connection: GoConnection, path: str) -> bool:
    """Ask for the feature."""
    return "extents" in connection.request("OPTIONS", path).json()["features"]


def get_range(connection: GoConnection, path: str, start: int, last: int) -> bytes:
    """Read a range; its length is taken from the field."""
    response = connection.request("GET", path, ("Range", f"bytes={start}-{last}"))
    assert int(response.header("Content-Length") or -1) == last - start + 1
    return response.body


def download(connection: GoConnection, path: str) -> bytearray:
    """Read the extents that hold data."""
    assert has_extents(connection, path)
    extents = connection.request("GET", f"{path}/extents").json()
    data = bytearray(sum(extent["length"] for extent in extents))
    for extent in extents:
        start, end = extent["start"], extent["start"] + extent["length"]
        if not extent["zero"]:
            data[start:end] = get_range(connection, path, start, end - 1)
    return data


@needs_qemu
def test_disk_by_extents(host, go, tmp_path):
    make_image(tmp_path / "disk", "qcow2", SIZE, FILLS)
    with Server(str(tmp_path / "disk"), "qcow2", read_only=True) as server, go.connect(host.port) as connection:
        path = f"/images/{host.add_ticket(server.url, SIZE, ['read'], sparse=True)}"
        assert download(connection, path) == content(SIZE, FILLS)
        assert get_range(connection, path, 0, 511) == content(SIZE, FILLS)[:512]


def test_format_is_found_by_small_ranges(host, go, tmp_path):
    """The head of the image is read piece by piece, up to its last byte."""
    path = f"/images/{host.add_ticket(raw_volume(tmp_path / 'disk', 1000, b'x' * 1000), 1000, ['read'])}"
    with go.connect(host.port) as connection:
        found = b"".join(get_range(connection, path, start, min(start + 511, 999)) for start in range(0, 1000, 512))
    assert found == b"x" * 1000


def test_snapshot_as_a_whole(host, go, tmp_path):
    """A snapshot comes as qcow2, by one GET: 206 would be an error."""
    path = f"/images/{host.add_ticket(raw_volume(tmp_path / 'disk', SIZE, b'QFI'), SIZE, ['read'])}"
    with go.connect(host.port) as connection:
        response = connection.request("GET", path)
    assert (response.status, int(response.header("Content-Length") or 0)) == (200, SIZE)
    assert response.body == b"QFI" + bytes(SIZE - 3)


@needs("curl")
def test_set_up_of_its_own_tests(generation, pki, tmp_path):
    """Tickets are valid for a million years, and added by curl, with the type of a form, to a Unix socket."""
    folder = tmp_path / "daemon"
    folder.mkdir()
    (tmp_path / "images").mkdir()
    with tempfile.TemporaryDirectory(prefix="cdi-") as sockets:
        control = f"{sockets}/daemon.sock"
        config = {"remote": {"port": 0}, "local": {"socket": ""}, "control": {"socket": control}}
        with Host(generation, folder, pki, dropins=DROPINS, config=config) as daemon:
            daemon.control = control
            add_by_curl(daemon, ticket(tmp_path / "images" / "snapshot", "snapshot"))
            add_by_command(daemon, ticket(tmp_path / "images" / "cirros", "cirros"))
            with GoTransport(pki.ca_file, http2=True).connect(daemon.port) as connection:
                for name in ("snapshot", "cirros"):
                    assert download(connection, f"/images/{name}") == name.encode() * 512


def ticket(path, name):
    data = name.encode() * 512
    return {
        "uuid": name,
        "size": len(data),
        "url": raw_volume(path, len(data), data),
        "timeout": 30_000_000_000_000,
        "ops": ["read"],
    }


def add_by_curl(daemon: Host, document: dict[str, object]) -> None:
    """Add a ticket as CDI's tests do; the Host is the one of the remote service."""
    curl = shutil.which("curl")
    url = f"http://localhost:12345/tickets/{document['uuid']}"
    command = [curl, "-s", "-f", "--unix-socket", str(daemon.control), "-X", "PUT", "-d", "@-", url]
    subprocess.run(command, check=True, input=json.dumps(document, indent=1).encode(), stdout=subprocess.PIPE)


def add_by_command(daemon: Host, document: dict[str, object]) -> None:
    """Add a ticket as CDI's container does."""
    path = daemon.folder / "myticket.json"
    path.write_text(json.dumps(document))
    command = [daemon.generation.command("ovirt-imageioctl"), "add-ticket", "-c", str(daemon.conf_dir), str(path)]
    subprocess.run(command, check=True, capture_output=True)
