# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A scripted image server: says what the test says, true or not.

    def answer(got):
        return response(200, b"...")

    with ScriptedServer(answer) as server:
        HttpBackend(server.url)

`Image` is an answer for an honest server; a test overrides one method to make it lie.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any, Callable, Union

if TYPE_CHECKING:
    from types import TracebackType

TIMEOUT = 10.0
TICKET = "6f1a2b3c-secret"

_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content", 302: "Found", 403: "Forbidden", 404: "Not Found"}


def response(status: int, body: bytes = b"", **headers: Any) -> bytes:
    """Write a response; `Content_Length=None` leaves that header out."""
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Whatever')}"]
    fields = {"Content_Length": len(body), **headers}
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Got:
    """A request as it came.

    Attributes:
        connection: Number of the connection it came on, from 1.
        headers: Names in lower case.
    """

    def __init__(self, head: bytes, file: Any, sock: socket.socket, connection: int) -> None:
        first, *rest = head.decode().split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in rest if line)}
        self.connection = connection
        self.socket = sock
        self._file = file
        self._body: bytes | None = None

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return int(self.headers.get("content-length", 0))

    @property
    def body(self) -> bytes:
        """The body; it is received when it is first looked at."""
        if self._body is None:
            self._body = self._file.read(self.length)
            assert self._body is not None
        return self._body

    @property
    def taken(self) -> bool:
        """The body was received as a whole."""
        return not self.length or len(self._body or b"") == self.length


Answer = Callable[[Got], Union[bytes, None]]


class ScriptedServer:
    """Serves connections in threads of its own, until the test ends.

    Args:
        answer: Returns the bytes to send for a request; None closes the connection. A
            body that it did not look at is not received, and the connection closed.
        context: For TLS.
        unix: Path or abstract name of a Unix socket, instead of TCP.
        host: Address to listen on.

    Attributes:
        requests: Every request so far.
        connections: Count so far.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        context: ssl.SSLContext | None = None,
        unix: str | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.answer = answer
        self.requests: list[Got] = []
        self.connections = 0
        self._context = context
        self._host = host
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        if unix is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(unix)
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.socket(family)
            self._listener.bind((host, 0))
        self._listener.listen(16)

    @property
    def url(self) -> str:
        """URL of the image."""
        scheme = "https" if self._context else "http"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{scheme}://{host}:{self._listener.getsockname()[1]}/images/{TICKET}"

    def __enter__(self) -> ScriptedServer:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in list(self._sockets):
            _shutdown(sock)
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._listener.close()

    def hang_up(self) -> None:
        """End all connections, as a server that is killed or has waited for long; new ones are served."""
        sockets, self._sockets[:] = list(self._sockets), []
        for sock in sockets:
            _shutdown(sock)

    def methods(self) -> list[str]:
        """The methods of the requests so far."""
        return [got.method for got in self.requests]

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT)
            self.connections += 1
            self._start(self._serve, sock, self.connections)

    def _serve(self, sock: socket.socket, number: int) -> None:
        try:
            if self._context:
                sock = self._context.wrap_socket(sock, server_side=True)
            self._sockets.append(sock)
            with sock, sock.makefile("rb") as file:
                while self._serve_one(sock, file, number):
                    pass
        except OSError:
            sock.close()  # the client went away, or did not trust us

    def _serve_one(self, sock: socket.socket, file: Any, number: int) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = file.readline()
            if not line:
                return False
            head += line
        got = Got(head, file, sock, number)
        self.requests.append(got)
        answer = self.answer(got)
        if answer is None:
            return False
        sock.sendall(answer)
        return got.taken and b"Connection: close" not in answer


def _shutdown(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed before


class Image:
    """The answers of an honest server with an image in memory.

    Args:
        data: Content; it is changed by PUT and PATCH.
        features: Answer to OPTIONS; None answers 405, as very old servers do.
        options: Further keys of the answer to OPTIONS.
    """

    FEATURES = ("checksum", "extents", "flush", "zero")

    def __init__(
        self,
        data: bytearray,
        *,
        features: tuple[str, ...] | None = FEATURES,
        server: str = "imageio/2.5.1",
        **options: Any,
    ) -> None:
        self.data = data
        self.features = features
        self.server = server
        self.document = {"features": features, "max_readers": 8, "max_writers": 8, **options}
        self.flushes = 0

    def __call__(self, got: Got) -> bytes | None:
        """Answer a request."""
        path, _, query = got.target.partition("?")
        if path.endswith("/extents"):
            return self.extents(got, query)
        method = getattr(self, f"do_{got.method.lower()}", None)
        return method(got, query) if method else response(405, b"unknown method\n")

    def do_options(self, got: Got, query: str) -> bytes | None:
        """Tell features."""
        if self.features is None:
            return response(405, b"unknown method\n")
        return response(200, json.dumps(self.document).encode(), Server=self.server, Allow="OPTIONS,GET,PUT,PATCH")

    def do_get(self, got: Got, query: str) -> bytes | None:
        """Send a range, or all."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", got.headers.get("range", ""))
        if not match:
            return response(200, bytes(self.data))
        first, last = int(match[1]), int(match[2])
        size = len(self.data)
        if last >= size:
            return response(416, b"range is not inside the image\n", Content_Range=f"bytes */{size}")
        return response(206, bytes(self.data[first : last + 1]), Content_Range=f"bytes {first}-{last}/{size}")

    def do_put(self, got: Got, query: str) -> bytes | None:
        """Write a range."""
        match = re.match(r"bytes (\d+)-", got.headers.get("content-range", ""))
        first = int(match[1]) if match else 0
        body = got.body
        if not got.taken:
            return None  # the client went away
        self.data[first : first + got.length] = body
        return response(200)

    def do_patch(self, got: Got, query: str) -> bytes | None:
        """Zero or flush."""
        document = json.loads(got.body)
        if document["op"] == "zero":
            start, size = document["offset"], document["size"]
            self.data[start : start + size] = bytes(size)
        else:
            self.flushes += 1
        return response(200)

    def extents(self, got: Got, query: str) -> bytes | None:
        """Tell one data extent."""
        if query == "context=dirty":
            return response(404, b"no dirty extents here\n")
        return response(200, json.dumps([{"start": 0, "length": len(self.data), "zero": False}]).encode())


class VolatileImage(Image):
    """An honest server that loses what no flush covers when it is killed.

        image = VolatileImage(bytearray(SIZE), tells=True)
        with ScriptedServer(image) as server:
            ...
            image.restart(server)

    Args:
        data: Content, which is stable.
        tells: Changes are answered with the id of this life, as servers of version 3 do; else it is one of 2.5.1.

    Attributes:
        stable: Content that is left when it is killed.
        tells: As given.
        before_flush: Called when a flush is asked for, before it is carried out.
    """

    def __init__(self, data: bytearray, *, tells: bool, **options: Any) -> None:
        super().__init__(data, server="imageio/3.0.0" if tells else "imageio/2.5.1", **options)
        self.stable = bytearray(data)
        self.before_flush: Callable[[], None] = lambda: None
        self.tells = tells
        self._life = 1

    def restart(self, server: ScriptedServer) -> None:
        """Be killed, and come back with what is stable."""
        self.data[:] = self.stable
        self._life += 1
        server.hang_up()

    def do_put(self, got: Got, query: str) -> bytes | None:
        """Write a range."""
        answer = super().do_put(got, query)
        if answer is not None and "flush=n" not in query:
            self.stable[:] = self.data
        return self._told(answer)

    def do_patch(self, got: Got, query: str) -> bytes | None:
        """Zero or flush."""
        body = got.body
        if not got.taken:
            return None  # the connection ended within it
        flush = json.loads(body)["op"] == "flush"
        if flush:
            self.before_flush()
        answer = super().do_patch(got, query)
        if flush:
            self.stable[:] = self.data
        return self._told(answer)

    def _told(self, answer: bytes | None) -> bytes | None:
        if answer is None or not self.tells:
            return answer
        return answer.replace(b"\r\n", f"\r\nImageio-Instance: life-{self._life}\r\n".encode(), 1)
