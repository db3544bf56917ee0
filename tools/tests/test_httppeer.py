# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from imageio_testing import pki
from imageio_testing.httppeer import (
    ConnectionEnded,
    HttpPeer,
    MalformedResponse,
    chunked,
    request_head,
)


class Ends:
    """A peer and the server's end of its connection."""

    def __init__(self) -> None:
        self.server, client = socket.socketpair()
        self.peer = HttpPeer(client)

    def answer(self, data: bytes, *, end: bool = False) -> None:
        self.server.sendall(data)
        if end:
            self.server.close()

    def close(self) -> None:
        self.peer.close()
        self.server.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_sends_exactly_what_it_is_given(ends: Ends):
    ends.peer.send(b"GET\0 / HTTP/9\n\n", piece=1)
    ends.peer.close()
    assert b"".join(iter(lambda: ends.server.recv(100), b"")) == b"GET\0 / HTTP/9\n\n"


def test_takes_a_response_apart(ends: Ends):
    ends.answer(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nX-A:  b \r\n\r\nabc")
    response = ends.peer.response()
    assert response.version == (1, 1)
    assert (response.status, response.reason) == (206, "Partial Content")
    assert response.headers == (("Content-Length", "3"), ("X-A", "b"))
    assert response.header("x-a") == "b"
    assert response.header("absent") is None
    assert response.body == b"abc"


def test_leaves_what_follows_a_response(ends: Ends):
    ends.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    assert ends.peer.response().json() == {}
    assert ends.peer.response().status == 404


def test_joins_chunks(ends: Ends):
    ends.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"c"))
    assert ends.peer.response().text == "abc"


def test_body_without_length_lasts_to_the_end(ends: Ends):
    ends.answer(b"HTTP/1.1 200 OK\r\n\r\nabc", end=True)
    assert ends.peer.response().body == b"abc"


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_bodiless_response_takes_no_body(ends: Ends, method: str, status: int):
    ends.answer(b"HTTP/1.1 %d X\r\nContent-Length: 3\r\n\r\n" % status)
    assert ends.peer.response(method).body == b""


def test_interim_responses_are_dropped(ends: Ends):
    ends.answer(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    )
    assert ends.peer.response().status == 200


def test_head_shows_interim_responses(ends: Ends):
    ends.answer(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert ends.peer.head().status == 100


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ],
)
def test_early_end_is_told_apart(ends: Ends, data: bytes):
    ends.answer(data, end=True)
    with pytest.raises(ConnectionEnded):
        ends.peer.response()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName : value\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    ],
)
def test_what_no_server_may_send_is_refused(ends: Ends, data: bytes):
    ends.answer(data, end=True)
    with pytest.raises(MalformedResponse):
        ends.peer.response()


def test_ended_tells_an_end_from_data(ends: Ends):
    ends.answer(b"x")
    assert not ends.peer.ended()
    assert ends.peer.read(1) == b"x"
    ends.server.close()
    assert ends.peer.ended()


def test_request_head_adds_only_what_is_missing():
    assert request_head("GET", "/x") == b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = request_head("PUT", "/x", headers=[("Host", "h"), ("Content-Length", "9")], body=b"abc")
    assert head == b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"


def test_request_sends_head_and_body(ends: Ends):
    ends.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert ends.peer.request("PUT", "/x", body=b"abc").status == 200
    assert ends.server.recv(1000) == (b"PUT /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc")


def test_reset_reaches_a_tcp_server_as_a_reset():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = HttpPeer.tcp(*listener.getsockname())
        server, _ = listener.accept()
        with server:
            peer.reset()
            with pytest.raises(ConnectionResetError):
                server.recv(1)


def test_tls_peer_checks_the_server(tmp_path):
    keys = pki.make_pki(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.cert_file, keys.key_file)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = threading.Thread(target=_serve_tls, args=(listener, context, 2))
        server.start()
        with HttpPeer.tls("localhost", port, ca_file=keys.ca_file) as peer:
            assert peer.request("GET", "/").text == "hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            HttpPeer.tls("localhost", port)
        server.join()


def _serve_tls(listener: socket.socket, context: ssl.SSLContext, count: int) -> None:
    for _ in range(count):
        sock, _ = listener.accept()
        try:
            with context.wrap_socket(sock, server_side=True) as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        except OSError:
            sock.close()  # the client did not trust us
