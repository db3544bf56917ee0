# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocking driver of the NBD protocol.

`Client` is a connection to one export. The simple calls (`read_into`, `write`,
`zero`, `flush`, `extents`) return when the server has answered. Below them
stand the pipelining primitives, for callers that keep several requests in
flight or move the payload by themselves::

    request = client.send(wire.CMD_READ, offset, length)
    while not request.done:
        event = client.receive()        # event.payload: take event.length bytes
                                        # from client.sock before the next call

Reads and writes must not be in flight together on one connection. While the client
blocks in sending a payload, the server may block in sending one to the client.

Every system call ends after the timeout of the connection. An error that breaks the
stream (ProtocolError with its kinds ServerGone and ServerTimeout) closes the connection
and is kept in `broken`. A RequestError is the server's answer to one request and leaves
the connection alive.
"""

from __future__ import annotations

import errno
import select
import socket
from collections import deque
from functools import partial
from itertools import chain
from typing import Any, Callable, Iterable, Iterator, NoReturn

from ovirt_imageio.common import defaults, sockets
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout, OperationCancelled, PeerGone, ProtocolError, RequestError
from ovirt_imageio.common.extents import DirtyExtent, E, Extent, ZeroExtent, merge
from ovirt_imageio.common.nbd import extents as status
from ovirt_imageio.common.nbd import handshake, wire
from ovirt_imageio.common.nbd.connecting import GREETING_TIMEOUT, connect
from ovirt_imageio.common.nbd.errors import ServerGone, ServerTimeout
from ovirt_imageio.common.nbd.replies import Event, Replies, Request
from ovirt_imageio.common.nbd.uri import Address, parse

# Requests in flight of read_into() and write(); more gained nothing (performance.md).
DEPTH = 4
# One zero request. A server that has to write zeros at 50 MiB/s needs 20 seconds for it.
ZERO_STEP = 1024**3

_ZEROS = memoryview(bytes(defaults.PIECE))


class Client:
    """A connection to an NBD export.

    May be used by one thread at a time.

    Args:
        address: of the export, or its URL.
        dirty: negotiate the export's dirty bitmap for `extents`.
        bitmap: name of that bitmap, if the export has several.
        timeout: seconds that a system call waits for the server; 0 for no limit.
        connect_timeout: seconds to connect and to negotiate.
        greeting_timeout: seconds to wait for the first byte.
        cancel: ends what waits for the server, and the connection.

    Attributes:
        export: what was negotiated.
        address: where the export is.
        sock: the socket, for callers that move payload by themselves.
        broken: why the connection cannot be used any more, or None.

    Raises:
        ServerFull: connected, but the server did not greet in time.
        ServerTimeout: the server stayed silent during the negotiation.
        ServerGone: the server closed the connection.
        ProtocolError: the server broke the rules.
        RequestError: the server refused, e.g. ENOENT for an unknown export.
        OSError: cannot connect.
        OperationCancelled: cancel said so, now or in any method.
        ValueError: the address is invalid.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        dirty: bool = False,
        bitmap: str | None = None,
        timeout: float = defaults.NBD_TIMEOUT,
        connect_timeout: float = defaults.CONNECT_TIMEOUT,
        greeting_timeout: float = GREETING_TIMEOUT,
        cancel: Cancel | None = None,
    ) -> None:
        self.address = parse(address) if isinstance(address, str) else address
        self.timeout = timeout
        self.broken: Exception | None = None
        steps = handshake.negotiate(self.address.export, dirty=dirty, bitmap=bitmap)
        self.sock, self.export = connect(self.address, steps, connect_timeout, greeting_timeout, cancel)
        try:
            sockets.set_timeouts(self.sock, timeout)
        except BaseException:
            self.sock.close()
            raise
        self._replies = Replies(structured=self.export.structured, contexts=self.export.contexts)
        self._head = memoryview(bytearray(64))
        self._cancel = cancel
        self._wake = None if cancel is None else cancel.add(self.interrupt)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.address} size={self.export.size}{' broken' if self.broken else ''}>"

    @property
    def size(self) -> int:
        """Size of the export in bytes."""
        return self.export.size

    @property
    def in_flight(self) -> int:
        """Number of requests that were not answered yet."""
        return len(self._replies)

    @property
    def max_request(self) -> int:
        """Most payload bytes in one request, a multiple of the minimum block."""
        return min(self.export.maximum_block, wire.DEFAULT_MAXIMUM_BLOCK)

    # Simple calls.

    def read_into(self, offset: int, buf: Any) -> None:
        """Fill a buffer from the export.

        Args:
            offset: first byte, in bytes; a multiple of the minimum block.
            buf: writable buffer; its length is a multiple of the minimum block.

        Raises:
            RequestError: the server failed the read; the content of buf is undefined.
            ProtocolError: the connection is broken.
        """
        view = memoryview(buf).cast("B")
        self._pipelined(self._pieces(offset, view), self.start_read, self.finish)

    def write(self, offset: int, buf: Any) -> None:
        """Write a buffer to the export; returns when all of it was acknowledged.

        Args:
            offset: first byte, in bytes; a multiple of the minimum block.
            buf: readable buffer; its length is a multiple of the minimum block.

        Raises:
            RequestError: the server failed a write; what of buf was written is unknown.
            ProtocolError: the connection is broken.
        """
        view = memoryview(buf).cast("B")
        self._pipelined(self._pieces(offset, view), self.start_write, self.finish)

    def zero(self, offset: int, length: int, *, punch_hole: bool = False) -> None:
        """Zero a range, by writing zeros where the server has nothing better.

        Args:
            offset: first byte, in bytes; a multiple of the minimum block.
            length: in bytes; a multiple of the minimum block.
            punch_hole: the server may deallocate the range.

        Raises:
            RequestError: the server failed; what was zeroed is unknown.
            ProtocolError: the connection is broken.
        """
        flags = 0 if punch_hole else wire.CMD_FLAG_NO_HOLE
        end = offset + length
        while offset < end:
            step = min(end - offset, ZERO_STEP)
            if not self.export.can_zero or not self._zero_step(offset, step, flags):
                self._write_zeros(offset, end - offset)
                return
            offset += step

    def flush(self) -> None:
        """Bring everything acknowledged so far to stable storage.

        A server that does not offer flush has nothing to flush.

        Raises:
            RequestError: the server failed.
            ProtocolError: the connection is broken.
        """
        if self.export.can_flush:
            self.finish(self.send(wire.CMD_FLUSH, 0, 0))

    def extents(
        self,
        offset: int = 0,
        length: int | None = None,
        context: str = "zero",
        *,
        check: Callable[[], None] | None = None,
    ) -> Iterator[Extent]:
        """Yield the extents of a range in order, merged, lazily.

        Other calls may be made between two extents.

        Args:
            offset: first byte, in bytes.
            length: in bytes; up to the end if not given.
            context: ``"zero"`` or ``"dirty"``. Without block status on the
                server "zero" yields one data extent.
            check: called before each request; raises to send no more.

        Raises:
            Exception: what check raises; the connection lives.
            UnsupportedOperation: no dirty bitmap was negotiated.
            RequestError: the server failed.
            ProtocolError: the connection is broken.
        """
        end = self.size if length is None else offset + length
        if not 0 <= offset <= end <= self.size:
            raise ValueError(f"extents of {offset} to {end} are outside the export of {self.size} bytes")
        if context == "dirty":
            ask = partial(self._ask_dirty, self.export.require_dirty())
            return chain.from_iterable(self._walk(offset, end, ask, check))
        if context != "zero":
            raise ValueError(f"unknown context {context!r}, expected 'zero' or 'dirty'")
        if self.export.can_extents:
            return chain.from_iterable(self._walk(offset, end, self._ask_zero, check))
        return merge([ZeroExtent(offset, end - offset, False, False)])

    def close(self) -> None:
        """Say goodbye if possible and close the connection. May be called again."""
        if self.broken is None and self.sock.fileno() != -1 and not self.in_flight:
            try:
                # The server may be gone and its buffer full: never wait.
                self.sock.send(wire.request(wire.CMD_DISC, 0, 0, 0), socket.MSG_DONTWAIT)
            except OSError:
                pass
        self._unregister()
        self.sock.close()

    def stale(self) -> bool:
        """Tell if an idle connection is of no use any more: the server closed it, or speaks unasked."""
        if self.broken is not None or self.sock.fileno() == -1:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not self.in_flight and bool(poll.poll(0))

    def interrupt(self) -> None:
        """Wake the thread that uses the connection, which breaks. Any thread may call this."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            # Not connected any more, or closed by its thread.
            pass

    # Pipelining.

    def send(self, command: int, offset: int, length: int, *, flags: int = 0, payload: Any = b"") -> Request:
        """Send a request and return at once.

        Args:
            command: ``wire.CMD_*``.
            offset: first byte, in bytes.
            length: in bytes.
            flags: command flags.
            payload: what follows the head. The rest of ``length`` bytes of a write the
                caller sends to ``sock`` by itself, or calls `fail`.

        Raises:
            ProtocolError: the connection is broken.
        """
        self._usable()
        request = self._replies.expect(command, offset, length)
        head = wire.request(command, request.handle, offset, length, flags=flags)
        try:
            if len(payload):
                _send_all(self.sock, head, payload)
            else:
                self.sock.sendall(head)
        except BaseException as e:
            self.give_up(e)
        return request

    def receive(self) -> Event:
        """Return the next event of any request in flight.

        If it announces payload the caller must take that from ``sock``.

        Raises:
            ProtocolError: the connection is broken.
        """
        self._usable()
        replies = self._replies
        try:
            while True:
                needs = replies.needs
                view = self._head[:needs] if needs <= len(self._head) else memoryview(bytearray(needs))
                sockets.recv_exactly(self.sock, view)
                event = replies.feed(view)
                if event is not None:
                    return event
        except BaseException as e:
            self.give_up(e)

    def start_read(self, offset: int, view: memoryview | None = None, *, length: int = 0) -> Request:
        """Send a read.

        Args:
            offset: first byte, in bytes.
            view: where the payload goes; it must not be touched until the request finished.
            length: in bytes, if the buffer is only given to `finish_read`.
        """
        request = self.send(wire.CMD_READ, offset, length if view is None else len(view))
        request.data = view
        return request

    def finish_read(self, request: Request, view: memoryview | None = None) -> None:
        """Wait until a read is answered and its payload is in the buffer.

        Raises:
            RequestError: the server failed this read.
            ProtocolError: the connection is broken.
        """
        early = request.data if view is not None else None
        if early is None and view is not None:
            request.data = view
        self.finish(request)
        if early is not None and view is not None:
            view[:] = early

    def start_write(self, offset: int, view: memoryview) -> Request:
        """Send a write with its payload; view may be reused as soon as this returns."""
        return self.send(wire.CMD_WRITE, offset, len(view), payload=view)

    def finish(self, request: Request) -> None:
        """Wait until a request is answered, serving those before it as well.

        Raises:
            RequestError: the server failed this request.
            ProtocolError: the connection is broken.
        """
        while not request.done:
            self.serve()
        if request.error is not None:
            raise request.error

    def serve(self) -> Event:
        """Take the next event and put its payload where it belongs.

        Raises:
            ProtocolError: the connection is broken.
        """
        event = self.receive()
        if event.length:
            self.take(event)
        return event

    def take(self, event: Event) -> None:
        """Put the content that an event announces into the buffer of its read.

        Raises:
            ProtocolError: the connection is broken.
        """
        request = event.request
        if request.data is None:
            # Answered before a caller waited for it: out of order.
            request.data = memoryview(bytearray(request.length))
        start = event.offset - request.offset
        target = request.data[start : start + event.length]
        if not event.payload:
            _clear(target)
            return
        try:
            sockets.recv_exactly(self.sock, target)
        except BaseException as e:
            self.give_up(e)

    def fail(self, error: BaseException) -> BaseException:
        """Close the connection because of an error, and return what to raise.

        A caller that moves payload by itself calls this when that did not go to its end.
        """
        reason = error
        if self._cancel is not None and self._cancel.cancelled:
            reason = (
                error if isinstance(error, OperationCancelled) else OperationCancelled("the operation was cancelled")
            )
        elif isinstance(error, (BlockingIOError, ConnectionTimeout)) and not isinstance(error, ServerTimeout):
            reason = ServerTimeout(f"NBD server {self.address} did not respond in {self.timeout} seconds")
        elif isinstance(error, (OSError, PeerGone)):
            reason = ServerGone(f"lost connection to NBD server {self.address}: {error}")
        if self.broken is None:
            self.broken = reason if isinstance(reason, Exception) else ServerGone(f"interrupted by {reason!r}")
        self._replies.abandon()
        self._unregister()
        self.sock.close()
        return reason

    def give_up(self, error: BaseException) -> NoReturn:
        """As `fail`, and raise the result."""
        reason = self.fail(error)
        if reason is error:
            raise error
        raise reason from error

    def hand_over(self) -> tuple[socket.socket, Replies]:
        """Give the socket and the state of the stream to another driver.

        The client cannot be used any more.

        Raises:
            ValueError: requests are in flight.
        """
        self._usable()
        if self.in_flight:
            raise ValueError(f"cannot hand over a connection with {self.in_flight} requests in flight")
        self.broken = ProtocolError("connection was handed over")
        self._unregister()
        return self.sock, self._replies

    # Details.

    def _unregister(self) -> None:
        """Before the socket is closed: its number may then be that of another."""
        if self._cancel is not None:
            self._cancel.remove(self._wake)

    def _usable(self) -> None:
        if self._cancel is not None and self._cancel.cancelled:
            self.give_up(OperationCancelled("the operation was cancelled"))
        if self.broken is not None:
            raise ProtocolError(f"connection to {self.address} is closed: {self.broken}") from self.broken

    def _pieces(self, offset: int, view: memoryview) -> Iterator[tuple[int, memoryview]]:
        """Cut a buffer into requests: of one piece each, so that storage and copying overlap."""
        step = min(self.max_request, max(defaults.PIECE, self.export.minimum_block))
        for start in range(0, len(view), step):
            yield offset + start, view[start : start + step]

    def _pipelined(
        self,
        pieces: Iterator[tuple[int, memoryview]],
        start: Callable[[int, memoryview], Request],
        finish: Callable[[Request], None],
    ) -> None:
        """Keep some requests in flight. If one fails, the others are waited for before it is raised."""
        flying: deque[Request] = deque()
        error: RequestError | None = None
        for offset, view in pieces:
            flying.append(start(offset, view))
            if len(flying) == DEPTH:
                error = _outcome(finish, flying.popleft())
                if error:
                    break
        while flying:
            error = _outcome(finish, flying.popleft()) or error
        if error:
            raise error

    def _zero_step(self, offset: int, length: int, flags: int) -> bool:
        """Ask the server to zero; False if it cannot."""
        try:
            self.finish(self.send(wire.CMD_WRITE_ZEROES, offset, length, flags=flags))
        except RequestError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            return False
        return True

    def _write_zeros(self, offset: int, length: int) -> None:
        step = min(self.max_request, len(_ZEROS))
        end = offset + length
        pieces = ((start, _ZEROS[: min(step, end - start)]) for start in range(offset, end, step))
        self._pipelined(pieces, self.start_write, self.finish)

    def _walk(
        self, offset: int, end: int, ask: Callable[[int, int], Iterable[E]], check: Callable[[], None] | None
    ) -> Iterator[list[E]]:
        block = self.export.minimum_block
        try:
            yield from status.walk(offset, end, size=self.size, block=block, ask=ask, check=check)
        except ProtocolError as e:
            self.give_up(e)

    def _ask_zero(self, offset: int, length: int) -> list[ZeroExtent]:
        found = self._block_status(offset, length)
        base = found[wire.BASE_ALLOCATION]
        return status.zero_extents(offset, length, base=base, depth=found.get(wire.ALLOCATION_DEPTH))

    def _ask_dirty(self, name: str, offset: int, length: int) -> list[DirtyExtent]:
        found = self._block_status(offset, length)
        return status.dirty_extents(offset, length, bitmap=found[name], base=found.get(wire.BASE_ALLOCATION))

    def _block_status(self, offset: int, length: int) -> dict[str, bytes]:
        """Runs by context name; replies were checked to hold every context."""
        request = self.send(wire.CMD_BLOCK_STATUS, offset, length)
        self.finish(request)
        return self.export.by_name(request.status)


def _send_all(sock: socket.socket, head: bytes, payload: Any) -> None:
    """Send a head and a payload with one system call where possible."""
    view = memoryview(payload).cast("B")
    sent = sock.sendmsg([head, view])
    if sent < len(head):
        sock.sendall(head[sent:])
        sent = len(head)
    if sent < len(head) + len(view):
        sock.sendall(view[sent - len(head) :])


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROS)):
        size = min(len(_ZEROS), len(view) - start)
        view[start : start + size] = _ZEROS[:size]


def _outcome(finish: Callable[[Request], None], request: Request) -> RequestError | None:
    try:
        finish(request)
    except RequestError as e:
        return e
    return None
