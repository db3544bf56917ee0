# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""In place of qemu-img, qemu-nbd and the NBD backend: images of the simulated disk."""

from __future__ import annotations

import errno
import fcntl as real_fcntl
import os as real_os
import types
from typing import Any, Iterator, Optional

from ovirt_imageio.common.errors import ImageioError, RequestError
from ovirt_imageio.common.qemu.findings import CheckReport

from .. import qcow2
from ..disk import Node, failure
from ..kernel import active
from . import unknown
from .system import OpenFile, absolute, lock
from .threads import Lock

_TAKEN, _UNSHARED = 100, 200
_READ, _WRITE, _RESIZE = 0, 1, 3
"""Bytes that qemu locks for what it does and for what it lets nobody else do (block/file-posix.c)."""


class QemuImgError(ImageioError):
    """qemu-img failed."""


class QemuNbdError(ImageioError):
    """qemu-nbd could not be started."""


def hold(file: OpenFile, *, write: bool) -> None:
    """Take the locks that qemu takes.

    Raises:
        QemuNbdError: Another qemu has the image.
    """
    taken = [_READ, _WRITE, _RESIZE] if write else [_READ]
    unshared = [_WRITE, _RESIZE]
    for bit, base in [(bit, _UNSHARED) for bit in taken] + [(bit, _TAKEN) for bit in unshared]:
        for first, last, _, holder in file.node.ranges:
            if holder is not file and first <= base + bit < last:
                what = "write" if bit == _WRITE else "consistent read"
                raise QemuNbdError(f'Failed to get "{what}" lock')
    for place in [_TAKEN + bit for bit in taken] + [_UNSHARED + bit for bit in unshared]:
        lock(file, place, place + 1, real_fcntl.F_RDLCK)


class Export:
    """An image that qemu-nbd serves.

    Attributes:
        layer: Content that a guest sees.
        file: The open image.
        failed: A flush failed; qemu lets none succeed from then on (`page_cache_inconsistent`).
        flushing: Held by the one flush that runs.
        alive: It is served.
    """

    def __init__(self, layer: qcow2.Layer, file: OpenFile) -> None:
        self.layer = layer
        self.file = file
        self.failed = False
        self.flushing = Lock()
        self.alive = True


class Server:
    """In place of `qemu.nbd.Server`."""

    def __init__(
        self,
        filename: str,
        fmt: str,
        *,
        read_only: bool = False,
        backing_chain: bool = True,
        backing: Optional[dict[str, Any]] = None,
        detect_zeroes: str = "off",
        offset: Optional[int] = None,
        size: Optional[int] = None,
        **_: Any,
    ) -> None:
        if offset is not None or size is not None:
            raise NotImplementedError("the simulation knows no images inside others")
        self._path = absolute(filename)
        self._fmt = fmt
        self._read_only = read_only
        self._backing_chain, self._backing = backing_chain, backing
        self._file: Optional[OpenFile] = None
        self.address: Optional[Export] = None
        self.detects = detect_zeroes != "off"

    def start(self) -> None:
        """Open the image, as qemu-nbd does."""
        kernel = active()
        kernel.step(f"qemu-nbd {self._path}", 30000)
        try:
            layer = self._open()
            file = OpenFile(layer.node, real_os.O_RDWR, self._path)
            hold(file, write=not self._read_only)
        except (ValueError, OSError, QemuNbdError) as e:
            raise QemuNbdError(f"qemu-nbd cannot serve {self._path}: {e}") from e
        self._file = file
        self.address = Export(layer, file)
        kernel.process.held.append(self._die)

    def _open(self) -> qcow2.Layer:
        disk = active().disk
        node = disk.look_up(self._path)[2]
        if node is None:
            raise FileNotFoundError(f"Could not open '{self._path}': No such file or directory")
        if self._fmt == "raw":
            return qcow2.Layer(node)
        image = qcow2.Qcow2(disk, node)
        if self._backing is not None:
            image.backing = _described(self._backing)
        elif self._backing_chain and image.backing_name is not None:
            image.backing = qcow2.chain(disk, self._path, "qcow2").backing
        return image

    def words(self) -> str:
        """Return what it said: nothing."""
        return ""

    def failure(self) -> Optional[str]:
        """Tell why a connection was lost: this one says nothing of its own."""
        return None

    def stop(self, *, kill: bool = False) -> None:
        """End qemu-nbd; if it is not killed, it writes out what it holds."""
        kernel = active()
        if self.address is None:
            return
        if not kernel.process.killed:
            kernel.step(f"qemu-nbd ends {'killed' if kill else ''} {self._path}", 20000)
        if self._die in kernel.process.held:
            kernel.process.held.remove(self._die)
        self._close(clean=not kill)

    def _die(self) -> None:
        """End with the client that was killed: the last connection is gone."""
        self._close(clean=True)

    def _close(self, *, clean: bool) -> None:
        export, self.address = self.address, None
        if export is None:
            return
        export.alive = False
        layer = export.layer
        if clean and isinstance(layer, qcow2.Qcow2) and not self._read_only:
            layer.write_table(lambda writer: True)
            sync_unheard(layer.node)
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def sync_unheard(node: Node) -> None:
    """Bring content to stable storage as qemu does when it closes an image; it is silent about a failure."""
    try:
        active().disk_faults.before("sync", "qemu")
    except OSError:
        node.failures += 1
        node.store.forget()
    else:
        node.store.flush(node.store.mark())


def _described(node: dict[str, Any]) -> qcow2.Layer:
    """Open the image that a node of qemu's block layer describes."""
    disk = active().disk
    if node["driver"] in ("file", "raw") and "file" not in node:
        raise NotImplementedError(f"the simulation knows no node {node}")
    path = node["file"]["filename"]
    found = disk.look_up(path)[2]
    if found is None:
        raise FileNotFoundError(errno.ENOENT, real_os.strerror(errno.ENOENT), path)
    if node["driver"] == "raw":
        return qcow2.Layer(found)
    image = qcow2.Qcow2(disk, found)
    if node.get("backing") is not None:
        image.backing = _described(node["backing"])
    elif "backing" not in node and image.backing_name is not None:
        image.backing = qcow2.chain(disk, path, "qcow2").backing
    return image


def make_backend(base: Any, defaults: Any) -> Any:
    """Return what stands in place of `backends.nbd`.

    Args:
        base: The module `backends.base` of the realm.
        defaults: The module `defaults` of it.
    """

    class NbdBackend(base.Backend):  # type: ignore[misc]
        """One connection to a simulated qemu-nbd."""

        def __init__(
            self, address: Any, *, mode: str = "r", sparse: bool = False, cancel: Any = None, **_: Any
        ) -> None:
            kernel = active()
            self._cancel = cancel
            self._interrupted = False
            kernel.step("nbd connect", 500)
            if address is None or not address.alive:
                raise ConnectionRefusedError(errno.ECONNREFUSED, real_os.strerror(errno.ECONNREFUSED))
            self.address = address
            self._mode = mode
            self._layer = address.layer
            self._closed = False
            self._wake = None if cancel is None else cancel.add(self.interrupt)
            self.size = self._layer.size
            self.capabilities = base.Capabilities(
                max_readers=8,
                max_writers=8,
                can_zero=True,
                can_extents=True,
                can_flush=True,
                multi_conn=False,
                read_only=mode == "r",
            )

        def _ask(self, what: str, micros: int = 400) -> None:
            active().step(f"nbd {what}", micros)
            if self._interrupted and self._cancel is not None:
                self._cancel.check()
            if not self.address.alive or self._closed or self._interrupted:
                raise ConnectionResetError(errno.ECONNRESET, real_os.strerror(errno.ECONNRESET))

        def read_into(self, offset: int, buf: Any) -> None:
            with memoryview(buf) as raw, raw.cast("B") as view:
                self.check_range(offset, len(view))
                self._ask(f"read {offset} {len(view)}")
                self._refuse("read")
                view[:] = self._layer.read(offset, len(view))

        def write(self, offset: int, buf: Any) -> None:
            with memoryview(buf) as raw, raw.cast("B") as view:
                data = view.tobytes()
            self.check_range(offset, len(data))
            self._ask(f"write {offset} {len(data)}")
            self.unflushed = True
            self._refuse("write")
            with _answering():
                if data.strip(b"\0"):
                    self._layer.write(offset, data, self)
                else:
                    self._layer.zero(offset, len(data), self)

        def zero(self, offset: int, length: int) -> None:
            self.check_range(offset, length)
            self._ask(f"zero {offset} {length}")
            self.unflushed = True
            self._refuse("write")
            with _answering():
                self._layer.zero(offset, length, self)

        def flush(self) -> None:
            self._ask("flush")
            with _answering(), self.address.flushing:
                self._sync()
                if isinstance(self._layer, qcow2.Qcow2):
                    self._layer.write_table(lambda writer: writer in (None, self))
                self._sync()
            self.unflushed = False

        def _sync(self) -> None:
            if self.address.failed:
                raise failure(errno.EIO)
            try:
                self.address.file.sync(self._covers)
            except OSError:
                self.address.failed = True
                raise

        def _covers(self, change: Any) -> bool:
            return change.writer in (None, self)

        @staticmethod
        def _refuse(kind: str) -> None:
            try:
                active().disk_faults.before(kind, "nbd")
            except OSError as e:
                raise RequestError(f"the NBD server refused: {e}", errno=e.errno or 0) from e

        def extents(
            self, context: str = "zero", *, offset: int = 0, length: Optional[int] = None, op: Any = None
        ) -> Iterator[Any]:
            self._ask("extents")
            length = self.size - offset if length is None else length
            return iter(list(qcow2.extents(self._layer, offset, length)))

        def interrupt(self) -> None:
            """Break the connection."""
            self._interrupted = True

        def clone(self) -> Any:
            return NbdBackend(self.address, mode=self._mode, cancel=self._cancel)

        def close(self) -> None:
            if self._closed:
                return
            self._closed = True
            if self._wake is not None:
                self._cancel.remove(self._wake)
            if isinstance(self._layer, qcow2.Qcow2):
                self._layer.let_go(self)
            store = self._layer.node.store
            store.changes = [
                change._replace(writer=None) if change.writer is self else change for change in store.changes
            ]

    return types.SimpleNamespace(NbdBackend=NbdBackend)


class _answering:  # noqa: N801
    """Turns errors of the disk into those that an NBD server answers with."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, OSError):
            raise RequestError(f"the NBD server refused: {error.strerror}", errno=error.errno or 0) from error


def create(
    filename: str,
    fmt: str,
    *,
    size: Optional[int] = None,
    backing_file: Optional[str] = None,
    backing_format: Optional[str] = None,
    cluster_size: Optional[int] = None,
    **_: Any,
) -> None:
    """See `qemu.img.create`."""
    kernel = active()
    path = absolute(filename)
    kernel.step(f"qemu-img create {path}", 20000)
    assert size is not None
    assert fmt == "qcow2"
    try:
        folder, name, node = kernel.disk.look_up(path)
        if node is None:
            node = kernel.disk.make(0o100644, kernel.process.uid)
            folder.change({name: node})
        file = OpenFile(node, real_os.O_RDWR, path)
        try:
            hold(file, write=True)
        finally:
            file.close()
        if backing_file is not None:
            below = real_os.path.join(real_os.path.dirname(path), backing_file)
            qcow2.chain(kernel.disk, below, backing_format)
        bits = (cluster_size or 64).bit_length() - 1 + 10
        qcow2.write_header(
            kernel.disk, node, size, cluster_bits=bits, backing=backing_file, backing_format=backing_format
        )
        sync_unheard(node)
    except (OSError, ValueError, QemuNbdError) as e:
        raise QemuImgError(f"qemu-img: {path}: {e}") from e


def info(filename: str, **_: Any) -> dict[str, Any]:
    """See `qemu.img.info`."""
    kernel = active()
    path = absolute(filename)
    kernel.step(f"qemu-img info {path}", 20000)
    try:
        layer = qcow2.chain(kernel.disk, path)
    except (OSError, ValueError) as e:
        raise QemuImgError(f"qemu-img: {path}: {e}") from e
    return {"virtual-size": layer.size, "format": "qcow2" if isinstance(layer, qcow2.Qcow2) else "raw"}


def check(filename: str, **_: Any) -> CheckReport:
    """See `qemu.img.check`."""
    info(filename)
    return CheckReport()


IMG = types.SimpleNamespace(
    PROGRAM="qemu-img", QemuImgError=QemuImgError, create=create, info=info, check=check, __getattr__=unknown("img")
)
NBD = types.SimpleNamespace(PROGRAM="qemu-nbd", QemuNbdError=QemuNbdError, Server=Server)
