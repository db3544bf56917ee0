# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image on this machine, to read from.

A raw image is read as the file it is. Any other format goes through a qemu-nbd of our
own, which is told exactly which files to open:

    image.qcow2 ──► base.qcow2 ──► golden.raw
    json:{driver: qcow2, file: …, backing: {driver: qcow2, file: …, backing: {driver: raw, …}}}

So what `look` found plain and named in the log is what is read, whatever the headers
say by then.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Sequence, Union

from ovirt_imageio.client import formats
from ovirt_imageio.client.window import Window
from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.common.qemu import image, nbd

log = logging.getLogger(__name__)

Path = Union[str, "os.PathLike[str]"]
"""How callers name a file."""

_LONGEST_CHAIN = 200


class UnsafeImage(ImageioError):
    """An image refers to something that is not a plain file, or that nobody allowed."""


class InvalidImage(ImageioError):
    """A file is not the image that it was said to be."""


@dataclass(frozen=True)
class Layer:
    """One image of a chain, and where it is.

    Attributes:
        path: Absolute, or as the caller wrote it.
        fmt: Format.
        offset: Where it begins in its file; None for a file that is the image.
        size: Bytes it has there; None for a file that is the image.
    """

    path: str
    fmt: str
    offset: int | None = None
    size: int | None = None


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
    offset, size = (None, None) if member is None else find_member(path, member)
    fmt = fmt or formats.probe(_read(path, offset, size, 0, formats.PROBE_SIZE))
    return Layer(path, fmt, offset, size)


def _check(layer: Layer, *, allow_external: bool, follow: bool) -> Layer | None:
    """Look at the references of one image; return the next image of the chain."""

    def read(offset: int, length: int) -> bytes:
        return _read(layer.path, layer.offset, layer.size, offset, length)

    try:
        references = formats.references(layer.fmt, read)
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
    fmt = reference.format or formats.probe(_read(path, None, None, 0, formats.PROBE_SIZE))
    if fmt not in formats.SOURCES:
        raise InvalidImage(f"the backing file {name!r} of {layer.path} has the unknown format {fmt!r}")
    return Layer(path, fmt)


def _read(path: str, start: int | None, size: int | None, offset: int, length: int) -> bytes:
    """Read from an image's file, never past the image."""
    if size is not None:
        length = max(0, min(length, size - offset))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.pread(fd, length, (start or 0) + offset)
    except OverflowError as e:
        raise ValueError(f"a reference to offset {offset}") from e
    except OSError as e:
        e.filename = path
        raise
    finally:
        os.close(fd)


def find_member(path: str, member: str) -> tuple[int, int]:
    """Find an image inside a tar file.

    Returns:
        Its offset in the file, and its size.

    Raises:
        InvalidImage: It is no tar file, or has no such member, or not in one piece.
        OSError: The file cannot be read.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            info = tar.getmember(member)
    except KeyError:
        raise InvalidImage(f"{path} has no member {member!r}") from None
    except tarfile.TarError as e:
        raise InvalidImage(f"{path} is not an uncompressed tar file: {e}") from e
    if not info.isreg() or info.issparse():
        raise InvalidImage(f"member {member!r} of {path} is not stored as one plain file")
    return info.offset_data, info.size


def backing_node(layers: Sequence[Layer]) -> dict[str, Any] | None:
    """Describe what is below the top of a chain to qemu; None if there is nothing."""
    node: dict[str, Any] | None = None
    for layer in reversed(layers[1:]):
        node = image.node(layer.path, layer.fmt, backing_chain=node is not None, backing=node)
    return node


class Source:
    """An image on this machine, open for reading by several workers.

    Args:
        layers: From `look`. What is not among them does not show through.
        connections: How many workers will read.
        bitmap: Dirty bitmap that `extents("dirty")` will be asked for.
        trusted: qemu may open what the image names, for `look` allowed it.

    Raises:
        OSError: The file cannot be opened.
        QemuNbdError: qemu-nbd is missing, or cannot open the image.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        connections: int = defaults.MAX_WORKERS,
        bitmap: str | None = None,
        trusted: bool = False,
    ) -> None:
        self._top = layers[0]
        self._bitmap = bitmap
        self._server: nbd.Server | None = None
        self._stack = ExitStack()
        self.is_raw = self._top.fmt == "raw"
        if not self.is_raw:
            backing = backing_node(layers)
            self._server = _opened(
                self._stack,
                nbd.Server(
                    self._top.path,
                    self._top.fmt,
                    private=True,
                    read_only=True,
                    # A worker that lost its connection opens another, while qemu-nbd
                    # may not have noticed the loss of the first; bulk reads use two.
                    shared=4 * connections + 2,
                    bitmap=bitmap,
                    backing_chain=trusted or backing is not None,
                    backing=backing,
                    offset=self._top.offset,
                    size=self._top.size,
                ),
            )
        try:
            with self.open() as backend:
                self.size = backend.size
        except BaseException:
            self._stack.close()
            raise

    def open(self) -> Backend:
        """Open the image once more, for another thread."""
        if self._server is not None:
            return NbdBackend(
                self._server.address,
                dirty=self._bitmap is not None,
                bitmap=self._bitmap,
                greeting_timeout=defaults.CONNECT_TIMEOUT,
            )
        backend = FileBackend(self._top.path, splice_out=True)
        if self._top.size is None:
            return backend
        try:
            return Window(backend, self._top.offset or 0, self._top.size)
        except ValueError as e:
            backend.close()
            raise InvalidImage(f"{self._top.path} ends before the image inside it does: {e}") from e

    def close(self) -> None:
        """End qemu-nbd. Idempotent."""
        self._stack.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _opened(stack: ExitStack, server: nbd.Server) -> nbd.Server:
    """Start a server that only reads: nothing is lost when it is killed, and nobody waits."""
    server.start()
    stack.callback(server.stop, kill=True)
    return server
