# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Become the unprivileged user that serves strangers."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import resource
import stat
from collections.abc import Iterator
from typing import NamedTuple

from .config import Config, ConfigError


class Account(NamedTuple):
    """The user that the daemon becomes."""

    name: str
    uid: int
    gid: int


def needs_drop(cfg: Config) -> bool:
    """Tell whether this process is root and shall not remain so."""
    return os.geteuid() == 0 and cfg.daemon.drop_privileges


def drop(cfg: Config) -> None:
    """Give the run folder to the configured user and become it, for good.

    The user's supplementary groups are kept: oVirt adds it to qemu and kvm, whose
    disks it opens. Call while the process has one thread.

    Raises:
        ConfigError: there is no such user or group, or the folder cannot be made.
    """
    name, uid, gid = account(cfg)
    _prepare_run_dir(cfg, uid, gid)
    os.initgroups(name, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def account(cfg: Config) -> Account:
    """Return the configured user, with the configured group.

    Raises:
        ConfigError: there is no such user or group.
    """
    user = _user(cfg)
    return Account(user.pw_name, user.pw_uid, _gid(cfg))


def user_name() -> str:
    """Return the name of the user that the process is, or its number."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Have the rights of a user for a while. Root only, while the process has one thread."""
    groups, uid, gid = os.getgroups(), os.geteuid(), os.getegid()
    os.initgroups(account.name, account.gid)
    os.setegid(account.gid)
    os.seteuid(account.uid)
    try:
        yield
    finally:
        os.seteuid(uid)
        os.setegid(gid)
        os.setgroups(groups)


@contextlib.contextmanager
def in_group(gid: int) -> Iterator[None]:
    """Have the rights of a group as well for a while. Root only, while the process has one thread."""
    before = os.getegid()
    os.setegid(gid)
    try:
        yield
    finally:
        os.setegid(before)


def _user(cfg: Config) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(cfg.daemon.user_name)
    except KeyError as e:
        expected = "an existing user, or drop_privileges = false"
        raise cfg.error("daemon", "user_name", expected) from e


def _gid(cfg: Config) -> int:
    try:
        return grp.getgrnam(cfg.daemon.group_name).gr_gid
    except KeyError as e:
        expected = "an existing group, or drop_privileges = false"
        raise cfg.error("daemon", "group_name", expected) from e


def _prepare_run_dir(cfg: Config, uid: int, gid: int) -> None:
    path = cfg.daemon.run_dir
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
        # By descriptor, so that what was checked is what changes hands.
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            st = os.fstat(fd)
            # A folder that everybody may write to, like /tmp, is nobody's to give away.
            # A folder that systemd has given away already needs no privilege here (CAP_CHOWN).
            if (st.st_uid, st.st_gid) != (uid, gid) and not st.st_mode & stat.S_IWOTH:
                os.fchown(fd, uid, gid)
        finally:
            os.close(fd)
    except OSError as e:
        raise _unusable(cfg, e) from e


def _unusable(cfg: Config, error: OSError) -> ConfigError:
    return cfg.error("daemon", "run_dir", f"a folder for user_name, but: {error.strerror}")


def room_for_connections(files: int) -> int:
    """Tell how many client connections leave enough descriptors for the rest.

    A quarter, at least 64, is kept for storage, pipes, log files and the control service.
    Strangers that come in numbers must not fail the requests of clients with a ticket.

    Args:
        files: the limit of open files.
    """
    return max(files - max(files // 4, 64), 8)


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it.

    A connection costs one descriptor, a transfer a few more (getrlimit(2)).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
