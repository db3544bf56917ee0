# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Storage in memory that does as a test tells it: waits, fails, is full, goes away."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Callable, Iterator, Optional, Sequence

from ovirt_imageio.common.backends.base import Backend, Capabilities, Operation, Peer
from ovirt_imageio.common.backends.memory import Memory, MemoryBackend
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.extents import Extent

PATIENCE = 10.0
"""Seconds after which a test is taken for stuck."""


class Gate:
    """A place where workers wait until the test lets them go on.

    Attributes:
        reached: Set when a worker has come to the gate.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        """Let everybody through, from now on."""
        self._open.set()

    def pass_through(self) -> None:
        """Wait until the gate is open. Worker thread."""
        self.reached.set()
        if not self._open.wait(PATIENCE):
            raise TimeoutError("the test never opened the gate")


class Storage:
    """An image in memory, and what happens to those who use it. Any thread.

    Args:
        data: Its content.
        size: Bytes, if it is longer than data.
        multi_conn: One flush covers all connections.
        connections: How many instances the capabilities allow.

    Attributes:
        memory: The image.
        gates: By method name (``read_into``, ``write``, ``zero``, ``flush``, ``open``): where
            callers wait.
        errors: By method name: raised once for each error in the list.
        calls: How often each method was called.
        open: Instances that are open.
        most: The most that were open at a time.
        flushed: Numbers of the instances that were flushed.
    """

    def __init__(
        self, data: bytes = b"", *, size: Optional[int] = None, multi_conn: bool = True, connections: int = 8
    ) -> None:
        self.memory = Memory(data, size=size)
        self.multi_conn = multi_conn
        self.connections = connections
        self.gates: dict[str, Gate] = {}
        self.errors: dict[str, list[BaseException]] = {}
        self.calls: Counter[str] = Counter()
        self.open = 0
        self.most = 0
        self.made: list[StorageBackend] = []
        self.flushed: list[int] = []
        self._lock = threading.Lock()

    @property
    def data(self) -> bytes:
        """The content now."""
        return bytes(self.memory.data)

    def gate(self, method: str) -> Gate:
        """Make callers of a method wait at a gate."""
        return self.gates.setdefault(method, Gate())

    def fail(self, method: str, *errors: BaseException) -> None:
        """Let the next calls of a method fail."""
        self.errors.setdefault(method, []).extend(errors)

    def backend(self, *_: Any) -> StorageBackend:
        """Open an instance."""
        self.called("open")
        return StorageBackend(self)

    def called(self, method: str) -> None:
        """Count a call; wait, fail, or just go on."""
        with self._lock:
            self.calls[method] += 1
            errors = self.errors.get(method)
            error = errors.pop(0) if errors else None
        gate = self.gates.get(method)
        if gate is not None:
            gate.pass_through()
        if error is not None:
            raise error

    def opened(self, backend: StorageBackend) -> int:
        """Count an instance; return its number."""
        with self._lock:
            self.open += 1
            self.most = max(self.most, self.open)
            self.made.append(backend)
            return len(self.made) - 1

    def closed(self) -> None:
        """Count an instance less."""
        with self._lock:
            self.open -= 1


class StorageBackend(MemoryBackend):
    """An instance of a Storage.

    Attributes:
        number: Of the instance, from 0 in the order of opening.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage.memory)
        self.capabilities = Capabilities(
            max_readers=storage.connections,
            max_writers=storage.connections,
            can_extents=True,
            multi_conn=storage.multi_conn,
        )
        self.storage = storage
        self.number = storage.opened(self)
        self._closed = False

    def read_into(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        self.storage.called("read_into")
        super().read_into(offset, buf)

    def write(self, offset: int, buf: Buffer) -> None:
        """See Backend."""
        self.storage.called("write")
        super().write(offset, buf)

    def zero(self, offset: int, length: int) -> None:
        """See Backend."""
        self.storage.called("zero")
        super().zero(offset, length)

    def flush(self) -> None:
        """See Backend."""
        self.storage.called("flush")
        self.storage.flushed.append(self.number)
        super().flush()

    def extents(
        self,
        context: str = "zero",
        *,
        offset: int = 0,
        length: Optional[int] = None,
        op: Optional[Operation] = None,
    ) -> Iterator[Extent]:
        """See Backend."""
        self.storage.called("extents")
        return super().extents(context, offset=offset, length=length, op=op)

    def send_to(self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()) -> None:
        """See Backend."""
        self.storage.called("send_to")
        super().send_to(peer, offset, length, op, others=others)

    def close(self) -> None:
        """See Backend."""
        if not self._closed:
            self._closed = True
            self.storage.closed()


Open = Callable[[], StorageBackend]
