# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.client import formats
from ovirt_imageio.client.formats import Reference

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def reader(data):
    return lambda offset, length: data[offset : offset + length]


def qcow2(*, version=3, backing=b"", incompatible=0, extensions=(), offset=None, size=None):
    header = struct.pack(">4sIQI", b"QFI\xfb", version, 0, 0) + bytes(52)
    if version == 3:
        header += struct.pack(">QQQII", incompatible, 0, 0, 4, 104)
    for kind, data in extensions:
        header += struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
    header += bytes(8)
    if backing:
        header = header[:8] + struct.pack(">QI", len(header), len(backing)) + header[20:] + backing
    if offset is not None:
        header = header[:8] + struct.pack(">QI", offset, size) + header[20:]
    return header


def refs(fmt, data):
    return formats.references(fmt, reader(data))


@needs_qemu
@pytest.mark.parametrize("fmt", ["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"])
def test_probe_knows_what_qemu_img_creates(tmp_path, fmt):
    path = tmp_path / "image"
    done = subprocess.run(["qemu-img", "create", "-q", "-f", fmt, str(path), "1M"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this qemu-img cannot create {fmt}")
    data = path.read_bytes()
    assert formats.probe(data[: formats.PROBE_SIZE]) == fmt
    assert refs(fmt, data) == []


@needs_qemu
@pytest.mark.parametrize("fmt", ["qcow2", "qcow", "qed", "vmdk"])
def test_references_name_the_backing_file_that_qemu_img_set(tmp_path, fmt):
    base = "vmdk" if fmt == "vmdk" else "raw"
    run = {"cwd": tmp_path, "check": True, "capture_output": True}
    subprocess.run(["qemu-img", "create", "-q", "-f", base, "base.img", "1M"], **run)
    subprocess.run(["qemu-img", "create", "-q", "-f", fmt, "-b", "base.img", "-F", base, "top.img"], **run)
    [found] = refs(fmt, (tmp_path / "top.img").read_bytes())
    assert (found.kind, found.name) == ("backing", "base.img")
    assert found.format in (base, None)


@needs_qemu
def test_references_name_the_data_file_that_qemu_img_set(tmp_path):
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", "top.img", "1M"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert refs("qcow2", (tmp_path / "top.img").read_bytes()) == [Reference("data", "data.raw", "raw")]


@needs_qemu
def test_references_name_the_extents_of_a_flat_vmdk(tmp_path):
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "top.vmdk", "1M"]
    subprocess.run(command, cwd=tmp_path, check=True)
    data = (tmp_path / "top.vmdk").read_bytes()
    assert formats.probe(data[:2048]) == "vmdk"
    assert [(r.kind, r.name) for r in refs("vmdk", data)] == [("data", "top-flat.vmdk")]


def test_qcow2_version_2_has_no_feature_bits():
    assert refs("qcow2", qcow2(version=2, backing=b"base")) == [Reference("backing", "base")]


def test_qcow2_data_file_counts_without_its_feature_bit():
    data = qcow2(extensions=[(0x44415441, b"/etc/shadow")])
    assert refs("qcow2", data) == [Reference("data", "/etc/shadow", "raw")]


def test_qcow2_feature_bit_counts_without_a_data_file_name():
    assert refs("qcow2", qcow2(incompatible=4)) == [Reference("data", "", "raw")]


def test_qcow2_backing_format_is_read():
    data = qcow2(backing=b"b", extensions=[(0xE2792ACA, b"raw")])
    assert refs("qcow2", data) == [Reference("backing", "b", "raw")]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"QFI\xfb",
        qcow2()[:80],
        qcow2(offset=1 << 40, size=10),
        qcow2(offset=4, size=5000),
        qcow2(extensions=[(1, b"")])[:-8].replace(struct.pack(">II", 1, 0), struct.pack(">II", 1, 1 << 30)),
    ],
)
def test_qcow2_header_that_does_not_hold_together_is_refused(data):
    with pytest.raises(ValueError):
        refs("qcow2", data)


@given(st.sampled_from(["qcow2", "qcow", "qed", "vmdk"]), st.binary(max_size=300))
def test_no_header_breaks_the_reader(fmt, tail):
    magic = {"qcow2": b"QFI\xfb\0\0\0\3", "qcow": b"QFI\xfb\0\0\0\1", "qed": b"QED\0", "vmdk": b"KDMV"}[fmt]
    try:
        found = refs(fmt, magic + tail)
    except ValueError:
        return
    assert all(r.kind in ("data", "backing") for r in found)


def test_vmdk_sparse_without_capacity_is_a_descriptor_of_other_files():
    text = b'# Disk DescriptorFile\nRW 100 FLAT "/etc/shadow" 0\nRW 1 ZERO\nparentFileNameHint="p.vmdk"\n'
    head = struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 0, 128, 1, 2).ljust(512, b"\0") + text.ljust(1024, b"\0")
    assert [(r.kind, r.name) for r in refs("vmdk", head)] == [("data", "/etc/shadow"), ("backing", "p.vmdk")]


@needs_qemu
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("first", [b"# Made by a program", b"#", b" ", b"# Disk DescriptorFile", b"# a\n \n#b"])
def test_vmdk_descriptor_may_begin_with_comments(tmp_path, first, end):
    text = first.replace(b"\n", end) + end + b"version=1" + end + b'RW 100 FLAT "/etc/shadow" 0' + end
    (tmp_path / "disk").write_bytes(text)
    said = subprocess.run(["qemu-img", "info", tmp_path / "disk"], capture_output=True, text=True)
    assert "file format: vmdk" in said.stdout or "vmdk" in said.stderr or "CID" in said.stderr, said
    assert formats.probe(text) == "vmdk"
    assert [(r.kind, r.name) for r in refs("vmdk", text)] == [("data", "/etc/shadow")]


@pytest.mark.parametrize("text", [b"# a comment\n", b"#!/bin/sh\nversion=1\n"[:12], b"version=4\n", b"a\nversion=1\n"])
def test_other_text_is_raw(text):
    assert formats.probe(text) == "raw"


@pytest.mark.parametrize("name", ["base.img", "/path/base.img", "dir/with:colon", "./nbd:x", "ünï.qcow2"])
def test_paths_are_plain_files(name):
    assert formats.names_plain_file(name)


@pytest.mark.parametrize(
    "name", ["", "json:{}", "nbd:localhost:1", "nbd+unix:///x", "http://host/x", "fat:rw:/", "a:b"]
)
def test_protocols_are_no_plain_files(name):
    assert not formats.names_plain_file(name)


def test_anything_unknown_is_raw():
    assert formats.probe(b"") == "raw"
    assert formats.probe(b"\xeb\x63\x90" + bytes(600)) == "raw"
