# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Disk images of macOS (UDIF), as small as a test needs them.

A trailer at the end, `koly`, names a property list with one table of chunks, `mish`.

Source: Apple has published none; "Demystifying the DMG File Format" by J. Vanderkaay (newosxbook.com).
"""

from __future__ import annotations

import base64
import os
import struct
import zlib
from typing import Union

SECTOR = 512

RAW, IGNORE, ZLIB, BZIP2, LZFSE, END = 1, 2, 0x80000005, 0x80000006, 0x80000007, 0xFFFFFFFF

_CHUNK = struct.Struct(">IIQQQQ")
_TABLE = struct.Struct(">4sIQQQII24x136sI")
_TRAILER = struct.Struct(">4sIII5QII16s136sQQ120x136sIQ12x")

_LIST = """<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><dict><key>resource-fork</key><dict><key>blkx</key><array><dict>
<key>Attributes</key><string>0x0050</string><key>Data</key><data>
{}
</data><key>ID</key><string>0</string><key>Name</key><string>whole disk</string>
</dict></array></dict></dict></plist>
"""


def make_dmg(path: Union[str, os.PathLike[str]], data: bytes, *, kind: int = ZLIB, chunk: int = 256 * SECTOR) -> None:
    """Write an image; chunks of zeroes are not stored.

    Args:
        path: Of the new image.
        data: Content, a multiple of 512 bytes.
        kind: How chunks are stored: RAW, ZLIB, or another, which this writer does not pack at all.
        chunk: Bytes of each chunk.
    """
    stored, chunks = bytearray(), []
    for start in range(0, len(data), chunk):
        piece = data[start : start + chunk]
        how, packed = (kind, zlib.compress(piece) if kind == ZLIB else piece) if any(piece) else (IGNORE, b"")
        chunks.append(_CHUNK.pack(how, 0, start // SECTOR, len(piece) // SECTOR, len(stored), len(packed)))
        stored += packed
    sectors = len(data) // SECTOR
    chunks.append(_CHUNK.pack(END, 0, sectors, 0, len(stored), 0))
    table = _TABLE.pack(b"mish", 1, 0, sectors, 0, 2 * chunk // SECTOR, 0, bytes(136), len(chunks))
    listing = _LIST.format(base64.b64encode(table + b"".join(chunks)).decode()).encode()
    trailer = _TRAILER.pack(
        *(b"koly", 4, 512, 1, 0, 0, len(stored), 0, 0, 1, 1, bytes(16), bytes(136)),
        *(len(stored), len(listing), bytes(136), 1, sectors),
    )
    with open(path, "wb") as f:
        f.write(bytes(stored) + listing + trailer)
