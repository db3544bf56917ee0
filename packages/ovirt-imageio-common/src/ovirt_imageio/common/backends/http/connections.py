# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections of urllib3 that own their sockets and bodies.

requests and urllib3 build and pool the requests; payload bypasses them. A connection
opens its own `Stream`, sends a `StreamedBody` by calling it, and makes responses that
are read straight from the socket. The `Line` tells the backend which connection served
its last request.

A server that refuses an upload answers and stops reading. What is sent then fails, but
the answer tells why: sending stops quietly, `cut_short` is set, and the response is
read as after any request.
"""

from __future__ import annotations

import http.client
from typing import Any, Callable, Iterator

import urllib3.connection
import urllib3.connectionpool

from ovirt_imageio.common.errors import ConnectionTimeout, ImageioError, PeerGone, ServerGone

from .streams import Reader, Stream

Opener = Callable[[], Stream]


class Line:
    """The connection in use, as a backend sees it. One thread.

    Attributes:
        connection: What served the last request, None before the first.
    """

    def __init__(self) -> None:
        self.connection: Connection | None = None


class BodyFailed(Exception):
    """What feeds a body failed; carries its error past urllib3, which keeps OSErrors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class StreamedBody:
    """A request body that is moved by somebody else, such as a backend's `send_to`.

    Args:
        length: Bytes, at least 1.
        send: Sends that many bytes to the stream.
    """

    def __init__(self, length: int, send: Callable[[Stream], None]) -> None:
        self._length = length
        self.send = send

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[StreamedBody]:
        """Yield the body as its only piece, which `Connection.send` knows."""
        yield self


class BodyResponse(http.client.HTTPResponse):
    """A response whose body can be received into memory of the caller, or spliced."""

    def __init__(self, sock: Stream, *args: Any, **kwargs: Any) -> None:
        self.stream = sock
        super().__init__(sock, *args, **kwargs)  # type: ignore[arg-type]

    @property
    def reader(self) -> Reader:
        """What holds the beginning of the body."""
        reader: Any = self.fp
        assert isinstance(reader, Reader)
        return reader

    @property
    def left(self) -> int | None:
        """Bytes of the body not received yet; None for chunked or without a length."""
        if self.isclosed():
            return 0
        return None if self.chunked else self.length

    def receive(self, view: memoryview) -> int:
        """Receive at least one byte of the body into view; 0 at its end.

        Raises:
            ServerGone: The body ended too early.
            ConnectionTimeout: The server sends nothing.
            http.client.HTTPException: The chunks are malformed.
        """
        left = self.left
        if left is None:
            return self.readinto(view)
        if not left:
            self.close()  # http.client leaves an empty body open
            return 0
        return self._took_some(self.reader.receive(view[:left]), left)

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
        """Count bytes of the body that somebody took from the stream."""
        assert self.length is not None
        self.length -= count
        if not self.length:
            self.close()  # urllib3 sees that the connection is free

    def _took_some(self, count: int, left: int) -> int:
        if not count:
            raise ServerGone(f"connection lost {left} bytes before the end of a response")
        self.took(count)
        return count

    def flush(self) -> None:
        """Do nothing: closing an io object flushes it."""


class Connection(urllib3.connection.HTTPConnection):
    """A connection over a `Stream`.

    Args:
        *args: As urllib3 wants them.
        open_stream: Connects.
        line: Told when a request is sent.
        **kwargs: As urllib3 wants them.

    Attributes:
        uses: Requests sent since it was connected.
        cut_short: Why a body was not sent to its end, None if it was.
        response: To the last request.
    """

    def __init__(self, *args: Any, open_stream: Opener, line: Line, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._open_stream = open_stream
        self._line = line
        self.uses = 0
        self.cut_short: ImageioError | None = None
        self.response: BodyResponse | None = None

    @property
    def stream(self) -> Stream:
        """The connection's stream."""
        stream: Any = self.sock
        assert isinstance(stream, Stream)
        return stream

    def connect(self) -> None:
        """Open the stream."""
        stream: Any = self._open_stream()
        self.sock = stream
        self.uses = 0

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        """Begin a request."""
        self._line.connection = self
        self.uses += 1
        self.cut_short = None
        self.response = None
        super().putrequest(*args, **kwargs)

    def send(self, data: Any) -> None:
        """Send a head, or a body of any form; see `cut_short`."""
        if self.cut_short is not None:
            return
        if self.sock is None:
            self.connect()
            self.uses = 1
        if isinstance(data, StreamedBody):
            self._send_body(data)
        else:
            self._send_data(data)

    def response_class(self, sock: Any, *args: Any, **kwargs: Any) -> BodyResponse:  # type: ignore[override]
        """Make the response object; called by http.client."""
        self.response = BodyResponse(sock, *args, **kwargs)
        return self.response

    def _send_data(self, data: Any) -> None:
        try:
            self.stream.sendall(data)
        except ServerGone as e:
            self.cut_short = e

    def _send_body(self, body: StreamedBody) -> None:
        try:
            body.send(self.stream)
        except (PeerGone, ConnectionTimeout) as e:
            # The other side of the body may have failed as well: our server answers or
            # has closed the connection if it is to blame.
            if not self.stream.answered():
                raise
            self.cut_short = e
        except ImageioError:
            raise
        except Exception as e:
            raise BodyFailed(e) from e


class Pool(urllib3.connectionpool.HTTPConnectionPool):
    """The connections to one server. By TCP, TLS or Unix socket: the stream knows."""

    ConnectionCls = Connection
