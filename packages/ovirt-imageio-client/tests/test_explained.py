# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Failures of a qemu-nbd of our own reach the caller in its words, at the first try."""

from __future__ import annotations

import os
import random
import struct
import subprocess

import pytest

from imageio_testing.dmg import BZIP2, make_dmg
from imageio_testing.imageserver import Image, ScriptedServer
from imageio_testing.qemu import Fill, KiB, MiB, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client.layers import UnsupportedImage, look
from ovirt_imageio.client.local import Source
from ovirt_imageio.common.errors import RequestError
from ovirt_imageio.common.qemu import nbd

pytestmark = needs_qemu

SIZE = 8 * MiB


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def servers(monkeypatch):
    """Each qemu-nbd that is started."""
    started = []
    start = nbd.Server.start

    def noted(self):
        start(self)
        started.append(self)

    monkeypatch.setattr(nbd.Server, "start", noted)
    return started


@pytest.fixture
def unreadable(folder):
    """A compressed image, of whose data the second half is missing: they cannot be unpacked."""
    (folder / "disk.raw").write_bytes(random.Random(2).randbytes(SIZE))
    options = ["-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, "disk.raw", "disk"], check=True)
    os.truncate("disk", os.path.getsize("disk") // 2)
    return "disk"


def test_read_error_of_qemu_ends_an_upload_with_its_words(unreadable, caplog):
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        with pytest.raises(nbd.QemuNbdError, match="disk: qemu-nbd failed: reading from file failed"):
            client.upload(unreadable, server.url, None, check=False)
    assert "trying again" not in caplog.text


def test_read_error_of_qemu_ends_a_checksum_with_its_words(unreadable):
    with pytest.raises(nbd.QemuNbdError, match="disk: qemu-nbd failed: reading from file failed"):
        client.checksum(unreadable)


def test_refusal_of_qemu_names_the_image(folder, caplog):
    make_image("disk", "qcow2", SIZE, [Fill(0, MiB, 1)])
    with open("disk", "r+b") as f:
        f.seek(40)
        f.seek(struct.unpack(">Q", f.read(8))[0])
        table = struct.unpack(">Q", f.read(8))[0] & 0x00FFFFFFFFFFFE00
        f.seek(table)
        f.write(struct.pack(">Q", (1 << 63) | 0x50200))
    with (
        ScriptedServer(Image(bytearray(SIZE))) as server,
        pytest.raises(RequestError, match="^disk: NBD server failed"),
    ):
        client.upload("disk", server.url, None, check=False)
    assert "trying again" not in caplog.text


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_qemu_that_ended_is_told_at_the_first_try(folder, servers, direction, caplog):
    def kill(n):
        # More of what was in flight may be counted after the end: a Popen kills no stranger then.
        servers[-1]._process.kill()
        servers[-1]._process.wait()

    data = random.Random(1).randbytes(64 * MiB)
    if direction == "upload":
        (folder / "disk.raw").write_bytes(data)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk"], check=True)
    with ScriptedServer(Image(bytearray(data))) as server:
        with pytest.raises(nbd.QemuNbdError, match=r"disk.*qemu-nbd failed: it ended with status -9"):
            if direction == "upload":
                client.upload("disk", server.url, None, progress=kill, max_workers=1)
            else:
                client.download(server.url, "disk", None, fmt="qcow2", progress=kill, max_workers=1)
    assert "trying again" not in caplog.text


def test_lost_connection_of_a_server_that_lives_is_tried_again(folder, caplog):
    """Nothing that it said means that its file failed."""
    make_image("disk", "qcow2", SIZE, [Fill(0, MiB, 1)])
    with Source(look("disk")) as source:
        with source.open() as backend:
            backend.interrupt()
            with pytest.raises(Exception, match="lost connection"):
                backend.read_into(0, bytearray(KiB))
        assert source._server.failure() is None
        with source.open() as backend:
            backend.read_into(0, bytearray(KiB))


def test_image_that_needs_more_of_qemu_is_refused_before_it_is_read(folder):
    make_dmg("disk.dmg", b"x" * MiB, kind=BZIP2)
    try:
        Source(look("disk.dmg")).close()
    except UnsupportedImage as e:
        assert "disk.dmg needs more of qemu than is installed" in str(e)  # noqa: PT017
    else:
        pytest.skip("this qemu has the module")


def test_image_that_cannot_be_opened_is_named_without_our_json(folder):
    make_image("disk", "vhdx", SIZE, [Fill(0, MiB, 1)])
    os.truncate("disk", os.path.getsize("disk") // 2)
    with pytest.raises(nbd.QemuNbdError, match="qemu-nbd cannot serve disk: .*end of file") as e:
        Source(look("disk"))
    assert "json:" not in str(e.value)
