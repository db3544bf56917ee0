# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
import os
import subprocess

import pytest

from imageio_testing.mounts import loop_device
from imageio_testing.qemu import Backing, make_image, needs_qemu
from imageio_testing.vhd import FIXED, make_vhd
from ovirt_imageio.client import backing
from ovirt_imageio.common.units import MiB

SELF = "the image .*disk itself, which would be lost: download to another name"


def check(tmp_path, backing_file, fmt=None, name="disk"):
    before = sorted(os.listdir(tmp_path))
    try:
        backing.check(str(tmp_path / name), str(backing_file), fmt)
    finally:
        assert sorted(os.listdir(tmp_path)) == before


def test_new_image_has_any_backing_file(tmp_path):
    (tmp_path / "base").write_bytes(b"b" * MiB)
    check(tmp_path, "base", "raw")
    check(tmp_path, tmp_path / "base")


def test_image_that_is_replaced_has_any_other_backing_file(tmp_path):
    for name in ("base", "disk"):
        (tmp_path / name).write_bytes(b"b" * MiB)
    check(tmp_path, "base", "raw")


@pytest.mark.parametrize("fmt", ["raw", None])
def test_image_itself_is_refused(tmp_path, fmt):
    (tmp_path / "disk").write_bytes(b"b" * MiB)
    with pytest.raises(ValueError, match=f"the backing file 'disk' is {SELF}"):
        check(tmp_path, "disk", fmt)


def test_image_by_another_mount_is_refused(tmp_path):
    """As a file that is reached by two ways has it: inode and device are the same, the path is not."""
    (tmp_path / "disk").write_bytes(b"b" * MiB)
    with pytest.raises(ValueError, match=SELF):
        check(tmp_path, f"/proc/self/cwd/{os.path.relpath(tmp_path / 'disk')}")


def test_device_by_another_node_is_refused(tmp_path):
    with open(tmp_path / "file", "wb") as f:
        f.truncate(MiB)
    with loop_device(tmp_path / "file") as device:
        os.mknod(tmp_path / "node", 0o600 | 0o060000, os.stat(device).st_rdev)
        with pytest.raises(ValueError, match="which would be lost"):
            backing.check(device, str(tmp_path / "node"), "raw")


def test_backing_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "disk").touch()
    with pytest.raises(FileNotFoundError, match="gone"):
        check(tmp_path, "gone")


def test_backing_file_of_another_format_is_told(tmp_path):
    for name in ("base", "disk"):
        (tmp_path / name).write_bytes(b"b" * MiB)
    with pytest.raises(ValueError, match="base is not a valid image: not a qcow2 header"):
        check(tmp_path, "base", "qcow2")


# Names in a chain.


@needs_qemu
@pytest.mark.parametrize("fmt", ["qcow2", "qed", "qcow", "vmdk"])
def test_image_below_the_backing_file_is_refused(tmp_path, fmt):
    below = "vmdk" if fmt == "vmdk" else "raw"
    make_image(tmp_path / "disk", below, MiB)
    make_image(tmp_path / "base", fmt, MiB, backing=Backing(tmp_path / "disk", below))
    with pytest.raises(ValueError, match=f"the backing file 'base' needs {tmp_path}/disk: {SELF}"):
        check(tmp_path, "base")


@needs_qemu
@pytest.mark.parametrize(
    "name",
    [
        "file:{}",
        'json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}',
        'json:{{"driver":"raw","file.filename":"{}"}}',
        'json:{{"driver":"quorum","vote-threshold":1,"children":[{{"driver":"file","filename":"{}"}}]}}',
    ],
)
def test_image_below_by_a_name_of_qemu_is_refused(tmp_path, name):
    make_image(tmp_path / "disk", "raw", MiB)
    make_image(tmp_path / "base", "qcow2", MiB)
    target = name.format(tmp_path / "disk")
    subprocess.run(["qemu-img", "rebase", "-u", "-b", target, "-F", "raw", tmp_path / "base"], check=True)
    with pytest.raises(ValueError, match=f"needs {tmp_path}/disk: {SELF}"):
        check(tmp_path, "base", "qcow2")


@needs_qemu
@pytest.mark.parametrize("name", ["nbd:localhost:10809", "json:{}", "json:[", "json:" + "[" * 990])
def test_name_that_means_no_file_is_passed_over(tmp_path, name):
    (tmp_path / "disk").touch()
    make_image(tmp_path / "base", "qcow2", MiB)
    subprocess.run(["qemu-img", "rebase", "-u", "-b", name, "-F", "raw", tmp_path / "base"], check=True)
    check(tmp_path, "base", "qcow2")


@needs_qemu
def test_data_file_of_the_backing_file_is_refused(tmp_path):
    data = str(tmp_path / "disk")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", tmp_path / "base", "1M"], check=True
    )
    with pytest.raises(ValueError, match=f"needs {tmp_path}/disk: {SELF}"):
        check(tmp_path, "base")


@needs_qemu
def test_chain_that_never_ends_is_looked_at_once(tmp_path):
    (tmp_path / "disk").touch()
    for name, below in (("one", "two"), ("two", "one")):
        make_image(tmp_path / name, "qcow2", MiB)
        subprocess.run(["qemu-img", "rebase", "-u", "-b", below, "-F", "qcow2", tmp_path / name], check=True)
    check(tmp_path, "one")


@needs_qemu
def test_chain_that_is_too_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(backing, "_LONGEST_CHAIN", 2)
    (tmp_path / "disk").touch()
    make_image(tmp_path / "0", "raw", MiB)
    for n in (1, 2):
        make_image(
            tmp_path / str(n), "qcow2", MiB, backing=Backing(tmp_path / str(n - 1), "raw" if n == 1 else "qcow2")
        )
    check(tmp_path, "1")
    with pytest.raises(ValueError, match="more than 2 files"):
        check(tmp_path, "2")


# Relative names.


def test_format_is_looked_at_beside_the_image(tmp_path):
    (tmp_path / "base").write_bytes(b"QFI\xfb\0\0\0\3")
    assert backing.format_of(str(tmp_path / "disk"), "base") == "qcow2"
    with pytest.raises(FileNotFoundError, match="gone"):
        backing.format_of(str(tmp_path / "disk"), "gone")


def test_relative_name_that_means_two_files_is_refused(tmp_path):
    """A qemu that is given the link looks beside it, one that is given the file looks there."""
    (tmp_path / "real").mkdir()
    (tmp_path / "disk").symlink_to("real/disk")
    for folder in (tmp_path, tmp_path / "real"):
        (folder / "base").write_bytes(b"b" * MiB)
    with pytest.raises(ValueError, match="'base' is relative, and .*disk is a link into another folder"):
        check(tmp_path, "base")
    check(tmp_path, tmp_path / "base")
    os.unlink(tmp_path / "base")
    (tmp_path / "base").symlink_to("real/base")
    check(tmp_path, "base")


def test_link_to_a_folder_is_no_such_case(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "base").write_bytes(json.dumps("b").encode())
    check(tmp_path, "../base", name="link/disk")


def test_backing_file_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a regular file nor a block device"):
        backing.format_of(str(tmp_path / "disk"), "fifo")


def test_format_of_a_fixed_vhd_is_known_by_its_end(tmp_path):
    make_vhd(tmp_path / "base.vhd", MiB, kind=FIXED)
    assert backing.format_of(str(tmp_path / "disk"), "base.vhd") == "vpc"
