# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kept for vdsm only: NBD addresses and a client as 2.x spelt them."""

from __future__ import annotations

from types import TracebackType
from typing import NamedTuple
from urllib.parse import ParseResult

from ovirt_imageio.common import nbd
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.nbd import wire


class Extent(NamedTuple):
    """A range of which one context tells one kind; the others are false.

    Attributes:
        length: Bytes.
        zero: ``base:allocation`` says that it reads as zeroes.
        hole: ``qemu:allocation-depth`` says that no layer of the image has it.
        dirty: The bitmap says that it has changed.
    """

    length: int
    zero: bool = False
    hole: bool = False
    dirty: bool = False


class UnixAddress(str):
    """Path of a Unix socket."""

    transport = "unix"

    @property
    def path(self) -> str:
        """The path."""
        return str(self)

    def url(self, export: str | None = None) -> str:
        """The address of an export, as tickets write it."""
        return f"nbd:unix:{self}" + (f":exportname={export}" if export else "")

    def address(self, export: str) -> nbd.Address:
        """The address of an export, as `ovirt_imageio.common.nbd` takes it."""
        return nbd.unix(str(self), export)


class TCPAddress:
    """Host and port."""

    transport = "tcp"

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port

    def url(self, export: str | None = None) -> str:
        """The address of an export, as tickets write it."""
        return f"nbd:{self.host}:{self.port}" + (f":exportname={export}" if export else "")

    def address(self, export: str) -> nbd.Address:
        """The address of an export, as `ovirt_imageio.common.nbd` takes it."""
        return nbd.tcp(self.host, self.port, export)


def open(url: ParseResult, dirty: bool = False) -> Client:
    """Connect to the export that a parsed URL of a ticket names.

    Raises:
        ValueError: It is no URL of NBD.
        As Client.
    """
    found = nbd.parse(url.geturl())
    address = UnixAddress(found.path) if found.transport == "unix" else TCPAddress(found.host, found.port)
    return Client(address, found.export, dirty=dirty)


class Client:
    """A connection to an NBD server. One thread.

    Args:
        address: Of the server.
        export_name: Of the export; None is as good as empty.
        dirty: Ask for the dirty bitmap of the export.

    Attributes:
        dirty_bitmap: Name of its context, None if the export has no bitmap or several.

    Raises:
        OSError, ImageioError: It cannot be connected, or refuses.
    """

    def __init__(self, address: UnixAddress | TCPAddress, export_name: str | None = None, dirty: bool = False) -> None:
        self._client = nbd.Client(address.address(export_name or ""), dirty=dirty)
        self.dirty_bitmap = self._client.export.dirty_context

    @property
    def export_size(self) -> int:
        """Bytes of the export."""
        return self._client.export.size

    def read(self, offset: int, length: int) -> bytearray:
        """Read a range."""
        data = bytearray(length)
        self._client.read_into(offset, memoryview(data))
        return data

    def readinto(self, offset: int, buf: Buffer) -> None:
        """Read a range into a buffer."""
        self._client.read_into(offset, memoryview(buf))

    def write(self, offset: int, data: Buffer) -> None:
        """Write a range."""
        self._client.write(offset, memoryview(data))

    def zero(self, offset: int, length: int, punch_hole: bool = True) -> None:
        """Zero a range."""
        self._client.zero(offset, length, punch_hole=punch_hole)

    def flush(self) -> None:
        """Bring what was written to stable storage."""
        self._client.flush()

    def extents(self, offset: int, length: int) -> dict[str, list[Extent]]:
        """Ask once for the extents of a range: by context, as far as the server tells.

        Raises:
            UnsupportedOperation: The server has no block status.
            ImageioError: The server failed.
        """
        export = self._client.export
        if not export.can_extents:
            raise UnsupportedOperation(f"NBD export {export.name!r} tells no extents")
        request = self._client.send(wire.CMD_BLOCK_STATUS, offset, length)
        self._client.finish(request)
        return {name: _extents(name, runs) for name, runs in export.by_name(request.status).items()}

    def close(self) -> None:
        """Leave the server."""
        self._client.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _extents(context: str, runs: bytes) -> list[Extent]:
    make = _KINDS.get(context, _dirty)
    return [make(length, flags) for length, flags in wire.STATUS_EXTENT.iter_unpack(runs)]


def _zero(length: int, flags: int) -> Extent:
    return Extent(length, zero=bool(flags & wire.STATE_ZERO))


def _hole(length: int, depth: int) -> Extent:
    return Extent(length, hole=not depth)


def _dirty(length: int, flags: int) -> Extent:
    return Extent(length, dirty=bool(flags & wire.STATE_DIRTY))


_KINDS = {wire.BASE_ALLOCATION: _zero, wire.ALLOCATION_DEPTH: _hole}
