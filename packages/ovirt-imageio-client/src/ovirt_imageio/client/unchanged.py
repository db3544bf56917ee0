# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a file was written to while it was read: what was read is of no one moment then."""

from __future__ import annotations

import os
import stat

from ovirt_imageio.common.errors import TransferError


class SourceChanged(TransferError):
    """An image was written to while it was read: what was read is neither its old nor its new content."""


class Unchanged:
    """Marks of an open file's content: its size, and the time of its last change.

    Args:
        fd: Of a block device or a pipe nothing can be told.
        name: Of the file, for the error.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._name = name
        self._before = _state(fd)

    def check(self, fd: int) -> None:
        """Make sure that it was not written to.

        Raises:
            SourceChanged: It was.
        """
        if _state(fd) != self._before:
            raise SourceChanged(f"{self._name} was changed while it was read: part of it is older than the rest")


def _state(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else ()
