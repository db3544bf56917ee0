# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Kept for vdsm only: copy a stream into a volume."""

from __future__ import annotations

from typing import Protocol

from ovirt_imageio.common.backends.file import FileBackend
from ovirt_imageio.common.buffers import borrow
from ovirt_imageio.common.errors import PeerGone
from ovirt_imageio.common.imagesapi import LARGEST
from ovirt_imageio.common.units import MiB

BUFFERSIZE = 8 * MiB


class Source(Protocol):
    """A stream adapter of vdsm: `read(size)` returns bytes, none at the end."""

    def read(self, size: int) -> bytes:
        """Return at most size bytes."""


class Receive:
    """Write what a source gives to a file, which grows as needed, or to a block device.

    Args:
        path: Of an existing file or block device.
        src: To read from.
        size: Bytes to copy; None copies until the source ends.
        offset: Where to write.
        flush: Bring the data to stable storage at the end.
        buffersize: Most bytes to read at a time.

    Attributes:
        done: Bytes written so far. Any thread may look at it.
        active: `run` has not ended.
    """

    def __init__(
        self,
        path: str,
        src: Source,
        size: int | None = None,
        offset: int = 0,
        flush: bool = True,
        buffersize: int = BUFFERSIZE,
    ) -> None:
        self._path = path
        self._src = src
        self._size = size
        self._offset = offset
        self._flush = flush
        self._step = buffersize
        self.done = 0
        self.active = True

    @property
    def size(self) -> int | None:
        """Bytes to copy, None if not known."""
        return self._size

    def run(self) -> None:
        """Copy everything.

        Raises:
            PeerGone: The source ended before size bytes.
            OSError: Storage failed.
        """
        try:
            with FileBackend(self._path, mode="r+", grow_to=LARGEST) as target:
                while self._size is None or self.done < self._size:
                    if not self._copy_piece(target):
                        break
                if self._flush:
                    target.flush()
        finally:
            self.active = False

    def _copy_piece(self, target: FileBackend) -> bool:
        """Copy one piece; false at the end of the source."""
        want = self._step if self._size is None else min(self._step, self._size - self.done)
        n = self._read_into(target, want)
        if not n and self._size is not None:
            raise PeerGone(f"the source ended after {self.done} of {self._size} bytes")
        self.done += n
        return n > 0

    def _read_into(self, target: FileBackend, want: int) -> int:
        readinto = getattr(self._src, "readinto", None)
        if readinto is None:
            data = self._src.read(want)
            target.write(self._offset + self.done, data)
            return len(data)
        with borrow(want) as view:
            n = int(readinto(view) or 0)
            target.write(self._offset + self.done, view[:n])
            return n

    def close(self) -> None:
        """Release everything; `run` has done so already."""
        self.active = False
