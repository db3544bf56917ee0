# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The file that stands where an image shall be.

It stays as it is until the new image is complete. It is not replaced while a qemu has
it open, nor if another file has its name by then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time

from ovirt_imageio.client import attributes
from ovirt_imageio.client.inuse import ImageInUse, is_locked, lock
from ovirt_imageio.common import linux
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.qemu import locks
from ovirt_imageio.common.units import MiB

log = logging.getLogger(__name__)

_PAUSE = 0.02  # seconds between two looks at qemu's locks

_LARGE = 64 * MiB  # allocated: freeing less takes no longer than starting a thread may


class Standing:
    """A file or a device that exists already, open for as long as it is of interest.

    Args:
        path: No link.

    Attributes:
        path: As given.
        is_device: It is a block device.

    Raises:
        ImageInUse: A qemu has it open, or the system uses the device.
        OSError: There is none, or the user may not write to it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = _open(path)
        try:
            status = os.fstat(self._fd)
            self.is_device = stat.S_ISBLK(status.st_mode)
            self._is_regular = stat.S_ISREG(status.st_mode)
            self._status = status
            if not (self.is_device or self._is_regular):
                raise OSError(errno.EINVAL, "neither a regular file nor a block device", path)
            self.check_free()
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def fd(self) -> int:
        """The open file."""
        return self._fd

    @property
    def is_fixed(self) -> bool:
        """No other file can get its name, or only a file that is none of ours to replace."""
        if not self._is_regular:
            return True
        folder = os.open(os.path.dirname(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            around = os.fstat(folder)
            others = os.geteuid() not in (0, around.st_uid, self._status.st_uid)
            # A container's file may be a mount of its own.
            return (around.st_mode & stat.S_ISVTX != 0 and others) or linux.mount_of(folder) != linux.mount_of(self._fd)
        finally:
            os.close(folder)

    @property
    def is_empty(self) -> bool:
        """It is a file that holds nothing."""
        return self._is_regular and not self._status.st_size

    @property
    def owner(self) -> int:
        """The user that it belongs to."""
        return os.fstat(self._fd).st_uid

    @property
    def names(self) -> int:
        """How many names it has: more than one if there are hard links."""
        return os.fstat(self._fd).st_nlink

    @property
    def still_has_its_name(self) -> bool:
        """No other file has got its name since."""
        return linux.is_named(self._fd, self.path)

    def check_free(self) -> None:
        """Make sure that no qemu has it open.

        Raises:
            ImageInUse: One has.
        """
        if locks.is_open_in_qemu(self._fd):
            raise ImageInUse(
                f"{self.path} is open in another program, such as a running qemu: it would go on with the old image"
            )

    def check_unwritten(self) -> None:
        """Make sure that no other run writes to it: as the part of another image, or in place by another name.

        Raises:
            ImageInUse: One does.
        """
        if is_locked(self._fd):
            raise ImageInUse(f"another download is writing {self.path}")

    def keep_out_qemu(self, *, patience: float = 0.0, cancel: Cancel | None = None) -> None:
        """Let no qemu open it from now on until it is closed.

        Args:
            patience: Seconds that one may take to close it that has it open already.
            cancel: Ends the wait for that.

        Raises:
            ImageInUse: One has it open still.
            OperationCancelled: cancel said so.
        """
        locks.forbid_all(self._fd)
        deadline = time.monotonic() + patience
        while locks.is_open_in_qemu(self._fd) and time.monotonic() < deadline:
            (cancel or Cancel()).wait(_PAUSE)
        self.check_free()

    def lock(self) -> bool:
        """Keep other runs from writing to it in place; False if one does."""
        return lock(self._fd)

    def sync(self) -> None:
        """Bring it to stable storage.

        Raises:
            OSError: Storage failed at any time since it was opened.
        """
        os.fsync(self._fd)

    def give_attributes(self, fd: int) -> None:
        """Give another file its owner, group, mode, ACL and attributes."""
        refused = attributes.give(fd, attributes.read(self._fd))
        if refused:
            log.warning("The new %s does not get from the old one: %s", self.path, ", ".join(refused))

    def let_go(self) -> None:
        """Close it; if it is large and has no name any more, a thread does that. Idempotent.

        The kernel frees what a file held when its last name and descriptor go. That takes 0.2 s
        for a GiB of tmpfs, and the caller need not wait for it. The interpreter waits for it
        when it ends.
        """
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        status = os.fstat(fd)
        if status.st_nlink == 0 and status.st_blocks * 512 >= _LARGE:
            with contextlib.suppress(RuntimeError):
                threading.Thread(target=os.close, args=(fd,), name="letting go").start()
                return
        os.close(fd)


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    if not stat.S_ISBLK(os.stat(path).st_mode):
        return os.open(path, flags)
    try:
        # O_EXCL: not while it is mounted, a part of something, or written by another run.
        return os.open(path, flags | os.O_EXCL)
    except OSError as e:
        if e.errno != errno.EBUSY:
            raise
        raise ImageInUse(f"{path} is mounted, or in use by another device or another download") from e
