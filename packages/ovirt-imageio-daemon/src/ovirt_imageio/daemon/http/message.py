# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Requests that handlers get, and responses that they give back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Union

from ovirt_imageio.common.errors import PeerGone
from ovirt_imageio.common.http.chunked import BadChunks, ChunkedDecoder, LongTrailers

from ..errors import DeadlineExpired, HttpError

if TYPE_CHECKING:
    from .connection import Connection
    from .repeats import Reread

# A chunked body that is longer is not decoded only to be dropped: 64 KiB of chunks of one byte
# take 20 ms.
_SHORT_CHUNKED = 4 * 1024

REMOTE = "remote"
LOCAL = "local"
"""Names of services, see `Request.service`."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyDecoder(ChunkedDecoder):
    """Decodes the chunked body of a request. The error that it raises is the answer."""

    __slots__ = ()

    def frame(self, data: bytes, start: int = 0) -> int:
        """Read one line of framing; see ChunkedDecoder.

        Raises:
            HttpError: 400 if this is no framing, 431 if there are too many trailers.
        """
        try:
            return super().frame(data, start)
        except BadChunks as e:
            raise HttpError(431 if isinstance(e, LongTrailers) else 400, str(e), close=True) from e


class RequestBody:
    """The body of a request, still in the connection. Loop thread only.

    A handler reads it with `read`, or gives it to `Connection.in_worker`, or leaves it:
    the router then gets rid of it.

    Attributes:
        length: Bytes, 0 if there is no body, None if it is chunked.
        left: Payload bytes that were not taken yet, None if it is chunked.
        decoder: Of a chunked body.
        expected: The client waits for a 100 response before it sends the body.
    """

    __slots__ = ("_connection", "decoder", "expected", "left", "length")

    def __init__(self, connection: Connection, length: int | None, *, expected: bool = False) -> None:
        self._connection = connection
        self.length = length
        self.left = length
        self.decoder = BodyDecoder() if length is None else None
        self.expected = expected

    @property
    def consumed(self) -> bool:
        """Whether the next byte of the connection belongs to the next request."""
        return self.left == 0 if self.decoder is None else self.decoder.done

    def check(self) -> None:
        """Raise if it is known that the rest of it will not come.

        Its client has left already, often since it was served too late, and comes again: more
        work would make that worse.

        Raises:
            PeerGone: The client has ended the connection within it.
        """
        connection = self._connection
        if self.left and connection.ends_within(self.left):
            connection.broken = True
            raise PeerGone(f"{connection.peer} ended the connection within the body")

    async def accept(self) -> None:
        """Tell the client to send the body, if it waits for that."""
        if self.expected:
            self.expected = False
            if not self._connection.buffer:
                await self._connection.send_interim(CONTINUE)

    async def read(self, limit: int) -> bytes:
        """Return the whole body.

        Args:
            limit: Most bytes.

        Raises:
            HttpError: With 413 if it is longer than limit (the rest is left unread). With
                400 if the stream ends early or the chunks are malformed, with 408 if
                the body did not come in time.
        """
        if self.decoder is None:
            if self.left is None or self.left > limit:
                raise HttpError(413, f"the body has {self.left} bytes, {limit} are allowed")
            buffer = self._connection.buffer
            if len(buffer) < self.left:
                await self._gather(self.left)
                buffer = self._connection.buffer
            data, self._connection.buffer = buffer[: self.left], buffer[self.left :]
            self.left = 0
            return data
        return await self._read_chunks(limit)

    def is_short(self, limit: int) -> bool:
        """Tell whether reading and dropping what is left is cheap and sure to end."""
        if self.expected:
            return False
        if self.decoder is None:
            return (self.left or 0) <= limit
        if len(self._connection.buffer) > _SHORT_CHUNKED:
            return False
        try:  # its length is unknown, unless all of it is here
            _, self._connection.buffer = self.decoder.decode(self._connection.buffer)
        except HttpError:
            return False
        return self.decoder.done

    def finish(self) -> None:
        """Note that all of it was taken from the connection."""
        self.left = 0
        if self.decoder is not None:
            self.decoder.done = True

    async def _gather(self, length: int) -> None:
        """Let the connection's buffer hold that many bytes."""
        await self.accept()
        connection = self._connection
        deadline = connection.loop.now + connection.body_timeout
        parts, have = [connection.buffer], len(connection.buffer)
        try:
            while have < length:
                connection.buffer = b""
                await self._fill(deadline)
                parts.append(connection.buffer)
                have += len(connection.buffer)
        finally:
            connection.buffer = b"".join(parts)

    async def _read_chunks(self, limit: int) -> bytes:
        await self.accept()
        connection, decoder = self._connection, self.decoder
        assert decoder is not None
        deadline = connection.loop.now + connection.body_timeout
        parts, have = [], 0
        while not decoder.done:
            data, connection.buffer = decoder.decode(connection.buffer)
            have += len(data)
            if have > limit:
                raise HttpError(413, f"the body has more than {limit} bytes", close=True)
            if data:
                parts.append(data)
            elif not decoder.done:
                await self._fill(deadline)
        return b"".join(parts)

    async def _fill(self, deadline: float) -> None:
        connection = self._connection
        try:
            with connection.waits():
                more = await connection.fill(deadline - connection.loop.now)
        except DeadlineExpired as e:
            raise HttpError(408, "the body did not come in time", close=True) from e
        if not more:
            raise HttpError(400, "the connection ended before the body", close=True)


class Request:
    """One request, as a handler sees it.

    Attributes:
        method: ``GET``, ``PUT``, ...; ``HEAD`` goes to the handler of ``GET``.
        path: Path of the target as sent, still percent-encoded.
        query: Decoded parameters of the query.
        headers: Fields by lower-case name, values stripped; repeated ones joined by a comma.
        version: Of the protocol, (1, 0) or (1, 1).
        params: Decoded parts of the path that the route names.
        service: Name of the service it came by, such as `REMOTE`.
        peer: Address of the client, for logs.
        body: The body.
        connection: The connection, of which the handler has sole use until it returns.
    """

    __slots__ = (
        "body",
        "connection",
        "headers",
        "method",
        "params",
        "path",
        "peer",
        "query",
        "service",
        "version",
    )

    def __init__(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str],
        headers: dict[str, str],
        version: tuple[int, int],
        body: RequestBody,
        connection: Connection,
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.version = version
        self.params: dict[str, str] = {}
        self.service = connection.service
        self.peer = connection.peer
        self.body = body
        self.connection = connection


class StreamedBody(ABC):
    """A response body that is sent by code of its own.

    Attributes:
        length: Bytes, None if that is not known: the body is then sent by
            `Connection.chunks_out`.
    """

    length: int | None = None

    @abstractmethod
    async def send(self, connection: Connection, head: bytes) -> None:
        """Send the head, then exactly the body.

        The head must go before the first byte of payload, and not before storage has
        answered: an error raised before becomes an error response, one raised after
        closes the connection. Not called for HEAD.
        """


class Response:
    """Answer that a handler returns.

    Args:
        status: HTTP status code.
        headers: Fields besides those that the router adds: Server, Date,
            Content-Length or Transfer-Encoding, Connection, CORS.
        body: Bytes, or what sends them.
        close: Close the connection after it.
        reread: Serves the same request for another range, see repeats.py.
    """

    __slots__ = ("body", "close", "headers", "reread", "status")

    def __init__(
        self,
        status: int = 200,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | bytearray | StreamedBody = b"",
        *,
        close: bool = False,
        reread: Reread | None = None,
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self.body = body
        self.close = close
        self.reread = reread


Handler = Callable[[Request], Awaitable[Response]]
Body = Union[bytes, bytearray, StreamedBody]
