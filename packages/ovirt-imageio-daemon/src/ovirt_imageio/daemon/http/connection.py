# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""One client's connection: the half that the loop uses.

Theory of operation
-------------------

A connection has one owner at a time. Mostly it is the task that serves it in the loop,
where nothing blocks. For a long body `Connection.in_worker` hands it to a worker thread.
The worker uses it through a *peer* (see peers.py) and blocks under the kernel's timeouts; it
comes back in a ``finally``. A client that lets the worker wait too long is waited for in the
loop, and handed over again when it is ready. No other task or thread may read, write or close
it. Others may `wake` it: shutting the socket down is seen where it is waited for, in the loop
or in a worker.

``buffer`` holds what was read and not used yet: the rest of a body, or the next requests
of a client that pipelines. It is empty while the connection is idle.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import select
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, Union

from ovirt_imageio.common.errors import PeerGone

from ..errors import ClientTimeout, DeadlineExpired, HttpError, Overloaded
from . import linger
from .linger import Lingering
from .parser import DEFAULT_LIMITS, Limits, check_incomplete
from .peers import LEAST, LOOK_AROUND, PlainPeer, WorkerPeer

if TYPE_CHECKING:
    from .loop import Loop
    from .message import RequestBody
    from .registry import Connections
    from .repeats import Repeat

T = TypeVar("T")
Pieces = Union[Iterable[bytes], AsyncIterable[bytes]]

_RECEIVE = 64 * 1024
_RECEIVE_STRANGER = 8 * 1024  # from who has shown no ticket: what is kept costs memory
# Until a ticket is shown: a few answers, not thousands, are made for who reads none on a Unix socket.
_SEND_BUFFER_STRANGER = 4 * 1024
_SEND_BUFFER = 1024 * 1024  # rules a Unix socket's throughput: its sender's buffer counts
_JOIN_LIMIT = 32 * 1024  # below it, joining head and body is cheaper than sendmsg(2)

# A worker that waits for a client looks this often whether it shall go on.
_KERNEL_TIMEOUT = struct.pack("ll", 0, int(LOOK_AROUND * 1e6))

_END_OF_HEAD = b"\r\n\r\n"
_CR = 0x0D


class Timeouts(NamedTuple):
    """Seconds that a client may take.

    Attributes:
        handshake: For the TLS handshake.
        head: From the first to the last byte of a request's head.
        body: For a body that is read in the loop; otherwise to move 64 KiB; see `Connection.body_timeout`.
        inactivity: To send or take anything at all, also between requests.
    """

    handshake: float = 10.0
    head: float = 30.0
    body: float = 60.0
    inactivity: float = 60.0


DEFAULT_TIMEOUTS = Timeouts()


class Connection:
    """A plain connection, by TCP or a Unix socket.

    Args:
        loop: The loop that serves it.
        sock: Connected stream socket; the connection closes it.
        service: Name of the service that accepted it.
        peer: The client, for logs.
        timeouts: How long the client may take.
        limits: How large its request heads may be.
        splice: Whether splice(2) may be used where it wins, that is on Unix sockets.

    Attributes:
        buffer: Bytes that were received and not used yet.
        head_sent: Part of the response's head may have left.
        read_side_down: Nothing is received any more: it was woken.
        broken: It cannot serve another request.
        inactivity_timeout: Starts as ``timeouts.inactivity``; a handler may change it.
        refusals: How many of its requests were refused.
        registry: Where it is counted.
        lingering: Those with whom it takes turns when it is answered and not closed, if any.
        repeat: Its last request, if the next one may be alike.
        on_close: Called, in the loop, with the connection when it closes.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        service: str = "",
        peer: str = "",
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        limits: Limits = DEFAULT_LIMITS,
        splice: bool = True,
    ) -> None:
        self.loop = loop
        self.socket = sock
        self.service = service
        self.peer = peer
        self.timeouts = timeouts
        self.limits = limits
        self.inactivity_timeout = timeouts.inactivity
        self._ticket_id: str | None = None
        self._leave: Callable[[Connection], None] | None = None
        self.refusals = 0
        self.registry: Connections | None = None
        self.lingering: Lingering | None = None
        self.repeat: Repeat | None = None
        self.on_close: list[Callable[[Connection], None]] = []
        self.buffer = b""
        self.head_sent = False
        self.chunked_out = False
        self.broken = False
        self.closed = False
        self.fd = sock.fileno()
        self.is_unix = sock.family == socket.AF_UNIX
        self.can_splice = splice and self.is_unix
        self._kernel_timeout = False
        self._is_wide = not self.is_unix
        self.read_side_down = False
        sock.setblocking(False)
        if self.is_unix:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_STRANGER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A ticket may let it be idle for ever, and a client's machine may vanish: tcp(7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.service} {self.peer} fd={self.fd}>"

    @property
    def body_timeout(self) -> float:
        """Seconds for the next 64 KiB of a body: more than usual where a ticket allows longer silence than usual."""
        patience = self.inactivity_timeout
        if self.timeouts.inactivity < patience < math.inf:
            return max(self.timeouts.body, patience)
        return self.timeouts.body

    @property
    def client(self) -> str:
        """Name of the client on all its connections: `peer`, by TCP without the port."""
        return self.peer if self.is_unix else self.peer.rpartition(":")[0]

    @property
    def ticket_id(self) -> str | None:
        """Of the last request's ticket, set by handlers; None if there was none."""
        return self._ticket_id

    @ticket_id.setter
    def ticket_id(self, value: str | None) -> None:
        self._ticket_id = value
        if value is not None:
            self._widen()

    # Awaited in the loop.

    async def start(self) -> None:
        """Do what comes before the first request: nothing here, the handshake in TLS.

        Raises:
            PeerGone: The client left or does not speak TLS as we do.
            DeadlineExpired: It took too long.
            HttpError: It speaks plain HTTP where TLS is spoken.
        """

    async def read_head(self) -> bytes | None:
        """Return the next request's head, without the empty line that ends it.

        Returns:
            None if the client closed the connection or was idle too long.

        Raises:
            HttpError: With 408 if the head is not complete in time. With 400, 414 or 431 if
                its beginning cannot be mended, or if the stream ends within it.
            PeerGone: The connection was reset.
        """
        if not self.buffer:
            try:
                if not await self.fill():
                    return None
            except DeadlineExpired:
                return None
        end = self.buffer.find(_END_OF_HEAD)
        if end < 0 or self.buffer[0] == _CR:
            end = await self._complete_head()
            if end < 0:
                return None
        buffer = self.buffer
        self.buffer = buffer[end + 4 :]
        return buffer[:end]

    async def fill(self, timeout: float | None = None) -> bool:
        """Append more received bytes to the buffer.

        Args:
            timeout: Seconds, the inactivity timeout by default.

        Returns:
            False at the end of the stream.

        Raises:
            DeadlineExpired: Nothing came in time.
            PeerGone: The connection was reset.
        """
        if timeout is None:
            timeout = self.inactivity_timeout
        while True:
            await self.loop.readable(self.fd, timeout)
            try:
                data = self.socket.recv(_RECEIVE if self.ticket_id else _RECEIVE_STRANGER)
            except BlockingIOError:
                continue
            except OSError as e:
                raise PeerGone(f"{self.peer}: {e}") from e
            self.buffer = self.buffer + data if self.buffer else data
            return bool(data)

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send response bytes, the head first.

        Raises:
            DeadlineExpired: The client takes nothing.
            PeerGone: The client has gone.
        """
        self.head_sent = True
        if self._ticket_id is not None:
            self.loop.expects = True
        size = sum(map(len, parts))
        try:
            if size <= _JOIN_LIMIT:
                parts = (b"".join(parts),)
                sent = self.socket.send(parts[0])
            else:
                sent = self.socket.sendmsg(parts)
        except OSError:
            sent = 0  # _send meets it again
        if sent != size:
            await self._send(tuple(_rest(parts, sent)))

    async def send_interim(self, data: bytes) -> None:
        """Send an interim (1xx) response."""
        await self._send((data,))

    async def chunks_out(self, pieces: Pieces, *, head: bytes = b"") -> None:
        """Send a body of unknown length, in chunks if the client understands them.

        The head leaves with the first piece: an error raised before the first piece can
        still become an error response.

        Args:
            pieces: The body, in pieces of any size, as an iterable or async iterable.
            head: The response head that was given to ``StreamedBody.send``.
        """
        async for piece in _each(pieces):
            if piece:
                if self.chunked_out:
                    await self.send(head, b"%x\r\n" % len(piece), piece, b"\r\n")
                else:
                    await self.send(head, piece)
                head = b""
        await self.send(head, b"0\r\n\r\n" if self.chunked_out else b"")

    async def in_worker(
        self,
        call: Callable[..., T],
        *args: Any,
        head: bytes = b"",
        body: RequestBody | None = None,
        can_pause: bool = False,
    ) -> T:
        """Run ``call(peer, *args)`` in a worker thread that owns this connection meanwhile.

        A client that lets a worker wait while others need one, or for long, is waited for in
        the loop; see `WorkerPeer.silent`.

        Args:
            call: Takes a `ovirt_imageio.common.backends.base.Peer`.
            args: Its further arguments.
            head: Response head, sent by ``peer.begin()``, by the first ``send_all``, or
                when the call has returned.
            body: Request body that the call receives. It counts as consumed when the
                call returns; otherwise the connection serves no further request.
            can_pause: The call returns early if the peer is paused, and is called again with
                the same peer when the client is ready.

        Raises:
            Overloaded: No worker was free; nothing was sent or received.
            Exception: Error that the call raised; PeerGone and ClientTimeout for the client.
        """
        if body is not None:
            await body.accept()
        peer = self._make_peer(head, body)
        peer.can_pause = can_pause
        try:
            while True:
                result = await self._in_worker(peer, call, args)
                if not peer.paused:
                    break
                await self._until_ready(peer)
        except Overloaded:
            self.broken = self.broken or peer.resumed
            raise
        except BaseException:
            if body is not None or self.head_sent:
                self.broken = True
            raise
        if body is not None:
            body.finish()
        return result

    async def _in_worker(self, peer: WorkerPeer, call: Callable[..., T], args: tuple[Any, ...]) -> T:
        self._to_worker()
        try:
            return await self.loop.worker(_use_peer, peer, call, args, again=peer.resumed)
        finally:
            self._to_loop(peer)
            self.loop.expects = True  # its next request

    async def _until_ready(self, peer: WorkerPeer) -> None:
        """Wait for a client that is slow to take or to send.

        Raises:
            ClientTimeout: It moves nothing for too long, or next to nothing.
            PeerGone: It has gone.
        """
        began = self.loop.now
        try:
            unsent = peer.take_unsent()
            if unsent:
                await self._send_raw(unsent)
            else:
                await self.loop.readable(self.fd, peer.patience)
        except DeadlineExpired as e:
            raise ClientTimeout(f"{self.peer} {'takes' if unsent else 'sends'} nothing") from e
        peer.resume(self.loop.now - began)

    async def linger(self) -> None:
        """Let a client that is still sending read the answer, then be closed: see linger.py."""
        self.buffer = b""
        with contextlib.suppress(OSError, PeerGone, DeadlineExpired):
            await linger.discard(self, self.lingering or Lingering(self.loop))

    async def end(self) -> None:
        """Tell the client that nothing more comes."""
        self.socket.shutdown(socket.SHUT_WR)

    # Called by the owner, or by any task in the loop where the docstring says so.

    def join(self, ticket_id: str, leave: Callable[[Connection], None]) -> None:
        """Belong to the ticket of the last request, and no longer to that of one before.

        Args:
            ticket_id: The ticket.
            leave: Called, in the loop, with the connection when it joins another, or closes.
        """
        before, self._leave = self._leave, leave
        if before is not None:
            before(self)
        self.ticket_id = ticket_id

    def ends_within(self, count: int) -> bool:
        """Tell whether the client has ended its stream, and sent less than so many bytes before.

        If not, or if its bytes are encrypted and not looked at yet, it may still do so.
        """
        if self._held() >= count or self.read_side_down:  # by ourselves
            return False
        if not self._looks_like(select.POLLRDHUP):
            return False
        queued = fcntl.ioctl(self.fd, termios.FIONREAD, bytes(4))
        return self._held() + int.from_bytes(queued, sys.byteorder) < count

    def hung_up(self) -> bool:
        """Tell whether the client has left for good, so that it hears no answer either. Any thread."""
        return not self.read_side_down and self._looks_like(select.POLLHUP)

    def waits(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the connection may be closed to make room for others.

        For waits within a request of a client that may have no ticket.
        """
        return contextlib.nullcontext() if self.registry is None else self.registry.spare(self)

    def wake(self, read_only: bool = False) -> None:
        """End every wait for the client, in the loop or in a worker. Loop thread.

        Args:
            read_only: Only stop receiving, so that the client can still be answered.
        """
        if self.closed:
            return
        self.read_side_down = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RD if read_only else socket.SHUT_RDWR)
        if self.lingering is not None:
            self.lingering.hurry(self)

    def interrupt(self) -> None:
        """End every wait for the client, who can still be told why if no response has begun. Loop thread.

        Here it is said that the response must not begin, then asked if it has; a worker does the
        same the other way round. So one of them sees what the other did.
        """
        self.read_side_down = True
        self.wake(read_only=not self.head_sent)

    def close(self) -> None:
        """Close the connection. For its owner only."""
        if self.closed:
            return
        self.closed = True
        self.repeat = None
        self.loop.forget(self.fd)
        self.socket.close()
        calls, self.on_close = self.on_close, []
        if self._leave is not None:
            calls.append(self._leave)
        for call in calls:
            call(self)

    # Inside.

    def _looks_like(self, event: int) -> bool:
        looking = select.poll()
        looking.register(self.fd, event)
        return any(events & event for _, events in looking.poll(0))

    def _held(self) -> int:
        """Count the bytes that were received and not used yet."""
        return len(self.buffer)

    async def _complete_head(self) -> int:
        """Receive until the buffer holds a head; return where it ends, -1 if none comes."""
        deadline = self.loop.now + self.timeouts.head
        while True:
            if self.buffer[:2] == b"\r\n":  # RFC 9112 §2.2: a left-over of the last body
                self.buffer = self.buffer[2:]
            end = self.buffer.find(_END_OF_HEAD)
            if end >= 0:
                return end
            check_incomplete(self.buffer, self.limits)
            try:
                more = await self.fill(deadline - self.loop.now)
            except DeadlineExpired:
                if not self.buffer:
                    return -1
                raise HttpError(408, "the request did not come in time", close=True) from None
            if not more:
                if not self.buffer:
                    return -1
                raise HttpError(400, "the connection ended within the request", close=True)

    async def _send(self, parts: tuple[bytes | bytearray | memoryview, ...]) -> None:
        if len(parts) == 1:
            data = parts[0]
        elif sum(map(len, parts)) <= _JOIN_LIMIT:
            data = b"".join(parts)
        else:
            for part in parts:
                if part:
                    await self._send_raw(part)
            return
        await self._send_raw(data)

    async def _send_raw(self, data: bytes | bytearray | memoryview) -> None:
        left = len(data)
        goal, until = left - LEAST, self.loop.now + self.body_timeout
        while True:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as e:
                raise PeerGone(f"{self.peer}: {e}") from e
            left -= sent
            if not left:
                return
            data = memoryview(data)[sent:]
            if left <= goal:
                goal, until = left - LEAST, self.loop.now + self.body_timeout
            with self.waits():
                await self.loop.writable(self.fd, min(self.inactivity_timeout, until - self.loop.now))

    def _widen(self) -> None:
        """Let a Unix socket hold what bulk transfers need."""
        if not self._is_wide:
            self._is_wide = True
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def _make_peer(self, head: bytes, body: RequestBody | None) -> WorkerPeer:
        return PlainPeer(self, head, body)

    def _to_worker(self) -> None:
        """Make the socket block, with timeouts in the kernel: short ones, for the peer counts them."""
        self._widen()
        if not self._kernel_timeout:
            self._kernel_timeout = True
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self.socket.setsockopt(socket.SOL_SOCKET, option, _KERNEL_TIMEOUT)
        self.socket.setblocking(True)

    def _to_loop(self, peer: WorkerPeer) -> None:
        peer.release()
        self.socket.setblocking(False)


def _use_peer(peer: WorkerPeer, call: Callable[..., T], args: tuple[Any, ...]) -> T:
    result = call(peer, *args)
    peer.begin()
    return result


def _rest(parts: Iterable[bytes | bytearray | memoryview], sent: int) -> Iterator[memoryview]:
    """Yield what is left of some parts when so many bytes were sent."""
    for part in parts:
        if sent < len(part):
            yield memoryview(part)[sent:]
        sent = max(sent - len(part), 0)


async def _each(pieces: Pieces) -> AsyncIterator[bytes]:
    if isinstance(pieces, AsyncIterable):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece
