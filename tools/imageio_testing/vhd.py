# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""VHD images as programs other than qemu write them: any creator, any kind.

Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0.
"""

from __future__ import annotations

import os
import struct
from typing import Iterable, Union

from imageio_testing.qemu import Fill

SECTOR = 512
BLOCK = 2 << 20
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_HEADER = struct.Struct(">8sQQIIII16sII512s192s256x")
_NONE = 0xFFFFFFFFFFFFFFFF
_UNUSED = 0xFFFFFFFF


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track of a disk, which are never more than it has."""
    if sectors > 65535 * 16 * 255:
        sectors = 65535 * 16 * 255
    if sectors >= 65535 * 16 * 63:
        track, heads = 255, 16
        return sectors // track // heads, heads, track
    track = 17
    heads = max((sectors // track + 1023) // 1024, 4)
    if sectors // track >= heads * 1024 or heads > 16:
        track, heads = 31, 16
    if sectors // track >= heads * 1024:
        track, heads = 63, 16
    return sectors // track // heads, heads, track


def geometry_size(size: int) -> int:
    """Bytes that the geometry of a disk of `size` bytes tells."""
    cylinders, heads, track = geometry(size // SECTOR)
    return cylinders * heads * track * SECTOR


def make_vhd(
    path: Union[str, os.PathLike[str]],
    size: int,
    fills: Iterable[Fill] = (),
    *,
    creator: bytes = b"vbox",
    kind: int = DYNAMIC,
    parent: str = "parent.vhd",
    tells: int | None = None,
) -> None:
    """Write a VHD.

    Args:
        path: Of the new image.
        size: Bytes of the disk, a multiple of 512.
        fills: Data; what is none of them reads as zeroes.
        creator: Four bytes, the program that made it.
        kind: FIXED, DYNAMIC or DIFFERENCING.
        parent: Name that a differencing image has of its parent.
        tells: Size that the footer tells; None for the true one.
    """
    footer = _footer(size if tells is None else tells, creator, kind)
    with open(path, "wb") as f:
        if kind == FIXED:
            f.truncate(size)
            for fill in fills:
                f.seek(fill.offset)
                f.write(bytes([fill.value]) * fill.length)
            f.seek(size)
            f.write(footer)
            return
        table = _blocks(f, size, list(fills))
        entries = -(-size // BLOCK)
        f.seek(0)
        f.write(footer + _header(entries, parent if kind == DIFFERENCING else ""))
        f.write(struct.pack(f">{entries}I", *(table.get(n, _UNUSED) for n in range(entries))))
        f.seek(0, os.SEEK_END)
        f.write(footer)


def _blocks(f, size: int, fills: list[Fill]) -> dict[int, int]:  # type: ignore[no-untyped-def]
    """Write each block that holds data, after a bitmap that says all of it is there."""
    position = -(-(3 * SECTOR + 4 * -(-size // BLOCK)) // SECTOR) * SECTOR
    table = {}
    for number in range(-(-size // BLOCK)):
        start, data = number * BLOCK, bytearray(BLOCK)
        inside = [fill for fill in fills if fill.offset < start + BLOCK and fill.offset + fill.length > start]
        for fill in inside:
            first, last = max(fill.offset - start, 0), min(fill.offset + fill.length - start, BLOCK)
            data[first:last] = bytes([fill.value]) * (last - first)
        if inside:
            table[number] = position // SECTOR
            f.seek(position)
            f.write(b"\xff" * SECTOR + data)
            position += SECTOR + BLOCK
    return table


def _footer(size: int, creator: bytes, kind: int) -> bytes:
    offset = _NONE if kind == FIXED else SECTOR
    values = [b"conectix", 2, 0x10000, offset, 0, creator, 0x50000, b"Wi2k", size, size]
    values += [*geometry(size // SECTOR), kind, 0, b"sixteen bytes id", 0]
    return _summed(_FOOTER.pack(*values), 64)


def _header(entries: int, parent: str) -> bytes:
    name = parent.encode("utf-16-be")
    values = [b"cxsparse", _NONE, 3 * SECTOR, 0x10000, entries, BLOCK, 0, bytes(16), 0, 0, name, bytes(192)]
    return _summed(_HEADER.pack(*values), 36)


def _summed(data: bytes, at: int) -> bytes:
    """Put the checksum where it belongs: the complement of the sum of all other bytes."""
    return data[:at] + struct.pack(">I", ~sum(data) & 0xFFFFFFFF) + data[at + 4 :]
