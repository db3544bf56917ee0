# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of a file as an image of its own: a disk inside a tar file, a VHD without its footer."""

from __future__ import annotations

from typing import Iterator, Sequence

from ovirt_imageio.common.backends.base import Backend, Operation, Peer
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.extents import Extent


class Window(Backend):
    """A range of another backend, to read from. One instance, one thread.

    Args:
        backend: Holder of the range; closed with the window.
        offset: Start of the range.
        size: Bytes of the range.

    Raises:
        ValueError: The range is not inside the backend.
    """

    def __init__(self, backend: Backend, offset: int, size: int) -> None:
        backend.check_range(offset, size)
        self._backend = backend
        self._start = offset
        self.size = size
        self.capabilities = backend.capabilities._replace(read_only=True)

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with memoryview(buf) as view:
            self.check_range(offset, view.nbytes)
        self._backend.read_into(self._start + offset, buf)

    def write(self, offset: int, buf: Buffer) -> None:
        """Refuse."""
        raise UnsupportedOperation("a part of a file is only read")

    def zero(self, offset: int, length: int) -> None:
        """Refuse."""
        raise UnsupportedOperation("a part of a file is only read")

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """See Backend."""
        length = self.size - offset if length is None else length
        self.check_range(offset, length)
        for extent in self._backend.extents(context, offset=self._start + offset, length=length, op=op):
            yield extent._replace(start=extent.start - self._start)

    def send_to(self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()) -> None:
        """See Backend."""
        self.check_range(offset, length)
        self._backend.send_to(peer, self._start + offset, length, op)

    def close(self) -> None:
        """See Backend."""
        self._backend.close()
