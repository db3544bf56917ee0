# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kept for vdsm only: NBD addresses and a client as 2.x spelt them."""

from __future__ import annotations

from types import TracebackType

from ovirt_imageio.common import nbd
from ovirt_imageio.common.buffers import Buffer


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


class Client:
    """A connection to an NBD server. One thread."""

    def __init__(self, address: UnixAddress | TCPAddress, export_name: str = "") -> None:
        self._client = nbd.Client(address.address(export_name))

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
