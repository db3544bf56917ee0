# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One large read that lets qemu-nbd keep its memory.

For each request qemu-nbd takes a buffer from malloc(3), and frees it after. A buffer of
1 MiB is mapped anew by glibc each time, and filled page by page by the kernel. That is nine
tenths of the work of qemu-nbd in a bulk stream. A freed buffer of several MiB teaches glibc to
keep such sizes in its heap, mallopt(3), "M_MMAP_THRESHOLD" (the threshold is dynamic). So
before a process moves much over an export, it reads some MiB at once and drops them. Any other
server loses one read by this.
"""

from __future__ import annotations

import threading
import weakref

from ovirt_imageio.common import defaults, sockets
from ovirt_imageio.common.buffers import borrow
from ovirt_imageio.common.nbd import Address, Client, wire


class LargeRead:
    """State that the instances of one export share, to read once. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moved = 0
        self._done = False

    def before(self, client: Client, offset: int, length: int) -> None:
        """Read, if a stream that follows moves enough for it to pay.

        Args:
            client: Connection with nothing in flight.
            offset: Where the stream starts: what is read there is in caches then.
            length: Bytes of the stream.

        Raises:
            ServerGone, ServerTimeout, ProtocolError: The connection is broken.
        """
        with self._lock:
            self._moved += length
            if self._done or self._moved < defaults.LARGE_READ_AFTER:
                return
            self._done = True
        _read_and_drop(client, offset)


def shared_by(address: Address) -> LargeRead:
    """Return the state that all users of an export in this process share. Any thread."""
    with _guard:
        found = _exports.get(address)
        if found is None:
            found = _exports[address] = LargeRead()
        return found


_exports: weakref.WeakValueDictionary[Address, LargeRead] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def _read_and_drop(client: Client, offset: int) -> None:
    block = client.export.minimum_block
    size = min(defaults.LARGE_READ, client.max_request, client.export.size)
    start = min(offset, client.export.size - size)
    start -= start % block
    size -= size % block
    if size <= defaults.PIECE:
        return
    request = client.send(wire.CMD_READ, start, size)
    with borrow(defaults.PIECE) as view:
        while not request.done:
            event = client.receive()
            if event.payload:
                _drop(client, event.length, view)


def _drop(client: Client, length: int, view: memoryview) -> None:
    try:
        while length:
            part = view[: min(length, len(view))]
            sockets.recv_exactly(client.sock, part)
            length -= len(part)
    except BaseException as e:
        client.give_up(e)
