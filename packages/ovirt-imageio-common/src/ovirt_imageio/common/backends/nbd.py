# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage behind an NBD server.

Requests to a server with a minimum block are whole blocks. A block that a caller's range
shares with others at its edge is read, changed and written, under a lock of the export::

    blocks   |        |        |        |        |
    range        |  edge |     body     | edge |
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from ovirt_imageio.common import defaults, linux, nbd
from ovirt_imageio.common.backends import largeread, pipelined, splice
from ovirt_imageio.common.backends.base import Backend, Capabilities, Operation, Peer, fill_from
from ovirt_imageio.common.backends.inflight import piece_size
from ovirt_imageio.common.backends.pausing import is_paused
from ovirt_imageio.common.buffers import Buffer, borrow
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ReadOnlyStorage, RequestError
from ovirt_imageio.common.extents import Extent
from ovirt_imageio.common.nbd.connecting import GREETING_TIMEOUT

# Reads like those of a stream, such as a checksum's: bytes.
_LONG = defaults.PIECE // 2

# Seconds between two looks if the wait for a lock is to end: its holder may wait for storage that hangs.
_LOOK = 0.2

# A lock for each export in use: its edges are changed by one thread at a time.
_edge_locks: weakref.WeakValueDictionary[nbd.Address, threading.Lock] = weakref.WeakValueDictionary()
_edge_locks_guard = threading.Lock()


class _Part(NamedTuple):
    """A part of a range: whole blocks, or an edge inside one."""

    offset: int
    length: int
    whole: bool


class NbdBackend(Backend):
    """An export of an NBD server, over one connection.

    One instance, one thread. `clone` opens another connection for another thread.

    Args:
        address: of the export, or its URL.
        mode: ``"r"`` or ``"r+"``.
        sparse: zeroing may deallocate.
        dirty: dirty extents will be wanted.
        bitmap: name of their bitmap, if the export has several.
        connections: how many instances may work side by side.
        timeout: seconds that a system call waits for the server; 0 for no limit.
        connect_timeout: seconds to connect and to negotiate.
        greeting_timeout: seconds after which a silent server counts as full.
        splice: use splice(2) where possible.
        large_read: let a server on a Unix socket keep its memory in bulk streams, see `largeread`.
        cancel: ends what waits for the server, in this instance and in its clones.

    Attributes:
        address: where the export is.
        export: what was negotiated.

    Raises:
        ReadOnlyStorage: the export is read-only and the mode is ``"r+"``.
        ServerFull, ServerTimeout, ServerGone, ProtocolError, RequestError, OSError, ValueError: as `nbd.Client`.
    """

    def __init__(
        self,
        address: nbd.Address | str,
        *,
        mode: str = "r",
        sparse: bool = False,
        dirty: bool = False,
        bitmap: str | None = None,
        connections: int = defaults.MAX_CONNECTIONS,
        timeout: float = defaults.NBD_TIMEOUT,
        connect_timeout: float = defaults.CONNECT_TIMEOUT,
        greeting_timeout: float = GREETING_TIMEOUT,
        splice: bool = True,
        large_read: bool = True,
        cancel: Cancel | None = None,
    ) -> None:
        if mode not in ("r", "r+"):
            raise ValueError(f"unknown mode {mode!r}, expected 'r' or 'r+'")
        self.address = nbd.parse(address) if isinstance(address, str) else address
        self._options: dict[str, Any] = {
            "mode": mode,
            "sparse": sparse,
            "dirty": dirty,
            "bitmap": bitmap,
            "connections": connections,
            "timeout": timeout,
            "connect_timeout": connect_timeout,
            "splice": splice,
            "large_read": large_read,
            "cancel": cancel,
        }
        self._sparse = sparse
        self._splice = splice
        self._cancel = cancel
        self._client = nbd.Client(
            self.address,
            dirty=dirty,
            bitmap=bitmap,
            timeout=timeout,
            connect_timeout=connect_timeout,
            greeting_timeout=greeting_timeout,
            cancel=cancel,
        )
        self.export = self._client.export
        if mode == "r+" and self.export.read_only:
            self._client.close()
            raise ReadOnlyStorage(f"NBD export {self.address} is read-only")
        self.size = self.export.size
        self.capabilities = _capabilities(self.export, connections=connections, read_only=mode == "r")
        self.no_dirty_reason = self.export.why_not_dirty
        self._edges = edge_lock(self.address)
        # Over TCP the read would cost more than the server's memory does.
        local = self.address.transport == "unix"
        self._large_read = largeread.shared_by(self.address) if large_read and local else None

    @property
    def broken(self) -> BaseException | None:
        """Why the connection cannot be used any more, or None. Setting it closes the connection."""
        return self._client.broken

    @broken.setter
    def broken(self, error: BaseException | None) -> None:
        if error is not None:
            self._client.fail(error)

    def clone(self, *, greeting_timeout: float = GREETING_TIMEOUT) -> NbdBackend:
        """Open another connection to the same export.

        Raises:
            As the constructor; ServerFull if the server takes no more.
        """
        return NbdBackend(self.address, greeting_timeout=greeting_timeout, **self._options)

    def pipeline(self) -> nbd.Pipeline:
        """Hand the connection over to a non-blocking driver; the backend must not be used after."""
        return nbd.Pipeline(self._client)

    def read_into(self, offset: int, buf: Buffer) -> None:
        """Fill buf with the bytes from offset on; see `Backend.read_into`."""
        with memoryview(buf) as raw, raw.cast("B") as view:
            self.check_range(offset, len(view))
            if len(view) >= _LONG:
                self._prepare(offset, len(view))
            for part in self._parts(offset, len(view)):
                target = view[part.offset - offset :][: part.length]
                if part.whole:
                    self._client.read_into(part.offset, target)
                else:
                    start, block = self._read_block(part)
                    target[:] = block[part.offset - start :][: part.length]

    def write(self, offset: int, buf: Buffer) -> None:
        """Write all of buf at offset; see `Backend.write`."""
        with memoryview(buf) as raw, raw.cast("B") as view:
            self.check_write(offset, len(view))
            for part in self._parts(offset, len(view)):
                source = view[part.offset - offset :][: part.length]
                if part.whole:
                    self._client.write(part.offset, source)
                else:
                    self._write_edge(part, source)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes; see `Backend.zero`."""
        self.check_write(offset, length)
        for part in self._parts(offset, length):
            if part.whole:
                self._client.zero(part.offset, part.length, punch_hole=self._sparse)
            else:
                self._write_edge(part, memoryview(bytes(part.length)))

    def flush(self) -> None:
        """Bring acknowledged writes to stable storage; see `Backend.flush`."""
        self.flush_under_way = object()
        try:
            self._client.flush()
        except RequestError as e:
            # The server may have dropped data that it could not write: its next flush proves nothing.
            self.broken = e
            raise
        self.unflushed = False
        self.flush_under_way = None

    def extents(
        self, context: str = "zero", *, offset: int = 0, length: int | None = None, op: Operation | None = None
    ) -> Iterator[Extent]:
        """Tell what of a range is data; see `Backend.extents`."""
        self.check_range(offset, self.size - offset if length is None else length)
        return self._client.extents(offset, length, context, check=None if op is None else op.check)

    def send_to(self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()) -> None:
        """Send a range to a peer, by splice where it can; see `Backend.send_to`.

        Of others one that is not broken is used. A stream that fails closes the connections that
        still owe an answer: see `broken` of this and of others.
        """
        self.check_range(offset, length)
        self._prepare(offset, length)
        clients = [backend._client for backend in self._team(others)]
        for part in self._parts(offset, length):
            if is_paused(peer):
                return
            if part.whole:
                self._send_whole(clients, peer, part, op)
                continue
            op.check()
            start, block = self._read_block(part)
            peer.begin()
            peer.send_all(block[part.offset - start :][: part.length])
            op.advance(part.length)
        peer.begin()

    def receive_from(
        self, peer: Peer, offset: int, length: int, op: Operation, *, others: Sequence[Backend] = ()
    ) -> None:
        """Receive a range from a peer, by splice where it can; see `Backend.receive_from`.

        Of others one that is not broken is used; it has to be flushed as well.
        """
        self.check_write(offset, length)
        self._prepare(offset, length)
        team = self._team(others)
        for backend in team:
            backend.unflushed = backend.unflushed or length > 0
        clients = [backend._client for backend in team]
        for part in self._parts(offset, length):
            if part.whole:
                received = self._receive_whole(clients, peer, part, op)
            else:
                received = self._receive_edge(peer, part, op)
            if received < part.length:
                return

    def stale(self) -> bool:
        """Tell if the idle connection is of no use any more, as when the server was restarted."""
        return self._client.stale()

    def interrupt(self) -> None:
        """Wake a thread that waits for the server; its call fails and the backend is broken. Any thread may call."""
        self._client.interrupt()

    def close(self) -> None:
        """Close the connection; see `Backend.close`."""
        self._client.close()

    # Details.

    def check_write(self, offset: int, length: int) -> None:
        """See Backend. The instance is unflushed from here on, for the range may change."""
        super().check_write(offset, length)
        self.unflushed = self.unflushed or length > 0

    def _check_cancel(self) -> None:
        if self._cancel is not None:
            self._cancel.check()

    def _prepare(self, offset: int, length: int) -> None:
        if self._large_read is not None:
            self._large_read.before(self._client, offset, length)

    def _team(self, others: Sequence[Backend]) -> list[NbdBackend]:
        """This instance, and others to work with it."""
        able = [other for other in others if isinstance(other, NbdBackend) and other.broken is None]
        return [self, *able][: defaults.READ_CONNECTIONS]

    def _parts(self, offset: int, length: int) -> Iterator[_Part]:
        """Cut a range into edges and whole blocks. The last block of the export may be short."""
        block = self.export.minimum_block
        end = offset + length
        first = min(offset + -offset % block, end)
        last = end if end == self.size else max(end - end % block, first)
        if offset < first:
            yield _Part(offset, first - offset, whole=False)
        if first < last:
            yield _Part(first, last - first, whole=True)
        if last < end:
            yield _Part(last, end - last, whole=False)

    def _read_block(self, part: _Part) -> tuple[int, memoryview]:
        """The block around an edge: its offset and content."""
        size = self.export.minimum_block
        start = part.offset - part.offset % size
        block = memoryview(bytearray(min(size, self.size - start)))
        self._client.read_into(start, block)
        return start, block

    def _write_edge(self, part: _Part, data: memoryview) -> None:
        with holding(self._edges, self._check_cancel):
            start, block = self._read_block(part)
            block[part.offset - start :][: part.length] = data
            self._client.write(start, block)

    def _send_whole(self, clients: Sequence[nbd.Client], peer: Peer, part: _Part, op: Operation) -> None:
        if self._splice and peer.splice_fd is not None:
            with linux.pipes.borrow() as pipe:
                if pipe is not None:
                    splice.send(clients, pipe, peer, part.offset, part.length, op)
                    return
        with borrow(piece_size(self._client)) as view:
            pipelined.send(clients, view, peer, part.offset, part.length, op)

    def _receive_whole(self, clients: Sequence[nbd.Client], peer: Peer, part: _Part, op: Operation) -> int:
        if self._splice and peer.splice_fd is not None:
            with linux.pipes.borrow() as pipe:
                if pipe is not None:
                    return splice.receive(clients, pipe, peer, part.offset, part.length, op)
        with borrow(piece_size(self._client)) as view:
            return pipelined.receive(clients, view, peer, part.offset, part.length, op, write_odd=self.write)

    def _receive_edge(self, peer: Peer, part: _Part, op: Operation) -> int:
        data = memoryview(bytearray(part.length))
        received = fill_from(peer, data)
        op.check()
        if received:
            self.write(part.offset, data[:received])
            op.advance(received)
        return received


def _capabilities(export: nbd.Export, *, connections: int, read_only: bool) -> Capabilities:
    return Capabilities(
        max_readers=connections,
        max_writers=connections,
        block_size=export.minimum_block,
        can_zero=export.can_zero,
        can_extents=export.can_extents,
        can_dirty=export.dirty_context is not None,
        can_flush=export.can_flush,
        multi_conn=export.can_multi_conn,
        read_only=read_only,
    )


def edge_lock(address: nbd.Address) -> threading.Lock:
    """Return the lock under which parts of an export's blocks are changed. Any thread.

    Code that writes to the export by other means than `NbdBackend` has to hold it as well.
    """
    with _edge_locks_guard:
        lock = _edge_locks.get(address)
        if lock is None:
            lock = _edge_locks[address] = threading.Lock()
        return lock


@contextlib.contextmanager
def holding(lock: threading.Lock, check: Callable[[], None]) -> Iterator[None]:
    """Hold a lock that another thread may keep for as long as storage takes.

    Args:
        lock: The lock.
        check: Called while it is waited for; raises to wait no longer.
    """
    while not lock.acquire(timeout=_LOOK):
        check()
    try:
        yield
    finally:
        lock.release()
