# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the file of an image ends before its data do, where qemu does not look. Pure.

qemu reads what is missing as zeroes. `qemu-img check` knows no qcow (version 1), and of a VDI
not where the file ends.

Sources: VirtualBox, src/VBox/Storage/VDICore.h; qemu, block/qcow.c for the header.
"""

from __future__ import annotations

import struct

from ovirt_imageio.client.formats import Read

_MOST_TABLES = 1 << 20


def end_of_data(fmt: str, read: Read) -> int:
    """Tell where the data of an image end in its file, as far as its tables say; 0 where this is not known.

    Args:
        fmt: Format of the image.
        read: Reads the image's file.
    """
    readers = {"vdi": _vdi, "qcow": _qcow}
    return readers[fmt](read) if fmt in readers else 0


def _vdi(read: Read) -> int:
    head = read(0, 512)
    if len(head) < 512:
        return 512
    (start,) = struct.unpack_from("<I", head, 0x158)
    block, extra, _, allocated = struct.unpack_from("<IIII", head, 0x178)
    return int(start + allocated * (block + extra))


_QCOW = struct.Struct(">24xQBB6xQ")


def _qcow(read: Read) -> int:
    head = read(0, 48)
    if len(head) < 48:
        return 48
    size, cluster_bits, l2_bits, table = _QCOW.unpack_from(head)
    if not 9 <= cluster_bits <= 16 or not 6 <= l2_bits <= 13:
        return 0  # qemu refuses it
    count = min(-(-size // (1 << (cluster_bits + l2_bits))), _MOST_TABLES)
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
