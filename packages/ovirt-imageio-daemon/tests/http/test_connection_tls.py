# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""TLS connections over real TCP sockets, with the ssl module's client."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from imageio_testing.hostile import client_hello
from ovirt_imageio.daemon.http.connection import Connection, Timeouts
from ovirt_imageio.daemon.http.message import Request, Response, StreamedBody
from ovirt_imageio.daemon.http.router import Route, Router

SOON = 0.02
DATA = os.urandom(5_000_000)
DIGEST = hashlib.sha1(DATA).digest()


class Body(StreamedBody):
    length = len(DATA)

    async def send(self, connection: Connection, head: bytes) -> None:
        await connection.in_worker(lambda peer: peer.send_all(DATA), head=head)


async def download(request: Request) -> Response:
    return Response(200, body=Body())


async def small(request: Request) -> Response:
    return Response(200, body=DATA[:100_000])


async def upload(request: Request) -> Response:
    """Receive in a worker, as a backend would; answer with the digest."""

    def receive(peer: Any) -> bytes:
        assert peer.splice_fd is None
        digest = hashlib.sha1(peer.take(1 << 20))
        view = memoryview(bytearray(300_000))
        while True:
            count = peer.recv_into(view)
            if not count:
                return digest.digest()
            digest.update(view[:count])

    return Response(200, body=await request.connection.in_worker(receive, body=request.body))


async def echo(request: Request) -> Response:
    return Response(200, body=await request.body.read(200_000))


@pytest.fixture
def router() -> Router:
    handlers = {"GET": download, "PUT": upload}
    return Router([Route("/bulk", handlers), Route("/small", {"GET": small, "PUT": echo})])


@pytest.fixture
def server(start: Any, router: Router, server_context: ssl.SSLContext) -> Any:
    return start(router, tcp=True, context=server_context)


@pytest.fixture
def client(server: Any, client_context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with secure(server, client_context) as sock:
        yield sock


def secure(server: Any, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(server.connect(), server_hostname="localhost")


def request(method: str, path: str, body: bytes = b"", *fields: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(sock: Any) -> tuple[int, bytes]:
    """Return status and body of one response."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        assert part, f"the response ends early: {data!r}"
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    length = int(fields[b"content-length"])
    while len(body) < length:
        body += sock.recv(1 << 20)
    return int(head.split()[1]), body


def test_small_requests(client: ssl.SSLSocket) -> None:
    for _ in range(3):
        client.sendall(request("GET", "/small"))
        assert answer(client) == (200, DATA[:100_000])
        client.sendall(request("PUT", "/small", DATA[:150_000]))
        assert answer(client) == (200, DATA[:150_000])


def test_bulk_in_workers(client: ssl.SSLSocket) -> None:
    for _ in range(2):
        client.sendall(request("GET", "/bulk"))
        assert answer(client) == (200, DATA)
        client.sendall(request("PUT", "/bulk", DATA))
        assert answer(client) == (200, DIGEST)


def test_request_behind_a_bulk_body_is_kept(client: ssl.SSLSocket) -> None:
    client.sendall(request("PUT", "/bulk", DATA) + request("PUT", "/small", b"next"))
    assert answer(client) == (200, DIGEST)
    assert answer(client) == (200, b"next")


def test_chunked_upload(client: ssl.SSLSocket) -> None:
    head = request("PUT", "/bulk", b"", "Transfer-Encoding: chunked")
    chunks = [DATA[i : i + 70_000] for i in range(0, len(DATA), 70_000)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    client.sendall(head + body + b"0\r\n\r\n" + request("PUT", "/small", b"next"))
    assert answer(client) == (200, DIGEST)
    assert answer(client) == (200, b"next")


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_versions(server: Any, client_context: ssl.SSLContext, version: str) -> None:
    client_context.maximum_version = ssl.TLSVersion[version]
    with secure(server, client_context) as client:
        client.sendall(request("GET", "/bulk"))
        assert answer(client) == (200, DATA)


def test_close_notify_ends_the_connection(client: ssl.SSLSocket) -> None:
    client.sendall(request("GET", "/small"))
    answer(client)
    client.unwrap()  # fails unless the server answers with its own
    assert client.recv(1) == b""


def test_server_sends_close_notify(client: ssl.SSLSocket) -> None:
    client.suppress_ragged_eofs = False
    client.sendall(request("GET", "/small", b"", "Connection: close"))
    answer(client)
    assert client.recv(1) == b"", "an end without close_notify raises"


def test_client_that_vanishes_hurts_nobody(
    server: Any, client_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/bulk", "/small"):
        client = secure(server, client_context)
        client.sendall(request("PUT", path, DATA)[:100_000])
        client.close()
    with secure(server, client_context) as client:
        client.sendall(request("PUT", "/small", b"x"))
        assert answer(client) == (200, b"x")
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PUT", "BREW"])
def test_plain_http_is_told_so(server: Any, method: str) -> None:
    with server.connect() as sock:
        sock.sendall(request(method, "/small"))
        status, body = answer(sock)
        assert status == 400
        assert b"HTTPS" in body
        assert sock.recv(1) == b""


def test_garbage_instead_of_a_handshake(server: Any, client_context: ssl.SSLContext) -> None:
    with server.connect() as sock:
        sock.sendall(b"\x16\x03\x01\x00\x05hello")
        with contextlib.suppress(ConnectionResetError):
            alert = sock.recv(100)
            assert alert[:1] == b"\x15", "the alert says why"
            assert sock.recv(1) == b""


def test_handshake_has_a_deadline(start: Any, router: Router, server_context: ssl.SSLContext) -> None:
    timeouts = Timeouts(handshake=SOON)
    server = start(router, tcp=True, context=server_context, timeouts=timeouts)
    for first in (b"", b"\x16\x03"):
        with server.connect() as sock:
            sock.sendall(first)
            with contextlib.suppress(ConnectionResetError):  # it came too late to be read
                assert sock.recv(1) == b""


def test_handshakes_wait_for_each_other_and_delay_nobody_else(
    start: Any, router: Router, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Two threads do the arithmetic; here both are busy, and the deadline of the third comes."""
    server = start(router, tcp=True, context=server_context)
    gate, taken = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        taken.release()
        gate.wait(10)

    async def occupy() -> None:
        await server.loop.crypto(hold, timeout=10)

    with secure(server, client_context) as client:
        for _ in range(2):
            server.call(lambda: server.loop.spawn(occupy()))
            assert taken.acquire(timeout=10)
        server.timeouts = Timeouts(handshake=SOON)
        try:
            with pytest.raises((ssl.SSLError, OSError)), secure(server, client_context):
                pass
            client.sendall(request("GET", "/small"))
            assert answer(client) == (200, DATA[:100_000])
        finally:
            gate.set()
        server.timeouts = Timeouts()
        with secure(server, client_context) as late:
            late.sendall(request("GET", "/small"))
            assert answer(late)[0] == 200


def test_silent_clients_delay_nobody(server: Any, client_context: ssl.SSLContext) -> None:
    with contextlib.ExitStack() as stack:
        for first in (b"", b"\x16", b"\x16\x03\x01\x02\x00"):
            silent = stack.enter_context(server.connect())
            silent.sendall(first)
        with secure(server, client_context) as client:
            client.sendall(request("GET", "/bulk"))
            assert answer(client) == (200, DATA)


def test_refused_upload_is_answered(server: Any, client_context: ssl.SSLContext) -> None:
    with secure(server, client_context) as client:
        client.sendall(request("PUT", "/nothing", b"", f"Content-Length: {32 << 20}"))
        for _ in range(32):
            client.sendall(bytes(1 << 20))
        assert answer(client)[0] == 404


@pytest.mark.parametrize("piece", [3, 1009, 16_385, 100_003])
def test_records_may_be_cut_anywhere(server: Any, client_context: ssl.SSLContext, piece: int) -> None:
    """Heads, which the loop reads, and bodies, read by loop or worker, in pieces of odd length."""
    body = DATA[: piece * 400]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with server.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send() -> None:
            data = outgoing.read()
            for start in range(0, len(data), piece):
                sock.sendall(data[start : start + piece])

        def read(size: int) -> bytes:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    return tls.read(size)
                incoming.write(sock.recv(65536))

        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                send()
                incoming.write(sock.recv(65536))
            else:
                break
        for path, sent, expected in (
            ("/bulk", body, hashlib.sha1(body).digest()),
            ("/small", body[:200_000], body[:200_000]),
        ) * 2:
            data = request("PUT", path, sent)
            for start in range(0, len(data), 20_001):  # a record of 16 KiB, and a shorter one
                tls.write(data[start : start + 20_001])
            send()
            assert answer(_Reader(read)) == (200, expected)


class _Reader:
    """Source that `answer` reads from."""

    def __init__(self, recv: Any) -> None:
        self.recv = recv


def test_idle_connection_keeps_no_large_buffers(
    server: Any, client: ssl.SSLSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.sendall(request("PUT", "/bulk", DATA))
    answer(client)
    (connection,) = server.call(lambda: list(server.connections._all))
    assert (connection.buffer, connection.raw) == (b"", b"")
    assert connection.incoming.pending == connection.outgoing.pending == 0


def connections() -> list[Connection]:
    """All that there are in this process."""
    return [o for o in gc.get_objects() if isinstance(o, Connection)]


def test_connections_leave_nothing_for_the_garbage_collector(server: Any, client_context: ssl.SSLContext) -> None:
    """Else the 50 KiB of each stay until it looks at the oldest generation, which may be hours."""
    gc.collect()
    gc.disable()
    try:
        for sent in (request("GET", "/small"), request("PUT", "/bulk", DATA)[:100_000], request("GET", "/bulk"), b""):
            with secure(server, client_context) as client:
                client.sendall(sent)
        for sent in (b"", b"GET / HTTP/1.1\r\n\r\n", client_hello(client_context)):
            with server.connect() as sock:
                sock.sendall(sent)
                sock.recv(100) if sent else None
        # The loop, and the worker that had it, drop a connection a moment after it is closed.
        for _ in range(10_000):
            if not server.call(lambda: len(server.connections)) and not connections():
                break
        assert connections() == []
    finally:
        gc.enable()


def test_broken_record_ends_the_connection(
    server: Any, client: ssl.SSLSocket, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        raw = socket.socket(fileno=os.dup(client.fileno()))
        with raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            with contextlib.suppress(OSError):
                while raw.recv(1000):
                    pass
    assert "Traceback" not in caplog.text
