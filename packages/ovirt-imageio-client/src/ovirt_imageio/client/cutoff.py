# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the file of an image ends before its data do, where qemu does not look. Pure.

qemu reads what is missing as zeroes, and `qemu-img check` does not notice all of it:

    qcow (version 1) ── it knows none
    VDI ─────────────── it does not ask where the file ends
    qcow2, VMDK ─────── it takes a cluster that begins inside the file for whole
    Parallels ───────── the same, up to qemu 8.0
    QED, VHDX ───────── it counts the file in sectors, and a part of one as a whole

Sources: qemu docs/interop/qcow2.txt, qed_spec.txt and parallels.txt, block/qcow.c for the header;
VMware "Virtual Disk Format 1.1"; VirtualBox, src/VBox/Storage/VDICore.h; [MS-VHDX] §2.
"""

from __future__ import annotations

import struct
import sys
from array import array
from typing import Iterator

from ovirt_imageio.client.formats import Read

_MOST_TABLES = 1 << 20
_SECTOR = 512
_PIECE = 1 << 18
"""Entries of a table that are read at a time."""


def end_of_data(fmt: str, read: Read, size: int) -> int:
    """Tell where the data of an image end in its file, as far as its tables say; 0 where this is not known.

    Args:
        fmt: Format of the image.
        read: Reads the image's file.
        size: Bytes of the file. Of what ends before, not all is looked at.
    """
    readers = {
        "vdi": _vdi,
        "qcow": _qcow,
        "qcow2": _qcow2,
        "vmdk": _vmdk,
        "parallels": _parallels,
        "qed": _whole_sectors,
        "vhdx": _whole_sectors,
    }
    return readers[fmt](read, size) if fmt in readers else 0


def _whole_sectors(read: Read, size: int) -> int:
    """Of these formats all that a file holds, and the file itself, is made of whole sectors."""
    return -(-size // _SECTOR) * _SECTOR


def _vdi(read: Read, size: int) -> int:
    head = read(0, 512)
    if len(head) < 512:
        return 512
    (start,) = struct.unpack_from("<I", head, 0x158)
    block, extra, _, allocated = struct.unpack_from("<IIII", head, 0x178)
    return int(start + allocated * (block + extra))


_QCOW = struct.Struct(">24xQBB6xQ")


def _qcow(read: Read, size: int) -> int:
    head = read(0, 48)
    if len(head) < 48:
        return 48
    disk, cluster_bits, l2_bits, table = _QCOW.unpack_from(head)
    if not 9 <= cluster_bits <= 16 or not 6 <= l2_bits <= 13:
        return 0  # qemu refuses it
    count = min(-(-disk // (1 << (cluster_bits + l2_bits))), _MOST_TABLES)
    ends: list[int] = [table + 8 * count]
    for offset in _numbers(read(table, 8 * count)):
        ends.append(offset + (8 << l2_bits) if offset else 0)
        entries = _numbers(read(offset, 8 << l2_bits)) if offset else ()
        ends.append(max((_qcow_end(entry, cluster_bits) for entry in entries), default=0))
    return max(ends)


def _qcow_end(entry: int, cluster_bits: int) -> int:
    if not entry >> 63:
        return entry + (1 << cluster_bits) if entry else 0
    bits = 63 - cluster_bits
    return (entry & ((1 << bits) - 1)) + (entry >> bits & ((1 << cluster_bits) - 1))


def _numbers(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{len(data) // 8}Q", data[: len(data) // 8 * 8])


_QCOW2 = struct.Struct(">20xIQ4xIQ")
_QCOW2_FEATURES = struct.Struct(">72xQ")
_QCOW2_EXTERNAL_DATA, _QCOW2_EXTENDED_L2 = 1 << 2, 1 << 4
_QCOW2_OFFSET = (1 << 56) - (1 << 9)
_QCOW2_MOST_L1 = 4 << 20
_SUBCLUSTERS = 32


def _qcow2(read: Read, size: int) -> int:
    """The end of the one cluster in which the file ends: those that begin later, qemu-img check sees.

    Of a data cluster counts what the disk has of it, and which of its parts are allocated.
    """
    head = read(0, 104)
    if len(head) < 72:
        return 72
    bits, disk, count, table = _QCOW2.unpack_from(head)
    if not 9 <= bits <= 21 or count > _QCOW2_MOST_L1:
        return 0  # qemu refuses it
    (features,) = _QCOW2_FEATURES.unpack_from(head) if len(head) == 104 and head[7] >= 3 else (0,)
    cluster = 1 << bits
    last = size - size % cluster
    end = int(table + 8 * count)
    if last in (0, size):
        return end
    width = 16 if features & _QCOW2_EXTENDED_L2 else 8
    for number, entry in enumerate(_numbers(read(table, 8 * count))):
        offset = entry & _QCOW2_OFFSET
        if offset == last:
            end = max(end, last + cluster)
        elif offset and not features & _QCOW2_EXTERNAL_DATA:
            entries = read(offset, cluster)
            for index in _qcow2_uses(entries, last, width):
                start = (number * (cluster // width) + index) * cluster
                allocated = _qcow2_allocated(entries, index, width, cluster)
                end = max(end, last + min(allocated, disk - start))
    return end


def _qcow2_uses(entries: bytes, offset: int, width: int) -> Iterator[int]:
    """Number of each entry that leads to a cluster as it is, which needs not be compressed nor zero."""
    # The first and the last of the eight bytes have flags, and no bits of an offset that a file can have.
    middle = struct.pack(">Q", offset)[1:7]
    at = entries.find(middle)
    while at >= 0:
        index, where = divmod(at - 1, width)
        if where == 0 and at + 7 <= len(entries) and entries[at - 1] in (0, 0x80) and not entries[at + 6]:
            yield index
        at = entries.find(middle, at + 1)


def _qcow2_allocated(entries: bytes, index: int, width: int, cluster: int) -> int:
    """Bytes of a cluster up to the last part of it that is allocated."""
    if width == 8:
        return cluster
    flags = int.from_bytes(entries[index * width + 12 : index * width + 16], "big")
    return flags.bit_length() * (cluster // _SUBCLUSTERS)


_VMDK = struct.Struct("<4sIIQQQQIQQ")
_VMDK_COMPRESSED = 1 << 16
_VMDK_AT_END = (1 << 64) - 1
_VMDK_NO_GRAIN = 1  # what smaller numbers mean is no place


def _vmdk(read: Read, size: int) -> int:
    head = read(0, _VMDK.size)
    if head[:4] != b"KDMV":
        return 0
    if len(head) < _VMDK.size:
        return _VMDK.size
    _, _, flags, capacity, grain, _, _, entries, _, directory = _VMDK.unpack(head)
    if flags & _VMDK_COMPRESSED or directory == _VMDK_AT_END or not 0 < grain <= 1 << 20 or not 0 < entries <= 1 << 20:
        return 0  # a compressed grain that is cut off cannot be unpacked; qemu refuses the others
    count = min(-(-capacity // (grain * entries)), _MOST_TABLES)
    end = directory * _SECTOR + 4 * count
    for number, table in enumerate(_words(read(directory * _SECTOR, 4 * count))):
        if table:
            end = max(end, table * _SECTOR + 4 * entries)
            rest = capacity - number * entries * grain
            furthest = _furthest(_words(read(table * _SECTOR, 4 * entries)), rest, grain, none=_VMDK_NO_GRAIN)
            end = max(end, furthest * _SECTOR)
    return int(end)


_PARALLELS = struct.Struct("<16s12xIIQ")
_PARALLELS_BAT = 64


def _parallels(read: Read, size: int) -> int:
    head = read(0, _PARALLELS.size)
    if len(head) < _PARALLELS.size:
        return _PARALLELS.size
    magic, tracks, count, sectors = _PARALLELS.unpack(head)
    extended = magic == b"WithouFreSpacExt"
    if not tracks:
        return 0  # qemu refuses it
    sectors = sectors if extended else sectors & 0xFFFFFFFF
    furthest = 0
    for first in range(0, count, _PIECE):
        table = _words(read(_PARALLELS_BAT + 4 * first, 4 * min(_PIECE, count - first)))
        rest = sectors - first * tracks
        furthest = max(furthest, _furthest(table, rest, tracks, none=0, unit=tracks if extended else 1))
        if len(table) < _PIECE:
            break
    return int(max(_PARALLELS_BAT + 4 * count, furthest * _SECTOR))


def _words(data: bytes) -> array[int]:
    """Numbers of 32 bits, little-endian."""
    words = array("I", data[: len(data) // 4 * 4])
    if sys.byteorder == "big":
        words.byteswap()
    return words


def _furthest(table: array[int], sectors: int, block: int, *, none: int, unit: int = 1) -> int:
    """The sector of the file where the last block of a table ends.

    Args:
        table: Where each block is, in units.
        sectors: Of the disk, from the first block of the table on.
        block: Sectors of a block; of the last one of the disk count those that the disk has.
        none: Largest number that means no place.
        unit: Sectors.
    """
    last = max(0, (sectors - 1) // block)
    whole, part = max(table[:last], default=0), max(table[last : last + 1], default=0)
    return max(
        whole * unit + block if whole > none else 0,
        part * unit + sectors - last * block if part > none else 0,
    )
