# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that have only what changed since another: of VirtualBox and Hyper-V. A VHD is made by `vhd`.

They begin as whole ones, by qemu-img, and get the marks of a child.

Sources: [MS-VHDX] §2.6.2.1; VirtualBox, src/VBox/Storage/VDICore.h.
"""

from __future__ import annotations

import os
import struct
import uuid
from typing import Optional, Union

from ovirt_imageio.common.qemu import img

Path = Union[str, "os.PathLike[str]"]

PARENT = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")

_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le


def make_vdi_child(path: Path, size: int, *, kind: int = 4, parent: Optional[uuid.UUID] = PARENT) -> uuid.UUID | None:
    """Make a VDI of a kind, 4 for a child, with a parent; returns that."""
    img.create(os.fspath(path), "vdi", size=size)
    with open(path, "r+b") as f:
        f.seek(0x4C)
        f.write(struct.pack("<I", kind))
        f.seek(0x1A8)
        f.write(parent.bytes_le if parent else bytes(16))
    return parent


def make_vhdx_child(path: Path, size: int) -> None:
    """Make a VHDX whose parameters say that it has a parent."""
    img.create(os.fspath(path), "vhdx", size=size)
    with open(path, "r+b") as f:
        data = f.read()
        table = data.index(b"metadata")
        entry = data.index(_PARAMETERS, table)
        (offset,) = struct.unpack_from("<I", data, entry + 16)
        f.seek(table + offset + 4)
        f.write(struct.pack("<I", 2))
