# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The right to make the image of a name: one run has it at a time.

A hidden file beside the image is locked for as long as the run takes, and removed with
it. The kernel drops the lock of a run that is killed; so the next one knows, and removes
the part that it finds written down:

    .disk.qcow2.imageio    {"imageio": 1, "part": ["disk.qcow2.part", 131, 1760000000000000000]}

A run that can be resumed writes its files down in its journal alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat

from ovirt_imageio.client.inuse import ImageInUse, is_locked, lock
from ovirt_imageio.client.part import Part, beside
from ovirt_imageio.client.records import Identity, is_left_of
from ovirt_imageio.common import linux
from ovirt_imageio.common.backends.direct import write_all

log = logging.getLogger(__name__)

_SUFFIX = ".imageio"
_BEGIN = b'{"imageio"'
_LONGEST = 64 << 10

_ATTEMPTS = 100
"""Each stands for a run that ended between two system calls of ours."""


class Claim:
    """The right to make the image of a name, held until `release`.

    Args:
        filename: The name, with the folder; no link.

    Attributes:
        owner: The user that files we make belong to.

    Raises:
        ImageInUse: Another run has it.
        OSError: No file can be made beside the image.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename
        self._path = beside(filename, before=".", after=_SUFFIX)
        self._fd = self._take()
        try:
            self.owner = os.fstat(self._fd).st_uid
            self._clear_up()
        except BaseException:
            self.release()
            raise

    def note(self, part: Part) -> None:
        """Write down what the next run shall remove if this one is killed."""
        data = json.dumps({"imageio": 1, "part": list(part.identity)}).encode() + b"\n"
        os.ftruncate(self._fd, 0)
        write_all(self._fd, 0, memoryview(data))
        # A part that nothing knows of after a loss of power would stay for ever.
        os.fsync(self._fd)

    def release(self) -> None:
        """Let others have the name. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        try:
            # In a folder where files can be made and not removed it stays; why the run failed is of more interest.
            with contextlib.suppress(OSError):
                if linux.is_named(fd, self._path):
                    os.unlink(self._path)
        finally:
            os.close(fd)

    def _take(self) -> int:
        for _ in range(_ATTEMPTS):
            fd = self._open()
            if fd is None:
                continue
            try:
                if linux.is_named(fd, self._path):
                    if self._is_ours(fd):
                        return fd
                    os.unlink(self._path)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise self._in_use()

    def _open(self) -> int | None:
        """Open and lock the file; None if it is another now."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(self._path, flags, 0o644)
        except PermissionError:
            if not os.path.lexists(self._path):
                raise
            self._remove_that_of_another_user()
            return None
        try:
            if not lock(fd):
                raise self._in_use()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _remove_that_of_another_user(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if is_locked(fd):
                    raise self._in_use()
                if linux.is_named(fd, self._path):
                    os.unlink(self._path)
            finally:
                os.close(fd)
        except PermissionError as e:
            raise ImageInUse(
                f"{self._path} is of a download by another user, and you may not remove it: has that one ended?"
            ) from e

    def _is_ours(self, fd: int) -> bool:
        """Tell if we may keep a file that we have locked.

        Raises:
            FileExistsError: No run has made it.
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_claim(_read(fd)):
            text = "a file that no download has made has the name of its lock"
            raise FileExistsError(errno.EEXIST, text, self._path)
        return status.st_uid == os.geteuid()

    def _clear_up(self) -> None:
        """Remove what a run that was killed has left, and nothing else."""
        identity = _parse(_read(self._fd))
        os.ftruncate(self._fd, 0)
        if identity is None or identity.born is None:
            return
        part = Part.find(os.path.dirname(self._path), identity, owners={self.owner})
        if part is not None:
            log.info("Removing %s, which a download that was killed has left", part.path)
            part.remove()
            part.close()

    def _in_use(self) -> ImageInUse:
        return ImageInUse(f"another download to {self._filename} is running")


def _read(fd: int) -> bytes:
    return os.pread(fd, _LONGEST, 0)


def _is_claim(content: bytes) -> bool:
    # A run that was killed may have written a part of it. After a loss of power zeroes stand for what was lost.
    return is_left_of(_BEGIN, content[: len(_BEGIN)])


def _parse(content: bytes) -> Identity | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    return Identity.parse(document.get("part")) if isinstance(document, dict) else None
