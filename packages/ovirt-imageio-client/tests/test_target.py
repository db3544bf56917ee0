# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import threading

import pytest

from imageio_testing.qemu import needs_qemu
from ovirt_imageio.client import target as targets
from ovirt_imageio.client.target import Staging, Target, backing_format_of
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.units import MiB


def test_staging_makes_a_part_and_renames_it(tmp_path):
    staging = Staging(str(tmp_path / "disk"))
    assert os.listdir(tmp_path) == ["disk.part"]
    staging.commit()
    assert os.listdir(tmp_path) == ["disk"]


def test_staging_keeps_what_stood_there_until_the_end(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    staging = Staging(str(tmp_path / "disk"))
    assert (tmp_path / "disk").read_bytes() == b"old"
    staging.discard()
    assert os.listdir(tmp_path) == ["disk"]


@pytest.mark.parametrize("large", [False, True])
def test_large_file_that_stood_there_is_freed_by_a_thread(tmp_path, monkeypatch, large):
    closed_by = []

    def close(fd, close=os.close):
        closed_by.append((threading.current_thread().name, os.fstat(fd).st_ino))
        close(fd)

    path = tmp_path / "disk"
    path.write_bytes(b"old")
    old = path.stat().st_ino
    staging = Staging(str(path))
    monkeypatch.setattr(targets, "_LARGE", 1 if large else 1 << 60)
    monkeypatch.setattr(os, "close", close)
    staging.commit()
    for thread in threading.enumerate():
        if thread.name == "letting go":
            thread.join()
    name = "letting go" if large else threading.current_thread().name
    assert (name, old) in closed_by
    assert path.read_bytes() == b""


def test_large_file_is_freed_where_no_thread_can_start(tmp_path, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    (tmp_path / "disk").write_bytes(b"old")
    staging = Staging(str(tmp_path / "disk"))
    monkeypatch.setattr(targets, "_LARGE", 1)
    monkeypatch.setattr(threading.Thread, "start", start)
    staging.commit()
    assert (tmp_path / "disk").read_bytes() == b""


def test_staging_keeps_the_mode_of_what_stood_there(tmp_path):
    (tmp_path / "disk").write_bytes(b"old")
    os.chmod(tmp_path / "disk", 0o604)
    Staging(str(tmp_path / "disk")).commit()
    assert os.stat(tmp_path / "disk").st_mode & 0o777 == 0o604


def test_staging_follows_a_link_to_the_file_it_names(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    Staging(str(tmp_path / "link")).commit()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b""


def test_staging_refuses_a_part_that_is_a_link(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "disk.part").symlink_to("victim")
    with pytest.raises(OSError):
        Staging(str(tmp_path / "disk"))
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_staging_truncates_what_a_crash_left(tmp_path):
    (tmp_path / "disk.part").write_bytes(b"left over")
    Staging(str(tmp_path / "disk"))
    assert (tmp_path / "disk.part").read_bytes() == b""


def test_staging_writes_devices_in_place():
    staging = Staging("/dev/null")
    assert (staging.path, staging.in_place) == ("/dev/null", True)
    staging.discard()
    assert os.path.exists("/dev/null")


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Staging(str(tmp_path / "nowhere" / "disk"))


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


def test_backing_format_is_looked_at_beside_the_image(tmp_path):
    (tmp_path / "base").write_bytes(b"QFI\xfb\0\0\0\3")
    assert backing_format_of(str(tmp_path / "disk"), "base") == "qcow2"
    with pytest.raises(FileNotFoundError, match="gone"):
        backing_format_of(str(tmp_path / "disk"), "gone")
