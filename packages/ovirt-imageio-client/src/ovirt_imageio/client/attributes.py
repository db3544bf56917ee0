# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Properties of a file beside its content: owner, group, mode, ACL, labels, attributes.

A file that replaces another gets them all. A property that the system refuses is left out
in a way that lets no user do more than before.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Mapping

_ACL = "system.posix_acl_access"

_OF_CONTENT = ("security.ima", "security.evm")
"""Attributes that sign the old content."""


@dataclass(frozen=True)
class Attributes:
    """Attributes of a file, see inode(7) and xattr(7).

    Attributes:
        uid: Owner.
        gid: Group.
        mode: Permissions, without the kind of file.
        xattrs: Extended attributes, ACL and security label included.
    """

    uid: int
    gid: int
    mode: int
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


def read(fd: int) -> Attributes:
    """Read the attributes of an open file.

    Raises:
        OSError: Storage failed.
    """
    status = os.fstat(fd)
    xattrs = {name: os.getxattr(fd, name) for name in _names(fd) if name not in _OF_CONTENT}
    return Attributes(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), xattrs)


def give(fd: int, wanted: Attributes) -> list[str]:
    """Give an open file attributes.

    Returns:
        Properties that the system refused, in words; empty if the file has all of them.

    Raises:
        OSError: Storage failed.
    """
    refused = _give_owner(fd, wanted)
    lost_group = os.fstat(fd).st_gid != wanted.gid
    mode = wanted.mode & ~stat.S_ISUID if refused else wanted.mode
    if lost_group:
        # Members of another group get what all others have.
        mode = mode & ~(stat.S_ISGID | stat.S_IRWXG) | (mode & mode << 3 & stat.S_IRWXG)
    if _ACL not in wanted.xattrs and _ACL in _names(fd):
        os.removexattr(fd, _ACL)
    os.fchmod(fd, mode)
    for name, value in wanted.xattrs.items():
        if name == _ACL and lost_group:
            refused.append("the ACL")
        elif not _set(fd, name, value):
            refused.append("the ACL" if name == _ACL else name)
    return refused


def _give_owner(fd: int, wanted: Attributes) -> list[str]:
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) == (wanted.uid, wanted.gid):
        return []
    try:
        os.fchown(fd, wanted.uid, wanted.gid)
    except PermissionError:
        refused = [f"the owner {wanted.uid}"] if status.st_uid != wanted.uid else []
    else:
        return []
    try:
        os.fchown(fd, -1, wanted.gid)
    except PermissionError:
        refused.append(f"the group {wanted.gid}")
    return refused


def _names(fd: int) -> list[str]:
    try:
        return os.listxattr(fd)
    except OSError as e:
        if e.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return []
        raise


def _set(fd: int, name: str, value: bytes) -> bool:
    """Set an attribute unless it is so already; False if the system refuses."""
    try:
        if os.getxattr(fd, name) == value:
            return True
    except OSError:
        pass  # there is none
    try:
        os.setxattr(fd, name, value)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        return False
    return True
