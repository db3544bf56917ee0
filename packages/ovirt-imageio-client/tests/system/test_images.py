# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of image, up and down: file and nbd, by TLS and by Unix socket.

The large image, the chain and the ISO take all four ways, every other image one of them;
with IMAGEIO_TESTS=full each takes all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.images import as_raw, compare, make_sample, names, same_bytes
from imageio_testing.pki import make_pki
from imageio_testing.qemu import needs_qemu
from ovirt_imageio import client
from ovirt_imageio.common.backends.http import HttpBackend
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

pytestmark = [pytest.mark.system, needs_qemu]

WAYS = list(itertools.product(("file", "nbd"), ("unix", "tls")))
"""Storage of the disk, and transport."""

ALL = os.environ.get("IMAGEIO_TESTS") == "full"

EACH_WAY = ("qcow2-big", "qcow2-chain", "iso")

ROWS = [
    (name, *way)
    for number, name in enumerate(names())
    for way in (WAYS if ALL or name in EACH_WAY else [WAYS[number % len(WAYS)]])
]


@pytest.fixture(scope="module")
def daemons(tmp_path_factory):
    """By transport: one daemon with a local service, and one without."""
    folder = tmp_path_factory.mktemp("daemons")
    pki = make_pki(folder)
    with contextlib.ExitStack() as stack:
        result = {}
        for transport in ("unix", "tls"):
            (folder / transport).mkdir()
            config = {"local": {"enable": transport == "unix"}}
            result[transport] = stack.enter_context(Daemon(folder / transport, pki=pki, config=config))
        yield result


@pytest.fixture
def folder():
    """In memory: an image of 4 GiB has few bytes, but a disk would be asked to flush them."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="images-") as path:
        yield Path(path)


@contextlib.contextmanager
def disk(folder, storage, size):
    """A new disk: yields its URL for a ticket, the size that it has, and a function.

    The function returns a raw file with the content, once the server is gone.
    """
    path = folder / f"disk-of-{storage}"
    if storage == "file":
        with open(path, "wb") as f:
            f.truncate(size)
        yield f"file://{path}", size
    else:
        # A guest's disk has whole sectors.
        size = -(-size // 512) * 512
        img.create(str(path), "qcow2", size=size)
        with Server(str(path), "qcow2") as server:
            yield server.url, size


def content(folder, storage):
    path = folder / f"disk-of-{storage}"
    return path if storage == "file" else as_raw(path, "qcow2", folder / "content.raw")


def image_url(daemon, url, size, ops=("read", "write")):
    return f"{daemon.url}/images/{daemon.add_ticket(url, size=size, ops=ops, sparse=True)}"


@pytest.mark.parametrize("transport", ["unix", "tls"])
def test_transport_is_what_it_is_called(daemons, folder, transport):
    with disk(folder, "file", 512) as (url, size):
        daemon = daemons[transport]
        with HttpBackend(image_url(daemon, url, size), cafile=daemon.ca_file) as backend:
            assert backend.unix_socket_used is (transport == "unix")


@pytest.mark.parametrize(("name", "storage", "transport"), ROWS, ids=["-".join(row) for row in ROWS])
def test_image_survives_upload_and_download(daemons, folder, name, storage, transport):
    daemon = daemons[transport]
    sample = make_sample(name, folder)
    options = {"cafile": daemon.ca_file, "verify": True}
    with disk(folder, storage, sample.size) as (url, size):
        writer = image_url(daemon, url, size)
        client.upload(sample.path, writer, **options, **sample.options)
        # qemu-nbd has connections for one ticket only.
        daemon.remove_ticket(writer.rpartition("/")[2])

        reader = image_url(daemon, url, size, ops=("read",))
        for fmt in ("raw", "qcow2"):
            client.download(reader, folder / f"copy.{fmt}", daemon.ca_file, fmt=fmt, verify=True)
        with client.ImageioClient(reader, daemon.ca_file) as c:
            theirs = c.checksum()
        ours = client.checksum(folder / "copy.raw")
    assert (ours["checksum"], ours["block_size"]) == (theirs.checksum, theirs.block_size)
    same_bytes(sample.reference, content(folder, storage), size=sample.size)
    same_bytes(sample.reference, folder / "copy.raw", size=sample.size)
    compare(folder / "copy.qcow2", "qcow2", folder / "copy.raw")
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("copy")) == ["copy.qcow2", "copy.raw"]


@pytest.mark.parametrize("storage", ["file", "nbd"])
def test_what_is_zero_takes_no_room_at_either_end(daemons, folder, storage):
    daemon = daemons["unix"]
    sample = make_sample("raw-preallocated", folder)
    with disk(folder, storage, sample.size) as (url, size):
        target = image_url(daemon, url, size)
        client.upload(sample.path, target, daemon.ca_file)
        client.download(target, folder / "copy.raw", daemon.ca_file, fmt="raw")
    for path in (folder / f"disk-of-{storage}", folder / "copy.raw"):
        assert os.stat(path).st_blocks * 512 < sample.size // 2
