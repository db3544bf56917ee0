# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Open the log for the user that the daemon becomes, and give that user what root left of it.

A first start may find a folder that root made, an upgrade or a start by hand files that root wrote.
The log is opened with the rights of the user, never with those of root. The user may have put a link
to a file of root there, and such a file shall not be written to. Only a file that this user may not
open is looked at as root. It changes hands if it is root's, regular, and has no other name::

    as the user   open ──denied──►              open again ──► the log
    as root              └─► give file, rotated files, folder ─┘

A folder changes hands if nothing but the log is in it. Files in a folder like /var/log do so alone; they
cannot be rotated then.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import stat
from collections.abc import Iterable

from . import log as log_setup
from . import privileges
from .config import Config
from .privileges import Account

log = logging.getLogger(__name__)


def open_log(cfg: Config) -> None:
    """Set up the log as the user that the daemon is, or becomes. While the process has one thread.

    Raises:
        ConfigError: As `log.configure`; or there is no such user.
    """
    if not privileges.needs_drop(cfg):
        log_setup.configure(cfg)
        return
    account = privileges.account(cfg)
    given: set[str] = set()
    while True:
        try:
            with privileges.acting_as(account):
                log_setup.configure(cfg)
            return
        except log_setup.LogDenied as e:
            if e.filename in given or not give(e.filename, account):
                raise
            given.add(e.filename)


def give(path: str, account: Account) -> bool:
    """Give a log file that root left to a user, with its rotated files and a folder of its own.

    Args:
        path: Of the log file; it may be missing.
        account: The user.

    Returns:
        Whether something changed hands.
    """
    folder, name = os.path.split(os.path.abspath(path))
    with privileges.in_group(account.gid):  # the folder may be the group's, and this root none that may all
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return _give_in(fd, name, account)
        finally:
            os.close(fd)


def check_rotation(handlers: Iterable[logging.Handler]) -> None:
    """Let a log that the user cannot rotate grow, and say so: the rotation would lose each line that it fails for.

    To be called as the user.

    Args:
        handlers: Those of the log.
    """
    for handler in handlers:
        if not isinstance(handler, logging.handlers.RotatingFileHandler) or not handler.maxBytes:
            continue
        if not os.access(os.path.dirname(handler.baseFilename), os.W_OK | os.X_OK):
            handler.maxBytes = 0
            text = "%s is not rotated and grows: %s may not write to its folder"
            log.warning(text, handler.baseFilename, privileges.user_name())


def _give_in(folder: int, name: str, account: Account) -> bool:
    names = os.listdir(folder)
    is_log = re.compile(rf"{re.escape(name)}(\.[0-9]+)?\Z").match
    status = os.fstat(folder)
    given = False
    if status.st_uid == 0 and not status.st_mode & stat.S_IWOTH and all(map(is_log, names)):
        given = _give(folder, account)
    for found in filter(is_log, names):
        given = _give_file(folder, found, account) or given
    if name not in names and not given:
        given = _create(folder, name, account)
    return given


def _give_file(folder: int, name: str, account: Account) -> bool:
    try:
        # Not through a link, and without waiting for the other end of a FIFO.
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        roots = status.st_uid == 0 and stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        return roots and _give(fd, account)
    finally:
        os.close(fd)


def _create(folder: int, name: str, account: Account) -> bool:
    """Make an empty log file of the user in a folder that stays root's."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640, dir_fd=folder)
    except OSError:
        return False
    try:
        if _give(fd, account):
            return True
        os.unlink(name, dir_fd=folder)
        return False
    finally:
        os.close(fd)


def _give(fd: int, account: Account) -> bool:
    try:
        os.fchown(fd, account.uid, account.gid)
    except PermissionError:
        return _give_to_group(fd, account.gid)
    except OSError:
        return False
    return True


def _give_to_group(fd: int, gid: int) -> bool:
    """Let a group write what root owns: all that a root without CAP_CHOWN, as in the unit, may do."""
    with contextlib.suppress(OSError):
        os.fchown(fd, -1, gid)
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        more = stat.S_IRWXG if stat.S_ISDIR(os.fstat(fd).st_mode) else stat.S_IRGRP | stat.S_IWGRP
        os.fchmod(fd, mode | more)
        return True
    return False
