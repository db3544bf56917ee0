# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Readers, exchanges and connections, against the other end of a socket pair, which the test holds."""

from __future__ import annotations

import socket

import pytest
import requests

from ovirt_imageio.common.backends.http.adapters import Adapter
from ovirt_imageio.common.backends.http.errors import BodyCut, ConnectionLost
from ovirt_imageio.common.backends.http.exchange import Connection, StreamedBody
from ovirt_imageio.common.backends.http.reader import Reader
from ovirt_imageio.common.backends.http.streams import Stream
from ovirt_imageio.common.errors import ProtocolError

PATIENCE = 20.0
OK = b"HTTP/1.1 200 OK\r\n"
REQUEST = b"GET / HTTP/1.1\r\n\r\n"


@pytest.fixture
def reader(pair):
    """A reader, and what sends to it."""
    stream, server = pair
    return Reader(stream, "the server"), server


class Ends:
    """A connection, the server's end of it, and the connections that became free."""

    def __init__(self, stream, server):
        self.server = server
        self.free = []
        self.connection = Connection(stream, "the server", self.free.append)

    def ask(self, answer, method="GET", body=None):
        """Send a request whose answer is there already."""
        self.server.sendall(answer)
        return self.connection.exchange(method, REQUEST, body, PATIENCE)

    @property
    def is_closed(self):
        return self.connection.stream.fileno() < 0


@pytest.fixture
def ends(pair):
    return Ends(*pair)


def everything(exchange, size=3):
    """Receive a body in small pieces."""
    parts = []
    view = memoryview(bytearray(size))
    while True:
        count = exchange.receive(view)
        if not count:
            return b"".join(parts)
        parts.append(bytes(view[:count]))


# Readers.


def test_receive_all_takes_what_came_before_first(reader):
    reader, server = reader
    server.sendall(OK + b"\r\n0123")
    reader.head()
    view = memoryview(bytearray(2))
    assert reader.receive_all(view) == 2
    assert view == b"01"
    server.sendall(b"4567")
    view = memoryview(bytearray(6))
    assert reader.receive_all(view) == 6
    assert view == b"234567"


def test_peek_leaves_what_comes(reader):
    reader, server = reader
    server.sendall(OK + b"\r\n01")
    reader.head()
    assert reader.peek(1) == b"0"
    assert reader.take(5) == b"01"
    server.sendall(b"23")
    assert reader.peek(5) == b"23"
    view = memoryview(bytearray(5))
    assert reader.receive(view) == 2


# Bodies.


def test_body_of_a_length(ends):
    exchange = ends.ask(OK + b"Content-Length: 10\r\n\r\n0123456789")
    assert ends.free == []
    assert everything(exchange) == b"0123456789"
    assert exchange.ended
    assert ends.free == [ends.connection]


def test_connection_is_free_at_the_last_byte(ends):
    exchange = ends.ask(OK + b"Content-Length: 4\r\n\r\n0123")
    view = memoryview(bytearray(4))
    exchange.fill(view)
    assert view == b"0123"
    assert ends.free == [ends.connection]
    exchange.close()
    assert not ends.is_closed


@pytest.mark.parametrize("head", [b"HTTP/1.1 204 No Content\r\n\r\n", OK + b"Content-Length: 0\r\n\r\n"])
def test_answer_without_a_body_frees_the_connection_at_once(ends, head):
    exchange = ends.ask(head)
    assert exchange.ended
    assert exchange.left == 0
    assert ends.free == [ends.connection]


def test_body_in_chunks(ends):
    exchange = ends.ask(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nA: b\r\n\r\n")
    assert exchange.left is None
    assert everything(exchange, 2) == b"abcdefg"
    assert ends.free == [ends.connection]


def test_body_to_the_end_of_the_connection(ends):
    exchange = ends.ask(OK + b"\r\nall of it")
    ends.server.shutdown(socket.SHUT_WR)
    assert everything(exchange) == b"all of it"
    assert ends.free == []
    assert ends.is_closed


@pytest.mark.parametrize("field", [b"Connection: close\r\n", b""])
def test_connection_is_used_again_only_if_the_server_keeps_it(ends, field):
    version = b"HTTP/1.1" if field else b"HTTP/1.0"
    exchange = ends.ask(version + b" 200 OK\r\n" + field + b"Content-Length: 2\r\n\r\nab")
    assert everything(exchange) == b"ab"
    assert ends.free == []
    assert ends.is_closed


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 10\r\n\r\n01234",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n0123",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n0\r\n",
    ],
)
def test_body_that_is_cut_off(ends, body):
    exchange = ends.ask(OK + body)
    ends.server.shutdown(socket.SHUT_WR)
    with pytest.raises(BodyCut, match="connection lost"):
        everything(exchange)
    exchange.close()
    assert ends.is_closed
    assert ends.free == []


def test_malformed_chunks_are_an_error_of_the_server(ends):
    exchange = ends.ask(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n")
    with pytest.raises(ProtocolError, match="a chunk does not begin with its size"):
        everything(exchange)


def test_closed_exchange_closes_its_connection(ends):
    exchange = ends.ask(OK + b"Content-Length: 10\r\n\r\n01234")
    exchange.close()
    exchange.close()
    assert ends.is_closed
    assert exchange.receive(memoryview(bytearray(1))) == 0


def test_idle_connection_is_not_usable_once_more_has_come(ends):
    exchange = ends.ask(OK + b"Content-Length: 2\r\n\r\nabc")
    assert everything(exchange) == b"ab"
    assert not ends.connection.is_usable()


def test_idle_connection_that_has_ended_is_not_usable(ends):
    ends.ask(OK + b"Content-Length: 0\r\n\r\n")
    assert ends.connection.is_usable()
    ends.server.close()
    assert not ends.connection.is_usable()


# Requests.


def test_small_body_goes_with_its_head(ends):
    ends.ask(OK + b"Content-Length: 0\r\n\r\n", "PUT", memoryview(b"body"))
    assert ends.server.recv(1000) == REQUEST + b"body"


def test_answer_that_comes_before_the_body_was_sent_is_read(ends):
    def send(stream):
        raise ConnectionLost("connection lost")

    exchange = ends.ask(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno", "PUT", StreamedBody(10, send))
    assert isinstance(exchange.cut_short, ConnectionLost)
    assert everything(exchange) == b"no"
    assert ends.free == []
    assert ends.is_closed


def test_lost_connection_without_an_answer_is_told(ends):
    def send(stream):
        raise ConnectionLost("connection lost")

    with pytest.raises(ConnectionLost, match="connection lost"):
        ends.connection.exchange("PUT", REQUEST, StreamedBody(10, send), PATIENCE)


# Adapters.


class Socket(Adapter):
    """Connects to what a test holds."""

    def __init__(self, *ends):
        super().__init__(base_url="http://the.server", name="the server", host="the.server")
        self.ends = list(ends)

    def _connect(self):
        return Stream(self.ends.pop(0), "the server", PATIENCE)


def test_response_is_one_of_requests(pair):
    ours, theirs = socket.socketpair()
    with theirs:
        adapter = Socket(ours)
        session = requests.Session()
        session.mount("http://", adapter)
        theirs.sendall(b"HTTP/1.1 201 Made\r\nX-Answer: yes\r\nContent-Length: 4\r\n\r\nbody")
        response = session.get("http://the.server/path?a=b", headers={"X": "y"})
        assert (response.status_code, response.reason, response.content) == (201, "Made", b"body")
        assert response.headers["x-answer"] == "yes"
        assert theirs.recv(1000).startswith(b"GET /path?a=b HTTP/1.1\r\nHost: the.server\r\n")
        adapter.close()
        assert ours.fileno() < 0
