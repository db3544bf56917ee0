# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Our client against the daemon of ovirt-imageio 2.5.1, and its client against ours.

With IMAGEIO_TESTS=full over all images and both storages, else one image of each direction.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from bench.servers import Daemon as PeerDaemon
from bench.servers import Keys
from imageio_testing import peer
from imageio_testing.daemon import Daemon
from imageio_testing.images import as_raw, compare, make_sample, names, same_bytes
from imageio_testing.qemu import Fill, MiB, fill_image, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import transfer
from ovirt_imageio.client.journal import CannotResume
from ovirt_imageio.client.verify import VerificationFailed
from ovirt_imageio.common.backends.http import HttpBackend
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

# The first one installs the environment.
pytestmark = [pytest.mark.system, pytest.mark.timeout(600), needs_qemu]

FULL = os.environ.get("IMAGEIO_TESTS") == "full"

ROWS = list(itertools.product(names(), ("file", "nbd"))) if FULL else [("qcow2-chain", "nbd"), ("raw-odd", "file")]


THEIR_OWN = {
    "raw-empty": "looks for the first extent of an empty image, which has none",
    "ova-vmdk": "takes members that are VMDK for raw",
}
"""Images that 2.5.1 cannot do, whatever the daemon."""


@pytest.fixture(scope="module")
def old():
    return peer.environment()


@pytest.fixture(scope="module", params=["unix", "tls"])
def old_daemon(request, old, pki):
    keys = Keys(pki.ca_file, pki.cert_file, pki.key_file)
    # Paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="old-") as folder:
        with PeerDaemon(old, Path(folder), keys, local=request.param == "unix") as daemon:
            daemon.transport = request.param
            yield daemon


@pytest.fixture(scope="module")
def new_daemon(tmp_path_factory, pki):
    with Daemon(tmp_path_factory.mktemp("daemon"), pki=pki) as daemon:
        yield daemon


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="peer-") as path:
        yield Path(path)


@contextlib.contextmanager
def disk(folder, storage, size):
    """A new disk: its URL, and its size."""
    path = folder / "disk"
    if storage == "file":
        with open(path, "wb") as f:
            f.truncate(size)
        yield f"file://{path}", size
    else:
        size = -(-size // 512) * 512
        img.create(str(path), "qcow2", size=size)
        with Server(str(path), "qcow2", shared=16) as server:
            yield server.url, size


def check(folder, storage, sample):
    disk = folder / "disk" if storage == "file" else as_raw(folder / "disk", "qcow2", folder / "content.raw")
    same_bytes(sample.reference, disk, size=sample.size)
    same_bytes(sample.reference, folder / "copy.raw", size=sample.size)
    compare(folder / "copy.qcow2", "qcow2", folder / "copy.raw")


@pytest.mark.parametrize(("name", "storage"), ROWS, ids=["-".join(row) for row in ROWS])
def test_our_client_and_their_daemon(old_daemon, pki, folder, name, storage):
    sample = make_sample(name, folder)
    with disk(folder, storage, sample.size) as (url, size):
        image = old_daemon.url(old_daemon.ticket(url, size))
        client.upload(sample.path, image, pki.ca_file, verify=True, **sample.options)
        for fmt in ("raw", "qcow2"):
            client.download(image, folder / f"copy.{fmt}", pki.ca_file, fmt=fmt, verify=True)
        with HttpBackend(image, cafile=pki.ca_file) as backend:
            assert backend.unix_socket_used is (old_daemon.transport == "unix")
    check(folder, storage, sample)


@pytest.mark.parametrize(("name", "storage"), ROWS, ids=["-".join(row) for row in ROWS])
def test_their_client_and_our_daemon(old, new_daemon, pki, folder, name, storage):
    sample = make_sample(name, folder)
    if name in THEIR_OWN:
        pytest.skip(f"the client of 2.5.1 {THEIR_OWN[name]}")
    # It writes by qemu-nbd with direct I/O only: disks of an engine have whole blocks.
    with disk(folder, storage, -(-sample.size // 4096) * 4096) as (url, size):
        image = f"{new_daemon.url}/images/{new_daemon.add_ticket(url, size=size, sparse=True)}"
        peer.call(old, "upload", sample.path, image, pki.ca_file, **sample.options)
        for fmt in ("raw", "qcow2"):
            peer.call(old, "download", image, str(folder / f"copy.{fmt}"), pki.ca_file, fmt=fmt)
    check(folder, storage, sample)


@pytest.mark.parametrize("ours", [True, False], ids=["our client", "their client"])
def test_empty_file_grows(old, old_daemon, new_daemon, pki, folder, ours):
    """The engine's ticket for a file tells the final size; the file is empty at first."""
    sample = make_sample("raw", folder)
    size = -(-sample.size // 4096) * 4096
    os.truncate(sample.path, size)
    (folder / "disk").touch()
    url = f"file://{folder / 'disk'}"
    if ours:
        client.upload(sample.path, old_daemon.url(old_daemon.ticket(url, size)), pki.ca_file, verify=True)
    else:
        image = f"{new_daemon.url}/images/{new_daemon.add_ticket(url, size=size, sparse=True)}"
        peer.call(old, "upload", sample.path, image, pki.ca_file)
    same_bytes(sample.path, folder / "disk")


@pytest.fixture
def backup(folder):
    """A disk with a dirty bitmap, served as for a backup; its raw content at the checkpoint is beside it."""
    path = folder / "disk.qcow2"
    make_image(path, "qcow2", 24 * MiB, [Fill(0, 3 * MiB, 1), Fill(20 * MiB, MiB, 2)])
    as_raw(path, "qcow2", folder / "base.raw")
    subprocess.check_call(["qemu-img", "bitmap", "--add", path, "since"])
    fill_image(path, "qcow2", [Fill(5 * MiB, MiB, 3), Fill(2 * MiB, MiB, 0), Fill(8 * MiB, MiB, 0)])
    with Server(str(path), "qcow2", shared=16, bitmap="since") as server:
        yield server.url


@pytest.mark.parametrize("theirs", [True, False], ids=["their daemon", "our daemon"])
def test_incremental_backup_is_verified_through_its_backing_file(old_daemon, new_daemon, pki, folder, backup, theirs):
    size = 24 * MiB
    if theirs:
        image = old_daemon.url(old_daemon.ticket(backup, size, dirty=True))
    else:
        image = f"{new_daemon.url}/images/{new_daemon.add_ticket(backup, size=size, dirty=True)}"
    options = {"incremental": True, "backing_format": "raw", "verify": True}
    client.download(image, folder / "new.qcow2", pki.ca_file, backing_file="base.raw", **options)
    compare(folder / "new.qcow2", "qcow2", as_raw(folder / "disk.qcow2", "qcow2", folder / "now.raw", "-U"))

    (folder / "wrong.raw").write_bytes((folder / "base.raw").read_bytes())
    with open(folder / "wrong.raw", "r+b") as f:
        f.seek(20 * MiB)
        f.write(b"w")
    with pytest.raises(VerificationFailed, match=f"byte {20 * MiB} was not downloaded"):
        client.download(image, folder / "no.qcow2", pki.ca_file, backing_file="wrong.raw", **options)
    assert not (folder / "no.qcow2").exists()
    client.download(image, folder / "alone.qcow2", pki.ca_file, **options)


class Stop(Exception):
    pass


def stop_after(limit):
    left = [limit]

    def progress(n):
        left[0] -= n
        if left[0] <= 0:
            raise Stop

    return progress


@pytest.mark.parametrize("changed", [False, True])
def test_resume_reads_again_what_their_daemon_cannot_hash(old_daemon, pki, folder, changed, monkeypatch):
    monkeypatch.setattr(transfer, "CHECKPOINT_LENGTH", 1)
    sample = make_sample("raw", folder)
    data = os.urandom(24 * MiB)
    with open(sample.path, "r+b") as f:
        f.write(data)
    with disk(folder, "file", sample.size) as (url, size):
        image = old_daemon.url(old_daemon.ticket(url, size))
        with pytest.raises(Stop):
            client.upload(sample.path, image, pki.ca_file, progress=stop_after(20 * MiB), resume=True, max_workers=1)
        if changed:
            with open(folder / "disk", "r+b") as f:
                f.write(bytes([data[0] ^ 1]))
            with pytest.raises(CannotResume, match="1048576 bytes at 0 differ"):
                client.upload(sample.path, image, pki.ca_file, resume=True)
        else:
            client.upload(sample.path, image, pki.ca_file, resume=True)
            same_bytes(sample.path, folder / "disk")
