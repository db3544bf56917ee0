# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that keep their data elsewhere are looked at when the caller trusts them."""

from __future__ import annotations

import subprocess

import pytest

from imageio_testing.imageserver import Image, ScriptedServer
from imageio_testing.qemu import Backing, Fill, fill_image, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client.layers import UnsafeImage
from ovirt_imageio.common.units import KiB, MiB

pytestmark = needs_qemu

SIZE = 4 * MiB
FILLS = [Fill(MiB, 128 * KiB, 0x55)]


@pytest.fixture
def split(tmp_path):
    """A qcow2 image whose data are in another file."""
    path = tmp_path / "split.qcow2"
    options = f"data_file={tmp_path / 'split.data'}"
    subprocess.check_call(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE)])
    fill_image(path, "qcow2", FILLS)
    return path


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "plain.raw"
    make_image(path, "raw", SIZE, FILLS)
    return path


def required(path, **options):
    return client.measure(path, "qcow2", **options)["required"]


CALLS = {
    "info": client.info,
    "measure": lambda path, **options: client.measure(path, "raw", **options),
    "checksum": client.checksum,
    "extents": lambda path, **options: list(client.extents(path, **options)),
    "upload": lambda path, **options: client.upload(path, "https://localhost:1/images/none", None, **options),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_data_file_is_refused_unless_it_is_allowed(split, call):
    with pytest.raises(UnsafeImage, match=r"split\.data.*allow_external=True"):
        call(split)


def test_allowed_data_file_is_looked_at(split, plain):
    assert client.info(split, allow_external=True)["virtual-size"] == SIZE
    assert required(split, allow_external=True) == required(plain)
    assert client.checksum(split, allow_external=True) == client.checksum(plain)
    data = [(e.start, e.length) for e in client.extents(split, allow_external=True) if not e.zero]
    assert data == [(MiB, 128 * KiB)]


def test_allowed_data_file_is_uploaded(split, plain):
    disk = bytearray(SIZE)
    with ScriptedServer(Image(disk)) as server:
        client.upload(split, server.url, None, allow_external=True)
    assert bytes(disk) == plain.read_bytes()


def test_allowed_backing_file_is_looked_at(tmp_path, plain):
    path = tmp_path / "top.qcow2"
    make_image(path, "qcow2", SIZE)
    backing = f'json:{{"driver": "raw", "file": {{"driver": "file", "filename": "{plain}"}}}}'
    subprocess.check_call(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", backing, path])
    assert client.checksum(path, allow_external=True) == client.checksum(plain)
    assert required(path, allow_external=True) == required(plain)
    data = [(e.start, e.length) for e in client.extents(path, allow_external=True) if not e.zero]
    assert data == [(MiB, 128 * KiB)]


def test_image_is_measured_without_its_backing_chain(tmp_path):
    make_image(tmp_path / "base.qcow2", "qcow2", SIZE, [Fill(0, 2 * MiB, 0x11)])
    make_image(tmp_path / "top.qcow2", "qcow2", SIZE, FILLS, backing=Backing(tmp_path / "base.qcow2", "qcow2"))
    make_image(tmp_path / "alone.qcow2", "qcow2", SIZE, FILLS)
    alone = required(tmp_path / "alone.qcow2")
    assert required(tmp_path / "top.qcow2") > alone
    (tmp_path / "base.qcow2").unlink()
    assert required(tmp_path / "top.qcow2", backing_chain=False) == alone
