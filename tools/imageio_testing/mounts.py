# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices, mounts and users that only root can have; where it cannot be, the test is skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
"""A user without rights, and the group of that name."""


@contextlib.contextmanager
def loop_device(path: str | os.PathLike[str], *options: str) -> Iterator[str]:
    """A block device over a file, for as long as the block takes."""
    if os.geteuid() or not os.path.exists("/dev/loop-control") or not shutil.which("losetup"):
        pytest.skip("loop devices need root, /dev/loop-control and losetup")
    device = _run("no loop device", "losetup", "--find", "--show", *options, os.fspath(path)).strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def mount(what: str | os.PathLike[str], where: str | os.PathLike[str], *options: str) -> Iterator[None]:
    """A mount, for as long as the block takes: `mount("none", folder, "-t", "tmpfs", "-o", "size=4m")`."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    _run("cannot mount", "mount", *options, os.fspath(what), os.fspath(where))
    try:
        yield
    finally:
        subprocess.run(["umount", os.fspath(where)], check=True)


@contextlib.contextmanager
def unprivileged(uid: int = NOBODY, gid: int = NOBODY) -> Iterator[None]:
    """Act as a user without rights in the block, who is a member of one group."""
    if os.geteuid():
        pytest.skip("acting as another user needs root")
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@contextlib.contextmanager
def folder_of(uid: int, gid: int | None = None, mode: int = 0o755) -> Iterator[Path]:
    """A folder that all users may pass to, of one of them."""
    if os.geteuid():
        pytest.skip("a folder of another user needs root")
    with tempfile.TemporaryDirectory(prefix="imageio-tests-") as path:
        os.chown(path, uid, uid if gid is None else gid)
        os.chmod(path, mode)
        yield Path(path)


def _run(failure: str, *command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{failure}: {done.stderr.strip()}")
    return done.stdout
