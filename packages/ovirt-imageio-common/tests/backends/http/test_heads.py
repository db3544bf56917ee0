# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Heads of responses, from bytes to values."""

from __future__ import annotations

import http.client
import io

import pytest

from ovirt_imageio.common.backends.http.heads import Head, read_head


def head(text: str) -> Head:
    stream = io.BytesIO(text.replace("\n", "\r\n").encode("latin-1"))
    found = read_head(stream.readline)
    assert stream.read() == b"body"
    return found


def test_head_is_read_to_its_last_byte():
    found = head("HTTP/1.1 206 Partial Content\nContent-Length: 10\ncontent-RANGE:  bytes 0-9/100 \n\nbody")
    assert (found.version, found.status, found.reason) == (11, 206, "Partial Content")
    assert found.fields["Content-Range"] == "bytes 0-9/100"
    assert found.length("GET") == 10
    assert not found.is_chunked
    assert not found.closes


@pytest.mark.parametrize("line", ["HTTP/1.1 200\n", "HTTP/1.1 200 \n"])
def test_reason_may_be_missing(line):
    assert head(line + "\nbody").reason == ""


def test_interim_head_is_passed_over():
    assert head("HTTP/1.1 100 Continue\nX: 1\n\nHTTP/1.1 103 Early Hints\n\nHTTP/1.1 403 No\n\nbody").status == 403


def test_lines_may_end_without_carriage_return():
    assert read_head(io.BytesIO(b"HTTP/1.1 200 OK\nA: b\n\n").readline).fields["a"] == "b"


def test_values_of_one_name_are_joined():
    assert head("HTTP/1.1 200 OK\nAllow: GET\nallow: PUT\n\nbody").fields["Allow"] == "GET, PUT"


def test_line_that_goes_on_is_joined():
    assert head("HTTP/1.1 200 OK\nAllow: GET,\n\t PUT\n\nbody").fields["Allow"] == "GET, PUT"


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
        ("HTTP/1.1 200 OK\n" + "A: b\n" * 101 + "\n", "more than 100 headers"),
        ("HTTP/1.1 200 OK\nA: " + "b" * 65536 + "\n\n", "header line"),
        ("HTTP/1.1 200 " + "b" * 65536 + "\n\n", "status line"),
    ],
)
def test_what_is_no_head_is_refused(text, message):
    with pytest.raises(http.client.HTTPException, match=message.replace("²", ".")):
        read_head(io.BytesIO(text.encode("latin-1")).readline)
