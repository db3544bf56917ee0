# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""An upload that is refused while the client is still sending: it can read why."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, Response, request_head

MiB = 1 << 20
SIZE = 4 * MiB
HUGE = 1 << 40
# Bytes of a refused body that the daemon reads, and those that kernel and TLS hold between both ends.
MOST = (128 + 32) * MiB

pytestmark = pytest.mark.system


class Case(NamedTuple):
    """A refused request: who asks, for what, with which fields, and the answer."""

    ticket: str
    query: str
    fields: tuple[tuple[str, str], ...]
    status: int


LENGTH = ("Content-Length", str(HUGE))
CHUNKED = ("Transfer-Encoding", "chunked")
CASES = {
    "no ticket": Case("none", "", (LENGTH,), 403),
    "no ticket, chunked": Case("none", "", (CHUNKED,), 403),
    "read only": Case("read", "", (LENGTH,), 403),
    "cancelled": Case("cancelled", "", (LENGTH,), 403),
    "past the end": Case("write", "", (LENGTH,), 416),
    "begins past the end": Case("write", "", (LENGTH, ("Content-Range", f"bytes {SIZE}-*/*")), 416),
    "contradicting range": Case("write", "", (LENGTH, ("Content-Range", "bytes 0-9/*")), 400),
    "malformed range": Case("write", "", (LENGTH, ("Content-Range", "bytes zero-/*")), 400),
    "malformed query": Case("write", "?flush=perhaps", (LENGTH,), 400),
    "two lengths": Case("write", "", (LENGTH, ("Content-Length", "5")), 400),
    "length and chunks": Case("write", "", (LENGTH, CHUNKED), 400),
    "unknown coding": Case("write", "", (("Transfer-Encoding", "gzip"),), 501),
    "unknown resource": Case("write", "/nothing", (LENGTH,), 404),
}


class Server:
    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.disk = folder / "disk.raw"
        self.disk.write_bytes(b"\x55" * SIZE)
        url = f"file://{self.disk}"
        self.tickets = {
            "none": "nothing",
            "read": daemon.add_ticket(url, size=SIZE, ops=["read"]),
            "write": daemon.add_ticket(url, size=SIZE, ops=["write"]),
            "cancelled": daemon.add_ticket(url, size=SIZE),
        }
        daemon.remove_ticket(self.tickets["cancelled"])

    @contextlib.contextmanager
    def client(self, way: str) -> Iterator[HttpPeer]:
        if way == "unix":
            peer = HttpPeer.unix(self.daemon.local_socket)
        else:
            peer = HttpPeer.tls("localhost", self.daemon.port, ca_file=self.daemon.ca_file)
        with peer:
            yield peer

    def head(self, case: Case) -> bytes:
        target = f"/images/{self.tickets[case.ticket]}{case.query}"
        return request_head("PUT", target, headers=case.fields)

    def assert_untouched(self) -> None:
        assert hashlib.sha256(self.disk.read_bytes()).digest() == hashlib.sha256(b"\x55" * SIZE).digest()
        assert self.daemon.ticket(self.tickets["write"])["transferred"] == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("refused")
    with Daemon(folder, config={"daemon": {"stop_timeout": 0}}) as daemon:
        yield Server(daemon, folder)


def pieces(case: Case) -> Iterator[bytes]:
    """The body, which has no end."""
    data = bytes(MiB)
    piece = b"%x\r\n%s\r\n" % (len(data), data) if CHUNKED in case.fields else data
    while True:
        yield piece


def check(case: Case, response: Response) -> None:
    assert response.status == case.status
    assert response.header("Connection") == "close"
    assert response.header("Content-Type") == "text/plain; charset=UTF-8"
    assert response.text.endswith("\n")


@pytest.mark.parametrize("way", ["unix", "tls"])
@pytest.mark.parametrize("name", list(CASES))
def test_answer_comes_while_the_client_is_sending(server: Server, way: str, name: str) -> None:
    """The body has begun, most of it will come later: the client need not finish to be told."""
    case = CASES[name]
    body = pieces(case)
    with server.client(way) as client:
        client.send(server.head(case) + next(body)[:1000])
        check(case, client.response())
        for _ in range(4):  # the connection is not reset under what is still on its way
            client.send(next(body))
    server.assert_untouched()


@pytest.mark.parametrize("way", ["unix", "tls"])
@pytest.mark.parametrize("name", ["no ticket", "no ticket, chunked", "past the end"])
def test_client_that_sends_first_and_reads_later_gets_the_answer(server: Server, way: str, name: str) -> None:
    """It sends until that fails: the daemon reads a bounded rest, and the answer is still there."""
    case = CASES[name]
    sent = 0
    with server.client(way) as client:
        client.send(server.head(case))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLError):
            for piece in pieces(case):
                client.send(piece)
                sent += len(piece)
                assert sent <= MOST, "the daemon reads on and on"
        check(case, client.response())
    server.assert_untouched()


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_short_body_leaves_the_connection_usable(server: Server, way: str) -> None:
    case = Case("none", "", (("Content-Length", "1000"),), 403)
    with server.client(way) as client:
        client.send(server.head(case))
        assert client.response().status == 403
        client.send(bytes(1000))
        assert client.request("GET", f"/images/{server.tickets['read']}").body == b"\x55" * SIZE
    server.assert_untouched()


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_client_that_waits_for_100_is_refused_before_it_sends(server: Server, way: str) -> None:
    fields = (LENGTH, ("Expect", "100-continue"))
    with server.client(way) as client:
        client.send(server.head(Case("none", "", fields, 403)))
        assert client.head().status == 403, "no 100 before it"


@pytest.mark.parametrize("way", ["unix", "tls"])
def test_half_closed_upload_is_answered(server: Server, way: str) -> None:
    """The client sends half of the body and then its end; it still reads."""
    with server.client(way) as client:
        fields = (("Content-Length", str(MiB)),)
        client.send(server.head(Case("read", "", fields, 403)) + bytes(MiB // 2))
        if way == "unix":
            client.socket.shutdown(socket.SHUT_WR)
        else:  # below TLS: the ssl module would not let us read any more
            with socket.socket(fileno=os.dup(client.socket.fileno())) as raw:
                raw.shutdown(socket.SHUT_WR)
        assert client.response().status == 403
    server.assert_untouched()


def test_upload_past_the_end_in_chunks_is_told_so(server: Server) -> None:
    """Earlier bytes may be written: it begins where the image ends."""
    case = Case("write", "", (CHUNKED, ("Content-Range", f"bytes {SIZE}-*/*")), 416)
    with server.client("unix") as client:
        client.send(server.head(case) + b"5\r\n")
        client.send(b"12345\r\n")
        response = client.response()
        assert response.status == 416
        assert response.header("Content-Range") == f"bytes */{SIZE}"
    server.assert_untouched()
