# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http.parser import Head, Limits, check_incomplete, parse_head


def head(*lines: bytes) -> bytes:
    return b"\r\n".join(lines)


def get(*fields: bytes, target: bytes = b"/images/1") -> bytes:
    return head(b"GET %s HTTP/1.1" % target, b"Host: localhost", *fields)


def status(data: bytes, **limits: int) -> int:
    with pytest.raises(HttpError) as e:
        parse_head(data, Limits(**limits))
    assert e.value.close, "a malformed head must end the connection"
    return e.value.status


# Heads that are accepted.


def test_get() -> None:
    parsed = parse_head(get(b"Range:  bytes=0-1 ", target=b"/images/1?a=b&c=%2Fd+e&f"))
    assert parsed == Head(
        method="GET",
        target="/images/1?a=b&c=%2Fd+e&f",
        path="/images/1",
        query={"a": "b", "c": "/d e", "f": ""},
        version=(1, 1),
        headers={"host": "localhost", "range": "bytes=0-1"},
        content_length=None,
        chunked=False,
        keep_alive=True,
        expect_continue=False,
    )


def test_put_with_length_and_expectation() -> None:
    parsed = parse_head(
        head(
            b"PUT /images/1 HTTP/1.1",
            b"Host: localhost",
            b"Content-Length: 007",
            b"EXPECT: 100-Continue",
        )
    )
    assert (parsed.content_length, parsed.expect_continue) == (7, True)


def test_chunked_in_any_case() -> None:
    parsed = parse_head(get(b"Transfer-Encoding: Chunked"))
    assert (parsed.chunked, parsed.content_length) == (True, None)


def test_path_stays_encoded() -> None:
    assert parse_head(get(target=b"/images/a%2Fb%00")).path == "/images/a%2Fb%00"


def test_asterisk_of_options() -> None:
    assert parse_head(b"OPTIONS * HTTP/1.1\r\nHost: x").path == "*"


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        (b"http://other:80/images/1?a=b", "other:80", "/images/1", {"a": "b"}),
        (b"HTTPS://[::1]/x", "[::1]", "/x", {}),
        (b"http://other", "other", "/", {}),
        (b"http://other?a=b", "other", "/", {"a": "b"}),
    ],
)
def test_absolute_target_replaces_host(target: bytes, host: str, path: str, query: dict[str, str]) -> None:
    parsed = parse_head(get(target=target))
    assert (parsed.headers["host"], parsed.path, parsed.query) == (host, path, query)


def test_repeated_fields_are_joined() -> None:
    parsed = parse_head(get(b"Range: bytes=0-1", b"range: bytes=4-5"))
    assert parsed.headers["range"] == "bytes=0-1, bytes=4-5"


@pytest.mark.parametrize(
    ("fields", "keep"),
    [
        ((), True),
        ((b"Connection: close",), False),
        ((b"Connection: Upgrade, CLOSE",), False),
        ((b"Connection: Upgrade", b"Connection: close"), False),
        ((b"Connection: keep-alive",), True),
    ],
)
def test_keep_alive(fields: tuple[bytes, ...], keep: bool) -> None:
    assert parse_head(get(*fields)).keep_alive is keep


@pytest.mark.parametrize(("fields", "keep"), [((), False), ((b"Connection: Keep-Alive",), True)])
def test_http_1_0_closes_unless_asked(fields: tuple[bytes, ...], keep: bool) -> None:
    parsed = parse_head(head(b"GET / HTTP/1.0", *fields))
    assert (parsed.version, parsed.keep_alive) == ((1, 0), keep)


def test_http_1_0_has_no_expectations() -> None:
    parsed = parse_head(head(b"PUT / HTTP/1.0", b"Content-Length: 1", b"Expect: 100-continue"))
    assert not parsed.expect_continue


def test_later_minor_version_counts_as_1_1() -> None:
    assert parse_head(head(b"GET / HTTP/1.7", b"Host: x")).version == (1, 1)


@pytest.mark.parametrize("host", [b"", b"a.b-c_d", b"x:80", b"x:", b"[::1]:8", b"%2Frun%2Fsock", b"127.0.0.1"])
def test_host_is_accepted(host: bytes) -> None:
    assert parse_head(head(b"GET / HTTP/1.1", b"Host: " + host)).headers["host"] == host.decode()


# Heads that are refused.


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"GET",
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b" GET / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"GET /\xe9 HTTP/1.1",
        b"GET /\t HTTP/1.1",
        b"G(T / HTTP/1.1",
        b"GET / http/1.1",
        b"GET / HTTP/1",
        b"GET / HTTP/1.10",
        b"GET / HTTP/11.1",
        b"GET / HTTPS/1.1",
        b"GET images HTTP/1.1",
        b"GET * HTTP/1.1",
        b"GET ftp://x/ HTTP/1.1",
        b"GET http:/// HTTP/1.1",
        b"GET http://:80/ HTTP/1.1",
        b"GET http://user@x/ HTTP/1.1",
        b"GET /?a=1&a=2 HTTP/1.1",
        b"GET /?a=%ff HTTP/1.1",
    ],
)
def test_bad_request_line(line: bytes) -> None:
    assert status(head(line, b"Host: x")) == 400


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"3.0"])
def test_other_versions(version: bytes) -> None:
    assert status(b"GET / HTTP/%s\r\nHost: x" % version) == 505


@pytest.mark.parametrize("method", [b"get", b"BREW", b"CONNECT", b"X" * 1000])
def test_unknown_method(method: bytes) -> None:
    assert status(b"%s / HTTP/1.1\r\nHost: x" % method) == 501


@pytest.mark.parametrize(
    "field",
    [
        b"",
        b"no colon",
        b": no name",
        b"Name : space before the colon",
        b"Name\t: tab before the colon",
        b" folded: line",
        b"\tfolded",
        b"Na(me: x",
        b"Name: nul \x00",
        b"Name: bell \x07",
        b"Name: delete \x7f",
        b"Name: lone \r return",
        b"Name: lone \n feed",
        b"Name: x\nOther: y",
        b"N\xe4me: x",
    ],
)
def test_bad_field(field: bytes) -> None:
    assert status(get(field, b"Last: x")) == 400


@pytest.mark.parametrize(
    "length",
    [
        b"",
        b"+5",
        b"-5",
        b"1_0",
        b"0x5",
        b"5 5",
        b"5, 5",
        b"5;",
        b"5.0",
        b"\xb2",
        b"1" * 20,
        b"9" * 19,
        b"9" * 5000,
    ],
)
def test_bad_content_length(length: bytes) -> None:
    assert status(get(b"Content-Length: " + length)) == 400


@pytest.mark.parametrize("second", [b"5", b"6"])
def test_two_content_lengths(second: bytes) -> None:
    assert status(get(b"Content-Length: 5", b"Content-Length: " + second)) == 400


def test_content_length_beside_transfer_encoding() -> None:
    assert status(get(b"Content-Length: 5", b"Transfer-Encoding: chunked")) == 400
    assert status(get(b"Transfer-Encoding: chunked", b"Content-Length: 5")) == 400


@pytest.mark.parametrize("coding", [b"gzip", b"identity", b"gzip, chunked", b"chunked, chunked", b""])
def test_unknown_transfer_coding(coding: bytes) -> None:
    assert status(get(b"Transfer-Encoding: " + coding)) == 501


def test_two_transfer_encodings() -> None:
    assert status(get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked")) == 400


def test_transfer_encoding_in_http_1_0() -> None:
    assert status(head(b"PUT / HTTP/1.0", b"Transfer-Encoding: chunked")) == 400


def test_host_is_missing() -> None:
    assert status(b"GET / HTTP/1.1") == 400


def test_host_is_repeated() -> None:
    assert status(get(b"Host: localhost")) == 400
    assert status(head(b"GET / HTTP/1.0", b"Host: a", b"Host: a")) == 400


@pytest.mark.parametrize("host", [b"a b", b"a/b", b"user@a", b"a:b", b"[::1", b"a,b c", b"\xe4", b"%zz"])
def test_bad_host(host: bytes) -> None:
    assert status(head(b"GET / HTTP/1.1", b"Host: " + host)) == 400


def test_unknown_expectation() -> None:
    assert status(get(b"Expect: 200-ok")) == 417


def test_limits() -> None:
    assert status(get(target=b"/" + b"x" * 100), line=100) == 414
    assert status(get(*[b"a: b"] * 10), fields=10) == 431
    assert parse_head(get(*[b"a: b"] * 9), Limits(fields=10))
    assert status(get(b"a: " + b"x" * 100), head=120) == 431


# Heads that are not complete yet.


@pytest.mark.parametrize("data", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r", b"\r", b"\r\nGET"])
def test_incomplete_head_may_go_on(data: bytes) -> None:
    check_incomplete(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x16\x03\x01", 400),  # TLS where none is spoken
        (b" GET", 400),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400),
        (b"G" * 8194, 414),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 6000, 431),
    ],
)
def test_hopeless_head_is_refused_early(data: bytes, expected: int) -> None:
    with pytest.raises(HttpError) as e:
        check_incomplete(data)
    assert e.value.status == expected


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_is_refused_not_crashed_on(data: bytes) -> None:
    for function in (parse_head, check_incomplete):
        with contextlib.suppress(HttpError):
            function(data)
