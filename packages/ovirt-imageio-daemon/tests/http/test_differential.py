# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The same verdicts as h11, which is a second opinion on RFC 9112, over generated and mutated messages.

Messages that we accept h11 accepts, and understands in the same way. Where we refuse what h11 accepts,
the reason stands in `STRICTER`. ``IMAGEIO_FUZZ_EXAMPLES`` sets how many examples are tried.
"""

from __future__ import annotations

import os
import re

import h11
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http.message import BodyDecoder
from ovirt_imageio.daemon.http.parser import Head, check_incomplete, parse_head

EXAMPLES = int(os.environ.get("IMAGEIO_FUZZ_EXAMPLES", "500"))

# Where we are stricter than h11: the status and the text that we refuse by, and why.
STRICTER = {
    r"505 ": "HTTP/0.9, 2.0 and others: what they mean is not known here",
    r"501 method": "methods that no resource has, and CONNECT",
    r"501 transfer coding": "codings but chunked, whose end nobody could tell",
    r"417 ": "expectations but 100-continue",
    r"400 the header field (host|content-length|transfer-encoding|content-type) is repeated": (
        "fields that may stand once, even if they agree: a proxy may have looked at the other one"
    ),
    r"400 Content-Length is": "lists of equal lengths, and more digits than a disk has bytes",
    r"400 Content-Length \d+ is more": "lengths of more than 63 bits",
    r"400 Content-Length and Transfer-Encoding": "both of them, of which h11 believes the second",
    r"400 HTTP/1.0 has no Transfer-Encoding": "HTTP/1.0 with Transfer-Encoding, RFC 9112 §6.1",
    r"400 the Host field is malformed": "a Host that is none, RFC 9112 §3.2",
    r"400 malformed request target": "targets of no form of RFC 9112 §3.2",
    r"400 malformed header field": "folded lines (obs-fold), and lines that end without CR",
    r"400 malformed request line": "lines that end without CR",
    r"400 the query": "queries that name a parameter twice, or are not UTF-8",
    r"400 a line of the request head does not end with CR LF": "lines that end without CR",
    r"400 this is not an HTTP request": "empty lines that are no CR LF before the request",
    r"400 a line of the chunked body does not end with CR LF": "lines that end without CR",
    r"400 a trailer field is malformed": "folded trailers",
    r"400 a chunk does not begin with its size": "spaces before the end of the line, sizes past 2**60",
    r"400 the line before a chunk is too long": "extensions of more than 4 KiB",
}

# Where we are not: space between the size of a chunk and its extension. RFC 9112 §7.1.1 tells
# recipients to take it (BWS), and h11 refuses it.
SPACED_EXTENSION = re.compile(rb"[0-9A-Fa-f][ \t]+;")

METHODS = st.sampled_from([b"GET", b"PUT", b"HEAD", b"OPTIONS", b"PATCH", b"DELETE", b"CONNECT", b"get", b"BREW"])
TARGETS = st.sampled_from(
    [b"/", b"/images/1", b"/a?b=c", b"/a?b&b", b"*", b"http://h/x", b"http://h:1?a", b"x", b"/\x7f", b"", b"/%zz?%ff"]
)
VERSIONS = st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.x", b"HTTP/1.1 ", b"http/1.1"])
NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"Range", b"X-One", b"X y", b""]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            b"localhost",
            b"5",
            b"5",
            b"+5",
            b"1_0",
            b"0x5",
            b"5, 5",
            b"",
            b"chunked",
            b"Chunked",
            b"gzip",
            b"gzip, chunked",
        ]
    ),
    st.sampled_from([b"close", b"keep-alive", b"100-continue", b"bytes=0-1", b"[::1]:80", b"a b", b"a\tb", b" 5 "]),
    st.binary(max_size=8),
    st.integers(0, 10**25).map(b"%d".__mod__),
)
SEPARATORS = st.sampled_from([b": ", b": ", b": ", b":", b" : ", b":\t", b""])
FIELDS = st.tuples(NAMES, SEPARATORS, VALUES).map(b"".join)
ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n ", b"\r\n\t", b"\r\r\n"])


def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Replace, insert or remove a few bytes, mostly none."""
    changed = bytearray(data)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        place = draw(st.integers(0, len(changed)))
        new = draw(st.one_of(st.binary(max_size=2), st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\0", b":", b","])))
        changed[place : place + draw(st.integers(0, 1))] = new
    return bytes(changed)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    """Write a head without the empty line that ends it."""
    line = b" ".join([draw(METHODS), draw(TARGETS), draw(VERSIONS)])
    fields = draw(st.lists(FIELDS, max_size=5))
    if draw(st.integers(0, 3)):
        fields.insert(draw(st.integers(0, len(fields))), b"Host: localhost")
    data = line + b"".join(draw(ENDS) + field for field in fields)
    return mutated(draw, data)


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """Write a chunked body."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
    extensions = st.sampled_from([b"", b"", b"", b";a", b';a="b"', b" ;a", b" ", b"\t"])
    data = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), draw(extensions), piece) for piece in pieces)
    trailers = draw(
        st.sampled_from([b"", b"", b"X-One: 1\r\n", b"X-One: 1\r\nX-Two:\r\n", b"X-One : 1\r\n", b" x\r\n"])
    )
    return mutated(draw, data + draw(st.sampled_from([b"0", b"000", b"0;a"])) + b"\r\n" + trailers + b"\r\n")


def ours(data: bytes) -> Head | HttpError:
    """Return our reading of a head, as of a connection when it has come in two pieces."""
    try:
        check_incomplete(data)
        return parse_head(data)
    except HttpError as e:
        return e


def theirs(connection: h11.Connection, data: bytes) -> h11.Request | str:
    """Return h11's reading of a head, or why it refuses it."""
    connection.receive_data(data)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as e:
        return str(e)
    return event if isinstance(event, h11.Request) else repr(event)


def reason_for(error: HttpError) -> str | None:
    """Why we are stricter, None if that is not known."""
    return next((why for text, why in STRICTER.items() if re.match(text, str(error))), None)


# The short form tries the same examples each time.
many = settings(
    max_examples=EXAMPLES, derandomize=EXAMPLES <= 500, deadline=None, suppress_health_check=list(HealthCheck)
)


@many
@given(heads())
@example(b"GET / HTTP/1.1\r\nHost: a\r\nA: \x00")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nA : b")
@example(b"GET / HTTP/1.1\r\nHost: a\r\n folded")
@example(b"GET / HTTP/1.1\r\nHost: a\nA: b")
@example(b"GET / HTTP/1.1\r\nHost: a\rA: b")
def test_heads(data: bytes) -> None:
    # A connection cuts at the first empty line, and skips one before the request.
    data = data.partition(b"\r\n\r\n")[0]
    if data.startswith(b"\r\n"):
        return
    mine = ours(data)
    other = theirs(h11.Connection(h11.SERVER), data + b"\r\n\r\n")
    if isinstance(mine, HttpError):
        assert isinstance(other, str) or reason_for(mine), f"we refuse what h11 accepts: {mine}"
        return
    assert isinstance(other, h11.Request), f"we accept what h11 refuses: {other}"
    same_head(mine, other)


def same_head(mine: Head, other: h11.Request) -> None:
    """Compare what was understood."""
    assert (mine.method, mine.target) == (other.method.decode(), other.target.decode())
    assert mine.version == ((1, 0) if other.http_version == b"1.0" else (1, 1))
    joined: dict[str, str] = {}
    for name, value in other.headers:
        key, text = name.decode(), value.decode("latin-1")
        joined[key] = f"{joined[key]}, {text}" if key in joined else text
    headers = dict(mine.headers)
    if mine.target[0] != "/" and mine.target != "*":  # the target's host stands for the field
        headers.pop("host")
        joined.pop("host", None)
    if "transfer-encoding" in headers:
        headers["transfer-encoding"] = headers["transfer-encoding"].lower()
    assert headers == joined


@many
@given(st.sampled_from([b"GET", b"PUT", b"OPTIONS", b"DELETE"]), st.integers(0, 60), st.binary(max_size=60))
def test_bodies_with_a_length_end_where_h11_ends_them(method: bytes, length: int, body: bytes) -> None:
    data = b"%s /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d" % (method, length)
    connection = h11.Connection(h11.SERVER)
    assert isinstance(theirs(connection, data + b"\r\n\r\n" + body), h11.Request)
    payload, rest = rest_of(connection)
    mine = parse_head(data)
    assert mine.content_length == length
    assert (payload, rest) == (body[:length], body[length:])


@many
@given(chunks(), st.sampled_from([b"", b"GET / HTTP/1.1\r\n"]), st.integers(1, 40))
@example(b"5\nhello\n0\n\n", b"", 1)
@example(b"+5\r\nhello\r\n0\r\n\r\n", b"", 40)
@example(b"5 ;a\r\nhello\r\n0\r\n\r\n", b"", 40)
@example(b"5\r\nhello!\r\n0\r\n\r\n", b"", 40)
def test_chunks(data: bytes, following: bytes, step: int) -> None:
    connection = h11.Connection(h11.SERVER)
    head = b"PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert isinstance(theirs(connection, head), h11.Request)
    try:
        connection.receive_data(data + following)
        other: tuple[bytes, bytes] | str = rest_of(connection)
    except h11.RemoteProtocolError as e:
        other = str(e)
    mine = decoded(data + following, step)
    if isinstance(mine, HttpError):
        assert isinstance(other, str) or reason_for(mine), f"we refuse what h11 accepts: {mine}"
        return
    if isinstance(other, str):
        assert SPACED_EXTENSION.search(data), f"we accept what h11 refuses: {other}"
        return
    payload, rest, done = mine
    assert payload == other[0]
    if done:
        assert rest == other[1]


def decoded(data: bytes, step: int) -> tuple[bytes, bytes, bool] | HttpError:
    """Payload, what follows, and whether the body has ended, of a body that comes in small pieces."""
    decoder, payload, buffer = BodyDecoder(), b"", b""
    try:
        for start in range(0, len(data), step):
            more, buffer = decoder.decode(buffer + data[start : start + step])
            payload += more
    except HttpError as e:
        return e
    return payload, buffer, decoder.done


def rest_of(connection: h11.Connection) -> tuple[bytes, bytes]:
    """The body that h11 finds, and what it leaves for the next request."""
    payload = b""
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            payload += bytes(event.data)
        else:
            return payload, connection.trailing_data[0]


CLEAN_VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30).map(str.encode)
CLEAN_NAMES = st.from_regex(rb"x-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,10}", fullmatch=True)


@settings(max_examples=min(EXAMPLES, 300), deadline=None)
@given(
    st.sampled_from([b"GET", b"PUT", b"HEAD", b"OPTIONS", b"PATCH", b"DELETE"]),
    st.from_regex(rb"/[A-Za-z0-9/._~-]{0,20}", fullmatch=True),
    st.lists(st.tuples(CLEAN_NAMES, CLEAN_VALUES), max_size=20),
    st.one_of(st.none(), st.integers(0, 2**63 - 1)),
)
def test_accepts_what_clients_send(
    method: bytes, target: bytes, fields: list[tuple[bytes, bytes]], length: int | None
) -> None:
    lines = [b"%s: %s" % field for field in fields]
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    data = b"\r\n".join([b"%s %s HTTP/1.1" % (method, target), b"Host: localhost", *lines])
    other = theirs(h11.Connection(h11.SERVER), data + b"\r\n\r\n")
    mine = parse_head(data)
    assert isinstance(other, h11.Request)
    assert mine.content_length == length
    same_head(mine, other)
