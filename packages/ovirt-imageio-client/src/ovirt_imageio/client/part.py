# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that an image is built in, before it gets its final name.

It is new: a name that any file has is left alone, and the next one is taken.

    disk.qcow2.part, disk.qcow2.1.part, disk.qcow2.2.part, …

A later run takes or removes it only if it is the very file that an earlier run made. A
name alone proves nothing: files are told apart by inode, time of birth and owner.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import Container

from ovirt_imageio.client.inuse import ImageInUse, lock
from ovirt_imageio.client.records import Identity
from ovirt_imageio.common import linux
from ovirt_imageio.common.errors import TransferError

SUFFIX = ".part"

_MOST = 100  # names that are tried

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Part:
    """A file of ours, open and locked. It acts on its name only while the file has that name.

    Attributes:
        path: Its name, with the folder.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def make(cls, filename: str, mode: int) -> Part:
        """Make a new file beside another.

        Args:
            filename: The other file, with its folder. It need not exist.
            mode: Permissions, from which the umask is taken.

        Raises:
            TransferError: All names are taken.
            OSError: No file can be made in the folder.
        """
        for number in range(_MOST):
            path = beside(filename, after=f".{number}{SUFFIX}" if number else SUFFIX)
            with contextlib.suppress(FileExistsError):
                part = cls(path, os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, mode))
                part._lock()
                return part
        raise TransferError(f"{_MOST} files are in the way, {path} is the last: remove those that you do not need")

    @classmethod
    def find(cls, folder: str, identity: Identity, *, owners: Container[int]) -> Part | None:
        """Open a file that an earlier run made.

        Args:
            folder: Where it is.
            identity: Identity of the file that the earlier run wrote down.
            owners: The users that it may belong to.

        Returns:
            None if there is none, or another file has its name.

        Raises:
            ImageInUse: Another run has it.
        """
        path = os.path.join(folder, identity.name)
        try:
            fd = os.open(path, _FLAGS)
        except OSError:
            return None
        part = cls(path, fd)
        status = os.fstat(fd)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid in owners and status.st_nlink == 1
        if not ours or part.identity != identity:
            part.close()
            return None
        try:
            part._lock()
        except BaseException:
            part.close()
            raise
        return part

    @property
    def identity(self) -> Identity:
        """The values by which a later run knows the file."""
        return Identity(os.path.basename(self.path), os.fstat(self._fd).st_ino, linux.born(self._fd))

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    @property
    def is_empty(self) -> bool:
        """Nothing was written yet."""
        return os.fstat(self._fd).st_size == 0

    def check_name(self) -> None:
        """Make sure that the file still has its name.

        Raises:
            TransferError: The name is another file's.
        """
        if not linux.is_named(self._fd, self.path):
            raise TransferError(f"{self.path} was removed or replaced by another program while it was written")

    def remove(self) -> None:
        """Remove the file, unless its name is another's."""
        with contextlib.suppress(FileNotFoundError):
            if linux.is_named(self._fd, self.path):
                os.unlink(self.path)

    def close(self) -> None:
        """Leave the file as it is. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _lock(self) -> None:
        if not lock(self._fd):
            raise ImageInUse(f"another download is writing {self.path}")


def beside(path: str, *, before: str = "", after: str = "") -> str:
    """Name a file in the folder of another, by that one's name.

    A name that would be too long is cut, and ends with a digest of the whole.
    """
    folder, name = os.path.split(path)
    raw = os.fsencode(name)
    room = os.pathconf(folder, "PC_NAME_MAX") - len(before) - len(after)
    if len(raw) > room:
        digest = hashlib.sha256(raw).hexdigest()[:16]
        # A character is never cut in two: qemu takes UTF-8 only.
        name = raw[: room - len(digest) - 1].decode("utf-8", "ignore") + "-" + digest
    return os.path.join(folder, f"{before}{name}{after}")
