# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an image has only what changed since another one, its parent. Pure.

Programs that take snapshots make them, such as VirtualBox and Hyper-V. A VHD of this kind is
read by qemu with zeroes in place of its parent, and so is a VDI that tells no parent. Of a VHDX
it says nothing but "Invalid argument". Formats that qemu reads together with a backing file are
not meant here, see `formats.references`.

Sources: Microsoft "Virtual Hard Disk Image Format Specification"; [MS-VHDX] §2.2.3 and §2.6;
VirtualBox, include/VBox/vd.h and src/VBox/Storage/VDICore.h.
"""

from __future__ import annotations

import struct
import uuid

from ovirt_imageio.client import vhd
from ovirt_imageio.client.formats import Read


def parent_of(fmt: str, read: Read) -> str | None:
    """Tell what an image needs as its parent.

    Args:
        fmt: Format of the image.
        read: Reads the image's file.

    Returns:
        The parent's name or number, `unknown` if it has one and does not tell; None if it has none.
    """
    readers = {"vpc": _vhd, "vhdx": _vhdx, "vdi": _vdi}
    return readers[fmt](read) if fmt in readers else None


def _vhd(read: Read) -> str | None:
    footer = vhd.parse(read(0, vhd.SECTOR))
    if footer is None or footer.kind != vhd.DIFFERENCING:
        return None
    return vhd.parent_name(read(footer.header, vhd.HEADER_SIZE)) or "unknown"


_VDI_TYPE_AT, _VDI_DIFFERENCING, _VDI_PARENT_AT = 0x4C, 4, 0x1A8


def _vdi(read: Read) -> str | None:
    head = read(0, 512)
    if len(head) < _VDI_PARENT_AT + 16:
        return None
    (kind,) = struct.unpack_from("<I", head, _VDI_TYPE_AT)
    parent = head[_VDI_PARENT_AT : _VDI_PARENT_AT + 16]
    if kind != _VDI_DIFFERENCING and not any(parent):
        return None
    return str(uuid.UUID(bytes_le=parent)) if any(parent) else "unknown"


_VHDX_REGIONS_AT = 192 << 10
_VHDX_TABLE_SIZE = 64 << 10
_VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_VHDX_HAS_PARENT = 2


def _vhdx(read: Read) -> str | None:
    regions = read(_VHDX_REGIONS_AT, _VHDX_TABLE_SIZE)
    start = _item(regions, _VHDX_METADATA, table=b"regi", count=("<8xI", 16), entry="<16sQ8x")
    if start is None:
        return None
    metadata = read(start, _VHDX_TABLE_SIZE)
    at = _item(metadata, _VHDX_PARAMETERS, table=b"metadata", count=("<10xH", 32), entry="<16sI12x")
    parameters = b"" if at is None else read(start + at, 8)
    if len(parameters) < 8:
        return None
    (flags,) = struct.unpack_from("<4xI", parameters)
    return "unknown" if flags & _VHDX_HAS_PARENT else None


def _item(data: bytes, wanted: bytes, *, table: bytes, count: tuple[str, int], entry: str) -> int | None:
    """Find the offset of an item in a table of a VHDX.

    Args:
        data: The table.
        wanted: Id of the item.
        table: First bytes of the table.
        count: Where its number of entries is, and where the first of them begins.
        entry: An entry, beginning with id and offset.
    """
    form, position = count
    if not data.startswith(table) or len(data) < position:
        return None
    (entries,) = struct.unpack_from(form, data)
    step = struct.calcsize(entry)
    for at in range(position, min(position + entries * step, len(data) - step + 1), step):
        found, offset = struct.unpack_from(entry, data, at)
        if found == wanted:
            return int(offset)
    return None
