# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
r"""A raw HTTP peer: sends exactly the bytes it is given and takes responses apart.

It adds nothing, corrects nothing and has no opinion on the bytes it sends. So a
test can be a wrong client as well as a right one. It is strict about responses:
one that breaks RFC 9112 fails the test with `MalformedResponse`.

    with HttpPeer.unix(path) as peer:
        peer.send(b"GET /images/x HTTP/1.1\r\nHost: h\r\n\r\n")
        response = peer.response()
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    import types
    from collections.abc import Iterable

# For every wait, in seconds: a test fails rather than hang.
TIMEOUT = 30.0

MAX_HEAD = 1 << 20

Data = Union[bytes, bytearray, memoryview]

_STATUS_LINE = re.compile(rb"HTTP/(\d)\.(\d) (\d{3}) ([\t\x20-\x7e\x80-\xff]*)")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\r\n\x00]*?)[ \t]*")


class MalformedResponse(Exception):
    """The server sent what no HTTP/1.1 server may send. The text shows it."""


class ConnectionEnded(Exception):
    """The server closed the connection inside a response, or before one."""


@dataclass(frozen=True)
class Response:
    """One response, as it came.

    Attributes:
        version: of the protocol, (1, 1) for HTTP/1.1.
        status: three digits.
        reason: the text after them.
        headers: name, as it was written, and value, in order of arrival.
        body: payload without the framing of chunks.
    """

    version: tuple[int, int]
    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Value of the header `name`, in any case; None when absent.

        Raises:
            MalformedResponse: it is there more than once.
        """
        values = self.all_headers(name)
        if len(values) > 1:
            raise MalformedResponse(f"{len(values)} {name} headers: {values}")
        return values[0] if values else None

    def all_headers(self, name: str) -> list[str]:
        """Every value of the header `name`, in any case."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def text(self) -> str:
        """The body as UTF-8 text."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as a JSON document."""
        return json.loads(self.body)


class HttpPeer:
    """One connection to an HTTP server. Used by one thread.

    Attributes:
        socket: to set options, shut down one side, or reset the connection.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take over the connected `sock`, whose waits then end after `TIMEOUT`."""
        sock.settimeout(TIMEOUT)
        self.socket = sock
        self._received = bytearray()

    @classmethod
    def unix(cls, address: str | bytes) -> HttpPeer:
        """Connect to a Unix socket: a path, or NUL and an abstract name."""
        return cls(_connected(socket.AF_UNIX, address))

    @classmethod
    def tcp(cls, host: str, port: int) -> HttpPeer:
        """Connect to `port` of `host`, a name or an address of either family."""
        return cls(socket.create_connection((host, port), timeout=TIMEOUT))

    @classmethod
    def tls(
        cls,
        host: str,
        port: int,
        *,
        ca_file: str | None = None,
        context: ssl.SSLContext | None = None,
    ) -> HttpPeer:
        """Connect by TLS, trusting `ca_file`, or as `context` says.

        Raises:
            ssl.SSLError: the handshake failed.
        """
        context = context or ssl.create_default_context(cafile=ca_file)
        sock = socket.create_connection((host, port), timeout=TIMEOUT)
        try:
            return cls(context.wrap_socket(sock, server_hostname=host))
        except BaseException:
            sock.close()
            raise

    def __enter__(self) -> HttpPeer:
        """Close the connection on leaving."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; more than once does no harm."""
        self.socket.close()

    def reset(self) -> None:
        """Close so that the server sees a reset (TCP), or an end at once (Unix)."""
        linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close()

    def send(self, data: Data, *, piece: int | None = None) -> None:
        """Send exactly `data`, in pieces of `piece` bytes if given, else at once.

        Small pieces leave in packets of their own where Nagle's algorithm is off.
        """
        view = memoryview(data)
        step = piece or max(len(view), 1)
        for start in range(0, len(view), step):
            self.socket.sendall(view[start : start + step])

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: Data | None = None,
    ) -> Response:
        """Send a well-formed request and return its response.

        `Host` is added, and `Content-Length` when there is a body, unless `headers`
        hold them.
        """
        self.send(request_head(method, target, headers=headers, body=body))
        if body is not None:
            self.send(body)
        return self.response(method)

    def response(self, method: str = "GET") -> Response:
        """Receive a whole final response; interim ones (1xx) before it are dropped.

        Args:
            method: of the request: a response to HEAD has no body.

        Raises:
            ConnectionEnded: the server closed before its end.
            MalformedResponse: it is not HTTP.
            TimeoutError: nothing came for `TIMEOUT` seconds.
        """
        head = self.head()
        while head.status < 200:
            head = self.head()
        return Response(head.version, head.status, head.reason, head.headers, self._body(head, method))

    def head(self) -> Response:
        """Receive one response head, an interim one included; the body stays unread."""
        return parse_head(self._until(b"\r\n\r\n"))

    def read(self, length: int) -> bytes:
        """Receive exactly `length` bytes of what follows."""
        while len(self._received) < length:
            self._receive()
        return self._take(length)

    def read_to_end(self) -> bytes:
        """Receive everything until the server closes."""
        try:
            while True:
                self._receive()
        except ConnectionEnded:
            return self._take(len(self._received))

    def ended(self) -> bool:
        """Wait for what comes next; tell whether it is the end of the connection."""
        if self._received:
            return False
        try:
            self._receive()
        except (ConnectionEnded, ConnectionResetError):
            return True
        return False

    def _body(self, head: Response, method: str) -> bytes:
        if method == "HEAD" or head.status in (204, 304):
            return b""
        coding = head.header("Transfer-Encoding")
        length = head.header("Content-Length")
        if coding is not None:
            if coding != "chunked" or length is not None:
                raise MalformedResponse(f"framing: {coding=} {length=}")
            return self._chunked_body()
        if length is None:
            return self.read_to_end()
        return self.read(_number(length.encode(), 10))

    def _chunked_body(self) -> bytes:
        body = bytearray()
        while True:
            size = _number(self._until(b"\r\n").split(b";")[0], 16)
            if size == 0:
                break
            body += self.read(size)
            if self.read(2) != b"\r\n":
                raise MalformedResponse("no line end after a chunk")
        while self._until(b"\r\n"):
            pass  # trailers
        return bytes(body)

    def _until(self, mark: bytes) -> bytes:
        """Receive up to `mark`, which is consumed and not returned."""
        while True:
            end = self._received.find(mark)
            if end >= 0:
                break
            if len(self._received) > MAX_HEAD:
                raise MalformedResponse(f"no {mark!r} in {len(self._received)} bytes")
            self._receive()
        return self._take(end + len(mark))[:end]

    def _receive(self) -> None:
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionEnded(f"the connection ended after {bytes(self._received[:200])!r}")
        self._received += data

    def _take(self, length: int) -> bytes:
        data = bytes(self._received[:length])
        del self._received[:length]
        return data


def request_head(
    method: str,
    target: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    body: Data | None = None,
) -> bytes:
    """Write a well-formed request head for tests to send, or to break.

    `Host`, and `Content-Length` when there is a `body`, are added unless given.
    """
    fields = list(headers)
    given = {name.lower() for name, _ in fields}
    if "host" not in given:
        fields.insert(0, ("Host", "localhost"))
    if body is not None and not given & {"content-length", "transfer-encoding"}:
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    return "".join(line + "\r\n" for line in lines).encode("latin-1") + b"\r\n"


def chunked(*pieces: bytes) -> bytes:
    """Frame `pieces` as a whole chunked body (RFC 9112 §7.1)."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def parse_head(data: bytes) -> Response:
    """Take a response head apart; `data` is what stood before the empty line.

    Raises:
        MalformedResponse: it breaks RFC 9112.
    """
    first, *lines = data.split(b"\r\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise MalformedResponse(f"status line: {first!r}")
    headers = []
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise MalformedResponse(f"header line: {line!r}")
        headers.append((header[1].decode(), header[2].decode("latin-1")))
    return Response(
        version=(int(status[1]), int(status[2])),
        status=int(status[3]),
        reason=status[4].decode("latin-1"),
        headers=tuple(headers),
    )


def _number(digits: bytes, base: int) -> int:
    if not re.fullmatch(rb"[0-9]+" if base == 10 else rb"[0-9a-fA-F]+", digits):
        raise MalformedResponse(f"length: {digits!r}")
    return int(digits, base)


def _connected(family: int, address: str | bytes) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock
