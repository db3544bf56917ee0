# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that hold an image packed: which program unpacks them. Pure.

Uploaded as they are, their bytes would be the disk.

Sources: RFC 1952 (gzip), the specifications of xz, zstd, LZ4 frames, ZIP and 7z; tar(5).
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

HEAD_SIZE = 512
"""Bytes of a file's beginning that `recognise` wants."""


class Packed(NamedTuple):
    """How a file is packed.

    Attributes:
        how: The state of the file, as said after "is": `packed by gzip`.
        advice: Help for the user, with the file's name where a shell needs it.
    """

    how: str
    advice: str


_PROGRAMS = (
    (b"\x1f\x8b\x08", "gzip", "gunzip -k"),
    (b"\xfd7zXZ\0", "xz", "unxz -k"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd"),
    (b"\x04\x22\x4d\x18", "LZ4", "unlz4"),
    (b"PK\x03\x04", "zip", "unzip"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x"),
    (b"LZIP\x01", "lzip", "lzip -dk"),
)
_BZIP2, _BZIP2_BLOCK = b"BZh", b"1AY&SY"
_ENCRYPTED_DMG = b"encrcdsa"
_TAR, _TAR_AT = b"ustar", 257


def recognise(head: bytes, filename: str) -> Packed | None:
    """Tell how a file is packed by its first HEAD_SIZE bytes; None if it is not.

    Args:
        head: The bytes.
        filename: For the advice.
    """
    name = shlex.quote(filename)
    for magic, program, command in _PROGRAMS:
        if head.startswith(magic):
            return Packed(f"packed by {program}", f"unpack it first: {command} {name}")
    if head[:3] == _BZIP2 and head[4:10] == _BZIP2_BLOCK:
        return Packed("packed by bzip2", f"unpack it first: bunzip2 -k {name}")
    if head.startswith(_ENCRYPTED_DMG):
        return Packed("an encrypted disk image of macOS", "decrypt it first, by hdiutil convert")
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return Packed("a tar file (OVA)", f"name the image inside by member=; tar tf {name} lists them")
    return None
