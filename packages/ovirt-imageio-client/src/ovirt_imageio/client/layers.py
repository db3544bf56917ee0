# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files an image is made of, and how each is to be read.

Headers, footers and tables of contents are read here, before qemu opens anything:

    disk.qcow2 ─────────────── itself, then what it is backed by
    vm.ova, member=disk.vmdk ─ a part of the tar file
    disk.vhd, fixed ────────── the file without its footer, as a raw image
    disk.vhd, dynamic ──────── qemu is told which of its two sizes counts
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tarfile
from dataclasses import dataclass, replace
from typing import NamedTuple, Union

from ovirt_imageio.client import formats, packed, vhd
from ovirt_imageio.client.differencing import parent_of
from ovirt_imageio.common.errors import ImageioError, Naming

log = logging.getLogger(__name__)

Path = Union[str, "os.PathLike[str]"]
"""How callers name a file."""

_LONGEST_CHAIN = 200
_AS_IT_IS = 'pass fmt="raw" to take the file as it is'


class UnsafeImage(ImageioError):
    """An image refers to something that is not a plain file, or that was not allowed."""


class InvalidImage(ImageioError):
    """A file is not the image that it was said to be, or not all of it."""


class UnsupportedImage(ImageioError):
    """An image is of a kind that cannot be read whole; the text says what to do."""


@dataclass(frozen=True)
class Layer:
    """One image of a chain, and where it is.

    Attributes:
        path: Absolute, or as the caller wrote it.
        fmt: Format.
        offset: Where it begins in its file; None for a file that is the image.
        size: Bytes it has there; None for a file that is the image.
        is_plain: These bytes are the disk, whatever the format.
        options: Further options of qemu's driver, name and value of each.
    """

    path: str
    fmt: str
    offset: int | None = None
    size: int | None = None
    is_plain: bool = False
    options: tuple[tuple[str, str], ...] = ()

    @property
    def driver(self) -> str:
        """The driver of qemu that reads it."""
        return "raw" if self.is_plain else self.fmt

    @property
    def file_size(self) -> int:
        """Bytes of the image's file, or of its part of one."""
        return _Part(self.path, self.offset, self.size).size

    def read(self, offset: int, length: int) -> bytes:
        """Read from the image's file, never past the image; fewer bytes at its end.

        Raises:
            ValueError: No file is so large.
            OSError: The file cannot be read; it is named.
        """
        return _Part(self.path, self.offset, self.size).read(offset, length)


def look(
    filename: Path,
    *,
    fmt: str | None = None,
    member: str | None = None,
    backing_chain: bool = True,
    allow_external: bool = False,
) -> tuple[Layer, ...]:
    """Find out what reading an image means, without letting qemu open anything.

    Args:
        filename: Path of the image, or of a tar file (OVA).
        fmt: Format of the image; None looks at its content, which for a raw image is
            a guest's.
        member: Name of the image inside the tar file.
        backing_chain: Follow backing files; else only the image itself is of interest.
        allow_external: Allow data files, protocols and `json:` references: qemu will
            open what the image names.

    Returns:
        The image and, from top to bottom, what it is backed by.

    Raises:
        UnsafeImage: It names what it is refused.
        UnsupportedImage: It is packed, encrypted, or a part of another image.
        InvalidImage: A header does not hold together, or there is no such member.
        ValueError: The format is unknown.
        OSError: A file cannot be read.
    """
    top = _top(os.fspath(filename), fmt, member)
    layers = [top]
    while True:
        backing = _check(layers[-1], allow_external=allow_external, follow=backing_chain)
        if backing is None:
            break
        log.info("%s is backed by %s (%s)", layers[-1].path, backing.path, backing.fmt)
        if backing in layers or len(layers) == _LONGEST_CHAIN:
            raise InvalidImage(f"the backing chain of {top.path} does not end: {backing.path} again")
        layers.append(backing)
    return tuple(layers)


class _Part(NamedTuple):
    """A file, or a part of one that is an image of its own."""

    path: str
    start: int | None = None
    length: int | None = None

    @property
    def size(self) -> int:
        """Bytes of it."""
        if self.length is not None:
            return self.length
        fd = self._open()
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)

    def read(self, offset: int, length: int) -> bytes:
        """Read from it, see Layer."""
        if self.length is not None:
            length = max(0, min(length, self.length - offset))
        fd = self._open()
        try:
            with Naming(self.path):
                return os.pread(fd, length, (self.start or 0) + offset)
        except OverflowError as e:
            raise ValueError(f"a reference to offset {offset}") from e
        except OSError as e:
            if e.errno == errno.EINVAL:  # what is wanted ends past the largest offset
                raise ValueError(f"a reference to offset {offset}") from e
            raise
        finally:
            os.close(fd)

    def tail(self) -> bytes:
        """The last TAIL_SIZE bytes, none of a shorter file."""
        size = self.size
        return self.read(size - formats.TAIL_SIZE, formats.TAIL_SIZE) if size >= formats.TAIL_SIZE else b""

    def _open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def probe_file(path: str) -> str:
    """Tell the format of a file by its content; `raw` for anything that is not known.

    Raises:
        OSError: It cannot be read, or no image can be in it.
    """
    _check_kind(path)
    part = _Part(path)
    return formats.probe(part.read(0, formats.PROBE_SIZE), part.tail())


def _check_kind(path: str) -> None:
    """Refuse what no image can be in: opening a FIFO would wait for its writer."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "neither a regular file nor a block device", path)


def _top(path: str, fmt: str | None, member: str | None) -> Layer:
    if fmt is not None and fmt not in formats.SOURCES:
        raise ValueError(f"unknown image format {fmt!r}: expected one of {', '.join(formats.SOURCES)}")
    _check_kind(path)
    part = _Part(path) if member is None else _Part(path, *find_member(path, member))
    return _layer(part, fmt, named=member or path)


def _layer(part: _Part, fmt: str | None, *, named: str) -> Layer:
    """Find out how a file is to be read.

    Args:
        part: The file.
        fmt: Its format; None to look at its content.
        named: Its name, or that of a member of a tar file.
    """
    layer = Layer(part.path, fmt or _probed(part, named), part.start, part.length)
    _refuse_parts(layer)
    return _vhd(layer, part, probed=fmt is None) if layer.fmt == "vpc" else layer


def _refuse_parts(layer: Layer) -> None:
    """Refuse an image of which qemu reads nothing, or less than all, whatever it says."""
    try:
        how, parent = formats.encryption(layer.fmt, layer.read), parent_of(layer.fmt, layer.read)
    except ValueError as e:
        raise InvalidImage(f"{layer.path} is not a valid {layer.fmt} image: {e}") from e
    if how is not None:
        raise UnsupportedImage(f"{layer.path} is encrypted ({how}): decrypt it first, for example by qemu-img convert")
    if layer.fmt == "vmdk" and layer.read(0, 4) == b"COWD":
        raise UnsupportedImage(
            f"{layer.path} is a part of an image of VMware ESX (COWD), which qemu cannot read by itself: "
            "convert the image first, by vmkfstools"
        )
    if parent is not None:
        raise UnsupportedImage(
            f"{layer.path} has only what changed since its parent ({parent}): "
            "merge the two first, by the program that made them"
        )


def _probed(part: _Part, named: str) -> str:
    """Tell the format of a file by its content, and refuse what cannot be a disk as it is."""
    head = part.read(0, formats.PROBE_SIZE)
    fmt = formats.probe(head, part.tail())
    if fmt != "raw":
        return fmt
    found = packed.recognise(head, named)
    if found is not None:
        raise UnsupportedImage(f"{named} is {found.how}; {found.advice}, or {_AS_IT_IS}")
    what = formats.MARKED_AT_THE_END.get(os.path.splitext(named)[1].lower())
    if what is not None:
        raise InvalidImage(f"{named} is named as a {what}, and has no mark of one: is it cut off? Or {_AS_IT_IS}")
    return "raw"


def _vhd(layer: Layer, part: _Part, *, probed: bool) -> Layer:
    """Find out how much of a VHD is the disk; a footer that is none is left to qemu."""
    first, last = vhd.parse(part.read(0, vhd.SECTOR)), vhd.parse(part.tail())
    footer = first or last
    if footer is None:
        return layer
    if first is None and footer.kind != vhd.FIXED:
        raise InvalidImage(
            f"{layer.path} ends with the footer of a VHD that is not fixed, and does not begin with the copy of it: "
            f"is it damaged? Or {_AS_IT_IS}"
        )
    if footer.kind != vhd.FIXED:
        _tell_size(layer.path, footer)
        return replace(layer, options=(("force_size_calc", footer.size_calculation),))
    room = part.size - vhd.SECTOR
    if room < footer.size or (probed and room != footer.size):
        raise InvalidImage(
            f"{layer.path} ends with the footer of a fixed VHD of {footer.size} bytes, after {room} bytes: "
            f"is it damaged? Or {_AS_IT_IS}"
        )
    return replace(layer, offset=layer.offset or 0, size=room, is_plain=True)


def _tell_size(path: str, footer: vhd.Footer) -> None:
    if footer.size != footer.geometry_size:
        log.info(
            "%s: a VHD by %r, of %d bytes by its size and %d by its geometry; taken is %s",
            *(path, footer.creator, footer.size, footer.geometry_size),
            "the geometry" if footer.size_calculation == "chs" else "the size",
        )


def _check(layer: Layer, *, allow_external: bool, follow: bool) -> Layer | None:
    """Look at the references of one image; return the next image of the chain."""
    try:
        references = formats.references(layer.fmt, layer.read)
    except ValueError as e:
        raise InvalidImage(f"{layer.path} is not a valid {layer.fmt} image: {e}") from e
    if allow_external:
        for reference in references:
            log.warning("%s uses the %s file %r", layer.path, reference.kind, reference.name)
        return None
    backing = None
    for reference in references:
        if reference.kind == "data":
            raise UnsafeImage(
                f"{layer.path} keeps its data in another file, {reference.name!r}: refused, "
                "for an image may name any file; pass allow_external=True if you trust it"
            )
        if follow:
            backing = _backing(layer, reference)
    return backing


def _backing(layer: Layer, reference: formats.Reference) -> Layer:
    name = reference.name
    if not formats.names_plain_file(name):
        raise UnsafeImage(
            f"{layer.path} is backed by {name!r}, which is not a plain file: refused; "
            "pass allow_external=True if you trust the image"
        )
    path = os.path.join(os.path.dirname(os.path.abspath(layer.path)), name)
    try:
        mode = os.stat(path).st_mode
    except OSError as e:
        raise InvalidImage(f"the backing file {name!r} of {layer.path} cannot be read: {e.strerror}") from e
    if not stat.S_ISREG(mode):
        raise UnsafeImage(
            f"{layer.path} is backed by {name!r}, which is not a regular file: refused; "
            "pass allow_external=True if you trust the image"
        )
    if reference.format is not None and reference.format not in formats.SOURCES:
        raise InvalidImage(f"the backing file {name!r} of {layer.path} has the unknown format {reference.format!r}")
    return _layer(_Part(path), reference.format, named=path)


def find_member(path: str, member: str) -> tuple[int, int]:
    """Find an image inside a tar file.

    Returns:
        Its offset in the file, and its size.

    Raises:
        InvalidImage: It is no tar file, or has no such member, or not in one piece.
        OSError: The file cannot be read.
    """
    try:
        with Naming(path), tarfile.open(path, "r:") as tar:
            info = tar.getmember(member)
    except KeyError:
        raise InvalidImage(f"{path} has no member {member!r}") from None
    except tarfile.TarError as e:
        raise InvalidImage(f"{path} is not an uncompressed tar file: {e}") from e
    if not info.isreg() or info.issparse():
        raise InvalidImage(f"member {member!r} of {path} is not stored as one plain file")
    return info.offset_data, info.size
