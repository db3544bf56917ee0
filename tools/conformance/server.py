# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Where the server under test listens, and connections to it that remember what was said."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from imageio_testing.httppeer import ConnectionEnded, Data, HttpPeer, Response, request_head

WAYS = ("remote", "local")

_SHOWN = 1000  # bytes of a message that a failure repeats


@dataclass
class Server:
    """A running server.

    Attributes:
        remote: URL of the images service by TCP, without a path; empty: none.
        cafile: what signed its certificate; None for plain HTTP.
        local: address of the images service on this host: a path, or NUL and a name; empty: none.
        control: of the control service: a path, or ``http://localhost:PORT``.
        folder: where images are made that the server may open and change.
        version: that the server should report; empty: any.
        wire: what went over all connections since it was last cleared.
    """

    remote: str
    cafile: str | None
    local: str
    control: str
    folder: Path
    version: str = ""
    wire: list[str] = field(default_factory=list)

    def ways(self) -> list[str]:
        """Which images services there are."""
        return [way for way in WAYS if getattr(self, way)]

    def connect(self, way: str) -> Client:
        """Connect to ``"remote"``, ``"local"`` or ``"control"``."""
        return Client(self._socket(getattr(self, way)), self.wire)

    def _socket(self, address: str) -> HttpPeer:
        if "://" not in address:
            return HttpPeer.unix(address)
        parts = urlsplit(address)
        host, port = parts.hostname or "localhost", parts.port or 0
        if parts.scheme == "http":
            return HttpPeer.tcp(host, port)
        return HttpPeer.tls(host, port, context=ssl.create_default_context(cafile=self.cafile))


class Client(HttpPeer):
    """A raw connection that writes down what goes over it."""

    def __init__(self, peer: HttpPeer, wire: list[str]) -> None:
        super().__init__(peer.socket)
        self._wire = wire

    def __enter__(self) -> Client:
        """Close the connection on leaving."""
        return self

    def send(self, data: Data, *, piece: int | None = None) -> None:
        """Send exactly these bytes."""
        self._wire.append(_shown(">", bytes(memoryview(data)[:_SHOWN]), len(data)))
        super().send(data, piece=piece)

    def head(self) -> Response:
        """Receive one response head."""
        head = super().head()
        lines = [f"HTTP/{head.version[0]}.{head.version[1]} {head.status} {head.reason}"]
        lines += [f"{name}: {value}" for name, value in head.headers]
        self._wire.append("\n".join(f"  < {line}" for line in lines))
        return head

    def response(self, method: str = "GET") -> Response:
        """Receive a whole final response."""
        response = super().response(method)
        if response.body:
            self._wire.append(_shown("<", response.body[:_SHOWN], len(response.body)))
        return response

    def request(
        self,
        method: str,
        target: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        body: Data | None = None,
    ) -> Response:
        """Send a request and return its response, also where the server closed before it had the whole body."""
        self.send(request_head(method, target, headers=headers, body=body))
        broken: OSError | None = None
        if body is not None:
            try:
                self.send(body)
            except OSError as e:
                broken = e
        try:
            return self.response(method)
        except (ConnectionEnded, OSError):
            if broken is not None:
                raise broken from None
            raise

    def get(self, target: str, *headers: tuple[str, str], method: str = "GET") -> Response:
        """Send a request without a body."""
        return self.request(method, target, headers=headers)

    def put(self, target: str, body: Data, *headers: tuple[str, str]) -> Response:
        """Send a request with a body."""
        return self.request("PUT", target, headers=headers, body=body)

    def put_json(self, target: str, document: Any, *, method: str = "PUT") -> Response:
        """Send a request with a JSON document, or with bytes in place of one."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.request(method, target, body=body)


def half_close(client: Client) -> None:
    """Tell the server that nothing more comes; skips where TLS knows no such thing."""
    if isinstance(client.socket, ssl.SSLSocket):
        pytest.skip("a TLS connection cannot be closed by halves")
    client.socket.shutdown(socket.SHUT_WR)


def head_of(method: str, target: str, *headers: tuple[str, str], version: str = "1.1") -> bytes:
    """Write a request head; Host is added."""
    data = request_head(method, target, headers=headers)
    return data.replace(b" HTTP/1.1\r\n", f" HTTP/{version}\r\n".encode(), 1)


class Fault(AssertionError):
    """An answer of the server departs from a rule. The text lists the differences."""


def expect(
    response: Response,
    status: int | Iterable[int],
    *,
    headers: Mapping[str, str | None] | None = None,
    body: bytes | None = None,
    document: Any = None,
) -> Response:
    """Compare a response with what a rule says, and return it.

    Args:
        response: to compare.
        status: the status, or several that are all right.
        headers: by name, the exact value; None: must be absent.
        body: the exact body.
        document: the exact JSON document.

    Raises:
        Fault: it differs; all differences are in the text.
    """
    allowed = (status,) if isinstance(status, int) else tuple(status)
    faults = []
    if response.status not in allowed:
        faults.append(f"the status is {response.status}, expected {' or '.join(map(str, allowed))}")
    for name, value in (headers or {}).items():
        found = response.all_headers(name)
        if found != ([] if value is None else [value]):
            faults.append(f"{name} is {_values(found)}, expected {_values([] if value is None else [value])}")
    if body is not None and response.body != body:
        faults.append(f"the body is {_bytes(response.body)}, expected {_bytes(body)}")
    if document is not None:
        try:
            found_document = response.json()
        except ValueError:
            faults.append(f"the body is {_bytes(response.body)}, expected JSON")
        else:
            if found_document != document:
                faults.append(f"the document is {found_document}, expected {document}")
    if faults:
        raise Fault("\n".join(faults))
    return response


def expect_error(response: Response, status: int | Iterable[int], *words: str) -> Response:
    """Check an error: its status, and a short sentence of text that holds some words.

    Raises:
        Fault: it differs.
    """
    expect(response, status, headers={"Content-Type": "text/plain; charset=UTF-8"})
    text = response.text
    require(text.endswith("\n"), f"the text {text!r} does not end with a newline")
    require(1 < len(text) < 500, f"the text {text!r} is no short sentence")
    for word in words:
        require(word in text, f"the text {text!r} does not name {word!r}")
    return response


def require(condition: object, fault: str) -> None:
    """Raise unless a condition holds.

    Raises:
        Fault: with that text.
    """
    if not condition:
        raise Fault(fault)


def expect_end(client: HttpPeer) -> None:
    """Check that the server closes the connection and sends nothing more."""
    require(client.ended(), "the server keeps the connection, expected that it closes it")


def expect_alive(client: Client, target: str = "/images/*") -> None:
    """Check that the connection takes another request and answers that one."""
    expect(client.get(target, method="OPTIONS"), 200)


def _values(values: list[str]) -> str:
    return " and ".join(map(repr, values)) or "absent"


def _bytes(data: bytes) -> str:
    shown = repr(data[:60])
    return shown if len(data) <= 60 else f"{shown}... ({len(data)} bytes)"


def _shown(mark: str, data: bytes, length: int) -> str:
    text = data.decode("latin-1")
    printable = sum(c.isprintable() or c in "\r\n\t" for c in text)
    if printable < len(text):
        return f"  {mark} {_bytes(data[:60])} ({length} bytes)"
    lines = [f"  {mark} {line}" for line in text.replace("\r\n", "\n").rstrip("\n").split("\n")]
    if length > len(data):
        lines.append(f"  {mark} ... ({length} bytes)")
    return "\n".join(lines)
