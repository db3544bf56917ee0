# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The footer of a VHD. Pure.

    fixed ──────── | the disk, byte for byte                        | footer |
    dynamic ────── | footer | header | table | blocks that hold data | footer |
    differencing ─ as dynamic, for what changed since another image, its parent

A footer tells the size of the disk twice: in bytes, and as a geometry, which can tell fewer.
Programs differ in which one counts. The footer names its creator, by which qemu decides. Up to
qemu 9.2 the geometry counts for all creators but `win `, `qem2`, `d2v `, `CTXS` and `tap`. From
10.0 on it counts for `vpc ` and `qemu` alone. So qemu is told which one counts.

Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SECTOR = 512
"""Bytes of a footer."""

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
"""Types of an image."""

HEADER_SIZE = 1024
"""Bytes of the header of an image that is not fixed."""

_COOKIE = b"conectix"
_FOOTER = struct.Struct(">8s4s4sQ4s4s4s4sQQHBBI4s")
_HEADER = struct.Struct(">8s56x512s")
_BY_GEOMETRY = (b"vpc ", b"qemu")
"""Creators whose disks are as large as their geometry for every version of qemu."""


class Footer(NamedTuple):
    """The fields of a footer that matter.

    Attributes:
        kind: FIXED, DYNAMIC, DIFFERENCING, or a number without a meaning.
        creator: Four bytes that name the program that made the image.
        size: Bytes of the disk.
        geometry_size: Bytes of the disk that its geometry tells.
        header: Offset of the header of an image that is not fixed.
        is_whole: Its checksum is right.
    """

    kind: int
    creator: bytes
    size: int
    geometry_size: int
    header: int
    is_whole: bool

    @property
    def size_calculation(self) -> str:
        """How qemu shall calculate the size, so that it reads all of the disk: its option `force_size_calc`."""
        by_geometry = self.creator in _BY_GEOMETRY and self.geometry_size >= self.size
        return "chs" if by_geometry else "current_size"


def parse(sector: bytes) -> Footer | None:
    """Read a footer, or the copy of it that a dynamic image begins with.

    Args:
        sector: 512 bytes.

    Returns:
        None if it is none.
    """
    if len(sector) < SECTOR or sector[:8] != _COOKIE:
        return None
    values = _FOOTER.unpack_from(sector)
    cylinders, heads, track = values[10:13]
    (told,) = struct.unpack(">I", values[14])
    found = ~(sum(sector[:SECTOR]) - sum(values[14])) & 0xFFFFFFFF
    return Footer(
        kind=values[13],
        creator=values[5],
        size=values[9],
        geometry_size=cylinders * heads * track * SECTOR,
        header=values[3],
        is_whole=told == found,
    )


def is_last(sector: bytes) -> bool:
    """Tell if the last 512 bytes of a file are the footer of an image, beyond doubt."""
    footer = parse(sector)
    return footer is not None and footer.kind in (FIXED, DYNAMIC, DIFFERENCING) and footer.is_whole


def parent_name(header: bytes) -> str:
    """Read from the header of a differencing image what its parent was called; empty if it does not tell."""
    if len(header) < _HEADER.size:
        return ""
    magic, name = _HEADER.unpack_from(header)
    return str(name.decode("utf-16-be", "replace").partition("\0")[0]) if magic == b"cxsparse" else ""
