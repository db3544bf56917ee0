# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Images with a backing file: a small qcow2 whose header is a real one.

    header, name of the backing file | one byte a cluster: nothing, data, zero | clusters, at fixed places

A write to a part of a cluster that holds nothing brings the rest of it from the backing file, as qemu
does. The kind of a cluster reaches the file with a flush, after its data.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any, Iterator, Optional

from ovirt_imageio.common.extents import ZeroExtent, merge

from .disk import Disk, Node, failure
from .store import UNIT

_MAGIC = b"QFI\xfb"
_TABLE = 1024
_BACKING_FORMAT = 0xE2792ACA
_SCALE = 10
"""A cluster of 64 KiB has 64 bytes here: bits of its size that are left out."""

NOTHING, DATA, ZERO = 0, 1, 2

DEFAULT_CLUSTER = 16
"""Bits of a cluster's size, as qemu-img chooses."""


def write_header(
    disk: Disk,
    node: Node,
    size: int,
    *,
    cluster_bits: int = DEFAULT_CLUSTER,
    backing: Optional[str] = None,
    backing_format: Optional[str] = None,
) -> None:
    """Make an empty image in a file."""
    name = (backing or "").encode()
    offset = 200 if name else 0
    head = struct.pack(">4sIQIIQ", _MAGIC, 3, offset, len(name), cluster_bits, size)
    head = head.ljust(100, b"\0") + struct.pack(">I", 104)
    if backing_format:
        text = backing_format.encode()
        head += struct.pack(">II", _BACKING_FORMAT, len(text)) + text.ljust(-(-len(text) // 8) * 8, b"\0")
    head = head.ljust(200, b"\0") + name
    node.store.resize(0)
    _write(disk, node, 0, head)
    clusters = -(-size // (1 << (cluster_bits - _SCALE)))
    _write(disk, node, _TABLE, bytes(clusters))


def _write(disk: Disk, node: Node, offset: int, data: bytes, writer: object = None) -> None:
    if disk.take_room(node, offset, len(data)) < len(data):
        raise failure(errno.ENOSPC)
    node.store.write(offset, data, writer)


class Layer:
    """An image of a chain, to be read.

    Attributes:
        size: Bytes that a guest sees.
        cluster: Bytes of a cluster.
    """

    def __init__(self, node: Node, backing: Optional[Layer] = None) -> None:
        self.node = node
        self.backing = backing
        self.cluster = UNIT
        self.size = node.store.size

    def read(self, offset: int, length: int) -> bytes:
        """Read what a guest sees; zeroes past the end."""
        return self.node.store.read(offset, length).ljust(length, b"\0")

    def kind(self, offset: int) -> tuple[int, bool]:
        """Tell what a unit is and whether any image of the chain holds it."""
        unit = offset // UNIT
        allocated = self.node.store.now.allocated
        if unit < len(allocated) and allocated[unit]:
            return DATA, True
        return ZERO, True


class Qcow2(Layer):
    """A qcow2 image.

    Args:
        disk: That it lies on.
        node: Its file.
        backing: Layer that shows through it.
        stable: Look at the content that a crash leaves.

    Raises:
        ValueError: It is none.
    """

    def __init__(self, disk: Disk, node: Node, backing: Optional[Layer] = None) -> None:
        super().__init__(node, backing)
        self._disk = disk
        head = node.store.read(0, _TABLE)
        if len(head) < 112 or head[:4] != _MAGIC:
            raise ValueError("Image is not in qcow2 format")
        _, _, offset, length, bits, self.size = struct.unpack_from(">4sIQIIQ", head)
        self.backing_name = head[offset : offset + length].decode() if offset else None
        self.backing_format = _backing_format(head)
        self.cluster = 1 << (bits - _SCALE)
        clusters = -(-self.size // self.cluster)
        self._table = bytearray(node.store.read(_TABLE, clusters))
        if len(self._table) < clusters:
            raise ValueError("the table of clusters is cut off")
        self._start = -(-(_TABLE + clusters) // UNIT) * UNIT
        self._unwritten: dict[int, object] = {}

    def read(self, offset: int, length: int) -> bytes:
        """Read what a guest sees; zeroes past the end."""
        parts = []
        for number, start, count in self._clusters(offset, min(length, max(0, self.size - offset))):
            kind = self._table[number]
            at = number * self.cluster + start
            if kind == DATA:
                parts.append(self.node.store.read(self._start + at, count).ljust(count, b"\0"))
            elif kind == NOTHING and self.backing is not None:
                parts.append(self.backing.read(at, count))
            else:
                parts.append(bytes(count))
        return b"".join(parts).ljust(length, b"\0")

    def write(self, offset: int, data: bytes, writer: object = None) -> None:
        """Write what a guest sees."""
        done = 0
        for number, start, count in self._clusters(offset, len(data)):
            piece = data[done : done + count]
            done += count
            if self._table[number] != DATA and count < self.cluster:
                whole = bytearray(self.read(number * self.cluster, self.cluster))
                whole[start : start + count] = piece
                piece, start = bytes(whole), 0
            _write(self._disk, self.node, self._start + number * self.cluster + start, piece, writer)
            self._set(number, DATA, writer)

    def zero(self, offset: int, length: int, writer: object = None) -> None:
        """Make a range read as zeroes, whatever is behind it."""
        for number, start, count in self._clusters(offset, length):
            end = min((number + 1) * self.cluster, self.size) - number * self.cluster
            if start == 0 and count >= end:
                self._set(number, ZERO, writer)
            elif self._table[number] != ZERO:
                self.write(number * self.cluster + start, bytes(count), writer)

    def kind(self, offset: int) -> tuple[int, bool]:
        """Tell what a unit is and whether any image of the chain holds it."""
        kind = self._table[offset // self.cluster]
        if kind != NOTHING:
            return kind, True
        if self.backing is None or offset >= self.backing.size:
            return ZERO, False
        return self.backing.kind(offset)

    def write_table(self, covers: Any) -> None:
        """Write what clusters are into the file, of those that are asked for."""
        for number in sorted(number for number, writer in self._unwritten.items() if covers(writer)):
            del self._unwritten[number]
            self.node.store.write(_TABLE + number, bytes([self._table[number]]))

    def let_go(self, writer: object) -> None:
        """Note that a connection ended: any flush covers what it wrote."""
        for number, other in self._unwritten.items():
            if other is writer:
                self._unwritten[number] = None

    def _set(self, number: int, kind: int, writer: object) -> None:
        if self._table[number] != kind or number in self._unwritten:
            self._table[number] = kind
            self._unwritten[number] = writer

    def _clusters(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        end = offset + length
        while offset < end:
            number, start = divmod(offset, self.cluster)
            count = min(self.cluster - start, end - offset)
            yield number, start, count
            offset += count


def _backing_format(head: bytes) -> Optional[str]:
    kind, length = struct.unpack_from(">II", head, 104)
    return head[112 : 112 + length].decode() if kind == _BACKING_FORMAT else None


def extents(layer: Layer, offset: int, length: int) -> Iterator[ZeroExtent]:
    """Tell what of an image is zero, and what no image of its chain holds."""
    end = offset + length

    def units() -> Iterator[ZeroExtent]:
        at = offset
        while at < end:
            stop = min(at - at % UNIT + UNIT, end)
            kind, held = layer.kind(at)
            yield ZeroExtent(at, stop - at, kind == ZERO, not held)
            at = stop

    return merge(units())


def chain(disk: Disk, path: str, fmt: Optional[str] = None, depth: int = 0) -> Layer:
    """Open an image and what it names below it.

    Raises:
        ValueError: It cannot be read, or has no end.
        OSError: A file is missing.
    """
    if depth > 20:
        raise ValueError("the backing chain has no end")
    node = disk.look_up(path)[2]
    if node is None:
        raise failure(errno.ENOENT, path)
    fmt = fmt or ("qcow2" if node.store.read(0, 4) == _MAGIC else "raw")
    if fmt == "raw":
        return Layer(node)
    image = Qcow2(disk, node)
    if image.backing_name is not None:
        below = os.path.normpath(os.path.join(os.path.dirname(path), image.backing_name))
        image.backing = chain(disk, below, image.backing_format, depth + 1)
    return image
