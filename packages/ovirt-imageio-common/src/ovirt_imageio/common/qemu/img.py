# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""qemu-img as functions. See qemu-img(1)."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Sequence

from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.common.qemu import image

PROGRAM = "qemu-img"


class QemuImgError(ImageioError):
    """qemu-img failed, or is not installed. The text is what it said."""


def info(
    filename: str,
    *,
    fmt: str | None = None,
    offset: int | None = None,
    size: int | None = None,
) -> dict[str, Any]:
    """Describe an image.

    Args:
        filename: Path of the image.
        fmt: Format; None lets qemu look at the content.
        offset: Where the image begins in the file.
        size: Bytes of the image there.

    Returns:
        What `qemu-img info --output json` prints: `virtual-size` in bytes, `format`,
        maybe `backing-filename` and more.

    Raises:
        QemuImgError: It is no such image.
    """
    command = ["info", "--output", "json", "--force-share"]
    if fmt is None:
        command.append(_probed(filename, offset, size))
    else:
        command.append(image.reference(filename, fmt, offset=offset, size=size, backing_chain=False))
    result: dict[str, Any] = json.loads(_run(command))
    return result


def create(
    filename: str,
    fmt: str,
    *,
    size: int | None = None,
    backing_file: str | None = None,
    backing_format: str | None = None,
    preallocation: str | None = None,
) -> None:
    """Create an image.

    Args:
        filename: Path of the new image; an existing file is overwritten.
        fmt: Format.
        size: Bytes that a guest sees; None takes those of the backing file.
        backing_file: Path that the image keeps, relative to itself if not absolute.
        backing_format: Format of the backing file, never guessed.
        preallocation: `off`, `metadata`, `falloc` or `full`.

    Raises:
        ValueError: A backing file without its format.
        QemuImgError: qemu-img failed.
    """
    command = ["create", "-q", "-f", fmt]
    if preallocation:
        command += ["-o", f"preallocation={preallocation}"]
    if backing_file is not None:
        if not backing_format:
            raise ValueError(f"backing file {backing_file!r} needs its format")
        command += ["-b", image.plain(backing_file), "-F", backing_format]
    command.append(os.path.abspath(filename))
    if size is not None:
        command.append(str(size))
    _run(command)


def measure(
    filename: str,
    dst_fmt: str,
    *,
    fmt: str | None = None,
    offset: int | None = None,
    size: int | None = None,
    backing_chain: bool = True,
    backing: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Tell how much room an image needs in another format.

    Args:
        filename: Path of the image.
        dst_fmt: The other format.
        fmt: Format; None lets qemu look at the content, and open what that names.
        offset: Where the image begins in the file.
        size: Bytes of the image there.
        backing_chain: Count what the backing chain holds; else what the image itself does.
        backing: Node of the backing file; None lets qemu open what the image names.

    Returns:
        `required` and `fully-allocated`, in bytes, and maybe `bitmaps`.

    Raises:
        QemuImgError: qemu-img failed.
    """
    if fmt is None:
        source = _probed(filename, offset, size)
    else:
        source = image.reference(filename, fmt, offset=offset, size=size, backing_chain=backing_chain, backing=backing)
    command = ["measure", "--force-share", "--output", "json", "-O", dst_fmt, source]
    result: dict[str, Any] = json.loads(_run(command))
    return result


def convert(
    source: str,
    target: str,
    *,
    fmt: str,
    target_fmt: str,
    compressed: bool = False,
    backing_file: str | None = None,
    backing_format: str | None = None,
) -> None:
    """Copy an image to another format.

    Args:
        source: Path of the image.
        target: Path of the new image; an existing file is overwritten.
        fmt: Format of source.
        target_fmt: Format of target.
        compressed: Compress the clusters of a qcow2 target.
        backing_file: Path that target keeps as its backing; it reads as source's backing does.
        backing_format: Format of the backing file, never guessed.

    Raises:
        ValueError: A backing file without its format.
        QemuImgError: qemu-img failed.
    """
    command = ["convert", "-O", target_fmt]
    if compressed:
        command.append("-c")
    if backing_file is not None:
        if not backing_format:
            raise ValueError(f"backing file {backing_file!r} needs its format")
        command += ["-B", image.plain(backing_file), "-F", backing_format]
    _run([*command, image.reference(source, fmt), os.path.abspath(target)])


def compare(a: str, b: str, *, fmt_a: str, fmt_b: str, strict: bool = False) -> bool:
    """Tell if two images read the same, for a guest.

    Args:
        a: Path of an image.
        b: Path of the other.
        fmt_a: Format of a.
        fmt_b: Format of b.
        strict: Allocation and size must be the same as well.

    Raises:
        QemuImgError: One of them cannot be read.
    """
    command = ["compare", "-q", "--force-share", *(["-s"] if strict else [])]
    done = _start([*command, image.reference(a, fmt_a), image.reference(b, fmt_b)])
    if done.returncode not in (0, 1):
        raise _failed(command, done)
    return done.returncode == 0


def check(filename: str, *, fmt: str) -> None:
    """Make sure that an image is consistent.

    Raises:
        QemuImgError: It is corrupt or leaks clusters.
    """
    _run(["check", "-q", "--force-share", image.reference(filename, fmt)])


def map_extents(filename: str, *, fmt: str) -> list[dict[str, Any]]:
    """The allocation of an image, as `qemu-img map --output json` prints it.

    Raises:
        QemuImgError: qemu-img failed.
    """
    out = _run(["map", "--output", "json", "--force-share", image.reference(filename, fmt)])
    result: list[dict[str, Any]] = json.loads(out)
    return result


def add_bitmap(filename: str, name: str) -> None:
    """Add a dirty bitmap to a qcow2 image; from then on it records changes.

    Raises:
        QemuImgError: qemu-img failed.
    """
    _run(["bitmap", "--add", "-f", "qcow2", os.path.abspath(filename), name])


def _probed(filename: str, offset: int | None, size: int | None) -> str:
    """Name an image whose format qemu finds out, but never its protocol."""
    raw = image.node(filename, "raw", offset=offset, size=size)
    file = raw if "offset" in raw else raw["file"]
    return "json:" + json.dumps({"file": file})


def _run(args: Sequence[str]) -> str:
    done = _start(args)
    if done.returncode:
        raise _failed(args, done)
    return done.stdout


def _start(args: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([PROGRAM, *args], capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError as e:
        raise QemuImgError("qemu-img is not installed (Debian: qemu-utils, Fedora and EL: qemu-img)") from e


def _failed(args: Sequence[str], done: subprocess.CompletedProcess[str]) -> QemuImgError:
    said = done.stderr.strip() or f"exit status {done.returncode}"
    return QemuImgError(f"{PROGRAM} {args[0]}: {said.removeprefix('qemu-img: ')}")
