# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A load generator that costs little, for Unix sockets and TLS.

Small requests: one thread, one epoll, every connection with one request in
flight (a closed loop). Heads are made before the clock starts and answers are
only counted: on a small machine the generator takes its time from the daemon.
Bulk: a thread a connection, one buffer each.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional, Sequence, Union

from bench.servers import BenchError, Daemon

BUFFER = 1 << 20
BULK_REQUEST = 128 << 20
_END = b"\r\n\r\n"

Socket = Union[socket.socket, ssl.SSLSocket]


def connect(daemon: Daemon, transport: str) -> Socket:
    """Open a connection to the local (`unix`) or the remote (`tls`) service."""
    if transport == "unix":
        s = socket.socket(socket.AF_UNIX)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        s.connect(daemon.local)
        return s
    raw = socket.create_connection(("127.0.0.1", daemon.port))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    context = ssl.create_default_context(cafile=daemon.keys.ca_file)
    return context.wrap_socket(raw, server_hostname="localhost")


@dataclass(frozen=True)
class Latency:
    """One run of small requests: latencies in seconds, requests a second, requests."""

    p50: float
    p99: float
    rate: float
    count: int


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which that part of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def random_gets(path: str, size: int, length: int, count: int) -> list[bytes]:
    """Heads of ranged GETs at random aligned offsets; the same ones for everybody."""
    choice = random.Random(42)
    offsets = (choice.randrange(size // length) * length for _ in range(count))
    return [
        b"GET %b HTTP/1.1\r\nHost: localhost\r\nRange: bytes=%d-%d\r\n\r\n" % (path.encode(), o, o + length - 1)
        for o in offsets
    ]


class _Client:
    """One connection of a closed loop."""

    __slots__ = ("buffer", "expected", "got", "sock", "started")

    def __init__(self, sock: Socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.expected = self.got = 0
        self.started = 0.0


def small_requests(
    daemon: Daemon,
    heads: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    transport: str = "unix",
    statuses: Sequence[bytes] = (b"200", b"206"),
) -> Latency:
    """Send small requests over many connections for a while.

    Each answer's status and length are checked.

    Raises:
        BenchError: an answer was not what was asked for.
    """
    clients = [_Client(connect(daemon, transport)) for _ in range(connections)]
    poll = select.epoll()
    by_fd = {c.sock.fileno(): c for c in clients}
    for fd in by_fd:
        poll.register(fd, select.EPOLLIN)
    times: list[float] = []
    clock = time.perf_counter
    turn = 0
    start = clock()
    for c in clients:
        c.started = clock()
        c.sock.sendall(heads[turn % len(heads)])
        turn += 1
    end = start + seconds
    running = len(clients)
    while running:
        for fd, _ in poll.poll(30):
            c = by_fd[fd]
            if not _receive(c, statuses):
                continue
            now = clock()
            times.append(now - c.started)
            if now >= end:
                running -= 1
                continue
            c.started = clock()
            c.sock.sendall(heads[turn % len(heads)])
            turn += 1
    wall = clock() - start
    poll.close()
    for c in clients:
        c.sock.close()
    return Latency(percentile(times, 0.5), percentile(times, 0.99), len(times) / wall, len(times))


def _receive(c: _Client, statuses: Sequence[bytes]) -> bool:
    """Take what came; true when the answer is complete."""
    while True:
        data = c.sock.recv(256 << 10)
        if not data:
            raise BenchError("the server closed a connection")
        if not c.expected:
            data = c.buffer + data
            end = data.find(_END)
            if end < 0:
                c.buffer = data
                return False
            c.buffer = b""
            c.expected = end + 4 + content_length(data[:end], statuses)
        c.got += len(data)
        if c.got == c.expected:
            c.expected = c.got = 0
            return True
        if not (isinstance(c.sock, ssl.SSLSocket) and c.sock.pending()):
            return False


def content_length(head: bytes, statuses: Sequence[bytes]) -> int:
    """Check the status of a response head and return the length of its body."""
    if head[9:12] not in statuses:
        raise BenchError(f"unexpected answer: {head!r}")
    low = head.lower()
    at = low.find(b"\r\ncontent-length:")
    if at < 0:
        raise BenchError(f"an answer without Content-Length: {head!r}")
    return int(low[at + 17 :].split(b"\r\n", 1)[0])


def read_head(sock: Socket, statuses: Sequence[bytes]) -> tuple[int, bytes]:
    """Read a response head; returns the body's length and what came of it already."""
    data = b""
    while _END not in data:
        part = sock.recv(8192)
        if not part:
            raise BenchError(f"the server closed the connection after {data!r}")
        data += part
    head, _, rest = data.partition(_END)
    return content_length(head, statuses), rest


def ranges(size: int, step: int = BULK_REQUEST) -> Iterator[tuple[int, int]]:
    """Offset and length of the requests that cover an image."""
    return ((o, min(step, size - o)) for o in range(0, size, step))


def bulk_get(daemon: Daemon, ticket: str, size: int, *, streams: int, transport: str) -> None:
    """Read a whole image with several connections and drop the data."""

    def one(sock: Socket, offset: int, length: int, buffer: memoryview) -> None:
        sock.sendall(
            b"GET /images/%b HTTP/1.1\r\nHost: localhost\r\nRange: bytes=%d-%d\r\n\r\n"
            % (ticket.encode(), offset, offset + length - 1)
        )
        left, rest = read_head(sock, (b"206",))
        if left != length:
            raise BenchError(f"asked for {length} bytes, got {left}")
        left -= len(rest)
        while left:
            n = sock.recv_into(buffer, min(left, len(buffer)))
            if not n:
                raise BenchError("the server closed the connection in a body")
            left -= n

    _bulk(daemon, ranges(size), one, streams, transport)


def bulk_put(daemon: Daemon, ticket: str, source: memoryview, *, streams: int, transport: str) -> None:
    """Write a whole image from memory with several connections."""

    def one(sock: Socket, offset: int, length: int, buffer: memoryview) -> None:
        sock.sendall(
            b"PUT /images/%b?flush=n HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n"
            b"Content-Range: bytes %d-%d/*\r\n\r\n" % (ticket.encode(), length, offset, offset + length - 1)
        )
        for o in range(offset, offset + length, BUFFER):
            sock.sendall(source[o : min(o + BUFFER, offset + length)])
        length, rest = read_head(sock, (b"200",))
        while len(rest) < length:
            rest += sock.recv(8192)

    _bulk(daemon, ranges(len(source)), one, streams, transport)


def _bulk(
    daemon: Daemon,
    work: Iterator[tuple[int, int]],
    one: Callable[[Any, int, int, memoryview], None],
    streams: int,
    transport: str,
) -> None:
    lock = threading.Lock()
    failures: list[BaseException] = []

    def take() -> Optional[tuple[int, int]]:
        with lock:
            return None if failures else next(work, None)

    def run() -> None:
        buffer = memoryview(bytearray(BUFFER))
        try:
            with contextlib.closing(connect(daemon, transport)) as sock:
                while (piece := take()) is not None:
                    one(sock, *piece, buffer)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=run) for _ in range(streams)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        raise failures[0]


def get_once(sock: Socket, path: str, offset: int, length: int) -> None:
    """Read a range over an open connection and drop it."""
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes={offset}-{offset + length - 1}\r\n\r\n"
    sock.sendall(head.encode())
    left, rest = read_head(sock, (b"206",))
    left -= len(rest)
    buffer = bytearray(BUFFER)
    while left:
        count = sock.recv_into(buffer, min(left, BUFFER))
        if not count:
            raise BenchError("the server closed the connection in a body")
        left -= count


def bulk_get_each(daemon: Daemon, tickets: Sequence[str], length: int) -> None:
    """Read a part of an image with each ticket, all at once, one connection each."""
    failures: list[BaseException] = []

    def one(index: int, ticket: str) -> None:
        try:
            with contextlib.closing(connect(daemon, "unix")) as sock:
                get_once(sock, f"/images/{ticket}", index * length, length)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=one, args=item) for item in enumerate(tickets)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        raise failures[0]
