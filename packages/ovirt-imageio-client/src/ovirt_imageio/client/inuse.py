# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lock by which a run tells others that a file is its own, and the refusal.

It is a lock of one byte, of the open file. The kernel drops it when the run ends, however
it ends. A lock by flock(2) would not do: over NFS it is of the whole file, also against qemu.
"""

from __future__ import annotations

import logging

from ovirt_imageio.common import linux
from ovirt_imageio.common.errors import TransferError

log = logging.getLogger(__name__)

_BYTE = 1000
"""qemu's own are below 264, libvirt's are 0 and 1."""


class ImageInUse(TransferError):
    """Another download, or another program such as qemu, has the image. It stays as it is."""


def lock(fd: int) -> bool:
    """Lock a file that is open for writing, until it is closed.

    Returns:
        False if another run has it.
    """
    try:
        return linux.lock_bytes(fd, _BYTE)
    except OSError as e:
        if not linux.knows_no_locks(e):
            raise
        log.warning("The file system knows no locks: nothing keeps two downloads from one name")
        return True


def is_locked(fd: int) -> bool:
    """Tell if another run has a file."""
    try:
        return linux.are_locked(fd, _BYTE)
    except OSError as e:
        if not linux.knows_no_locks(e):
            raise
        return False
