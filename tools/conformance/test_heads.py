# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Rules of request heads: what two readers could understand differently is refused."""

from __future__ import annotations

import pytest

from conformance.server import expect, expect_alive, expect_end, half_close, head_of, require

CHAPTER = "Request heads"

# A request that must never be answered: it hides in the body, or behind a broken head.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"


def lines(*fields: bytes, line: bytes = b"GET /images/x HTTP/1.1", host: bytes = b"Host: localhost") -> bytes:
    """Write a head of raw lines."""
    return b"\r\n".join([line, *([host] if host else []), *fields]) + b"\r\n\r\n"


MALFORMED = {
    "two Content-Lengths": lines(b"Content-Length: 5", b"Content-Length: 6"),
    "the same Content-Length twice": lines(b"Content-Length: 5", b"Content-Length: 5"),
    "Content-Length with Transfer-Encoding": lines(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "Content-Length +5": lines(b"Content-Length: +5"),
    "Content-Length -5": lines(b"Content-Length: -5"),
    "Content-Length 1_0": lines(b"Content-Length: 1_0"),
    "Content-Length 0x5": lines(b"Content-Length: 0x5"),
    "Content-Length 5.0": lines(b"Content-Length: 5.0"),
    "an empty Content-Length": lines(b"Content-Length:"),
    "a list in Content-Length": lines(b"Content-Length: 5, 5"),
    "thousands of digits": lines(b"Content-Length: " + b"9" * 5000),
    "more than 63 bits": lines(b"Content-Length: 9223372036854775808"),
    "a superscript digit": lines(b"Content-Length: \xb2"),
    "a folded field": lines(b"X-One: 1", b" folded"),
    "a field folded by a tab": lines(b"X-One: 1", b"\tfolded"),
    "a first field that is folded": lines(b" Host: localhost", host=b""),
    "a lone CR in a field": lines(b"X-One: 1\rX-Two: 2"),
    "a lone LF in a field": lines(b"X-One: 1\nX-Two: 2"),
    "lines that end with LF": b"GET /images/x HTTP/1.1\nHost: localhost\n\n",
    "space before a colon": lines(b"X-One : 1"),
    "tab before a colon": lines(b"X-One\t: 1"),
    "no colon": lines(b"X-One"),
    "no name": lines(b": 1"),
    "NUL in a value": lines(b"X-One: \0"),
    "NUL in a name": lines(b"X-\0: 1"),
    "a control character in a value": lines(b"X-One: \x07"),
    "a letter outside ASCII in a name": lines(b"X-\xe9: 1"),
    "no Host": lines(host=b""),
    "two Hosts": lines(b"Host: localhost"),
    "a Host with a space": lines(host=b"Host: a b"),
    "a Host with a path": lines(host=b"Host: a/b"),
    "a Host with a user": lines(host=b"Host: user@a"),
    "no target": lines(line=b"GET HTTP/1.1"),
    "no version": lines(line=b"GET /images/x"),
    "two spaces": lines(line=b"GET  /images/x HTTP/1.1"),
    "a space at the end of the line": lines(line=b"GET /images/x HTTP/1.1 "),
    "a space at the beginning": lines(line=b" GET /images/x HTTP/1.1"),
    "a control character in the target": lines(line=b"GET /images/\x01 HTTP/1.1"),
    "a letter outside ASCII in the target": lines(line=b"GET /images/\xe9 HTTP/1.1"),
    "a target that is no path": lines(line=b"GET images/x HTTP/1.1"),
    "an asterisk with GET": lines(line=b"GET * HTTP/1.1"),
    "a target of another scheme": lines(line=b"GET ftp://localhost/images/x HTTP/1.1"),
    "a version of one digit": lines(line=b"GET /images/x HTTP/1"),
    "a version of two digits": lines(line=b"GET /images/x HTTP/1.10"),
    "a version in small letters": lines(line=b"GET /images/x http/1.1"),
    "another protocol": lines(line=b"GET /images/x ICY/1.1"),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
    "chunks twice": lines(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
}

OTHER = {
    "HTTP/2.0": (lines(line=b"GET /images/x HTTP/2.0"), 505),
    "HTTP/0.9": (lines(line=b"GET /images/x HTTP/0.9"), 505),
    "Transfer-Encoding gzip": (lines(b"Transfer-Encoding: gzip"), 501),
    "Transfer-Encoding gzip, chunked": (lines(b"Transfer-Encoding: gzip, chunked"), 501),
    "Transfer-Encoding identity": (lines(b"Transfer-Encoding: identity"), 501),
    "Transfer-Encoding xchunked": (lines(b"Transfer-Encoding: xchunked"), 501),
    "CONNECT": (lines(line=b"CONNECT localhost:22 HTTP/1.1"), (400, 405, 501)),
    "an unknown expectation": (lines(b"Expect: 200-ok"), 417),
    "a huge request line": (lines(line=b"GET /" + b"x" * 70000 + b" HTTP/1.1"), 414),
    "a huge request line that does not end": (b"GET /" + b"x" * 1000000, 414),
    "a huge field": (lines(b"X-One: " + b"x" * 70000), 431),
    "a huge field that does not end": (b"GET / HTTP/1.1\r\nX-One: " + b"x" * 1000000, 431),
    "too many fields": (lines(*[b"X-%d: 1" % i for i in range(1000)]), 431),
}


@pytest.mark.parametrize("head", MALFORMED.values(), ids=MALFORMED)
def test_malformed_head(client, head):
    """A malformed head is 400, and the connection is closed; what follows is no request."""
    client.send(head + HIDDEN)
    response = client.response()
    expect(response, 400, headers={"Connection": "close", "Content-Type": "text/plain; charset=UTF-8"})
    expect_end(client)


@pytest.mark.parametrize(("head", "status"), OTHER.values(), ids=OTHER)
def test_refused_head(client, head, status):
    """A head that is too large or asks for what nobody has is refused by its own status, and closes."""
    try:
        client.send(head + HIDDEN)
    except OSError:
        pass  # it was answered before it was whole
    response = client.response()
    expect(response, status, headers={"Connection": "close"})
    expect_end(client)


@pytest.mark.parametrize(
    "field",
    [
        b"X-Empty:",
        b"X-Blank:   ",
        b"X-Latin: \xe9\xff",
        b"X-Tab: a\tb",
        b"x!#$%&'*+-.^_`|~0: strange name",
        b"Connection: keep-alive, X-One",
        b"Content-Length: 0",
        b"Content-Length: 000",
        b"Content-Type: application/x-www-form-urlencoded",
        b"Accept-Encoding: gzip",
        b"Cookie: a=b",
        b"Authorization: Basic Og==",
        b"Upgrade: h2c",
        b"TE: trailers",
    ],
)
def test_harmless_field(client, field):
    """Fields that mean nothing here do no harm."""
    client.send(lines(field, line=b"OPTIONS /images/* HTTP/1.1"))
    expect(client.response(), 200)
    expect_alive(client)


def test_empty_line_before_request(client):
    """An empty line before a request is skipped."""
    client.send(b"\r\n" + head_of("OPTIONS", "/images/*"))
    expect(client.response(), 200)


def test_head_in_single_bytes(client):
    """A head may come in single bytes."""
    client.send(head_of("OPTIONS", "/images/*"), piece=1)
    expect(client.response(), 200)


def test_end_within_head(client):
    """A stream that ends within a head is not taken for a request."""
    client.send(b"GET /images/x HTTP/1.1\r\nHost: local")
    half_close(client)
    data = client.read_to_end()
    require(not data or b" 400 " in data.split(b"\r\n")[0], f"the answer is {data[:60]!r}")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "DELETE", "PATCH", "POST", "PUT"])
@pytest.mark.parametrize("length", [len(HIDDEN), 300000])
def test_body_is_no_request(client, method, length):
    """The body of any request, refused or not, is never read as the next request."""
    body = (HIDDEN * (length // len(HIDDEN) + 1))[:length]
    client.send(head_of(method, "/images/00000000-0000-0000-0000-000000000000", ("Content-Length", str(length))))
    try:
        client.send(body + head_of("OPTIONS", "/images/*"))
    except OSError:
        pass  # it was refused and closed meanwhile
    first = client.response(method)
    require(first.status >= 400 or method == "OPTIONS", f"the status is {first.status}")
    if (first.header("Connection") or "").lower() == "close":
        expect_end(client)
    else:
        expect(client.response(), 200, headers={"Allow": "OPTIONS,GET,PUT,PATCH"})


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_chunked_body_is_no_request(client, method):
    """The chunks of any request are never read as the next request."""
    head = head_of(method, "/images/00000000-0000-0000-0000-000000000000", ("Transfer-Encoding", "chunked"))
    client.send(head + b"%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n" + head_of("OPTIONS", "/images/*"))
    require(client.response(method).status >= 400, "the request is not refused")
    if not client.ended():
        expect(client.response(), 200, headers={"Allow": "OPTIONS,GET,PUT,PATCH"})
