# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An image on this machine, to read from.

A raw image is read as the file it is. Any other format goes through a qemu-nbd of our
own, which is told exactly which files to open:

    image.qcow2 ──► base.qcow2 ──► golden.raw
    json:{driver: qcow2, file: …, backing: {driver: qcow2, file: …, backing: {driver: raw, …}}}

So what `layers.look` found plain and named in the log is what is read, whatever the headers
say by then.

Each file is held open. A file that gets the name of the image meanwhile is not read. A file
that is written to meanwhile is noticed: the bytes read of it are of no one moment.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Sequence

from ovirt_imageio.client import formats
from ovirt_imageio.client.explained import Explained
from ovirt_imageio.client.inuse import ImageInUse, is_locked
from ovirt_imageio.client.layers import InvalidImage, Layer, UnsupportedImage
from ovirt_imageio.client.unchanged import Unchanged
from ovirt_imageio.client.window import Window
from ovirt_imageio.common import defaults, linux
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.backends.nbd import NbdBackend
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.qemu import image, locks, nbd

log = logging.getLogger(__name__)


def backing_node(layers: Sequence[Layer]) -> dict[str, Any] | None:
    """Describe what is below the top of a chain to qemu; None if there is nothing."""
    node: dict[str, Any] | None = None
    for layer in reversed(layers[1:]):
        node = image.node(
            layer.path,
            layer.driver,
            offset=layer.offset,
            size=layer.size,
            backing_chain=node is not None,
            backing=node,
            options=layer.options,
        )
    return node


class _Held:
    """A file of a chain, held open.

    Attributes:
        fd: The file.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        # O_NONBLOCK: not to wait for the writer of a FIFO, which is refused later.
        self.fd = os.open(layer.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._unchanged = Unchanged(self.fd, layer.path)

    def check(self) -> None:
        """Make sure that it was not written to."""
        self._unchanged.check(self.fd)

    def look_for_writer(self) -> None:
        """Refuse what a download is writing, and what no qemu would open; tell if a qemu may write to it.

        Formats other than raw are opened by qemu, which looks for itself.
        """
        path = self._layer.path
        if is_locked(self.fd):
            raise ImageInUse(f"a download is writing {path}: it is no image yet")
        if self._layer.driver != "raw":
            return
        if locks.is_reading_forbidden(self.fd):
            raise ImageInUse(f"{path} is being written by another program, such as a download, that lets none read it")
        if locks.is_written_in_qemu(self.fd):
            log.warning("%s is open for writing in a running qemu: what is read of it may be torn", path)
        if linux.is_block_device(self.fd):
            # A download would write to it, and nothing would tell that.
            locks.use_for_reading(self.fd)

    def close(self) -> None:
        """Close it. A worker that was left behind finds no other file by its number."""
        fd, self.fd = self.fd, -1
        os.close(fd)


class Source:
    """An image on this machine, open for reading by several workers.

    Args:
        layers: From `layers.look`. Other layers do not show through.
        connections: How many workers will read.
        bitmap: Dirty bitmap that `extents("dirty")` will be asked for.
        trusted: qemu may open what the image names, for `layers.look` allowed it.
        cancel: Ends what waits for the image.

    Attributes:
        size: Bytes of the disk.
        hides_zeroes: Extents tell none of the zeroes, or not all of them: look at the data.

    Raises:
        ImageInUse: A download is writing a file of it, or another program lets none read it.
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
        cancel: Cancel | None = None,
    ) -> None:
        self._top = layers[0]
        self._bitmap = bitmap
        self._cancel = cancel
        self._server: nbd.Server | None = None
        self._stack = ExitStack()
        is_raw = self._top.driver == "raw"
        self.hides_zeroes = is_raw or any(layer.driver in formats.BLIND for layer in layers)
        self._held: list[_Held] = []
        try:
            for layer in layers:
                self._held.append(_Held(layer))
                self._stack.callback(self._held[-1].close)
                self._held[-1].look_for_writer()
            self._open(layers, connections, trusted)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, layers: Sequence[Layer], connections: int, trusted: bool) -> None:
        is_raw = self._top.driver == "raw"
        if not is_raw:
            backing = backing_node(layers)
            self._server = _opened(
                self._stack,
                nbd.Server(
                    self._top.path,
                    self._top.driver,
                    private=True,
                    read_only=True,
                    # A worker that lost its connection opens another, while qemu-nbd
                    # may not have noticed the loss of the first; bulk reads use two.
                    shared=4 * connections + 2,
                    bitmap=self._bitmap,
                    backing_chain=trusted or backing is not None,
                    backing=backing,
                    offset=self._top.offset,
                    size=self._top.size,
                    options=self._top.options,
                    cancel=self._cancel,
                ),
            )
        _refuse_parts(self._top.path, self._server)
        with self.open() as backend:
            self.size = backend.size

    def check_unchanged(self) -> None:
        """Make sure that no file of the image was written to since it was opened.

        Raises:
            SourceChanged: One was.
        """
        for held in self._held:
            held.check()

    def open(self) -> Backend:
        """Open the image once more, for another thread."""
        if self._server is not None:
            connection = NbdBackend(
                self._server.address,
                dirty=self._bitmap is not None,
                bitmap=self._bitmap,
                greeting_timeout=defaults.CONNECT_TIMEOUT,
                cancel=self._cancel,
            )
            return Explained(connection, self._server, self._top.path)
        backend = FileBackend(self._top.path, splice_out=True, held=self._held[0].fd)
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


def _refuse_parts(path: str, server: nbd.Server | None) -> None:
    """Refuse an image of which this qemu lacks a part of the driver: reading would fail there."""
    for line in server.words().splitlines() if server is not None else ():
        if "module is missing" in line:
            raise UnsupportedImage(f"{path} needs more of qemu than is installed: {line}")


def _opened(stack: ExitStack, server: nbd.Server) -> nbd.Server:
    """Start a server that only reads: nothing is lost when it is killed, and the caller need not wait."""
    server.start()
    stack.callback(server.stop, kill=True)
    return server
