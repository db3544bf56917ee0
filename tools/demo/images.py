# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Real disk images to move: a file system with real files, and a changed copy above it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.qemu import img, nbd
from ovirt_imageio.common.units import MiB

FILE_SYSTEM_SIZE = 512 * MiB
_MOST_FILES = 96 * MiB  # of content; the rest of the file system stays empty
_PIECE = 64 << 10


@dataclass(frozen=True)
class Image:
    """An image on this machine.

    Attributes:
        path: Where it is.
        fmt: `raw` or `qcow2`.
        about: Description in a few words.
    """

    path: Path
    fmt: str
    about: str


def tool(name: str) -> str | None:
    """Find a command, also where Debian keeps those of administrators."""
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def make_disk(folder: Path) -> Image:
    """Make a raw disk: ext4 with real files, or, without mkfs.ext4, a tar archive of them.

    Raises:
        subprocess.CalledProcessError: mkfs.ext4 failed; it said why on standard error.
        OSError: No room.
    """
    files = folder / "files"
    count = _gather(files)
    path = folder / "disk.raw"
    mkfs = tool("mkfs.ext4")
    if mkfs:
        with open(path, "wb") as f:
            f.truncate(FILE_SYSTEM_SIZE)
        subprocess.run([mkfs, "-q", "-F", "-L", "demo", "-d", files, path], check=True)
        about = f"an ext4 file system with {count:,} real files"
    else:
        with tarfile.open(path, "w") as tar:
            tar.add(files, "files")
        about = f"a tar archive of {count:,} real files (e2fsprogs is not installed)"
    shutil.rmtree(files)
    return Image(path, "raw", about)


def make_overlay(folder: Path, disk: Image) -> Image:
    """Make a qcow2 image that has only the changes to a disk, which lies behind it.

    Raises:
        ImageioError: qemu failed.
        OSError: No room.
    """
    changed = folder / "changed.raw"
    _change(disk.path, changed)
    path = folder / "overlay.qcow2"
    img.create(str(path), "qcow2", backing_file=disk.path.name, backing_format=disk.fmt)
    with nbd.Server(str(path), "qcow2") as server, NbdBackend(server.url, mode="r+") as overlay:
        with open(disk.path, "rb") as old, open(changed, "rb") as new:
            for offset in range(0, overlay.size, _PIECE):
                before, after = old.read(_PIECE), new.read(_PIECE)
                if before != after:
                    overlay.write(offset, after)
        overlay.flush()
    changed.unlink()
    return Image(path, "qcow2", f"what changed since, with {disk.path.name} behind it")


def _gather(target: Path) -> int:
    """Copy the library of this Python, as far as it fits; return the number of files."""
    target.mkdir()
    room, count = _MOST_FILES, 0
    source = Path(sysconfig.get_path("stdlib"))
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if {"site-packages", "__pycache__"} & set(relative.parts) or path.is_symlink() or not path.is_file():
            continue
        room -= path.stat().st_size
        if room < 0:
            break
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)
        count += 1
    return count


def _change(disk: Path, changed: Path) -> None:
    """Make a copy of a disk with one more file in it, as a guest would write it."""
    shutil.copyfile(disk, changed)
    debugfs = tool("debugfs")
    news = disk.with_name("news")
    news.write_bytes(b"A day later.\n" * 100_000)
    if debugfs and tool("mkfs.ext4"):
        command = [debugfs, "-w", "-R", f"write {news} news.txt", str(changed)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    else:
        with open(changed, "r+b") as f:
            f.seek(MiB)
            f.write(news.read_bytes())
    news.unlink()
