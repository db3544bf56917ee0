# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection to a server, and one request with its answer on it.

A `Connection` lives as long as its stream. An `Exchange` begins with a request, and ends when the
body of the answer was received. Then the connection is free for the next one.

A server that refuses an upload answers and stops reading. Sending fails then, but the answer
tells why: sending stops quietly, `cut_short` is set, and the answer is read as after any request.

Source: RFC 9112 §6 to §9.
"""

from __future__ import annotations

from typing import Any, Callable

from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import ConnectionTimeout, ImageioError, PeerGone, ServerGone
from ovirt_imageio.common.http.chunked import ChunkedDecoder
from ovirt_imageio.common.units import KiB

from .errors import BodyCut
from .heads import Head
from .reader import Reader
from .streams import Stream

_TOGETHER = 64 * KiB  # a body up to this size is copied behind the head, and sent by one call


class StreamedBody:
    """A request body that a backend moves to the stream, such as by `send_to`.

    Args:
        length: Bytes, at least 1.
        send: Sends that many bytes to the stream.
    """

    def __init__(self, length: int, send: Callable[[Stream], None]) -> None:
        self._length = length
        self.send = send

    def __len__(self) -> int:
        return self._length


class Connection:
    """A connection to a server. One thread; it serves one exchange at a time.

    Args:
        stream: Connected; owned from now on.
        name: The server, for messages.
        free: Told when an exchange has ended and the connection can serve another.

    Attributes:
        stream: The argument.
        reader: Reads from the stream.
        uses: Requests begun.
    """

    def __init__(self, stream: Stream, name: str, free: Callable[[Connection], None]) -> None:
        self.stream = stream
        self.reader = Reader(stream, name)
        self.uses = 0
        self._free = free

    def is_usable(self) -> bool:
        """Return whether an idle connection still stands, and the server has sent nothing unasked."""
        return not self.reader.holds and not self.stream.answered()

    def exchange(self, method: str, head: bytes, body: Any, timeout: float | None) -> Exchange:
        """Send a request, and receive the head of its answer.

        Args:
            method: HTTP method.
            head: Of the request, with the empty line.
            body: Bytes or a StreamedBody; None for none.
            timeout: Seconds that the server may be silent; None means for ever.

        Raises:
            http.client.HTTPException: The answer is no HTTP.
            ServerGone: The connection broke.
            ConnectionTimeout: The server is silent.
            Exception: The sender of a StreamedBody raised it.
        """
        self.uses += 1
        self.stream.settimeout(timeout)
        cut_short = self._send(head, body)
        self.stream.settimeout(timeout)  # a sender may have set its own
        return Exchange(self, method, self.reader.head(), cut_short)

    def done(self, *, reusable: bool) -> None:
        """End an exchange; called by it, once."""
        if reusable:
            self._free(self)
        else:
            self.stream.close()

    def close(self) -> None:
        """Close the stream. Idempotent."""
        self.stream.close()

    def _send(self, head: bytes, body: Any) -> ImageioError | None:
        """Return why the request was not sent to its end, None if it was."""
        try:
            if body is None:
                self.stream.sendall(head)
                return None
            if not isinstance(body, StreamedBody):
                self._send_data(head, body)
                return None
            self.stream.sendall(head)
        except ServerGone as e:
            return e
        try:
            body.send(self.stream)
        except (PeerGone, ConnectionTimeout) as e:
            # The other side of the body may have failed as well: our server answers or
            # has closed the connection if it is to blame.
            if not self.stream.answered():
                raise
            return e
        return None

    def _send_data(self, head: bytes, body: Buffer) -> None:
        with memoryview(body) as view:
            if view.nbytes <= _TOGETHER:
                self.stream.sendall(b"".join((head, view)))
            else:
                self.stream.sendall(head)
                self.stream.sendall(view)


class Exchange:
    """The answer to a request: its head, and its body as it is received. One thread.

    It must be received to its end, or closed.

    Args:
        connection: Where the answer comes from.
        method: Of the request.
        head: Of the answer.
        cut_short: Why the body of the request was not sent to its end, None if it was.

    Attributes:
        connection: The argument.
        reader: Holds the beginning of the body.
        head: The argument.
        cut_short: The argument.
        left: Bytes of the body that were not received yet, 0 at its end; None for a body in chunks, or to
            the end of the connection.
        ended: The body was received, or the exchange is closed.
    """

    __slots__ = ("_chunks", "connection", "cut_short", "ended", "head", "left", "reader")

    def __init__(self, connection: Connection, method: str, head: Head, cut_short: ImageioError | None) -> None:
        self.connection = connection
        self.reader = connection.reader
        self.head = head
        self.cut_short = cut_short
        self.left = head.length(method)
        self.ended = False
        self._chunks = ChunkedDecoder() if self.left is None and head.is_chunked else None
        if self.left == 0:
            self.finish()

    def receive(self, view: memoryview) -> int:
        """Receive at least one byte of the body into view; 0 at its end.

        Raises:
            ServerGone: The body ended too early.
            ConnectionTimeout: The server sends nothing.
            ProtocolError: The chunks are malformed.
        """
        if self.ended:
            return 0
        if self.left is not None:
            return self._took_some(self.reader.receive(view[: self.left]), self.left)
        if self._chunks is not None:
            return self._receive_chunk(self._chunks, view)
        count = self.reader.receive(view)
        if not count:
            self.finish()
        return count

    def fill(self, view: memoryview) -> None:
        """Fill view, which is not longer than what is left of the body.

        Raises:
            ServerGone: The body ended too early.
            ConnectionTimeout: The server sends nothing.
        """
        done = 0
        while done < len(view):
            done += self._took_some(self.reader.receive_all(view[done:]), len(view) - done)

    def took(self, count: int) -> None:
        """Count bytes of the body that were taken from the stream."""
        assert self.left is not None
        self.left -= count
        if not self.left:
            self.finish()

    def read(self, size: int | None = -1, **_: Any) -> bytes:
        """Return size bytes, fewer only at the end of the body; for `requests.Response`.

        Raises:
            As receive.
        """
        parts = []
        left = size if size is not None and size >= 0 else None
        block = memoryview(bytearray(min(_TOGETHER, _TOGETHER if left is None else left)))
        while left != 0:
            count = self.receive(block if left is None else block[:left])
            if not count:
                break
            parts.append(bytes(block[:count]))
            left = None if left is None else left - count
        return b"".join(parts)

    def finish(self) -> None:
        """Give the connection back: the body was received. Idempotent."""
        if not self.ended:
            self.ended = True
            reusable = self.cut_short is None and not self.head.closes and (self.left == 0 or self._chunks is not None)
            self.connection.done(reusable=reusable)

    def close(self) -> None:
        """Close the connection, unless the body was received. Idempotent."""
        if not self.ended:
            self.ended = True
            self.connection.done(reusable=False)

    def _receive_chunk(self, chunks: ChunkedDecoder, view: memoryview) -> int:
        while not chunks.remaining and not chunks.done:
            if not self.reader.frame(chunks.frame) and not self.reader.fill():
                raise BodyCut("connection lost before the end of a response in chunks")
        if chunks.done:
            self.finish()
            return 0
        count = self.reader.receive(view[: chunks.remaining])
        if not count:
            raise BodyCut(f"connection lost {chunks.remaining} bytes before the end of a chunk")
        chunks.took(count)
        return count

    def _took_some(self, count: int, left: int) -> int:
        if not count:
            raise BodyCut(f"connection lost {left} bytes before the end of a response")
        self.took(count)
        return count
