# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""One client's connection: the half that a worker thread uses.

A peer is what backends move bytes to and from
(`ovirt_imageio.common.backends.base.Peer`). It blocks, under the timeouts that the
connection has set in the kernel, and releases the GIL while it does.

Clients that stop reading, or sending, in the middle of a body must not keep the workers from
other clients. The kernel's timeouts are short. At each the peer adds up how long the client was
silent. It *pauses* if another request waits for a worker, or if the silence was long (see
`ovirt_imageio.common.backends.pausing`). The backend ends its piece, whose unsent rest the
peer keeps, and returns. The loop waits for the client, sends that rest, and hands over again:

    worker   ──pieces──► silent: paused                          ──pieces──►
    loop                    └─► until readable, or the rest is sent ─┘

The storage stays borrowed meanwhile. So no more of a ticket's requests can be paused than it has
backends. The memory that they keep, a piece each, is bounded as well.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING

from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import OperationCancelled, PeerGone

from ..errors import ClientTimeout

if TYPE_CHECKING:
    from .connection import Connection
    from .message import RequestBody

LEAST = 64 * 1024  # bytes to move in the time of a body, `Timeouts.body`: 1 KiB a second
LOOK_AROUND = 0.25
"""Seconds that a worker waits for a client before it looks if others wait for a worker."""
LONGEST_WAIT = 5.0
"""Seconds that a worker waits for a client if nobody else needs it."""
_FRAMING = 4096  # bytes to receive where a chunk's size is expected


class WorkerPeer:
    """Common half of plain and TLS connections: the head, and where the body ends.

    Args:
        connection: Handed over by its task until `release`.
        head: Response head, to be sent before the first payload.
        body: The request's body, None if nothing is to be received.

    Attributes:
        splice_fd: Descriptor for splice(2), None where bytes must pass through us.
        seconds: That sending to the client and receiving from it took, its pauses included,
            since the worker began.
        can_pause: The call that uses it can leave and go on later.
        paused: The call that uses it shall leave now.
        resumed: It was paused before: this is not the beginning.
    """

    splice_fd: int | None = None

    def __init__(self, connection: Connection, head: bytes, body: RequestBody | None) -> None:
        self._connection = connection
        self._head = head
        self._body = body
        self._decoded = b""  # payload of chunks, not taken yet
        self.seconds = 0.0
        self.can_pause = self.paused = self.resumed = False
        self._unsent: list[bytes] = []
        self._silent = 0.0  # seconds since the client last moved anything
        self._waited = 0.0  # seconds for the client, since that many bytes:
        self._moved = 0

    @property
    def chunked(self) -> bool:
        """The length of the request's body is not known before its end."""
        return self._body is not None and self._body.decoder is not None

    def begin(self) -> None:
        """Send the response head, if that was not done yet.

        Raises:
            OperationCancelled: The connection was interrupted before; the client can be told so.
            PeerGone: The client has gone.
            ClientTimeout: The client takes nothing.
        """
        if self._head:
            head, self._head = self._head, b""
            self._connection.head_sent = True
            if self._connection.read_side_down:  # see Connection.interrupt
                self._connection.head_sent = False
                raise OperationCancelled("cancelled before the response")
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
            Bytes received, at least 1; 0 at the end of the body, or if it is paused.

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

    def spend(self, seconds: float, sent: int = 0, received: int = 0) -> None:
        """Account for bytes that went to the client, or came from it, by `splice_fd`.

        Raises:
            ClientTimeout: It moves next to nothing.
        """
        self.seconds += seconds
        if received and self._body is not None and self._body.left is not None:
            self._body.left -= received
        self._count(sent + received, seconds, "sends" if received else "takes")

    def silent(self, seconds: float, receiving: bool) -> None:
        """Note that the client moved nothing until the kernel's timeout, and maybe pause.

        Raises:
            ClientTimeout: It was silent for too long, or moves next to nothing.
        """
        self.seconds += seconds
        self._silent += seconds
        verb = "sends" if receiving else "takes"
        if self._silent >= self._connection.inactivity_timeout:
            raise ClientTimeout(f"{self._connection.peer} {verb} nothing")
        self._waited += seconds
        self._check_pace(verb)
        if self.can_pause and (self._silent >= LONGEST_WAIT or self._connection.loop.workers.waiting):
            self.paused = True

    def put_back(self, data: bytes) -> None:
        """Take back payload that was received; it will be the next to be taken."""
        connection, body = self._connection, self._body
        connection.buffer = data + connection.buffer
        if body is not None and body.left is not None:
            body.left += len(data)

    # While it is paused; in the loop's thread.

    @property
    def patience(self) -> float:
        """Seconds that the client may still send nothing."""
        connection = self._connection
        left = min(connection.inactivity_timeout - self._silent, connection.body_timeout - self._waited)
        return max(left, 0.0)

    def take_unsent(self) -> bytes:
        """Return what was to be sent when it was paused, as it goes to the socket."""
        unsent, self._unsent = self._unsent, []
        return b"".join(unsent)

    def resume(self, seconds: float) -> None:
        """Note that the client is ready after so many seconds."""
        self.paused, self.resumed = False, True
        self.seconds = seconds
        if self._body is None:  # what was sent meanwhile had to keep pace
            self._silent, self._moved, self._waited = 0.0, 0, 0.0
        else:
            self._silent += seconds
            self._waited += seconds

    def release(self) -> None:
        """Give the connection back. In the loop's thread, when the worker has ended."""

    def _send(self, data: Buffer) -> None:
        """Send all of data."""
        self._send_raw(data)

    @abstractmethod
    def _receive(self, view: memoryview) -> int:
        """Receive at least one byte.

        Raises:
            PeerGone: The stream has ended.
            BlockingIOError: Nothing came until the kernel's timeout.
        """

    def _send_raw(self, data: Buffer) -> None:
        """Send all of data as it is, however often the kernel takes only a part."""
        view = memoryview(data)
        while not self.paused:
            began = time.monotonic()
            try:
                sent = self._connection.socket.send(view)
            except BlockingIOError:
                self.silent(time.monotonic() - began, receiving=False)
                continue
            except OSError as e:
                raise PeerGone(f"{self._connection.peer}: {e}") from e
            seconds = time.monotonic() - began
            self.seconds += seconds
            self._silent = 0.0
            if sent == len(view):
                return
            view = view[sent:]
            # A blocking send takes a part only if its time was up, or on a signal.
            self._count(sent, seconds, "takes")
        self._unsent.append(bytes(view))

    def _receive_in_time(self, view: memoryview) -> int:
        """Receive; 0 if it is paused."""
        while not self.paused:
            began = time.monotonic()
            try:
                count = self._receive(view)
            except BlockingIOError:
                self.silent(time.monotonic() - began, receiving=True)
                continue
            seconds = time.monotonic() - began
            self.seconds += seconds
            self._count(count, seconds, "sends")
            return count
        return 0

    def _count(self, count: int, seconds: float, verb: str) -> None:
        """Give up on a client that moves a few bytes now and then, to keep a worker busy."""
        self._silent = 0.0
        self._moved += count
        self._waited += seconds
        if self._moved >= LEAST:
            self._moved, self._waited = 0, 0.0
        else:
            self._check_pace(verb)

    def _check_pace(self, verb: str) -> None:
        if self._waited > self._connection.body_timeout:
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
            if not count:
                return 0
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
        except BlockingIOError:
            raise
        except OSError as e:
            raise PeerGone(f"{self._connection.peer}: {e}") from e
        if not count:
            raise PeerGone(f"{self._connection.peer} ended the connection within the body")
        return count
