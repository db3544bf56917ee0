# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image on this machine, to download into.

The image is built beside its final name, as NAME.part, and gets that name when all of
it is on stable storage. So a file of that name is complete, and what stood there before
stays until then; if it was large, a thread frees its room afterwards. A device is written
in place, and so is a file in a folder where no other file can be made.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from types import TracebackType
from typing import Iterator

from ovirt_imageio.client import formats
from ovirt_imageio.client.journal import CannotResume, Journal, sync_folder
from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import TransferError
from ovirt_imageio.common.qemu import img, nbd
from ovirt_imageio.common.units import MiB

log = logging.getLogger(__name__)

FORMATS = ("raw", "qcow2")
SUFFIX = ".part"

_LARGE = 64 * MiB  # allocated: freeing less takes no longer than starting a thread may


class Staging:
    """Where a file is built, until it is complete.

    Args:
        filename: The final name.
        journal: What a former attempt left is continued, if the journal knows of it;
            else the journal begins anew.
        sealed: Only if the journal knows the whole plan.

    Attributes:
        path: Where to write.
        in_place: It is the final name.
        kept: There is something to continue.

    Raises:
        OSError: The folder is missing, or nothing may be written.
    """

    def __init__(self, filename: str, *, journal: Journal | None = None, sealed: bool = False) -> None:
        self.filename = os.path.realpath(filename)
        self.path = self.filename
        self.in_place = False
        self.kept = journal is not None and bool(journal.done) and (journal.is_sealed or not sealed)
        self._make()
        if journal is not None and not self.kept:
            journal.restart()
        if journal is not None and not self.in_place:
            sync_folder(self.path)

    def _make(self) -> None:
        mode = _mode(self.filename)
        if mode is not None and not stat.S_ISREG(mode):
            self.in_place = True
            return
        self.path += SUFFIX
        try:
            self.kept = _create(self.path, mode, keep=self.kept)
        except PermissionError:
            if mode is None:
                raise
            self.path, self.in_place = self.filename, True

    def commit(self) -> None:
        """Give the file its final name, for good."""
        if self.in_place:
            return
        with _letting_go(self.filename):
            os.replace(self.path, self.filename)
        sync_folder(self.filename)

    @property
    def state(self) -> str:
        """What a failure leaves behind, in words."""
        return "left incomplete" if self.in_place else "not made"

    def discard(self) -> None:
        """Remove what was built. What was written in place stays as it is."""
        if not self.in_place:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)


@contextlib.contextmanager
def _letting_go(path: str) -> Iterator[None]:
    """Let a large file that is replaced meanwhile be freed by a thread of its own.

    The kernel frees what a file held when its last name and descriptor go: 0.2 s for a GiB of
    tmpfs, which the caller need not wait for. The interpreter waits for it when it ends.
    """
    try:
        old = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # there is none
        yield
        return
    try:
        is_large = os.fstat(old).st_blocks * 512 >= _LARGE
        yield
    except BaseException:
        os.close(old)
        raise
    if is_large:
        _close_beside(old)
    else:
        os.close(old)


def _close_beside(fd: int) -> None:
    """Close a descriptor in a thread, or here if there can be none."""
    try:
        threading.Thread(target=os.close, args=(fd,), name="letting go").start()
    except RuntimeError:
        os.close(fd)


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _create(path: str, mode: int | None, *, keep: bool) -> bool:
    """Make a file, or keep what is there; tell if anything was."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags if keep else flags | os.O_TRUNC, 0o666)
    try:
        if mode is not None:
            os.fchmod(fd, stat.S_IMODE(mode))
        return keep and os.fstat(fd).st_size > 0
    finally:
        os.close(fd)


class Target:
    """An image to download into, open for several workers.

    Args:
        path: File or block device.
        fmt: `raw` or `qcow2`.
        size: Bytes of the image.
        connections: How many workers will write.
        backing_file: What shows through a qcow2 image where it holds nothing; relative
            to the image if not absolute.
        backing_format: Format of the backing file; None looks at its content.
        create: Make the image anew; else continue one.

    Attributes:
        reads_zero: What was not written reads as zeroes.

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
    ) -> None:
        self.path = path
        self.size = size
        self.reads_zero = True
        self._server: nbd.Server | None = None
        if fmt == "raw":
            self._prepare_raw(create)
            return
        if create:
            if backing_file is not None and not backing_format:
                backing_format = backing_format_of(path, backing_file)
            img.create(path, fmt, size=size, backing_file=backing_file, backing_format=backing_format)
        self._server = nbd.Server(path, fmt, shared=4 * connections + 2, detect_zeroes="unmap")
        self._server.start()

    def _prepare_raw(self, create: bool) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
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
            return FileBackend(self.path, mode="r+", sparse=self.reads_zero)
        return NbdBackend(self._server.address, mode="r+", sparse=True, greeting_timeout=defaults.CONNECT_TIMEOUT)

    def close(self, *, kill: bool = False) -> None:
        """End qemu-nbd, which completes the image. Idempotent.

        Args:
            kill: Do not wait for it: what was not flushed does not matter.
        """
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


def backing_format_of(path: str, backing_file: str) -> str:
    """Find out the format of a new image's backing file."""
    full = os.path.join(os.path.dirname(os.path.abspath(path)), backing_file)
    with open(full, "rb") as f:
        return formats.probe(f.read(formats.PROBE_SIZE))
