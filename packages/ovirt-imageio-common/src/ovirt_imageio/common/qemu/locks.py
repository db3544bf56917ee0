# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a qemu has an image open, by the locks that all of its programs take.

qemu locks single bytes of the image's file. It knows a handful of permissions, such as
reading (0), writing (1) and resizing (3):

    Byte 100 + n    This program uses permission n.
    Byte 200 + n    No other program may use permission n.
    Byte 0          Held by libvirt's lock manager while a machine that has the image runs.

A program that would use what another forbids, or forbid what another uses, does not
start. Sources: qemu block/file-posix.c; qemu-block-drivers(7), "Disk image file locking".
"""

from __future__ import annotations

from typing import Iterable

from ovirt_imageio.common import linux

_USED = 100
_FORBIDDEN = 200
_PERMISSIONS = 64
"""Bits of qemu's set of permissions; five have been given a meaning so far."""

_RANGES = ((0, 1), (_USED, _PERMISSIONS), (_FORBIDDEN, _PERMISSIONS))

_READ, _WRITE = 0, 1

_READ_TO_RESIZE = 4
"""Permissions that all versions of qemu know."""


def is_open_in_qemu(fd: int) -> bool:
    """Tell if another program has an image open, reading or writing, and locks it as qemu does.

    Args:
        fd: The image's file or device, opened in any way.

    Returns:
        False also where the file system knows no locks: qemu goes without them there.
    """
    return _are_locked(fd, _RANGES)


def is_written_in_qemu(fd: int) -> bool:
    """Tell if another program has an image open to write to it, and locks it as qemu does.

    Args:
        fd: The image's file or device, opened in any way.

    Returns:
        As `is_open_in_qemu`.
    """
    return _are_locked(fd, ((_USED + _WRITE, 1),))


def is_reading_forbidden(fd: int) -> bool:
    """Tell if another program lets none read an image: a qemu would not open it.

    Args:
        fd: The image's file or device, opened in any way.

    Returns:
        As `is_open_in_qemu`.
    """
    return _are_locked(fd, ((_FORBIDDEN + _READ, 1),))


def _are_locked(fd: int, ranges: Iterable[tuple[int, int]]) -> bool:
    try:
        return any(linux.are_locked(fd, start, length) for start, length in ranges)
    except OSError as e:
        if linux.knows_no_locks(e):
            return False
        raise


def use_for_reading(fd: int) -> None:
    """Let others know that an image is read until this descriptor is closed, as a qemu that only reads it does.

    Args:
        fd: The image's file or device, open for reading.
    """
    _lock(fd, _USED + _READ, 1)


def forbid_all(fd: int) -> None:
    """Let no qemu open an image until this descriptor is closed. Those that have it open stay.

    Args:
        fd: The image's file or device, open for reading.
    """
    _lock(fd, _FORBIDDEN, _READ_TO_RESIZE)


def _lock(fd: int, start: int, length: int) -> None:
    try:
        linux.lock_bytes(fd, start, length, shared=True)
    except OSError as e:
        if not linux.knows_no_locks(e):
            raise
