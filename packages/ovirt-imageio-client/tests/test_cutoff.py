# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import struct
import subprocess

import hypothesis
import hypothesis.strategies as st
import pytest

from imageio_testing.qemu import Fill, MiB, make_image, needs_qemu
from ovirt_imageio.client.cutoff import end_of_data


def reader(data):
    return lambda offset, length: data[offset : offset + length]


KINDS = [
    ["-O", "vdi"],
    ["-O", "vdi", "-o", "static=on"],
    ["-O", "qcow"],
    ["-O", "qcow", "-c"],
    ["-O", "qcow2"],
    ["-O", "qcow2", "-o", "cluster_size=512"],
    ["-O", "qcow2", "-o", "cluster_size=2M"],
    ["-O", "qcow2", "-o", "compat=0.10"],
    ["-O", "qcow2", "-o", "extended_l2=on"],
    ["-O", "vmdk"],
    ["-O", "parallels"],
    ["-O", "qed"],
    ["-O", "vhdx"],
]


@needs_qemu
@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("cut", [1, 511])
def test_end_that_is_missing_is_told(tmp_path, options, cut):
    """Data up to the end of the disk, which are the last of the file."""
    with open(tmp_path / "raw", "wb") as f:
        f.write(os.urandom(2 * MiB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, tmp_path / "raw", tmp_path / "disk"])
    data = (tmp_path / "disk").read_bytes()
    if "vhdx" in options:  # its blocks are larger than the disk
        data = data[: data.rindex((tmp_path / "raw").read_bytes()[-512:]) + 512]
    assert end_of_data(options[1], reader(data), len(data)) <= len(data)
    shorter = data[:-cut]
    end = end_of_data(options[1], reader(shorter), len(shorter))
    assert len(shorter) < end <= len(data)


def qcow2_writing(path, *commands, options="extended_l2=on"):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1M"], check=True)
    args = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", *args, path], check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


@needs_qemu
def test_part_of_a_cluster_that_is_not_allocated_may_be_missing(tmp_path):
    data = qcow2_writing(tmp_path / "disk", "write -P 1 0 2k", "write -P 2 8k 2k")
    offset = len(data) - len(data) % 65536
    assert data[offset + 10 * 1024 - 1] == 2
    for keep, missing in ((10 * 1024, 0), (10 * 1024 - 1, 1), (2048, 8192)):
        end = end_of_data("qcow2", reader(data[: offset + keep]), offset + keep)
        assert max(0, end - offset - keep) == missing


@needs_qemu
@pytest.mark.parametrize("hidden", ["write -z 0 64k", "write -c -P 1 0 64k"])
def test_cluster_that_is_zero_or_packed_may_be_missing(tmp_path, hidden):
    data = qcow2_writing(tmp_path / "disk", "write -P 1 64k 64k", hidden, options="cluster_size=64k")
    size = len(data) - 1
    assert end_of_data("qcow2", reader(data[:size]), size) <= max(size, len(data) // 65536 * 65536)


@needs_qemu
def test_table_that_is_cut_off_is_told(tmp_path):
    """A table at the end of the file: what it has beyond reads as nothing, and qemu-img check tells of leaks."""
    data = bytearray(qcow2_writing(tmp_path / "disk", "write -P 1 0 64k", options="cluster_size=64k"))
    (table,) = struct.unpack_from(">Q", data, 40)
    (entries,) = struct.unpack_from(">Q", data, table)
    entries &= (1 << 56) - 512
    moved = len(data)
    data += data[entries : entries + 65536]
    struct.pack_into(">Q", data, table, moved | 1 << 63)
    for size in (len(data), len(data) - 1, moved + 8):
        assert end_of_data("qcow2", reader(data[:size]), size) == (len(data) if size < len(data) else table + 8)


@needs_qemu
@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("fills", [[], [Fill(0, MiB, 1)], [Fill(5 * MiB, MiB, 1), Fill(MiB, 512, 2)]])
def test_data_end_with_the_file(tmp_path, options, fills):
    make_image(tmp_path / "raw", "raw", 9 * MiB, fills)
    # With -c, qemu-img 7.2 makes a qcow that is whole, and fails without a word.
    subprocess.run(["qemu-img", "convert", "-f", "raw", *options, tmp_path / "raw", tmp_path / "disk"])
    done = subprocess.run(
        ["qemu-img", "compare", "-q", "-f", "raw", "-F", options[1], tmp_path / "raw", tmp_path / "disk"]
    )
    assert done.returncode == 0
    data = (tmp_path / "disk").read_bytes()
    end = end_of_data(options[1], reader(data), len(data))
    assert 0 < end <= len(data)
    if options[1] in ("vdi", "qcow"):
        assert len(data) - end < 512


def test_vmdk_with_its_directory_at_its_end_is_not_known():
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, 3, 2048, 128, 0, 0, 512, 0, 2**64 - 1)
    assert end_of_data("vmdk", reader(head.ljust(4096, b"\0")), 4096) == 0


@pytest.mark.parametrize("fmt", ["vdi", "qcow", "qcow2", "vmdk", "parallels", "qed", "vhdx"])
def test_header_that_is_cut_off_has_no_end(fmt):
    head = b"KDMV\0\0\0\1" if fmt == "vmdk" else b"QFI\xfb\0\0\0\1"
    assert end_of_data(fmt, reader(head), 8) > 8


def test_other_formats_are_not_known():
    assert end_of_data("vpc", reader(bytes(1024)), 1024) == 0


FORMATS = ["vdi", "qcow", "qcow2", "vmdk", "parallels"]


@hypothesis.given(st.binary(max_size=600), st.sampled_from(FORMATS))
def test_tables_may_hold_anything(data, fmt):
    assert end_of_data(fmt, reader(data), len(data)) >= 0


@hypothesis.given(
    st.integers(9, 21), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**64 - 1), max_size=80), st.integers(0, 24)
)
def test_tables_of_a_qcow2_may_lead_anywhere(bits, disk, entries, features):
    size = (1 << bits) + 1
    head = struct.pack(">4sI12x IQIIQ 24x Q24x", b"QFI\xfb", 3, bits, disk, 0, len(entries), 104, features)
    tables = head[:104] + struct.pack(f">{len(entries)}Q", *entries)
    tables += b"".join(struct.pack(">Q", 1 << bits | flag << 63) for flag in (0, 1)) * 4
    assert end_of_data("qcow2", reader(tables.ljust(size, b"\0")), size) >= 0


@hypothesis.given(*[st.integers(0, 2**64 - 1)] * 2, *[st.integers(0, 2**32 - 1)] * 2, st.integers(0, 2**64 - 1))
def test_tables_of_a_vmdk_may_lead_anywhere(capacity, grain, entries, flags, directory):
    head = struct.pack("<4sIIQQQQIQQ", b"KDMV", 1, flags, capacity, grain, 0, 0, entries, 0, directory % 4)
    assert end_of_data("vmdk", reader(head.ljust(4096, b"\1")), 4096) >= 0


@hypothesis.given(*[st.integers(0, 2**32 - 1)] * 2, st.integers(0, 2**64 - 1))
def test_table_of_parallels_may_lead_anywhere(tracks, count, sectors):
    head = struct.pack("<16s12xIIQ", b"WithouFreSpacExt", tracks, count, sectors)
    assert end_of_data("parallels", reader(head.ljust(4096, b"\1")), 4096) >= 0


@hypothesis.given(st.integers(0, 2**64 - 1), st.integers(9, 16), st.integers(6, 13), st.integers(0, 2**64 - 1))
def test_tables_of_a_qcow_may_lead_anywhere(size, cluster_bits, l2_bits, table):
    head = struct.pack(">4sIQII QBBHIQ", b"QFI\xfb", 1, 0, 0, 0, size, cluster_bits, l2_bits, 0, 0, table % 256)
    data = head + struct.pack(">Q", table) * 40
    assert end_of_data("qcow", reader(data), len(data)) >= 0
