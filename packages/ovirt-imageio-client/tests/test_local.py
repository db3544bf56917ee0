# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import os
import struct
import tarfile

import pytest

from imageio_testing.qemu import needs_qemu
from ovirt_imageio.client.layers import InvalidImage, Layer, UnsafeImage, look
from ovirt_imageio.client.local import Source, backing_node
from ovirt_imageio.common.extents import ZeroExtent
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.units import MiB


def qcow2_header(backing=b"", data_file=b""):
    """Enough of a qcow2 image to be looked at, never to be opened."""
    extension = struct.pack(">II", 0x44415441, len(data_file)) + data_file + bytes(-len(data_file) % 8)
    header = struct.pack(">4sIQI", b"QFI\xfb", 3, 0, 0) + bytes(52) + struct.pack(">QQQII", 0, 0, 0, 4, 104)
    header += (extension if data_file else b"") + bytes(8)
    if backing:
        header = header[:8] + struct.pack(">QI", len(header), len(backing)) + header[20:] + backing
    return header


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(source, offset, length):
    buf = bytearray(length)
    with source.open() as backend:
        backend.read_into(offset, buf)
    return bytes(buf)


def make_tar(path, **members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_raw_image_is_one_layer(folder):
    (folder / "disk.raw").write_bytes(b"x" * 512)
    assert look("disk.raw") == (Layer("disk.raw", "raw"),)


def test_format_that_is_given_is_not_guessed(folder):
    (folder / "disk").write_bytes(qcow2_header(backing=b"/etc/passwd"))
    assert look("disk", fmt="raw") == (Layer("disk", "raw"),)


def test_unknown_format_is_named(folder):
    with pytest.raises(ValueError, match="'iso'"):
        look("disk", fmt="iso")


def test_missing_image_is_an_os_error(folder):
    with pytest.raises(FileNotFoundError, match="nothing"):
        look("nothing")


def test_chain_is_followed_and_named(folder, caplog):
    caplog.set_level("INFO")
    (folder / "sub").mkdir()
    (folder / "base.raw").write_bytes(b"x" * 512)
    (folder / "sub" / "mid").write_bytes(qcow2_header(backing=b"../base.raw"))
    (folder / "top").write_bytes(qcow2_header(backing=b"sub/mid"))
    layers = look("top")
    assert [layer.fmt for layer in layers] == ["qcow2", "qcow2", "raw"]
    assert os.path.samefile(layers[2].path, folder / "base.raw")
    assert len([r for r in caplog.records if "is backed by" in r.message]) == 2


def test_chain_is_not_followed_when_only_the_top_is_wanted(folder):
    (folder / "top").write_bytes(qcow2_header(backing=b"gone"))
    assert len(look("top", backing_chain=False)) == 1


@pytest.mark.parametrize("name", [b"json:{}", b"nbd:localhost:10809", b"https://host/x", b"fat:rw:/etc"])
def test_backing_that_is_no_path_is_refused_and_named(folder, name):
    (folder / "top").write_bytes(qcow2_header(backing=name))
    with pytest.raises(UnsafeImage, match=name.decode()):
        look("top")


@pytest.mark.parametrize("name", [b"/dev/zero", b"/proc"])
def test_backing_that_is_no_regular_file_is_refused_and_named(folder, name):
    (folder / "top").write_bytes(qcow2_header(backing=name))
    with pytest.raises(UnsafeImage, match=name.decode()):
        look("top")


def test_data_file_is_refused_and_named(folder):
    (folder / "top").write_bytes(qcow2_header(data_file=b"/etc/shadow"))
    with pytest.raises(UnsafeImage, match="/etc/shadow"):
        look("top")


def test_data_file_of_a_backing_file_is_refused(folder):
    (folder / "base").write_bytes(qcow2_header(data_file=b"/etc/shadow"))
    (folder / "top").write_bytes(qcow2_header(backing=b"base"))
    with pytest.raises(UnsafeImage, match="/etc/shadow"):
        look("top")


def test_references_may_be_allowed(folder, caplog):
    (folder / "top").write_bytes(qcow2_header(backing=b"nbd:localhost:10809", data_file=b"data"))
    assert len(look("top", allow_external=True)) == 1
    assert "nbd:localhost:10809" in caplog.text
    assert "data" in caplog.text


def test_missing_backing_file_is_named(folder):
    (folder / "top").write_bytes(qcow2_header(backing=b"gone.raw"))
    with pytest.raises(InvalidImage, match=r"gone\.raw"):
        look("top")


def test_chain_that_bites_its_tail_is_refused(folder):
    (folder / "a").write_bytes(qcow2_header(backing=b"b"))
    (folder / "b").write_bytes(qcow2_header(backing=b"a"))
    with pytest.raises(InvalidImage, match="does not end"):
        look("a")


def test_broken_header_is_refused(folder):
    (folder / "top").write_bytes(qcow2_header()[:90])
    with pytest.raises(InvalidImage, match="top is not a valid qcow2 image"):
        look("top")


def test_member_is_found(folder):
    make_tar("vm.ova", first=b"x" * 700, disk=qcow2_header())
    [layer] = look("vm.ova", member="disk")
    assert (layer.fmt, layer.size) == ("qcow2", len(qcow2_header()))
    assert layer.offset % 512 == 0


def test_member_header_is_not_read_past_the_member(folder):
    make_tar("vm.ova", disk=qcow2_header()[:40])
    with pytest.raises(InvalidImage, match="cut off"):
        look("vm.ova", member="disk")


def test_missing_member_is_named(folder):
    make_tar("vm.ova", disk=b"")
    with pytest.raises(InvalidImage, match="'other'"):
        look("vm.ova", member="other")


def test_member_of_something_else_is_refused(folder):
    (folder / "disk.raw").write_bytes(b"x" * 2048)
    with pytest.raises(InvalidImage, match="tar file"):
        look("disk.raw", member="disk")


def test_backing_node_names_every_file():
    node = backing_node([Layer("/t", "qcow2"), Layer("/m", "qcow2"), Layer("/b", "raw")])
    assert node["file"]["filename"] == "/m"
    assert node["backing"]["file"]["filename"] == "/b"
    assert "backing" not in node["backing"]


def test_backing_node_ends_the_chain():
    node = backing_node([Layer("/t", "qcow2"), Layer("/b", "qcow2")])
    assert node["backing"] is None


def test_raw_source_is_read_without_qemu(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    data = os.urandom(MiB + 512)
    (folder / "disk.raw").write_bytes(data)
    with Source(look("disk.raw")) as source:
        assert source.size == len(data)
        assert read(source, 0, len(data)) == data


def test_raw_member_is_a_window_into_its_file(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    data = os.urandom(10000)
    make_tar("vm.ova", first=b"y" * 5000, disk=data)
    with Source(look("vm.ova", member="disk")) as source:
        assert source.size == 10000
        assert read(source, 9000, 1000) == data[9000:]
        with source.open() as backend:
            assert sum(e.length for e in backend.extents()) == 10000
            with pytest.raises(ValueError, match="10000"):
                backend.read_into(9000, bytearray(1001))


def test_member_past_the_end_of_its_file_is_refused(folder):
    (folder / "short.ova").write_bytes(bytes(1000))
    with pytest.raises(InvalidImage, match=r"short\.ova"):
        Source([Layer("short.ova", "raw", offset=512, size=1000)])


@needs_qemu
def test_chain_shows_through_or_not(folder):
    img.create("base.raw", "raw", size=MiB)
    (folder / "base.raw").write_bytes(b"b" * MiB)
    img.create("top.qcow2", "qcow2", backing_file="base.raw", backing_format="raw")
    with Source(look("top.qcow2"), connections=1) as source:
        assert read(source, 0, 512) == b"b" * 512
    with Source(look("top.qcow2", backing_chain=False), connections=1) as source:
        assert read(source, 0, 512) == bytes(512)
        with source.open() as backend:
            assert list(backend.extents()) == [ZeroExtent(0, MiB, zero=True, hole=True)]


@needs_qemu
def test_header_that_changes_after_the_look_opens_nothing_else(folder):
    img.create("top.qcow2", "qcow2", size=MiB)
    layers = look("top.qcow2")
    (folder / "secret.raw").write_bytes(b"s" * MiB)
    img.create("top.qcow2", "qcow2", backing_file="secret.raw", backing_format="raw")
    with Source(layers, connections=1) as source:
        assert read(source, 0, 512) == bytes(512)
