# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Clients that mean no good, in numbers, for tests and for the report on them.

    target = Target.of(daemon, ticket_id, size)
    with CASES["silent"](target, 1000) as crowd:
        ...  # look at the daemon while the crowd is there
        crowd.step()

A crowd is made in one thread and keeps its sockets open until it is left. It never blocks for
long: what the daemon does not take at once is not sent.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ContextManager

if TYPE_CHECKING:
    from .daemon import Daemon

TIMEOUT = 30.0
"""Seconds for one connection to be taken: a loaded daemon may need some."""

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 seconds
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class Target:
    """The daemon to be hurt.

    Attributes:
        port: Of the remote service.
        local: Path of the local service's socket.
        ca_file: Verifies the remote service.
        path: Of an image with a ticket to read and write.
        size: Of that image, in bytes.
    """

    port: int
    local: str
    ca_file: str
    path: str
    size: int

    @classmethod
    def of(cls, daemon: Daemon, ticket_id: str, size: int) -> Target:
        """Take what is needed from a daemon with TLS that runs."""
        assert daemon.ca_file is not None
        return cls(daemon.port, daemon.local_socket, daemon.ca_file, f"/images/{ticket_id}", size)

    def tcp(self) -> socket.socket:
        """Connect to the remote service, without TLS."""
        return socket.create_connection(("localhost", self.port), TIMEOUT)

    def tls(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Connect to the remote service."""
        return context.wrap_socket(self.tcp(), server_hostname="localhost")

    def unix(self) -> socket.socket:
        """Connect to the local service."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        sock.connect(self.local)
        return sock

    def context(self) -> ssl.SSLContext:
        """Return what to speak TLS with."""
        return ssl.create_default_context(cafile=self.ca_file)


class Crowd:
    """Connections that stay open.

    Args:
        sockets: The connections.
        step: Done to each connection by `step`, and told how often it was done before.
        again: Step of a client that left at once and comes again; it costs little.

    Attributes:
        sockets: The connections, none if all left at once.
        again: As given.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        step: Callable[[socket.socket, int], None] | None = None,
        again: Callable[[], None] | None = None,
    ) -> None:
        self.sockets = sockets
        self.again = again
        self._step = step
        self._steps = 0

    def step(self, part: int = 0, parts: int = 1) -> None:
        """Let each do a little more, like sending one byte; many do nothing at all.

        Args:
            part: Only every ``parts``-th of them, from this one on; after the last part all
                have done the same. So a thousand clients may each act once in a second without
                all of them acting at once.
            parts: How many parts there are.
        """
        if self._step is not None:
            for sock in self.sockets[part::parts]:
                with contextlib.suppress(OSError):
                    self._step(sock, self._steps)
            self._steps += part == parts - 1


Case = Callable[[Target, int], ContextManager[Crowd]]

CASES: dict[str, Case] = {}
"""Every case by its name; the docstring says what the clients do."""


def case(make: Callable[[Target, int], Iterator[Crowd]]) -> Case:
    """Register what makes a crowd."""
    manager = contextlib.contextmanager(make)
    CASES[make.__name__.replace("_", " ")] = manager
    return manager


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Let this process open as many files as it may."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def _gathered(count: int, connect: Callable[[], socket.socket]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(many_files())
        yield [stack.enter_context(connect()) for _ in range(count)]


def client_hello(context: ssl.SSLContext) -> bytes:
    """Return what a TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def request(method: str, path: str, *fields: str) -> bytes:
    """Return a request head."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode()


@case
def silent(target: Target, count: int) -> Iterator[Crowd]:
    """Connect to the TLS port and say nothing."""
    with _gathered(count, target.tcp) as sockets:
        yield Crowd(sockets)


@case
def stopped_handshake(target: Target, count: int) -> Iterator[Crowd]:
    """Send a whole ClientHello, let the server do its part, and say no more."""
    hello = client_hello(target.context())
    with _gathered(count, target.tcp) as sockets:
        for sock in sockets:
            _say(sock, hello)
        yield Crowd(sockets)


@case
def dripped_handshake(target: Target, count: int) -> Iterator[Crowd]:
    """Send a ClientHello byte by byte."""
    hello = client_hello(target.context())
    with _gathered(count, target.tcp) as sockets:
        yield Crowd(sockets, lambda sock, n: sock.sendall(hello[n : n + 1]))


@case
def dripped_head(target: Target, count: int) -> Iterator[Crowd]:
    """Send the head of a request byte by byte, over the Unix socket."""
    head = request("GET", target.path, "X: " + "x" * 10_000)
    with _gathered(count, target.unix) as sockets:
        yield Crowd(sockets, lambda sock, n: sock.sendall(head[n : n + 1]))


@case
def stopped_reading(target: Target, count: int) -> Iterator[Crowd]:
    """Ask for the whole image, and stop reading in the middle of it."""
    get = request("GET", target.path)

    def connect() -> socket.socket:
        sock = target.unix()
        _say(sock, get)
        return sock

    with _gathered(count, connect) as sockets:
        yield Crowd(sockets, lambda sock, _: _nibble(sock))


@case
def stopped_reading_tls(target: Target, count: int) -> Iterator[Crowd]:
    """Ask for the whole image by TLS, and stop reading in the middle of it."""
    get = request("GET", target.path)
    context = target.context()

    def connect() -> socket.socket:
        sock = target.tls(context)
        _say(sock, get)
        return sock

    with _gathered(count, connect) as sockets:
        yield Crowd(sockets)


@case
def vanished_writing(target: Target, count: int) -> Iterator[Crowd]:
    """Begin to upload, and vanish in the middle of it, again and again."""
    put = request("PUT", target.path, f"Content-Length: {target.size}") + bytes(_CHUNK)

    def vanish() -> None:
        with target.unix() as sock:
            sock.sendall(put)

    for _ in range(count):
        vanish()
    yield Crowd([], again=vanish)


@case
def reset(target: Target, count: int) -> Iterator[Crowd]:
    """Connect to the TLS port, say a part of a ClientHello and reset the connection."""
    hello = client_hello(target.context())
    lengths = itertools.cycle(range(len(hello)))
    with target.tcp() as sock:
        family, address = sock.family, sock.getpeername()  # names are looked up once

    def come() -> None:
        with socket.socket(family) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(address)
            sock.sendall(hello[: next(lengths)])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    for _ in range(count):
        come()
    yield Crowd([], again=come)


@case
def unread_answers(target: Target, count: int) -> Iterator[Crowd]:
    """Send requests one behind the other, as many as the server takes, and read no answer."""
    flood = request("GET", "/images/nothing") * 500
    with _gathered(count, target.unix) as sockets:
        for sock in sockets:
            sock.setblocking(False)
        yield Crowd(sockets, lambda sock, _: _flood(sock, flood))


@case
def refused_uploads(target: Target, count: int) -> Iterator[Crowd]:
    """Upload without a ticket, go on sending when refused, and do not read the answer."""
    put = request("PUT", "/images/nothing", f"Content-Length: {1 << 40}")

    def connect() -> socket.socket:
        sock = target.unix()
        _say(sock, put)
        sock.setblocking(False)
        return sock

    chunk = bytes(_CHUNK)
    with _gathered(count, connect) as sockets:
        yield Crowd(sockets, lambda sock, _: _flood(sock, chunk))


@case
def unsent_body(target: Target, count: int) -> Iterator[Crowd]:
    """Upload a little without a ticket, take the refusal, and never send the body."""
    put = request("PUT", "/images/nothing", "Content-Length: 1000")
    with _gathered(count, target.unix) as sockets:
        for sock in sockets:
            _say(sock, put)
        for sock in sockets:
            with contextlib.suppress(ConnectionResetError):
                sock.recv(1000)  # nothing for those that made room for others
        yield Crowd(sockets)


@case
def idle_with_a_ticket(target: Target, count: int) -> Iterator[Crowd]:
    """Read 8 MiB each, then be idle and keep the connection."""
    get = request("GET", target.path, f"Range: bytes=0-{min(8 << 20, target.size) - 1}")
    buffer = bytearray(1 << 20)

    def connect() -> socket.socket:
        sock = target.unix()
        sock.sendall(get)
        _read_answer(sock, buffer)
        return sock

    with _gathered(count, connect) as sockets:
        yield Crowd(sockets)


def _say(sock: socket.socket, data: bytes) -> None:
    """Send data, unless the connection was closed to make room for others."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        sock.sendall(data)


def _read_answer(sock: socket.socket, buffer: bytearray) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(4096)
        if not part:
            raise ConnectionError(f"no answer: {data!r}")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    left = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) - len(body)
    while left:
        count = sock.recv_into(buffer)
        if not count:
            raise ConnectionError(f"{left} bytes are missing")
        left -= count


def _nibble(sock: socket.socket) -> None:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        sock.recv(1)


def _flood(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(BlockingIOError):
        while sock.send(data):
            pass
