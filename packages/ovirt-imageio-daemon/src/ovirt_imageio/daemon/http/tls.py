# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""TLS connections: both halves of `Connection` with encryption between.

Theory of operation
-------------------

OpenSSL works on two memory BIOs, so that the socket is read and written in large pieces. A
TLS socket would make a system call or two for every record of 16 KiB. Loop and worker
use the same pair in turn. A BIO never gives memory back, so it is fed and emptied a record at a
time, and an idle connection holds little.

Bytes may hide in three places: encrypted in ``raw``, in whole records in the incoming BIO,
decrypted in OpenSSL. All are asked before the socket is waited for.

Records may bring no data at all, and still make work. A request for new keys (RFC 8446 §4.6.3) costs its
sender 27 bytes and the daemon 50 µs. So bytes that come without data are counted. A stranger's first 2 KiB are
read in the loop, more by the threads that do handshakes, and past 64 KiB the connection ends.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import PeerGone

from ..errors import DeadlineExpired, HttpError, Overloaded
from .connection import Connection
from .peers import WorkerPeer
from .records import whole_records

if TYPE_CHECKING:
    from .loop import Loop
    from .message import RequestBody

# Bytes in a BIO at a time. A BIO keeps 4/3 of the most it ever held. With these an idle connection
# that moved data takes 62 KiB in all; a piece at once would keep 2.7 MiB. From 16 KiB to 1 MiB
# throughput was the same within the noise.
_SLICE_OUT = 16 * 1024  # one record
_SLICE_IN = 16 * 1024  # one record, or several short ones
_SLICE_STRANGER = 2 * 1024  # 75 requests for new keys
_IDLE_INPUT = 64 * 1024  # bytes without data until the connection ends; a whole record has 16 KiB
_BYTE_PAYS = 32  # bytes of records that a byte of data accounts for: the smallest record has 23
_PIECE = 1024 * 1024  # received by one system call of a worker
# Encrypted and sent at a time. This takes 0.95 of the processor time of 1 MiB, whose records are
# joined when the first of them has left the processor's cache.
_PIECE_OUT = 512 * 1024
_RECEIVE = 64 * 1024
_HANDSHAKE = 0x16  # the type of a TLS record that begins a handshake, RFC 8446 §5.1

_worker = threading.local()  # .raw: a worker's buffer of encrypted bytes


class TlsConnection(Connection):
    """A connection with TLS on it.

    Args:
        loop: The loop that serves it.
        sock: Connected stream socket.
        context: Server-side TLS context.
        **options: As for `Connection`.
    """

    def __init__(self, loop: Loop, sock: socket.socket, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(loop, sock, **options)
        self.can_splice = False
        self.raw = b""  # received, not yet given to OpenSSL
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self._established = False
        self._idle_input = 0  # bytes given to OpenSSL that brought no data

    async def start(self) -> None:
        """Do the handshake; see `Connection.start`."""
        deadline = self.loop.now + self.timeouts.handshake
        if await self._receive_raw(deadline) and self.raw[0] != _HANDSHAKE:
            raise HttpError(400, "this port speaks HTTPS, not plain HTTP", close=True)
        while True:
            while not self._feed():
                if not await self._receive_raw(deadline):
                    raise PeerGone(f"{self.peer} left within the TLS handshake")
            try:
                # 0.3 to 1.5 ms: a flood of handshakes must not hold up everybody else.
                await self.loop.crypto(self.tls.do_handshake, timeout=deadline - self.loop.now)
            except Overloaded as e:
                raise DeadlineExpired from e
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError as e:
                with contextlib.suppress(PeerGone, DeadlineExpired):
                    await self._flush()  # the alert that says why
                raise PeerGone(f"{self.peer}: TLS handshake failed: {_reason(e)}") from e
            else:
                break
        self._established = True
        await self._flush()

    async def fill(self, timeout: float | None = None) -> bool:
        """Append more decrypted bytes to the buffer; see `Connection.fill`."""
        deadline = self.loop.now + (self.inactivity_timeout if timeout is None else timeout)
        while True:
            if self.incoming.pending or self.tls.pending():
                try:
                    data = await self._read(deadline)
                except ssl.SSLWantReadError:
                    data = None
                except ssl.SSLError as e:
                    await self._flush()
                    raise PeerGone(f"{self.peer}: {_reason(e)}") from e
                if self.outgoing.pending:
                    await self._flush()  # the answer to a key update
                if data is not None:
                    self.got(len(data))
                    self.buffer = self.buffer + data if self.buffer else data
                    return bool(data)
            while not self._feed():
                if not await self._receive_raw(deadline):
                    return False  # without close_notify; framing tells what is complete

    async def end(self) -> None:
        """Send close_notify, then close our side of the socket."""
        self._close_notify()
        if self.outgoing.pending:
            await self._flush()
        await super().end()

    def close(self) -> None:
        """Close the connection, with close_notify if that can be sent at once."""
        if not self.closed and not self.broken:
            self._close_notify()
            with contextlib.suppress(OSError):
                self.socket.send(self.outgoing.read())
        super().close()

    async def linger(self) -> None:
        """As `Connection.linger`; a client without TLS is answered in plain."""
        self.raw = b""
        await super().linger()

    async def send(self, *parts: bytes | bytearray | memoryview) -> None:
        """Send response bytes, the head first; see `Connection.send`."""
        self.head_sent = True
        if self._ticket_id is not None:
            self.loop.expects = True
        await self._send(parts)

    async def _send(self, parts: tuple[bytes | bytearray | memoryview, ...]) -> None:
        if not self._established:
            await super()._send(parts)
            return
        data = b"".join(parts) if len(parts) > 1 else parts[0]
        if data:
            await self._send_raw(encrypt(self, data))

    def _held(self) -> int:
        return len(self.buffer) + self.tls.pending() + self.incoming.pending + len(self.raw)

    def _close_notify(self) -> None:
        if self._established:
            self._established = False
            with contextlib.suppress(ssl.SSLError):
                self.tls.unwrap()  # wants the client's close_notify, which is not waited for

    async def _receive_raw(self, deadline: float) -> bool:
        """Wait for more encrypted bytes; False at the end of the stream.

        OpenSSL is not told: it could not encrypt an answer any more.
        """
        while True:
            await self.loop.readable(self.fd, deadline - self.loop.now)
            try:
                data = self.socket.recv(_RECEIVE)
            except BlockingIOError:
                continue
            except OSError as e:
                raise PeerGone(f"{self.peer}: {e}") from e
            self.raw += data
            return bool(data)

    async def _read(self, deadline: float) -> bytes:
        """Read decrypted bytes; beside the loop if there was no data for a while."""
        if self._idle_input <= (_SLICE_IN if self.ticket_id else _SLICE_STRANGER):
            return self.tls.read(_RECEIVE)
        try:
            return await self.loop.crypto(self.tls.read, _RECEIVE, timeout=deadline - self.loop.now)
        except Overloaded as e:
            raise DeadlineExpired from e

    def _feed(self) -> bool:
        """Give OpenSSL what was received; False if that is no whole record."""
        count = self.feed(self.raw, _SLICE_IN if self.ticket_id or not self._established else _SLICE_STRANGER)
        self.raw = self.raw[count:]
        return bool(count)

    def feed(self, data: bytes | memoryview, limit: int = _SLICE_IN) -> int:
        """Give whole records to OpenSSL; return their bytes. For the owner.

        Raises:
            PeerGone: Much was given before, and no data came of it.
        """
        count = whole_records(data, limit)
        if count:
            if self._idle_input > _IDLE_INPUT:
                raise PeerGone(f"{self.peer} sends TLS records without data")
            if self._established:
                self._idle_input += count
            self.incoming.write(data[:count])
        return count

    def got(self, count: int) -> None:
        """Note that so many bytes were decrypted."""
        self._idle_input = max(self._idle_input - count * _BYTE_PAYS, 0)

    async def _flush(self) -> None:
        if self.outgoing.pending:
            await self._send_raw(self.outgoing.read())

    def _make_peer(self, head: bytes, body: RequestBody | None) -> WorkerPeer:
        return TlsPeer(self, head, body)


class TlsPeer(WorkerPeer):
    """The peer of a TLS connection."""

    def __init__(self, connection: TlsConnection, head: bytes, body: RequestBody | None) -> None:
        super().__init__(connection, head, body)
        self._tls = connection
        self._raw = memoryview(b"")  # encrypted bytes not yet given to OpenSSL

    def release(self) -> None:
        """Keep what was received beyond the body."""
        if self._raw:
            self._tls.raw = bytes(self._raw)
        self._raw = memoryview(b"")

    def _send(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _PIECE_OUT):
            self._send_raw(encrypt(self._tls, view[start : start + _PIECE_OUT]))

    def _receive(self, view: memoryview) -> int:
        """Fill view with what is there; wait only for the first byte."""
        have, size = 0, len(view)
        connection = self._tls
        tls, incoming = connection.tls, connection.incoming
        while have < size:
            if not incoming.pending and not tls.pending() and not self._feed(wait=not have):
                break
            try:
                buffer: Any = view[have:]  # typed as bytearray, any writable buffer will do
                count = int(tls.read(size - have, buffer))  # with a buffer given, it is a count
            except ssl.SSLWantReadError:
                continue  # a record without data
            except ssl.SSLError as e:
                raise PeerGone(f"{connection.peer}: {_reason(e)}") from e
            if not count:
                break
            have += count
            connection.got(count)
        if connection.outgoing.pending:
            self._send_raw(connection.outgoing.read())
        if not have:
            raise PeerGone(f"{connection.peer} ended the connection within the body")
        return have

    def _feed(self, *, wait: bool) -> bool:
        """Give OpenSSL some records; False if none is there.

        Raises:
            PeerGone: They were waited for, and the stream has ended.
        """
        connection = self._tls
        if connection.raw:
            self._raw, connection.raw = memoryview(connection.raw), b""
        while not (count := connection.feed(self._raw)):
            if not wait:
                return False
            self._receive_raw()
        self._raw = self._raw[count:]
        return True

    def _receive_raw(self) -> None:
        """Receive encrypted bytes, behind those of an incomplete record."""
        raw = getattr(_worker, "raw", None)
        if raw is None:
            raw = _worker.raw = memoryview(bytearray(_PIECE))
        kept = len(self._raw)
        raw[:kept] = self._raw  # maybe further back in the same memory
        self._raw = raw[:kept]
        try:
            count = self._tls.socket.recv_into(raw[kept:])
        except BlockingIOError:
            raise
        except OSError as e:
            raise PeerGone(f"{self._tls.peer}: {e}") from e
        if not count:
            raise PeerGone(f"{self._tls.peer} ended the connection within the body")
        self._raw = raw[: kept + count]


def encrypt(connection: TlsConnection, data: Buffer) -> bytes:
    """Return data as TLS records."""
    view = memoryview(data)
    write, read = connection.tls.write, connection.outgoing.read
    records = []
    try:
        for start in range(0, len(view), _SLICE_OUT):
            write(view[start : start + _SLICE_OUT])
            records.append(read())
    except ssl.SSLError as e:  # the client closed the session, or broke it
        raise PeerGone(f"{connection.peer}: {_reason(e)}") from e
    return records[0] if len(records) == 1 else b"".join(records)


def _reason(error: ssl.SSLError) -> str:
    return error.reason or str(error)
