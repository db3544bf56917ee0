# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage in memory: the reference that other backends are compared with."""

from __future__ import annotations

import threading
from typing import Iterator

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, Capabilities, NullOperation, Operation, pieces
from ovirt_imageio.common.buffers import Buffer, is_zero
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.extents import DirtyExtent, Extent, ZeroExtent, clip, merge
from ovirt_imageio.common.units import KiB


class Memory:
    """An image in memory, which any number of backends open. Any thread may use it.

    Args:
        data: Its first bytes.
        size: Bytes of the image; the rest reads as zeroes. None: those of data.
        granularity: Bytes that extents are told in; 64 KiB as in a qcow2 image.

    Attributes:
        data: All bytes.
        lock: Hold it to look at data while backends are in use.

    Raises:
        ValueError: size is less than the length of data, or granularity less than 1.
    """

    def __init__(self, data: Buffer = b"", *, size: int | None = None, granularity: int = 64 * KiB) -> None:
        self.data = bytearray(data)
        missing = 0 if size is None else size - len(self.data)
        if missing < 0:
            raise ValueError(f"size {size} is less than the {len(self.data)} bytes of data")
        if granularity < 1:
            raise ValueError(f"granularity {granularity}: expected 1 or more")
        self.data.extend(bytes(missing))
        self.granularity = granularity
        self.lock = threading.Lock()
        self._changed: set[int] = set()

    def checkpoint(self) -> None:
        """Take everything for clean: dirty extents tell what is written from now on."""
        with self.lock:
            self._changed.clear()

    def change(self, offset: int, buf: Buffer) -> None:
        """Write buf at offset. The range is inside the image."""
        with memoryview(buf) as view, view.cast("B") as raw, self.lock:
            if not raw:
                return
            end = offset + len(raw)
            self.data[offset:end] = raw
            self._changed.update(range(offset // self.granularity, -(-end // self.granularity)))

    def granules(self, offset: int, length: int) -> Iterator[tuple[int, int, bool, bool]]:
        """Tell start, length, zero and dirty of each granule that a range touches."""
        first = offset // self.granularity * self.granularity
        end = min(-(-(offset + length) // self.granularity) * self.granularity, len(self.data))
        for start, count in pieces(first, end - first, self.granularity):
            with self.lock, memoryview(self.data) as whole, whole[start : start + count] as view:
                zero, dirty = is_zero(view), start // self.granularity in self._changed
            yield start, count, zero, dirty


class MemoryBackend(Backend):
    """Storage in memory. One instance, one thread; instances of one Memory share it.

    Args:
        memory: The image.
        mode: `r` to read, `r+` to read and write.
        dirty: Tell dirty extents: what was written since the last `Memory.checkpoint`.
        connections: How many instances may work side by side.

    Raises:
        ValueError: Unknown mode.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        mode: str = "r+",
        dirty: bool = False,
        connections: int = defaults.MAX_CONNECTIONS,
    ) -> None:
        if mode not in ("r", "r+"):
            raise ValueError(f"unknown mode {mode!r}: expected 'r' or 'r+'")
        self._memory = memory
        self.size = len(memory.data)
        self.capabilities = Capabilities(
            max_readers=connections,
            max_writers=connections,
            can_extents=True,
            can_dirty=dirty,
            multi_conn=True,
            read_only=mode == "r",
        )

    def clone(self) -> MemoryBackend:
        """Open the same image once more, for another thread."""
        can = self.capabilities
        return MemoryBackend(
            self._memory,
            mode="r" if can.read_only else "r+",
            dirty=can.can_dirty,
            connections=can.max_readers,
        )

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with memoryview(buf) as raw, raw.cast("B") as view:
            self.check_range(offset, len(view))
            with self._memory.lock, memoryview(self._memory.data) as data:
                view[:] = data[offset : offset + len(view)]

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        with memoryview(buf) as view:
            self.check_write(offset, view.nbytes)
            self._memory.change(offset, view)
            self.unflushed = self.unflushed or view.nbytes > 0

    def zero(self, offset: int, length: int) -> None:
        """See Backend."""
        self.check_write(offset, length)
        for start, count in pieces(offset, length):
            self.write(start, bytes(count))

    def flush(self) -> None:
        """See Backend. There is nothing more stable to bring it to."""
        self.unflushed = False

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """See Backend. Zero extents are looked for in the data."""
        length = self.size - offset if length is None else length
        if context == "zero":
            self.check_range(offset, length)
            zero = (ZeroExtent(start, n, z, hole=False) for start, n, z, _ in self._granules(offset, length, op))
            return merge(clip(zero, offset, length))
        if context == "dirty" and self.capabilities.can_dirty:
            self.check_range(offset, length)
            dirty = (DirtyExtent(start, n, d, z) for start, n, z, d in self._granules(offset, length, op))
            return merge(clip(dirty, offset, length))
        raise UnsupportedOperation(f"this memory has no {context!r} extents")

    def close(self) -> None:
        """See Backend. The memory stays as long as a reference to it does."""

    def _granules(self, offset: int, length: int, op: Operation | None) -> Iterator[tuple[int, int, bool, bool]]:
        op = op or NullOperation()
        for granule in self._memory.granules(offset, length):
            op.check()
            yield granule
