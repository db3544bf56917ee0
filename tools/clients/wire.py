# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""HTTP as the stacks of real programs write and read it, on raw sockets.

Sources:
    Apache HttpCore 4.4.14, which ovirt-engine 4.5.7 uses: DefaultBHttpClientConnection,
        LaxContentLengthStrategy, EntityUtils.consume. Seen on the wire too.
    Go 1.19 net/http, as go-ovirt-client and CDI use it: Request.write, transferWriter, Transport. Seen on the
        wire too.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from imageio_testing.httppeer import Data, HttpPeer, Response

GO_PIECE = 32 * 1024


class HttpCore:
    """Requests as the engine sends them, and its reading of answers: one connection each, to the control service.

    A request has no field but those that the engine sets, so neither Host nor Content-Type. Head and body leave
    in one write. A body without Content-Length and chunks would be read until the connection ends. The engine reads
    errors and the answer to GET; it closes any other one unread.
    """

    def __init__(self, port: int) -> None:
        self._port = port

    def request(self, method: str, target: str, body: bytes | None = None) -> Response:
        """Send a request and read its response as the engine does.

        Raises:
            AssertionError: The engine would wait for the end of the connection to read the answer.
        """
        head = f"{method} {target} HTTP/1.1\r\n"
        if body is not None:
            head += f"Content-Length: {len(body)}\r\n"
        with HttpPeer.tcp("localhost", self._port) as peer:
            peer.send(f"{head}\r\n".encode() + (body or b""))
            response = peer.response(method)
        if response.status >= 300 or method == "GET":
            assert response.header("Content-Length") or response.header("Transfer-Encoding") == "chunked", response
        return response


@dataclass(frozen=True)
class GoTransport:
    """Requests of Go's net/http.

    Args:
        cafile: verifies the server.
        http2: HTTP/2 is offered by ALPN, as http.DefaultTransport and its clones do.
        compression: ``Accept-Encoding: gzip`` is sent where the program asks for no encoding and no range.
    """

    cafile: str
    http2: bool = False
    compression: bool = True

    def connect(self, port: int) -> GoConnection:
        """Open a connection to localhost.

        Raises:
            AssertionError: The server chose HTTP/2, which is then spoken.
        """
        context = ssl.create_default_context(cafile=self.cafile)
        if self.http2:
            context.set_alpn_protocols(["h2", "http/1.1"])
        peer = HttpPeer.tls("localhost", port, context=context)
        assert isinstance(peer.socket, ssl.SSLSocket)
        assert peer.socket.selected_alpn_protocol() in (None, "http/1.1")
        return GoConnection(peer, f"localhost:{port}", self.compression)


class GoConnection:
    """One connection of Go's net/http.

    Attributes:
        peer: the connection, for what a program does beside requests.
    """

    def __init__(self, peer: HttpPeer, host: str, compression: bool) -> None:
        self.peer = peer
        self._host = host
        self._compression = compression

    def __enter__(self) -> GoConnection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.peer.close()

    def request(self, method: str, path: str, *headers: tuple[str, str]) -> Response:
        """Send a request without a body, and read its response."""
        self.peer.send(self._head(method, path, dict(headers), None))
        return self.response(method)

    def begin_put(self, path: str, length: int, *headers: tuple[str, str]) -> None:
        """Send the head of an upload."""
        self.peer.send(self._head("PUT", path, dict(headers), length))

    def put(self, path: str, body: Data, *headers: tuple[str, str]) -> Response:
        """Upload a body in pieces of 32 KiB, as io.Copy does, and read the response."""
        self.begin_put(path, len(body), *headers)
        self.peer.send(body, piece=GO_PIECE)
        return self.response("PUT")

    def response(self, method: str) -> Response:
        """Read a response; an encoded body would be decoded without the program's knowledge."""
        response = self.peer.response(method)
        assert response.header("Content-Encoding") is None, response.headers
        return response

    def _head(self, method: str, path: str, headers: dict[str, str], length: int | None) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", "User-Agent: Go-http-client/1.1"]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        lines += [f"{name}: {headers[name]}" for name in sorted(headers)]
        if self._compression and not headers.keys() & {"Accept-Encoding", "Range"} and method != "HEAD":
            lines.append("Accept-Encoding: gzip")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


def pieces(data: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut data into pieces: the offset and the bytes of each."""
    for start in range(0, len(data), size):
        yield start, data[start : start + size]
