# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import os

import pytest

from imageio_testing import qemu
from imageio_testing.qemu import Backing, Fill, KiB, MiB
from ovirt_imageio.common import nbd
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.qemu.nbd import Server

FILLS = [Fill(64 * KiB, 128 * KiB, 0x55), Fill(3 * MiB, 64 * KiB, 0xAA)]


def test_raw_image_reads_as_its_content(tmp_path):
    path = tmp_path / "disk.raw"
    qemu.make_image(path, "raw", 4 * MiB, FILLS)
    assert path.read_bytes() == qemu.content(4 * MiB, FILLS)
    assert path.stat().st_blocks * 512 < 4 * MiB


def test_raw_image_refuses_a_backing(tmp_path):
    with pytest.raises(ValueError, match="no backing"):
        qemu.make_image(tmp_path / "a", "raw", MiB, backing=Backing("b", "raw"))


@qemu.needs_qemu
def test_qcow2_reads_as_the_raw_image_of_the_same_content(tmp_path):
    raw, qcow2 = str(tmp_path / "disk.raw"), str(tmp_path / "disk.qcow2")
    qemu.make_image(raw, "raw", 4 * MiB, FILLS)
    qemu.make_image(qcow2, "qcow2", 4 * MiB, FILLS)
    assert img.compare(raw, qcow2, fmt_a="raw", fmt_b="qcow2")


@qemu.needs_qemu
def test_zero_fill_hides_the_backing(tmp_path):
    base, top, expected = (str(tmp_path / name) for name in ("base", "top", "expected"))
    qemu.make_image(base, "raw", 4 * MiB, FILLS)
    qemu.make_image(top, "qcow2", 4 * MiB, [Fill(64 * KiB, 64 * KiB, 0)], backing=Backing(base, "raw"))
    qemu.make_image(expected, "raw", 4 * MiB, [*FILLS, Fill(64 * KiB, 64 * KiB, 0)])
    assert img.compare(top, expected, fmt_a="qcow2", fmt_b="raw")


@qemu.needs_nbdkit
def test_nbdkit_serves():
    with qemu.nbdkit("pattern", "64K") as url:
        client = nbd.Client(nbd.parse(url))
        try:
            data = bytearray(16)
            client.read_into(8, data)
        finally:
            client.close()
    assert data == (8).to_bytes(8, "big") + (16).to_bytes(8, "big")


@pytest.fixture
def many_descriptors():
    """Leave only descriptor numbers that a POSIX shell need not know."""
    with contextlib.ExitStack() as stack:
        while stack.enter_context(open(os.devnull)).fileno() < 10:
            pass
        yield


@qemu.needs_nbdkit
def test_nbdkit_starts_in_a_process_with_many_descriptors(many_descriptors):
    with qemu.nbdkit("null", "1M") as url:
        nbd.Client(nbd.parse(url)).close()


@qemu.needs_qemu
def test_qemu_nbd_starts_in_a_process_with_many_descriptors(many_descriptors, tmp_path):
    qemu.make_image(tmp_path / "disk", "raw", MiB)
    with Server(str(tmp_path / "disk"), "raw") as server:
        nbd.Client(server.address).close()


def test_needs_skips_with_the_names_of_what_is_absent():
    mark = qemu.needs("sh", "no-such-command").mark
    assert mark.args == (True,)
    assert mark.kwargs["reason"] == "not installed: no-such-command"
