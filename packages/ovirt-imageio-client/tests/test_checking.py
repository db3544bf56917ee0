# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import re
import struct
import subprocess
import tarfile

import pytest

from imageio_testing.imageserver import Image, ScriptedServer
from imageio_testing.qemu import Backing, Fill, KiB, MiB, content, make_image, needs_qemu
from imageio_testing.vhd import make_vhd
from ovirt_imageio import client
from ovirt_imageio.client.checking import DamagedImage, check_layers
from ovirt_imageio.client.layers import look
from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.common.qemu.img import QemuImgError

pytestmark = needs_qemu

SIZE = 8 * MiB
FILLS = [Fill(0, 2 * MiB, 1), Fill(6 * MiB, MiB, 2)]

CHECKED = [
    "qcow2",
    "qcow2-v2",
    "qcow2-compressed",
    "qcow2-extended",
    "qed",
    "qcow",
    "vmdk",
    "vmdk-stream",
    "vdi",
    "vhdx",
]
CHECKED += ["parallels", "vpc"]
OPTIONS = {
    "qcow2-v2": ["-o", "compat=0.10"],
    "qcow2-compressed": ["-c"],
    "qcow2-extended": ["-o", "extended_l2=on"],
    "vmdk-stream": ["-o", "subformat=streamOptimized"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(kind):
    """An image with data that do not compress."""
    with open("disk.raw", "wb") as f:
        f.truncate(SIZE)
        f.write(os.urandom(3 * MiB))
        f.seek(6 * MiB)
        f.write(os.urandom(MiB))
    fmt = kind.partition("-")[0]
    command = ["qemu-img", "convert", "-f", "raw", "-O", fmt, *OPTIONS.get(kind, []), "disk.raw", "disk"]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("kind", CHECKED)
def test_whole_image_passes(folder, kind, caplog):
    convert(kind)
    check_layers(look("disk"))
    assert not caplog.records


@pytest.mark.parametrize("kind", CHECKED)
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_image_that_is_cut_off_is_refused(folder, kind, share):
    convert(kind)
    os.truncate("disk", int(os.path.getsize("disk") * share) // 512 * 512)
    with pytest.raises(
        (DamagedImage, QemuImgError), match=r"disk.*(EOF|end of (the )?file|truncated|cut off|outside|errors?)"
    ):
        check_layers(look("disk"))


@pytest.mark.parametrize("kind", CHECKED)
def test_image_whose_last_cluster_is_cut_off_is_refused(folder, kind):
    with open("disk.raw", "wb") as f:
        f.write(os.urandom(MiB))
    fmt = kind.partition("-")[0]
    command = ["qemu-img", "convert", "-f", "raw", "-O", fmt, *OPTIONS.get(kind, []), "disk.raw", "disk"]
    subprocess.run(command, check=True)
    image = Image(bytearray(16 * MiB))
    os.truncate("disk", os.path.getsize("disk") - 100)
    with ScriptedServer(image) as server:
        try:
            client.upload("disk", server.url, None)
        except ImageioError as e:
            assert re.search(r"disk.*(cut off|damaged|reading from file failed|after the end)", str(e))  # noqa: PT017
            return
    # The missing part was no data.
    assert image.data[:MiB] == (folder / "disk.raw").read_bytes()


def test_raw_image_of_an_odd_size_passes(folder):
    (folder / "disk").write_bytes(b"x" * 12345)
    check_layers(look("disk"))


def entries_of(path):
    with open(path, "rb") as f:
        f.seek(40)
        (table,) = struct.unpack(">Q", f.read(8))
        f.seek(table)
        return struct.unpack(">Q", f.read(8))[0] & 0x00FFFFFFFFFFFE00


def overwrite(path, at, data):
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)


def test_damaged_table_is_refused_with_what_was_found(folder):
    make_image("disk", "qcow2", SIZE, FILLS)
    overwrite("disk", entries_of("disk") + 8, struct.pack(">Q", (1 << 63) | 0x50200))
    with pytest.raises(
        DamagedImage, match=r"disk is damaged: qemu-img check found \d+ errors: ERROR.*; pass check=False"
    ):
        check_layers(look("disk"))


def test_damaged_backing_file_is_refused(folder):
    make_image("base", "qcow2", SIZE, FILLS)
    make_image("top", "qcow2", SIZE, backing=Backing("base", "qcow2"))
    os.truncate("base", 512 * KiB)
    with pytest.raises(DamagedImage, match="base is damaged"):
        check_layers(look("top"))
    check_layers(look("top", backing_chain=False))


def test_member_that_is_cut_off_is_refused(folder):
    make_image("disk", "qcow2", SIZE, FILLS)
    os.truncate("disk", 512 * KiB)
    with tarfile.open("vm.ova", "w") as tar:
        tar.add("disk")
    with pytest.raises(DamagedImage, match=r"vm\.ova is damaged"):
        check_layers(look("vm.ova", member="disk"))


def test_leaked_clusters_are_only_told(folder, caplog):
    make_image("disk", "qcow2", SIZE, FILLS)
    overwrite("disk", entries_of("disk") + 8, bytes(8))
    check_layers(look("disk"))
    assert "disk has 1 cluster that nothing refers to" in caplog.text


def test_counts_that_a_crash_left_old_are_no_damage(folder):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", "disk", "8M"], check=True)
    subprocess.run(["qemu-io", "disk"], input="write -P 5 0 1M\nflush\nabort\n", text=True, capture_output=True)
    check_layers(look("disk"))


def test_mark_of_corruption_alone_is_told(folder, caplog):
    make_image("disk", "qcow2", SIZE, FILLS)
    overwrite("disk", 72, struct.pack(">Q", 2))
    check_layers(look("disk"))
    assert "was marked as corrupt by qemu" in caplog.text


def test_upload_refuses_a_damaged_image_before_the_server_hears_of_it(folder):
    make_image("disk", "qcow2", SIZE, FILLS)
    os.truncate("disk", 512 * KiB)
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        with pytest.raises(DamagedImage):
            client.upload("disk", server.url, None)
        assert server.requests == []


def test_upload_takes_what_can_be_read_if_it_shall(folder):
    make_image("disk", "qcow2", SIZE, FILLS)
    os.truncate("disk", 512 * KiB)
    image = Image(bytearray(SIZE))
    with ScriptedServer(image) as server:
        client.upload("disk", server.url, None, check=False)
    assert image.data[: 64 * KiB] == content(SIZE, FILLS)[: 64 * KiB]


def test_upload_shows_that_it_checks(folder):
    class Progress:
        def __init__(self):
            self.phases = ["uploading"]
            self.size = None

        def update(self, n):
            pass

        @property
        def phase(self):
            return self.phases[-1]

        @phase.setter
        def phase(self, text):
            self.phases.append(text)

    make_image("disk", "qcow2", SIZE, FILLS)
    progress = Progress()
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        client.upload("disk", server.url, None, progress=progress)
    assert progress.phases[:3] == ["uploading", "uploading, checking the image", "uploading"]


def test_image_that_a_qemu_writes_to_is_refused_as_such(folder):
    make_image("disk", "qcow2", SIZE, FILLS)
    with subprocess.Popen(["qemu-io", "disk"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        writer.stdin.write(b"read 0 512\n")
        writer.stdin.flush()
        writer.stdout.readline()
        with pytest.raises(QemuImgError, match=r"lock.*another process"):
            check_layers(look("disk"))
        writer.stdin.close()
        writer.stdout.read()


def test_image_that_others_only_read_is_checked(folder):
    make_image("disk", "qcow2", SIZE, FILLS)
    with subprocess.Popen(["qemu-io", "-r", "disk"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdin.write(b"read 0 512\n")
        reader.stdin.flush()
        reader.stdout.readline()
        check_layers(look("disk"))
        reader.stdin.close()
        reader.stdout.read()


def test_vhd_of_another_maker_passes(folder):
    make_vhd("disk", SIZE + 512, FILLS)
    check_layers(look("disk"))
