# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import struct
import subprocess

import hypothesis
import hypothesis.strategies as st
import pytest

from imageio_testing.qemu import Fill, MiB, make_image, needs_qemu
from ovirt_imageio.client.cutoff import end_of_data


def reader(data):
    return lambda offset, length: data[offset : offset + length]


@needs_qemu
@pytest.mark.parametrize(
    "options", [["-O", "vdi"], ["-O", "vdi", "-o", "static=on"], ["-O", "qcow"], ["-O", "qcow", "-c"]]
)
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
    end = end_of_data(options[1], reader(data))
    assert 0 < end <= len(data)
    assert len(data) - end < 512


@pytest.mark.parametrize("fmt", ["vdi", "qcow"])
def test_header_that_is_cut_off_has_no_end(fmt):
    assert end_of_data(fmt, reader(b"QFI\xfb\0\0\0\1")) > 8


def test_other_formats_are_not_known():
    assert end_of_data("qcow2", reader(bytes(1024))) == 0


@hypothesis.given(st.binary(max_size=600), st.sampled_from(["vdi", "qcow"]))
def test_tables_may_hold_anything(data, fmt):
    assert end_of_data(fmt, reader(data)) >= 0


@hypothesis.given(st.integers(0, 2**64 - 1), st.integers(9, 16), st.integers(6, 13), st.integers(0, 2**64 - 1))
def test_tables_of_a_qcow_may_lead_anywhere(size, cluster_bits, l2_bits, table):
    head = struct.pack(">4sIQII QBBHIQ", b"QFI\xfb", 1, 0, 0, 0, size, cluster_bits, l2_bits, 0, 0, table % 256)
    data = head + struct.pack(">Q", table) * 40
    assert end_of_data("qcow", reader(data)) >= 0
