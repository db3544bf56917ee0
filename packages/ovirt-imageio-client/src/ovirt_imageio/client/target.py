# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image on this machine, to download into.

A raw image is written as the file it is. A qcow2 image is made by qemu-img, and written
through a qemu-nbd of our own.
"""

from __future__ import annotations

import os
from types import TracebackType

from ovirt_imageio.client import backing
from ovirt_imageio.client.explained import Explained
from ovirt_imageio.client.journal import CannotResume
from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import TransferError
from ovirt_imageio.common.qemu import img, nbd
from ovirt_imageio.common.units import KiB

FORMATS = ("raw", "qcow2")
CLUSTER = 64 * KiB
"""Bytes that a qcow2 image of ours allocates at a time, and takes whole from itself or its backing file."""


class Target:
    """An image to download into, open for several workers.

    Args:
        path: File or block device.
        fmt: `raw` or `qcow2`.
        size: Bytes of the image.
        connections: How many workers will write.
        backing_file: File that shows through a qcow2 image where it holds nothing; relative
            to the image if not absolute.
        backing_format: Format of the backing file; None looks at its content.
        create: Make the image anew; else continue one.
        cancel: Ends what waits for the image, and takes it away from its writers.
        held: The file, open for writing: a raw image is written to it, whatever path leads to by then.

    Attributes:
        reads_zero: Ranges that were not written read as zeroes.

    Raises:
        OSError: The file cannot be written.
        QemuImgError, QemuNbdError: qemu is missing, or failed.
    """

    def __init__(
        self,
        path: str,
        fmt: str,
        size: int,
        *,
        connections: int = defaults.MAX_WORKERS,
        backing_file: str | None = None,
        backing_format: str | None = None,
        create: bool = True,
        cancel: Cancel | None = None,
        held: int | None = None,
    ) -> None:
        self.path = path
        self._held = held
        self._cancel = cancel
        self.size = size
        self.reads_zero = True
        self._server: nbd.Server | None = None
        if fmt == "raw":
            self._prepare_raw(create)
            return
        if create:
            if backing_file is not None and not backing_format:
                backing_format = backing.format_of(path, backing_file)
            img.create(
                path,
                fmt,
                size=size,
                backing_file=backing_file,
                backing_format=backing_format,
                cluster_size=CLUSTER,
                cancel=cancel,
            )
        self._server = nbd.Server(
            path, fmt, private=True, shared=4 * connections + 2, detect_zeroes="unmap", cancel=cancel
        )
        self._server.start()

    def _prepare_raw(self, create: bool) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC
        fd = os.open(self.path, flags) if self._held is None else linux.reopen(self._held, flags, self.path)
        try:
            if linux.is_block_device(fd):
                self.reads_zero = False
                room = linux.file_size(fd)
                if room < self.size:
                    raise TransferError(f"{self.path} has {room} bytes, the image {self.size}")
            elif create:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, self.size)
            elif linux.file_size(fd) != self.size:
                raise CannotResume(
                    f"{self.path} has {linux.file_size(fd)} bytes, the image {self.size}: remove it to begin anew"
                )
        finally:
            os.close(fd)

    @property
    def is_file(self) -> bool:
        """The image is written as the file it is, not by qemu-nbd."""
        return self._server is None

    def open(self) -> Backend:
        """Open the image once more, for another thread."""
        if self._server is None:
            return FileBackend(self.path, mode="r+", sparse=self.reads_zero, cancel=self._cancel, held=self._held)
        connection = NbdBackend(
            self._server.address,
            mode="r+",
            sparse=True,
            greeting_timeout=defaults.CONNECT_TIMEOUT,
            cancel=self._cancel,
        )
        return Explained(connection, self._server, self.path)

    def close(self, *, kill: bool = False) -> None:
        """End qemu-nbd, which completes the image. Idempotent.

        Args:
            kill: Do not wait for it: what was not flushed does not matter.
        """
        # A worker that was left behind must not find another file by the number.
        self._held = None if self._held is None else -1
        server, self._server = self._server, None
        if server is not None:
            server.stop(kill=kill)

    def __enter__(self) -> Target:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(kill=error is not None)
