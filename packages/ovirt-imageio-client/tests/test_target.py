# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os

import pytest

from imageio_testing.qemu import needs_qemu
from ovirt_imageio.client.target import CLUSTER, Target
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.units import MiB


def test_raw_target_is_sparse_and_of_the_right_size(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * 5000)
    with Target(str(path), "raw", MiB + 512) as target, target.open() as backend:
        assert backend.size == MiB + 512
        assert target.reads_zero
        backend.write(0, b"x")
    assert path.read_bytes() == b"x" + bytes(MiB + 511)


@needs_qemu
def test_qcow2_target_gets_size_and_backing_file(tmp_path):
    (tmp_path / "base.raw").write_bytes(b"b" * MiB)
    path = str(tmp_path / "disk.qcow2")
    with Target(path, "qcow2", MiB, backing_file="base.raw") as target, target.open() as backend:
        backend.write(0, b"t" * 65536)
        backend.flush()
    info = img.info(path, fmt="qcow2")
    assert (info["virtual-size"], info["backing-filename-format"]) == (MiB, "raw")
    assert info["cluster-size"] == CLUSTER


def test_closed_target_opens_no_other_file_by_its_number(tmp_path):
    path, other = tmp_path / "disk", tmp_path / "other"
    path.write_bytes(b"")
    other.write_bytes(b"not ours")
    fd = os.open(path, os.O_RDWR)
    with Target(str(path), "raw", MiB, held=fd) as target:
        path.unlink()
        target.open().close()
    with open(other, "r+b") as f:
        os.dup2(f.fileno(), fd)
        try:
            with pytest.raises(OSError, match="Bad file descriptor"):
                target.open()
        finally:
            os.close(fd)
    assert other.read_bytes() == b"not ours"
