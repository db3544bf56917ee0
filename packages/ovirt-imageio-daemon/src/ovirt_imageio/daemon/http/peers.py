# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""One client's connection: the half that a worker thread uses.

A peer is what backends move bytes to and from
(`ovirt_imageio.common.backends.base.Peer`). It blocks, under the timeouts that the
connection has set in the kernel, and releases the GIL while it does.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import PeerGone

from ..errors import ClientTimeout

if TYPE_CHECKING:
    from .connection import Connection
    from .message import RequestBody

LEAST = 64 * 1024  # bytes to move in the time of a body, `Timeouts.body`: 1 KiB a second
_FRAMING = 4096  # bytes to receive where a chunk's size is expected


class WorkerPeer:
    """What plain and TLS connections have in common: the head, and where the body ends.

    Args:
        connection: Handed over by its task until `release`.
        head: Response head, to be sent before the first payload.
        body: The request's body, None if nothing is to be received.

    Attributes:
        splice_fd: Descriptor for splice(2), None where bytes must pass through us.
        seconds: That sending to the client and receiving from it took, its pauses included.
    """

    splice_fd: int | None = None

    def __init__(self, connection: Connection, head: bytes, body: RequestBody | None) -> None:
        self._connection = connection
        self._head = head
        self._body = body
        self._decoded = b""  # payload of chunks, not taken yet
        self.seconds = 0.0
        self._waited = 0.0  # seconds for the client, since that many bytes:
        self._moved = 0

    @property
    def chunked(self) -> bool:
        """The length of the request's body is not known before its end."""
        return self._body is not None and self._body.decoder is not None

    def begin(self) -> None:
        """Send the response head, if that was not done yet."""
        if self._head:
            head, self._head = self._head, b""
            self._connection.head_sent = True
            self._send(head)

    def send_all(self, data: Buffer) -> None:
        """Send all of data, the head before it.

        Raises:
            PeerGone: The client has gone.
            ClientTimeout: The client takes nothing.
        """
        if self._head:
            self.begin()
        self._send(data)

    def take(self, limit: int) -> bytes:
        """Return payload that was received already, at most limit bytes, maybe none."""
        body = self._body
        if body is None:
            return b""
        if body.decoder is not None:
            self._decode()
            data, self._decoded = self._decoded[:limit], self._decoded[limit:]
            return data
        connection = self._connection
        count = min(limit, body.left or 0)
        data, connection.buffer = connection.buffer[:count], connection.buffer[count:]
        body.left = (body.left or 0) - len(data)
        return data

    def recv_into(self, view: memoryview) -> int:
        """Receive payload into view.

        Returns:
            Bytes received, at least 1; 0 at the end of the body.

        Raises:
            PeerGone: The stream ended before the body.
            ClientTimeout: The client sends nothing.
            HttpError: 400 if the chunked body is malformed.
        """
        body = self._body
        if body is None:
            return 0
        if body.decoder is not None:
            return self._receive_chunk(view)
        left = body.left or 0
        if not left:
            return 0
        if left < len(view):
            view = view[:left]
        count = self._buffered_into(view) or self._receive_in_time(view)
        body.left = left - count
        return count

    def spend(self, seconds: float) -> None:
        """Account for bytes that went to the client, or came from it, by `splice_fd`."""
        self.seconds += seconds

    def release(self) -> None:
        """Give the connection back. In the loop's thread, when the worker has ended."""

    def _send(self, data: Buffer) -> None:
        """Send all of data."""
        self._send_raw(data)

    @abstractmethod
    def _receive(self, view: memoryview) -> int:
        """Receive at least one byte; PeerGone at the end of the stream."""

    def _send_raw(self, data: Buffer) -> None:
        """Send all of data as it is, however often the kernel takes only a part."""
        view = memoryview(data)
        while True:
            began = time.monotonic()
            try:
                sent = self._connection.socket.send(view)
            except OSError as e:
                raise lost(self._connection.peer, e, "takes") from e
            seconds = time.monotonic() - began
            self.seconds += seconds
            if sent == len(view):
                return
            view = view[sent:]
            # A blocking send takes a part only if its time was up, or on a signal.
            self._count(sent, seconds, "takes")

    def _receive_in_time(self, view: memoryview) -> int:
        began = time.monotonic()
        count = self._receive(view)
        seconds = time.monotonic() - began
        self.seconds += seconds
        self._count(count, seconds, "sends")
        return count

    def _count(self, count: int, seconds: float, verb: str) -> None:
        """Give up on a client that moves a few bytes now and then, to keep a worker busy."""
        self._moved += count
        self._waited += seconds
        if self._moved >= LEAST:
            self._moved, self._waited = 0, 0.0
        elif self._waited > self._connection.timeouts.body:
            raise ClientTimeout(f"{self._connection.peer} {verb} next to nothing")

    def _buffered_into(self, view: memoryview) -> int:
        buffer = self._connection.buffer
        if not buffer:
            return 0
        count = min(len(buffer), len(view))
        view[:count] = buffer[:count]
        self._connection.buffer = buffer[count:]
        return count

    def _receive_chunk(self, view: memoryview) -> int:
        assert self._body is not None
        decoder = self._body.decoder
        assert decoder is not None
        while True:
            self._decode()
            if self._decoded:
                count = min(len(self._decoded), len(view))
                view[:count] = self._decoded[:count]
                self._decoded = self._decoded[count:]
                return count
            if decoder.done:
                return 0
            if decoder.remaining:
                count = self._receive_in_time(view[: decoder.remaining])
                decoder.took(count)
                return count
            framing = bytearray(_FRAMING)
            count = self._receive_in_time(memoryview(framing))
            self._connection.buffer += bytes(framing[:count])

    def _decode(self) -> None:
        """Take the framing off what is in the connection's buffer."""
        connection, body = self._connection, self._body
        if connection.buffer and body is not None and body.decoder is not None:
            data, connection.buffer = body.decoder.decode(connection.buffer)
            self._decoded += data


class PlainPeer(WorkerPeer):
    """The peer of a plain connection."""

    def __init__(self, connection: Connection, head: bytes, body: RequestBody | None) -> None:
        super().__init__(connection, head, body)
        self._socket = connection.socket
        if connection.can_splice and (body is None or body.decoder is None):
            self.splice_fd = connection.fd

    def _receive(self, view: memoryview) -> int:
        try:
            count = self._socket.recv_into(view)
        except OSError as e:
            raise lost(self._connection.peer, e, "sends") from e
        if not count:
            raise PeerGone(f"{self._connection.peer} ended the connection within the body")
        return count


def lost(peer: str, error: OSError, verb: str) -> PeerGone | ClientTimeout:
    """Return the error that a failed system call on a client's socket means."""
    if isinstance(error, BlockingIOError):  # what SO_RCVTIMEO and SO_SNDTIMEO answer
        return ClientTimeout(f"{peer} {verb} nothing")
    return PeerGone(f"{peer}: {error}")
