# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Byte streams to a server.

A stream is a blocking socket with time limits of the kernel. So splice(2) can be used
on it, and needs no poll(2) before each call. `TlsStream` encrypts with two memory BIOs
and moves up to 1 MiB by one system call. `ssl.SSLSocket` makes two calls for each record
of 16 KiB.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from typing import Any

from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout, ProtocolError, ServerGone
from ovirt_imageio.common.sockets import set_timeouts
from ovirt_imageio.common.units import KiB

from .errors import ConnectionLost, NoTls, ServerSilent, Untrusted, unreachable

_RAW = 256 * KiB  # of TLS, received and sent at a time
_RECORD = 16 * KiB  # largest TLS record, RFC 8446 §5.1
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds; of a Unix socket it means nothing


class Stream:
    """A plain connection. One thread uses it at a time.

    Args:
        sock: Connected and blocking; owned from now on.
        name: The server, for error messages.
        timeout: Seconds that one system call may wait; 0 or None means for ever.
        cancel: Breaks the connection.
    """

    def __init__(self, sock: socket.socket, name: str, timeout: float | None, *, cancel: Cancel | None = None) -> None:
        self._sock = sock
        self._name = name
        self._timeout: float | None = None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._cancel = cancel
        self._wake = None if cancel is None else cancel.add(self.interrupt)
        self.settimeout(timeout)

    @property
    def splice_fd(self) -> int | None:
        """Descriptor for splice(2), None where the payload is encrypted."""
        return self._sock.fileno()

    @property
    def is_local(self) -> bool:
        """The other end of a TCP connection is on this very host."""
        if self._sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            return bool(self._sock.getpeername()[0] == self._sock.getsockname()[0])
        except OSError:  # it was closed meanwhile
            return False

    def settimeout(self, seconds: float | None) -> None:
        """Set how long one system call may wait; None means for ever."""
        if seconds != self._timeout:
            set_timeouts(self._sock, seconds or 0)
            self._timeout = seconds

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def sendall(self, data: Buffer) -> None:
        """Send all of data.

        Raises:
            ServerGone: The connection broke.
            ConnectionTimeout: The server takes nothing.
            OperationCancelled: cancel said so.
        """
        try:
            self._sock.sendall(data)
        except OSError as e:
            raise self._failure(e, "took") from e

    def recv(self, limit: int) -> bytes:
        """Receive 1 to limit bytes, none at the end of the stream.

        Raises:
            As recv_into.
        """
        try:
            return self._sock.recv(limit) or self._no_bytes()
        except OSError as e:
            raise self._failure(e, "sent") from e

    def recv_into(self, view: memoryview) -> int:
        """Receive at least one byte into view; 0 at the end of the stream.

        Raises:
            ServerGone: The connection broke.
            ConnectionTimeout: The server sends nothing.
            OperationCancelled: cancel said so.
        """
        try:
            return self._sock.recv_into(view) or self._ended()
        except OSError as e:
            raise self._failure(e, "sent") from e

    def recv_all(self, view: memoryview) -> int:
        """Receive until view is full; less at the end of the stream, or when it pauses.

        One system call where recv_into makes forty for 8 MiB: recv(2), MSG_WAITALL.

        Raises:
            As recv_into.
        """
        try:
            return self._sock.recv_into(view, 0, socket.MSG_WAITALL) or self._ended()
        except OSError as e:
            raise self._failure(e, "sent") from e

    def peek(self, limit: int) -> bytes:
        """Return what comes next, as it comes, and leave it there: 1 to limit bytes, none at the end.

        Raises:
            As recv_into.
        """
        try:
            return self._sock.recv(limit, socket.MSG_PEEK)
        except OSError as e:
            raise self._failure(e, "sent") from e

    def answered(self) -> bool:
        """Tell without waiting if there is something to receive, or an end."""
        return bool(self._poll.poll(0))

    def interrupt(self) -> None:
        """End both directions at once. Any thread may call it."""
        # The close resets the connection, or a server that is sending waits a minute for a client that has left.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._cancel is not None:
            self._cancel.remove(self._wake)
        self._sock.close()

    def _ended(self) -> int:
        """The end of the stream, unless it was we who ended it."""
        if self._cancel is not None:
            self._cancel.check()
        return 0

    def _no_bytes(self) -> bytes:
        self._ended()
        return b""

    def _failure(self, error: OSError, verb: str) -> ServerGone | ConnectionTimeout:
        self._ended()
        if isinstance(error, BlockingIOError):  # the answer of SO_RCVTIMEO and SO_SNDTIMEO
            return ServerSilent(f"{self._name} {verb} nothing for {self._timeout} seconds")
        return ConnectionLost(f"connection to {self._name} lost: {error.strerror or error}", cause=error)


class TlsStream(Stream):
    """An encrypted connection.

    Args:
        sock: As for Stream.
        name: As for Stream.
        timeout: As for Stream.
        connect_timeout: As timeout, for the handshake.
        context: How to verify the server.
        server_hostname: Name or address that the certificate must be for.
        cancel: As for Stream.

    Raises:
        Untrusted: The server's certificate was not accepted.
        Unreachable: The handshake failed; its kind tells how.
    """

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        timeout: float | None,
        *,
        connect_timeout: float | None,
        context: ssl.SSLContext,
        server_hostname: str,
        cancel: Cancel | None = None,
    ) -> None:
        super().__init__(sock, name, connect_timeout, cancel=cancel)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._raw = memoryview(bytearray(_RAW))
        self._early = b""  # decrypted by `answered`
        try:
            self._handshake()
        except BaseException:
            super().close()
            raise
        self.settimeout(timeout)

    @property
    def splice_fd(self) -> int | None:
        """None: payload is encrypted in memory."""
        return None

    def sendall(self, data: Buffer) -> None:
        """Send all of data; see Stream."""
        with memoryview(data) as whole, whole.cast("B") as view:
            for start in range(0, len(view), _RAW):
                self._encrypt(view[start : start + _RAW])

    def recv_into(self, view: memoryview) -> int:
        """Receive what is there, see Stream."""
        if self._early:
            count = min(len(view), len(self._early))
            view[:count] = self._early[:count]
            self._early = self._early[count:]
            return count
        while True:
            count, ended = self._decrypt(view)
            if count or ended:
                return count
            self._send_pending()
            self._receive()

    def recv(self, limit: int) -> bytes:
        """Receive what is there, see Stream."""
        block = bytearray(limit)
        return bytes(block[: self.recv_into(memoryview(block))])

    def recv_all(self, view: memoryview) -> int:
        """Receive until view is full, see Stream."""
        done = 0
        while done < len(view):
            count = self.recv_into(view[done:])
            if not count:
                break
            done += count
        return done

    def answered(self) -> bool:
        """Tell without waiting if there is payload or an end; tickets do not count."""
        while not self._early:
            record = bytearray(_RECORD)
            count, ended = self._decrypt(memoryview(record))
            self._early = bytes(record[:count])
            if ended:
                return True
            if not count:
                if not super().answered():
                    return False
                try:
                    self._receive()
                except ServerGone:
                    return True
        return True

    def _handshake(self) -> None:
        try:
            self._shake_hands()
        except ssl.SSLCertVerificationError as e:
            raise Untrusted(f"the certificate of {self._name} was not accepted: {e.verify_message}", cause=e) from e
        except ssl.SSLError as e:
            raise NoTls(f"no TLS connection to {self._name}: {e.reason or e}", cause=e) from e
        except (ServerGone, ConnectionTimeout) as e:
            raise unreachable(f"no TLS connection to {self._name}", e) from e

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._send_pending()
                self._receive()
            except ssl.SSLError:
                self._send_pending()  # the alert that tells the server why
                raise
            else:
                self._send_pending()
                return

    def _encrypt(self, piece: memoryview) -> None:
        while True:
            try:
                self._tls.write(piece)
            except ssl.SSLWantReadError:  # TLS 1.2 renegotiates
                self._send_pending()
                self._receive()
            except ssl.SSLError as e:
                raise ConnectionLost(f"connection to {self._name} lost: {e.reason or e}") from e
            else:
                self._send_pending()
                return

    def _decrypt(self, view: memoryview) -> tuple[int, bool]:
        """Fill view with what was received already: bytes, and if the stream ended."""
        done = 0
        try:
            while done < len(view):
                target: Any = view[done:]  # typeshed knows bytearrays only
                count: Any = self._tls.read(len(target), target)
                if not count:
                    return done, True
                done += count
        except ssl.SSLWantReadError:
            return done, False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            # Lengths are checked above TLS: a missing close_notify can hide nothing.
            return done, True
        except ssl.SSLError as e:
            raise ProtocolError(f"{self._name} broke TLS: {e.reason or e}") from e
        return done, False

    def _receive(self) -> None:
        count = super().recv_into(self._raw)
        if count:
            self._incoming.write(self._raw[:count])
        else:
            self._incoming.write_eof()

    def _send_pending(self) -> None:
        if self._outgoing.pending:
            super().sendall(self._outgoing.read())

    def close(self) -> None:
        """Close the socket, and tell the server in time. Idempotent."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, OSError, ValueError):
            pass  # the server's own close_notify is not waited for
        try:
            if self._outgoing.pending:
                self._sock.send(self._outgoing.read(), socket.MSG_DONTWAIT)
        except OSError:
            pass  # it was a courtesy
        super().close()
