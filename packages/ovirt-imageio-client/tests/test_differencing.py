# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import struct
import uuid

import hypothesis
import hypothesis.strategies as st
import pytest

from imageio_testing.differencing import make_vdi_child, make_vhdx_child
from imageio_testing.qemu import needs_qemu
from imageio_testing.vhd import DIFFERENCING, DYNAMIC, make_vhd
from ovirt_imageio.client.differencing import parent_of
from ovirt_imageio.common.qemu import img
from ovirt_imageio.common.units import MiB


def reader(path):
    data = path.read_bytes()
    return lambda offset, length: data[offset : offset + length]


@pytest.fixture(params=["vpc", "vhdx", "vdi"])
def child(request, tmp_path):
    path = tmp_path / "child"
    if request.param == "vpc":
        make_vhd(path, 4 * MiB, kind=DIFFERENCING, parent="base.vhd")
        return request.param, path, "base.vhd"
    make = {"vhdx": make_vhdx_child, "vdi": make_vdi_child}[request.param]
    parent = make(path, 4 * MiB)
    return request.param, path, str(parent) if parent else "unknown"


@needs_qemu
def test_child_tells_its_parent(child):
    fmt, path, parent = child
    assert parent_of(fmt, reader(path)) == parent


@needs_qemu
@pytest.mark.parametrize("fmt", ["vhdx", "vdi", "vpc", "qcow2", "vmdk"])
def test_whole_image_has_no_parent(tmp_path, fmt):
    img.create(str(tmp_path / "disk"), fmt, size=4 * MiB)
    assert parent_of(fmt, reader(tmp_path / "disk")) is None


def test_dynamic_vhd_has_no_parent(tmp_path):
    make_vhd(tmp_path / "disk", 4 * MiB, kind=DYNAMIC)
    assert parent_of("vpc", reader(tmp_path / "disk")) is None


@needs_qemu
def test_vdi_with_a_parent_is_a_child_whatever_its_type(tmp_path):
    parent = make_vdi_child(tmp_path / "disk", 4 * MiB, kind=1)
    assert isinstance(parent, uuid.UUID)
    assert parent_of("vdi", reader(tmp_path / "disk")) == str(parent)


@needs_qemu
def test_vdi_of_the_type_is_a_child_without_a_parent_too(tmp_path):
    """qemu reads it, with zeroes in place of what is missing."""
    make_vdi_child(tmp_path / "disk", 4 * MiB, parent=None)
    assert img.info(str(tmp_path / "disk"), fmt="vdi")
    assert parent_of("vdi", reader(tmp_path / "disk")) == "unknown"


@hypothesis.given(st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=40)), max_size=4), st.integers(0, 1 << 16))
def test_tables_of_a_vhdx_may_hold_anything(changes, entries):
    regions = bytearray(b"regi" + struct.pack("<4xI", entries) + bytes(64 << 10))
    for at, data in changes:
        regions[16 + 8 * at : 16 + 8 * at + len(data)] = data
    image = bytes(192 << 10) + bytes(regions)
    assert parent_of("vhdx", lambda offset, length: image[offset : offset + length]) in (None, "unknown")
