# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os

import pytest

from imageio_testing.vhd import DIFFERENCING, DYNAMIC, FIXED, geometry_size, make_vhd
from ovirt_imageio.client import vhd
from ovirt_imageio.common.units import MiB

SIZE = 65 * MiB + 512


@pytest.fixture
def footer_of(tmp_path):
    """The footer of an image, as it was written."""

    def footer(**options):
        path = tmp_path / "disk.vhd"
        make_vhd(path, options.pop("size", SIZE), **options)
        with open(path, "rb") as f:
            f.seek(-512, os.SEEK_END)
            return f.read()

    return footer


@pytest.mark.parametrize("kind", [FIXED, DYNAMIC, DIFFERENCING])
def test_footer_is_read(footer_of, kind):
    footer = vhd.parse(footer_of(kind=kind, creator=b"wa\0\0"))
    assert footer is not None
    assert (footer.kind, footer.creator, footer.size) == (kind, b"wa\0\0", SIZE)
    assert footer.geometry_size == geometry_size(SIZE) < SIZE
    assert footer.is_whole


@pytest.mark.parametrize("at", [8, 30, 60, 67, 511])
def test_footer_with_a_wrong_byte_is_told(footer_of, at):
    data = bytearray(footer_of())
    data[at] ^= 1
    footer = vhd.parse(bytes(data))
    assert footer is not None
    assert not footer.is_whole


@pytest.mark.parametrize("data", [b"", b"conectix", bytes(512), b"x" * 512])
def test_what_is_no_footer_is_none(data):
    assert vhd.parse(data) is None
    assert not vhd.is_last(data)


def test_only_a_whole_footer_marks_the_end(footer_of):
    for kind in (FIXED, DYNAMIC, DIFFERENCING):
        data = footer_of(kind=kind)
        assert vhd.is_last(data)
        assert not vhd.is_last(data[:100] + b"x" + data[101:])
    assert not vhd.is_last(footer_of(kind=7))


@pytest.mark.parametrize("creator", [b"vbox", b"wa\0\0", b"win ", b"vs\0\0", b"qem2", b"none"])
@pytest.mark.parametrize("size", [SIZE, 17 * 4 * 100 * 512])
def test_size_counts_whoever_made_the_image(footer_of, creator, size):
    assert vhd.parse(footer_of(creator=creator, size=size)).size_calculation == "current_size"


@pytest.mark.parametrize("creator", [b"vpc ", b"qemu"])
def test_geometry_counts_where_it_always_did_and_nothing_is_lost(footer_of, creator):
    exact = 17 * 4 * 100 * 512
    assert vhd.parse(footer_of(creator=creator, size=exact)).size_calculation == "chs"
    assert vhd.parse(footer_of(creator=creator)).size_calculation == "current_size"


def test_name_of_the_parent_is_read(tmp_path):
    make_vhd(tmp_path / "child.vhd", SIZE, kind=DIFFERENCING, parent="säule.vhd")
    with open(tmp_path / "child.vhd", "rb") as f:
        footer = vhd.parse(f.read(512))
        f.seek(footer.header)
        header = f.read(vhd.HEADER_SIZE)
    assert vhd.parent_name(header) == "säule.vhd"
    assert vhd.parent_name(header[:500]) == ""
    assert vhd.parent_name(bytes(1024)) == ""
