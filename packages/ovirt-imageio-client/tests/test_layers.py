# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The kind of a file, by its beginning, its end, and its name. More of `look` is in test_local."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import struct
import tarfile
import tempfile

import hypothesis
import hypothesis.strategies as st
import pytest

from imageio_testing.dmg import make_dmg
from imageio_testing.qemu import Backing, Fill, make_image, needs_qemu
from imageio_testing.vhd import DIFFERENCING, DYNAMIC, FIXED, make_vhd
from ovirt_imageio.client.layers import InvalidImage, Layer, UnsupportedImage, look
from ovirt_imageio.client.local import Source
from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.common.units import KiB, MiB

SIZE = 5 * MiB + 512


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def content(layers):
    with Source(layers) as source, source.open() as backend:
        data = bytearray(source.size)
        backend.read_into(0, data)
        return bytes(data)


@pytest.mark.parametrize("fmt", [None, "vpc"])
def test_fixed_vhd_is_its_file_without_the_footer(folder, fmt):
    make_vhd("disk.vhd", SIZE, [Fill(0, 512, 1), Fill(SIZE - 512, 512, 2)], kind=FIXED)
    layers = look("disk.vhd", fmt=fmt)
    assert layers == (Layer("disk.vhd", "vpc", 0, SIZE, is_plain=True),)
    assert content(layers) == b"\1" * 512 + bytes(SIZE - 1024) + b"\2" * 512


def test_fixed_vhd_inside_a_tar_file(folder):
    make_vhd("disk.vhd", MiB, [Fill(0, MiB, 7)], kind=FIXED)
    with tarfile.open("vm.ova", "w") as tar:
        tar.add("disk.vhd")
    layers = look("vm.ova", member="disk.vhd")
    assert (layers[0].fmt, layers[0].size) == ("vpc", MiB)
    assert content(layers) == b"\7" * MiB


@needs_qemu
def test_fixed_vhd_below_another_image(folder):
    make_vhd("base.vhd", MiB, [Fill(0, MiB, 7)], kind=FIXED)
    make_image("top.qcow2", "qcow2", 2 * MiB, [Fill(0, 64 * KiB, 9)], backing=Backing("base.vhd", "vpc"))
    assert content(look("top.qcow2")) == b"\x09" * 64 * KiB + b"\7" * (MiB - 64 * KiB) + bytes(MiB)


def test_fixed_vhd_that_is_given_as_raw_is_sent_with_its_footer(folder):
    make_vhd("disk.vhd", SIZE, kind=FIXED)
    assert look("disk.vhd", fmt="raw") == (Layer("disk.vhd", "raw"),)


@pytest.mark.parametrize("fmt", [None, "vpc"])
def test_fixed_vhd_that_misses_something_is_refused(folder, fmt):
    make_vhd("disk.vhd", SIZE, kind=FIXED, tells=SIZE + 512)
    with pytest.raises(InvalidImage, match=rf"fixed VHD of {SIZE + 512} bytes, after {SIZE} bytes.*fmt=\"raw\""):
        look("disk.vhd", fmt=fmt)


def test_footer_of_a_smaller_disk_is_a_guests_unless_the_format_is_given(folder):
    make_vhd("disk", SIZE, kind=FIXED, tells=SIZE - 512)
    with pytest.raises(InvalidImage, match="is it damaged"):
        look("disk")
    assert look("disk", fmt="vpc")[0].size == SIZE


@pytest.mark.parametrize("kind", [DYNAMIC, DIFFERENCING])
@pytest.mark.parametrize("fmt", [None, "vpc"])
def test_vhd_that_lost_its_beginning_is_refused(folder, kind, fmt):
    make_vhd("disk", SIZE, kind=kind)
    with open("disk", "r+b") as f:
        f.write(bytes(512))
    with pytest.raises(InvalidImage, match="disk ends with the footer of a VHD that is not fixed, and does not begin"):
        look("disk", fmt=fmt)
    assert look("disk", fmt="raw")[0].is_plain is False


@pytest.mark.parametrize("name", ["disk.vhd", "DISK.VHD", "disk.dmg"])
def test_name_that_needs_a_mark_at_the_end_is_refused_without_one(folder, name):
    make_vhd(name, SIZE, kind=FIXED)
    os.truncate(name, SIZE)
    with pytest.raises(InvalidImage, match=r'has no mark of one: is it cut off\? Or pass fmt="raw"'):
        look(name)
    assert look(name, fmt="raw")[0].fmt == "raw"


@pytest.mark.parametrize("creator", [b"vbox", b"wa\0\0", b"win "])
def test_dynamic_vhd_is_as_large_as_it_says(folder, creator):
    make_vhd("disk", SIZE, creator=creator)
    assert look("disk") == (Layer("disk", "vpc", options=(("force_size_calc", "current_size"),)),)


@pytest.mark.parametrize("kwargs", [{}, {"fmt": "vpc"}, {"allow_external": True}, {"backing_chain": False}])
def test_differencing_vhd_is_refused_with_its_parent(folder, kwargs):
    make_vhd("disk", SIZE, kind=DIFFERENCING, parent="base.vhd")
    with pytest.raises(UnsupportedImage, match=r"only what changed since its parent \(base\.vhd\): merge"):
        look("disk", **kwargs)


def test_differencing_vhd_below_another_image_is_refused(folder):
    make_vhd("base", SIZE, kind=DIFFERENCING)
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 2, 72, 4, 16, SIZE) + bytes(40) + b"base"
    (folder / "top").write_bytes(header)
    with pytest.raises(UnsupportedImage, match="since its parent"):
        look("top")


def test_disk_image_of_macos_is_known_by_its_end(folder):
    make_dmg("disk.img", b"x" * MiB)
    assert look("disk.img") == (Layer("disk.img", "dmg"),)


def test_packed_file_is_refused_with_what_to_do(folder):
    (folder / "disk.raw.gz").write_bytes(gzip.compress(os.urandom(MiB)))
    with pytest.raises(
        UnsupportedImage, match=r'packed by gzip; unpack it first: gunzip -k disk.raw.gz, or pass fmt="raw"'
    ):
        look("disk.raw.gz")
    assert look("disk.raw.gz", fmt="raw")[0].fmt == "raw"


def test_packed_member_is_refused(folder):
    (folder / "disk.gz").write_bytes(gzip.compress(os.urandom(MiB)))
    with tarfile.open("vm.ova", "w") as tar:
        tar.add("disk.gz")
    with pytest.raises(UnsupportedImage, match=r"disk\.gz is packed by gzip; unpack it first: gunzip -k disk\.gz"):
        look("vm.ova", member="disk.gz")


def test_packed_backing_file_is_refused(folder):
    (folder / "base").write_bytes(gzip.compress(os.urandom(MiB)))
    (folder / "top").write_bytes(struct.pack(">4sIQIIQ", b"QFI\xfb", 2, 72, 4, 16, SIZE) + bytes(40) + b"base")
    with pytest.raises(UnsupportedImage, match="base is packed by gzip"):
        look("top")


def test_tar_file_without_a_member_is_refused(folder):
    (folder / "disk.raw").write_bytes(os.urandom(MiB))
    with tarfile.open("vm.ova", "w") as tar:
        tar.add("disk.raw")
    with pytest.raises(UnsupportedImage, match=r"is a tar file \(OVA\); name the image inside by member="):
        look("vm.ova")


@pytest.mark.parametrize(
    ("version", "at", "method", "how"),
    [(2, 32, 1, "AES"), (3, 32, 2, "LUKS"), (3, 32, 9, "method 9"), (1, 36, 1, "AES")],
)
def test_encrypted_image_is_refused(folder, version, at, method, how):
    header = bytearray(struct.pack(">4sI", b"QFI\xfb", version) + bytes(200))
    struct.pack_into(">I", header, at, method)
    (folder / "disk").write_bytes(header)
    with pytest.raises(UnsupportedImage, match=rf"is encrypted \({how}\): decrypt it first"):
        look("disk")
    assert look("disk", fmt="raw")[0].fmt == "raw"


@pytest.mark.parametrize("magic", [b"vhdxfile", b"conectix"])
@pytest.mark.parametrize("at", [16, 20, 192 * KiB + 16, 192 * KiB + 32])
@pytest.mark.parametrize("offset", [b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x10"])
def test_headers_that_lead_nowhere_are_no_error_of_ours(folder, magic, at, offset):
    """The ways of a VHDX and a VHD to other parts of the file may end anywhere."""
    data = bytearray(magic.ljust(256 * KiB, b"\xff"))
    data[192 * KiB : 192 * KiB + 4] = b"regi"
    data[at : at + 4] = offset
    data[60:64] = b"\0\0\0\4"
    (folder / "disk").write_bytes(data)
    with contextlib.suppress(UnsupportedImage, InvalidImage):
        look("disk")


MAGICS = [b"QFI\xfb\0\0\0\1", b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3", b"QED\0", b"KDMV", b"vhdxfile", b"conectix"]
MAGICS += [
    b"# Disk DescriptorFile\n",
    b"<<< QEMU VM Virtual Disk Image >>>".ljust(64) + b"\x7f\x10\xda\xbe",
    b"COWD",
    b"",
]


@hypothesis.given(st.sampled_from(MAGICS), st.binary(max_size=1200), st.binary(max_size=512))
def test_any_header_is_taken_or_refused(magic, middle, end):
    with tempfile.NamedTemporaryFile() as f:
        f.write(magic + middle + bytes(4096) + end)
        f.flush()
        with contextlib.suppress(ImageioError):
            look(f.name)


@pytest.mark.parametrize(("data", "fmt"), [(b"", "raw"), (b"x", "raw"), (b"conectix", "vpc"), (b"\xff" * 511, "raw")])
def test_short_files_have_neither_beginning_nor_end(folder, data, fmt):
    (folder / "disk").write_bytes(data)
    assert look("disk") == (Layer("disk", fmt),)


def test_tar_file_that_cannot_be_read_is_named(folder, monkeypatch):
    with tarfile.open("vm.ova", "w"):
        pass

    def broken(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tarfile, "open", broken)
    with pytest.raises(OSError, match="Input/output error: 'vm.ova'"):
        look("vm.ova", member="disk")
