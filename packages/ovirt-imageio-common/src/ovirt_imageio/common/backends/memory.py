# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage in memory: the reference that other backends are compared with."""

from __future__ import annotations

import threading
from typing import Iterator

from ovirt_imageio.common.backends.base import Backend, Capabilities, pieces
from ovirt_imageio.common.buffers import Buffer, is_zero
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.extents import Extent, ZeroExtent, merge

_GRANULE = 64 << 10
"""What extents are told in, as a qcow2 image does."""


class Memory:
    """An image in memory, which any number of backends open. Any thread may use it.

    Args:
        data: Its first bytes.
        size: Bytes of the image; the rest reads as zeroes.
    """

    def __init__(self, data: bytes = b"", *, size: int | None = None) -> None:
        self.data = bytearray(data)
        self.data.extend(bytes((len(data) if size is None else size) - len(data)))
        self.lock = threading.Lock()


class MemoryBackend(Backend):
    """Storage in memory. One instance, one thread; instances of one Memory share it."""

    def __init__(self, memory: Memory, *, mode: str = "r+", connections: int = 8) -> None:
        self._memory = memory
        self.size = len(memory.data)
        self.capabilities = Capabilities(
            max_readers=connections,
            max_writers=connections,
            can_extents=True,
            multi_conn=True,
            read_only=mode == "r",
        )

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with memoryview(buf) as view:
            self.check_range(offset, len(view))
            with self._memory.lock:
                view[:] = self._memory.data[offset : offset + len(view)]

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with memoryview(buf) as view:
            self._check_write(offset, len(view))
            with self._memory.lock:
                self._memory.data[offset : offset + len(view)] = view
        self.unflushed = True

    def zero(self, offset: int, length: int) -> None:
        """See Backend."""
        self._check_write(offset, length)
        with self._memory.lock:
            self._memory.data[offset : offset + length] = bytes(length)
        self.unflushed = True

    def flush(self) -> None:
        """See Backend. There is nothing more stable to bring it to."""
        self.unflushed = False

    def extents(self, context: str = "zero", *, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """See Backend. Zero extents are looked for in the data."""
        if context != "zero":
            raise UnsupportedOperation(f"memory has no {context!r} extents")
        length = self.size - offset if length is None else length
        self.check_range(offset, length)
        return merge(self._granules(offset, length))

    def _granules(self, offset: int, length: int) -> Iterator[ZeroExtent]:
        for start, count in pieces(offset, length, _GRANULE):
            with self._memory.lock:
                zero = is_zero(bytes(self._memory.data[start : start + count]))
            yield ZeroExtent(start, count, zero=zero, hole=False)

    def close(self) -> None:
        """See Backend. The memory stays as long as somebody holds it."""

    def _check_write(self, offset: int, length: int) -> None:
        if self.capabilities.read_only:
            raise UnsupportedOperation("the image was opened for reading")
        self.check_range(offset, length)
