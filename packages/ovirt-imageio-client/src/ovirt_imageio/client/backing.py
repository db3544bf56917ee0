# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The backing file of an image that is downloaded.

The image that is replaced may be neither the backing file nor anything that it needs.
Otherwise the old content would be gone, and the new image would show itself.

    new monday.qcow2 ──► sunday.qcow2 ──► full.qcow2
         ▲                                    │
         └───── the same file by any name ◄───┘   refused
"""

from __future__ import annotations

import json
import logging
import os
import stat
from typing import Any, Iterator

from ovirt_imageio.client import formats
from ovirt_imageio.client.layers import probe_file
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.qemu import img

log = logging.getLogger(__name__)

_LONGEST_CHAIN = 200


def check(filename: str, backing_file: str, backing_format: str | None) -> None:
    """Make sure that an image can be backed by a file. Nothing is changed.

    Args:
        filename: The image, which need not exist.
        backing_file: Relative to the image if not absolute.
        backing_format: Its format; None looks at its content.

    Raises:
        ValueError: The image is the backing file, or part of its chain; or a relative name
            means two files.
        OSError: A file of the chain cannot be read.
    """
    path = full_name(os.path.realpath(filename), backing_file)
    _check_link(filename, backing_file, path)
    try:
        target = os.stat(filename)
    except FileNotFoundError:
        return
    for used in _chain(path, backing_format):
        if _is_same(target, used):
            how = "is" if used == path else f"needs {used}:"
            raise ValueError(
                f"the backing file {backing_file!r} {how} the image {filename} itself, which would be lost: "
                "download to another name"
            )


def note_size(
    filename: str, backing_file: str, backing_format: str | None, *, size: int, cancel: Cancel | None = None
) -> None:
    """Tell in the log if a backing file has another size than the disk it is to be below.

    A disk that has grown has more than its old state, and the rest of it reads as zeroes. A backing
    file that is larger than the disk is one of something else; a reader never sees the rest of it.

    Args:
        filename: The image.
        backing_file: Relative to the image if not absolute.
        backing_format: Its format; None looks at its content.
        size: Bytes of the disk.
        cancel: Ends qemu-img.

    Raises:
        QemuImgError: qemu-img is missing, or cannot read the backing file.
        OSError: The backing file cannot be read.
    """
    path = full_name(os.path.realpath(filename), backing_file)
    has = img.info(path, fmt=backing_format or format_of(filename, backing_file), cancel=cancel)["virtual-size"]
    if has != size:
        log.warning("The backing file %s has %d bytes, the disk %d: is it the right one?", path, has, size)


def format_of(path: str, backing_file: str) -> str:
    """Find out the format of a new image's backing file.

    Raises:
        OSError: It cannot be read.
    """
    return probe_file(full_name(path, backing_file))


def full_name(path: str, backing_file: str) -> str:
    """The backing file as qemu finds it from an image of that path."""
    return os.path.join(os.path.dirname(os.path.abspath(path)), backing_file)


def _check_link(filename: str, backing_file: str, path: str) -> None:
    """Refuse a name that qemu would look for beside a link, and we beside the image."""
    if os.path.isabs(backing_file) or not os.path.islink(filename):
        return
    if os.path.realpath(full_name(filename, backing_file)) != os.path.realpath(path):
        raise ValueError(
            f"the backing file {backing_file!r} is relative, and {filename} is a link into another folder: "
            "give its whole path"
        )


def _chain(path: str, fmt: str | None) -> Iterator[str]:
    """Every file that reading an image opens, the image first."""
    ahead: list[tuple[str, str | None]] = [(path, fmt)]
    seen: set[str] = set()
    while ahead:
        path, fmt = ahead.pop(0)
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        if len(seen) > _LONGEST_CHAIN:
            raise ValueError(f"the backing chain has more than {_LONGEST_CHAIN} files, {path} is the last looked at")
        yield path
        ahead += _used(path, fmt)


def _used(path: str, fmt: str | None) -> Iterator[tuple[str, str | None]]:
    """The files that one image names, and their formats."""

    def read(offset: int, length: int) -> bytes:
        return os.pread(fd, length, offset)

    fmt = fmt or probe_file(path)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = formats.references(fmt, read)
    except (ValueError, OverflowError) as e:
        raise ValueError(f"the backing file {path} is not a valid image: {e}") from e
    finally:
        os.close(fd)
    for reference in found:
        for name in _files_of(reference.name):
            yield full_name(path, name), reference.format


def _files_of(name: str) -> Iterator[str]:
    """The files that a name means to qemu, see qemu-block-drivers(7). Of a server there are none."""
    if formats.names_plain_file(name):
        yield name
    elif name.startswith("file:"):
        yield name[len("file:") :]
    elif name.startswith("json:"):
        try:
            document = json.loads(name[len("json:") :])
            found = list(_filenames(document))
        except (ValueError, RecursionError):
            return  # qemu will not make sense of it either
        yield from found


def _filenames(document: Any) -> Iterator[str]:
    """All values of `filename` and `file.filename` in a description of nodes."""
    if isinstance(document, list):
        for node in document:
            yield from _filenames(node)
    if not isinstance(document, dict):
        return
    for key, value in document.items():
        if isinstance(value, str) and key.rpartition(".")[2] == "filename":
            yield value
        yield from _filenames(value)


def _is_same(target: os.stat_result, path: str) -> bool:
    other = os.stat(path)
    if stat.S_ISBLK(target.st_mode) and stat.S_ISBLK(other.st_mode):
        # A device may have several nodes.
        return target.st_rdev == other.st_rdev
    return os.path.samestat(target, other)
