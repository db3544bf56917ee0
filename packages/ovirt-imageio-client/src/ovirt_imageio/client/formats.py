# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of an image's header about its format and about other files. Pure.

An image comes from strangers. Its header may name a backing file, a data file or
extents. A program that opens the image with qemu opens those as well: any file that the
user may read, or a server. So the names are read here, before qemu sees the image.

Sources: qemu docs/interop/qcow2.txt, docs/interop/qed_spec.txt; VMware "Virtual Disk
Format 1.1"; Microsoft "Virtual Hard Disk Image Format Specification".
"""

from __future__ import annotations

import re
import struct
from typing import Callable, Iterator, NamedTuple

from ovirt_imageio.client import vhd

PROBE_SIZE = 2048
"""Bytes of an image's beginning that `probe` wants."""

TAIL_SIZE = 512
"""Bytes of an image's end that `probe` wants."""

BACKED = ("qcow2", "qcow", "qed", "vmdk")
"""Formats whose images may have a backing file."""

SOURCES = ("raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "dmg", "bochs", "cloop")
"""Formats that an image may be uploaded from."""

BLIND = ("vhdx", "dmg", "bochs", "cloop")
"""Formats of which qemu's drivers tell no extents: all of the image is data."""

MARKED_AT_THE_END = {".vhd": "VHD", ".dmg": "macOS disk image"}
"""Names of files whose mark may be at their end alone, so that nothing tells what is cut off."""

Read = Callable[[int, int], bytes]
"""Returns bytes of the image's file: offset, length; fewer at its end."""

_MAGICS = (
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (0x40, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\n", "cloop"),
)

_KOLY = b"koly" + struct.pack(">I", 4)
_QCOW_MAGIC = b"QFI\xfb"
_QCOW2_EXTERNAL_DATA = 1 << 2
_QCOW2_BACKING_FORMAT = 0xE2792ACA
_QCOW2_DATA_FILE = 0x44415441
_QCOW2_NAME_LIMIT = 1023
_QCOW2_EXTENSIONS_LIMIT = 64 << 10
_VMDK_DESCRIPTOR_LIMIT = 1 << 20
_SECTOR = 512


class Reference(NamedTuple):
    """Another file that an image needs.

    Attributes:
        kind: `backing` for what shows through, `data` for where the image's own data is.
        name: As the image has it; empty if it does not say.
        format: Format of the other file, None if the image does not say.
    """

    kind: str
    name: str
    format: str | None = None


def probe(head: bytes, tail: bytes = b"") -> str:
    """Tell the format of an image by its content; `raw` for anything that is not known.

    Args:
        head: The first PROBE_SIZE bytes.
        tail: The last TAIL_SIZE bytes; a fixed VHD and a `.dmg` have their mark there.

    The content of a raw image belongs to a guest, which may write any header there:
    where the format is known, do not ask.
    """
    if head[:4] == _QCOW_MAGIC and len(head) >= 8:
        version = struct.unpack_from(">I", head, 4)[0]
        return "qcow" if version == 1 else "qcow2"
    for offset, magic, name in _MAGICS:
        if head[offset : offset + len(magic)] == magic:
            return name
    if _is_vmdk_text(head):
        return "vmdk"
    if vhd.is_last(tail):
        return "vpc"
    return "dmg" if tail[:8] == _KOLY else "raw"


def references(fmt: str, read: Read) -> list[Reference]:
    """Name the other files that an image needs.

    Args:
        fmt: Format of the image.
        read: Reads the image's file.

    Raises:
        ValueError: The header is not one of this format, or does not hold together.
    """
    readers = {"qcow2": _qcow2, "qcow": _qcow, "qed": _qed, "vmdk": _vmdk}
    if fmt not in readers:
        return []
    try:
        return list(readers[fmt](read))
    except struct.error as e:
        raise ValueError(f"the {fmt} header is cut off") from e


def encryption(fmt: str, read: Read) -> str | None:
    """Tell by what an image is encrypted; None if it is not, or not by its format.

    Args:
        fmt: Format of the image.
        read: Reads the image's file.
    """
    at = {"qcow2": 32, "qcow": 36}.get(fmt)
    if at is not None and len(found := read(at, 4)) == 4:
        (method,) = struct.unpack(">I", found)
        return _ENCRYPTIONS.get(method, f"method {method}") if method else None
    return None


_ENCRYPTIONS = {1: "AES", 2: "LUKS"}


class Marks(NamedTuple):
    """Marks of a qcow2 image about its own state.

    Attributes:
        is_dirty: It was not closed; its reference counts are out of date.
        is_corrupt: qemu found something wrong with it.
    """

    is_dirty: bool = False
    is_corrupt: bool = False


def marks(fmt: str, read: Read) -> Marks:
    """Read the marks of an image; formats other than qcow2 have none here."""
    head = read(0, 80)
    if fmt != "qcow2" or len(head) < 80 or struct.unpack_from(">I", head, 4)[0] < 3:
        return Marks()
    (incompatible,) = struct.unpack_from(">Q", head, 72)
    return Marks(bool(incompatible & 1), bool(incompatible & 2))


def names_plain_file(name: str) -> bool:
    """Tell if qemu would take a name for a path, not for a protocol such as `nbd:` or `json:`."""
    return bool(name) and re.match(r"[^/]*:", name) is None


def _qcow(read: Read) -> Iterator[Reference]:
    magic, version, offset, size = struct.unpack(">4sIQI", read(0, 20))
    if magic != _QCOW_MAGIC or version != 1:
        raise ValueError("not a qcow header")
    if offset:
        yield Reference("backing", _text(read, offset, size))


def _qcow2(read: Read) -> Iterator[Reference]:
    magic, version, offset, size = struct.unpack(">4sIQI", read(0, 20))
    if magic != _QCOW_MAGIC or version not in (2, 3):
        raise ValueError("not a qcow2 header")
    incompatible, header_length = 0, 72
    if version == 3:
        (incompatible,) = struct.unpack(">Q", read(72, 8))
        (header_length,) = struct.unpack(">I", read(100, 4))
    extensions = dict(_qcow2_extensions(read, header_length))
    if incompatible & _QCOW2_EXTERNAL_DATA or _QCOW2_DATA_FILE in extensions:
        yield Reference("data", _decode(extensions.get(_QCOW2_DATA_FILE, b"")), "raw")
    if offset:
        fmt = extensions.get(_QCOW2_BACKING_FORMAT)
        yield Reference("backing", _text(read, offset, size), _decode(fmt) if fmt else None)


def _qcow2_extensions(read: Read, offset: int) -> Iterator[tuple[int, bytes]]:
    limit = offset + _QCOW2_EXTENSIONS_LIMIT
    while offset < limit:
        head = read(offset, 8)
        if len(head) < 8:
            return
        kind, length = struct.unpack(">II", head)
        if not kind:
            return
        if length > limit - offset:
            raise ValueError(f"the qcow2 header has an extension of {length} bytes")
        yield kind, read(offset + 8, length)
        offset += 8 + -(-length // 8) * 8


def _qed(read: Read) -> Iterator[Reference]:
    magic, features = struct.unpack("<4s12xQ", read(0, 24))
    offset, size = struct.unpack("<II", read(56, 8))
    if magic != b"QED\0":
        raise ValueError("not a qed header")
    if features & 1:
        yield Reference("backing", _text(read, offset, size), "raw" if features & 4 else None)


def _vmdk(read: Read) -> Iterator[Reference]:
    head = read(0, PROBE_SIZE)
    if head[:4] == b"COWD":
        return
    if head[:4] == b"KDMV":
        capacity, offset, sectors = struct.unpack_from("<12xQ8xQQ", head)
        length = min(sectors * _SECTOR, _VMDK_DESCRIPTOR_LIMIT)
        text = read(offset * _SECTOR, length) if offset else b""
        # A sparse file without a capacity is read as a descriptor of other files.
        yield from _vmdk_descriptor(text, extents=not capacity)
    elif _is_vmdk_text(head):
        yield from _vmdk_descriptor(read(0, _VMDK_DESCRIPTOR_LIMIT), extents=True)
    else:
        raise ValueError("not a vmdk header")


_VMDK_VERSIONS = (b"version=1", b"version=2", b"version=3")
_VMDK_EXTENT = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\w+)(?:\s+"([^"\n]*)")?', re.MULTILINE)
_VMDK_PARENT = re.compile(r'^\s*parentFileNameHint\s*=\s*"([^"\n]*)"', re.MULTILINE | re.IGNORECASE)


def _vmdk_descriptor(text: bytes, *, extents: bool) -> Iterator[Reference]:
    lines = _decode(text.split(b"\0", 1)[0]).replace("\r", "\n")
    for match in _VMDK_EXTENT.finditer(lines) if extents else ():
        if match[1] != "ZERO":
            yield Reference("data", match[2] or "")
    for match in _VMDK_PARENT.finditer(lines):
        yield Reference("backing", match[1], "vmdk")


def _is_vmdk_text(head: bytes) -> bool:
    """Tell by the first line, or by the version after comments and blank lines, as qemu does."""
    for line in head.split(b"\n")[:-1]:
        text = line.strip().lower()
        if text == b"# disk descriptorfile" or text in _VMDK_VERSIONS:
            return True
        if text and not text.startswith(b"#"):
            return False
    return False


def _text(read: Read, offset: int, size: int) -> str:
    if not 0 < size <= _QCOW2_NAME_LIMIT:
        raise ValueError(f"the backing file's name has {size} bytes, expected 1 to {_QCOW2_NAME_LIMIT}")
    raw = read(offset, size)
    if len(raw) != size:
        raise ValueError("the backing file's name is cut off")
    return _decode(raw)


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
