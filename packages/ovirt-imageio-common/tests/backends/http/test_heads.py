# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Heads of responses, from bytes to values."""

from __future__ import annotations

import http.client
import io

import pytest

from ovirt_imageio.common.backends.http.heads import Head
from ovirt_imageio.common.backends.http.reader import Reader
from ovirt_imageio.common.errors import ServerGone


class Server:
    """A stream of a server that has said all, and of which few bytes come at a time."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self.file = io.BytesIO(data)
        self.step = step

    def recv(self, limit: int) -> bytes:
        return self.file.read(min(limit, self.step))


@pytest.fixture(params=[1, 3, 1 << 20])
def step(request):
    """Bytes that come at a time."""
    return request.param


def head(text: str, step: int = 1 << 20) -> Head:
    server = Server(text.replace("\n", "\r\n").encode("latin-1"), step)
    reader = Reader(server, "server")
    found = reader.head()
    assert reader.take(100) + server.file.read() == b"body"
    return found


def test_head_is_read_to_its_last_byte(step):
    found = head("HTTP/1.1 206 Partial Content\nContent-Length: 10\ncontent-RANGE:  bytes 0-9/100 \n\nbody", step)
    assert (found.version, found.status, found.reason) == (11, 206, "Partial Content")
    assert found.fields["content-range"] == "bytes 0-9/100"
    assert found.length("GET") == 10
    assert not found.is_chunked
    assert not found.closes


@pytest.mark.parametrize("line", ["HTTP/1.1 200\n", "HTTP/1.1 200 \n"])
def test_reason_may_be_missing(line):
    assert head(line + "\nbody").reason == ""


def test_interim_head_is_passed_over(step):
    assert (
        head("HTTP/1.1 100 Continue\nX: 1\n\nHTTP/1.1 103 Early Hints\n\nHTTP/1.1 403 No\n\nbody", step).status == 403
    )


@pytest.mark.parametrize("fields", [b"", b"A: b\n", b"A: b\r\nC: d\n"])
def test_lines_may_end_without_carriage_return(fields, step):
    reader = Reader(Server(b"HTTP/1.1 200 OK\n" + fields + b"\nbody\r\n\r\n", step), "server")
    assert reader.head().fields.get("a", "b") == "b"
    assert reader.take(1) in (b"b", b"")


@pytest.mark.parametrize("text", [b"", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nA: b\r\n\r"])
def test_end_within_a_head_is_no_head(text, step):
    with pytest.raises(ServerGone, match="the server closed the connection without an answer"):
        Reader(Server(text, step), "the server").head()


def test_values_of_one_name_are_joined():
    assert head("HTTP/1.1 200 OK\nAllow: GET\nallow: PUT\n\nbody").fields["allow"] == "GET, PUT"


def test_line_that_goes_on_is_joined():
    assert head("HTTP/1.1 200 OK\nAllow: GET,\n\t PUT\n\nbody").fields["allow"] == "GET, PUT"


@pytest.mark.parametrize(
    ("text", "closes"),
    [
        ("HTTP/1.1 200 OK\n\n", False),
        ("HTTP/1.1 200 OK\nConnection: Close\n\n", True),
        ("HTTP/1.0 200 OK\n\n", True),
        ("HTTP/1.0 200 OK\nConnection: keep-alive\n\n", False),
    ],
)
def test_end_of_the_connection(text, closes):
    assert head(text + "body").closes is closes


@pytest.mark.parametrize(
    ("text", "method", "length"),
    [
        ("HTTP/1.1 204 No\n\n", "PUT", 0),
        ("HTTP/1.1 304 No\nContent-Length: 5\n\n", "GET", 0),
        ("HTTP/1.1 200 OK\nContent-Length: 5\n\n", "HEAD", 0),
        ("HTTP/1.1 200 OK\n\n", "GET", None),
        ("HTTP/1.1 200 OK\nContent-Length: -5\n\n", "GET", None),
        ("HTTP/1.1 200 OK\nContent-Length: 1_0\n\n", "GET", None),
        ("HTTP/1.1 200 OK\nContent-Length: ²\n\n", "GET", None),
        ("HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 6\n\n", "GET", None),
    ],
)
def test_length_of_the_body(text, method, length):
    assert head(text + "body").length(method) == length


def test_chunks_overrule_a_length():
    found = head("HTTP/1.1 200 OK\nTransfer-Encoding: Chunked\nContent-Length: 5\n\nbody")
    assert found.is_chunked
    assert found.length("GET") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SSH-2.0-OpenSSH\n", "SSH-2.0-OpenSSH"),
        ("HTTP/2 200 OK\n\n", "HTTP/2"),
        ("HTTP/1.1 20 OK\n\n", "HTTP/1.1 20 OK"),
        ("HTTP/1.1 2000 OK\n\n", "HTTP/1.1 2000 OK"),
        ("HTTP/1.1 099 OK\n\n", "HTTP/1.1 099 OK"),
        ("HTTP/1.1 20² OK\n\n", "HTTP/1.1 20² OK"),
        ("HTTP/1.1 200 OK\nno field\n\n", "malformed header line 'no field'"),
        ("HTTP/1.1 200 OK\n: 5\n\n", "malformed header line ': 5'"),
        ("HTTP/1.1 200 OK\nContent-Length : 5\n\n", "malformed header line 'Content-Length : 5'"),
        ("HTTP/1.1 200 OK\n Content-Length: 5\n\n", "malformed header line ' Content-Length: 5'"),
        pytest.param("HTTP/1.1 200 OK\n" + "A: b\n" * 101 + "\n", "more than 100 headers", id="many fields"),
        pytest.param("HTTP/1.1 200 OK\nA: " + "b" * 81920 + "\n\n", "header line", id="long field"),
        pytest.param("HTTP/1.1 200 " + "b" * 81920 + "\n\n", "status line", id="long status line"),
    ],
)
def test_what_is_no_head_is_refused(text, message):
    with pytest.raises(http.client.HTTPException, match=message.replace("²", ".")):
        Reader(Server(text.encode("latin-1"), 16384), "server").head()
