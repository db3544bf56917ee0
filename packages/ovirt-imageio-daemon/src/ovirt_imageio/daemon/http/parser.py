# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Request heads: bytes in, a value or an error out (RFC 9112 §2 to §6).

The parser is strict wherever two readers could disagree about where a request ends or what it
says. A head that a proxy before us might have read differently is refused, not repaired. Every
error here closes the connection, since what follows cannot be trusted to be a request.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import HttpError

# RFC 9110 §5.6.2 token, §5.5 field-value. Line ends are in neither class.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = r"[\t\x20-\x7e\x80-\xff]*"
# RFC 3986 §3.2.2 reg-name, IPv4, or IP-literal; then the port.
_HOST = r"(?:\[[0-9A-Za-z:.%_~-]+\]|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"

_request_line = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\Z").match
_fields = re.compile(rf"(?:\r\n{_TOKEN}:{_VALUE})*\Z").match
_host = re.compile(rf"{_HOST}\Z").match
_length = re.compile(r"[0-9]{1,19}\Z").match
# Not compiled before it is needed, which may be never: that takes longer than all the others.
_ABSOLUTE = rf"(?i:https?)://({_HOST})(/[\x21-\x7e]*|\?[\x21-\x7e]*|)\Z"

_METHODS = frozenset(
    ["GET", "HEAD", "PUT", "PATCH", "OPTIONS", "POST", "DELETE", "TRACE"]
)  # RFC 9110 §9.3 without CONNECT, RFC 5789
_LARGEST = 2**63 - 1  # the largest offset of a file, see lseek(2)
_TOKEN_BYTES = (
    frozenset(b"!#$%&'*+.^_`|~-0123456789")
    | frozenset(range(ord("A"), ord("Z") + 1))
    | frozenset(range(ord("a"), ord("z") + 1))
)
_ONCE = ("host", "content-length", "transfer-encoding", "content-type")


class Limits(NamedTuple):
    """How large a head may be: bytes of the request line, of the head, and fields."""

    line: int = 8 * 1024
    head: int = 32 * 1024
    fields: int = 100


DEFAULT_LIMITS = Limits()


class Head(NamedTuple):
    """A request head.

    Attributes:
        method: One of RFC 9110's.
        target: As sent.
        path: Of the target, percent-encoded as sent; ``*`` for the asterisk form.
        query: Decoded parameters.
        version: (1, 0) or (1, 1): what both ends understand.
        headers: By lower-case name; repeated fields joined by a comma. In the absolute form
            the target's authority stands for the Host.
        content_length: Of the body, None if there is no such field.
        chunked: The body is in chunks.
        keep_alive: The client wants to use the connection again.
        expect_continue: The client waits for a 100 response before the body.
    """

    method: str
    target: str
    path: str
    query: dict[str, str]
    version: tuple[int, int]
    headers: dict[str, str]
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expect_continue: bool


_HTTP_1_1 = (1, 1)
_HTTP_1_0 = (1, 0)


def _bad(text: str, status: int = 400) -> HttpError:
    return HttpError(status, text, close=True)


def parse_head(data: bytes, limits: Limits = DEFAULT_LIMITS, *, needs_host: bool = True) -> Head:
    """Parse a request head.

    Args:
        data: The head up to, without, the empty line that ends it.
        limits: Largest sizes, and most fields.
        needs_host: HTTP/1.1 without a Host field is refused, RFC 9112 §3.2.

    Raises:
        HttpError: With 400 for a malformed head, 414 and 431 for a too large one. With 417
            for an unknown expectation, 501 for an unknown method or transfer coding, 505
            for another version of HTTP.
    """
    text = data.decode("latin-1")
    end = text.find("\r\n")
    if end < 0:
        end = len(text)
    if end > limits.line:
        raise _bad("the request target is too long", 414)
    if len(text) > limits.head:
        raise _bad("the request head is too large", 431)
    line = _request_line(text, 0, end)
    if line is None:
        raise _bad("malformed request line")
    method, target, major, minor = line.groups()
    if major != "1":
        raise _bad(f"HTTP/{major}.{minor} is not spoken here", 505)
    version = _HTTP_1_0 if minor == "0" else _HTTP_1_1
    headers = _parse_fields(text, end, limits.fields)
    if method not in _METHODS:
        raise _bad(f"method {method[:50]!r} is not known", 501)
    if "host" not in headers:
        if needs_host and version == _HTTP_1_1:
            raise _bad("the Host field is missing")
    elif not _host(headers["host"]):
        raise _bad("the Host field is malformed")
    path, query = _parse_target(method, target, headers)
    length, chunked = _framing(headers, version)
    return Head(
        method,
        target,
        path,
        query,
        version,
        headers,
        length,
        chunked,
        _keep_alive(headers.get("connection"), version),
        _expectation(headers, version),
    )


def check_incomplete(data: bytes, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse the beginning of a head as soon as nothing that follows could mend it.

    Raises:
        HttpError: As `parse_head`.
    """
    if data and data[0] not in _TOKEN_BYTES and data[:1] != b"\r":
        raise _bad("this is not an HTTP request")
    if b"\r\n" not in data[: limits.line + 2] and len(data) > limits.line + 1:
        raise _bad("the request target is too long", 414)
    if len(data) > limits.head:
        raise _bad("the request head is too large", 431)
    if data.count(b"\n") != data.count(b"\r\n"):
        raise _bad("a line of the request head does not end with CR LF")


def _parse_fields(text: str, start: int, limit: int) -> dict[str, str]:
    if _fields(text, start) is None:
        raise _bad("malformed header field")
    lines = text[start:].split("\r\n")
    if len(lines) - 1 > limit:
        raise _bad(f"the request has more than {limit} header fields", 431)
    headers: dict[str, str] = {}
    del lines[0]
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        if name in headers:
            if name in _ONCE:
                raise _bad(f"the header field {name} is repeated")
            headers[name] += ", " + value.strip(" \t")
        else:
            headers[name] = value.strip(" \t")
    return headers


def _parse_target(method: str, target: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """RFC 9112 §3.2: origin form, absolute form, and the asterisk of OPTIONS."""
    if target[0] != "/":
        if target == "*" and method == "OPTIONS":
            return "*", {}
        match = re.match(_ABSOLUTE, target)
        if match is None or not match[1] or match[1][0] == ":":
            raise _bad("malformed request target")
        headers["host"] = match[1]
        target = match[2] if match[2][:1] == "/" else "/" + match[2]
    path, _, query = target.partition("?")
    return path, _parse_query(query) if query else {}


def _parse_query(text: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for item in text.split("&"):
        if not item:
            continue
        name, _, value = item.partition("=")
        if "%" in item or "+" in item:
            from urllib.parse import unquote_plus  # 3 ms, and rarely needed

            try:
                name = unquote_plus(name, errors="strict")
                value = unquote_plus(value, errors="strict")
            except UnicodeDecodeError:
                raise _bad("the query is not valid UTF-8") from None
        if name in query:
            raise _bad(f"the query names {name[:50]!r} twice")
        query[name] = value
    return query


def _framing(headers: dict[str, str], version: tuple[int, int]) -> tuple[int | None, bool]:
    """RFC 9112 §6: the length of the body, and whether it is chunked."""
    text = headers.get("content-length")
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if text is not None:
            raise _bad("Content-Length and Transfer-Encoding exclude each other")
        if version == _HTTP_1_0:
            raise _bad("HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != "chunked":
            raise _bad(f"transfer coding {coding[:50]!r} is not supported", 501)
        return None, True
    if text is None:
        return None, False
    if _length(text) is None:
        raise _bad(f"Content-Length is {text[:50]!r}, expected a number of bytes")
    length = int(text)
    if length > _LARGEST:
        raise _bad(f"Content-Length {length} is more than any disk holds")
    return length, False


def _keep_alive(text: str | None, version: tuple[int, int]) -> bool:
    """RFC 9112 §9.3."""
    if text is None:
        return version == _HTTP_1_1
    options = [option.strip(" \t") for option in text.lower().split(",")]
    if "close" in options:
        return False
    return version == _HTTP_1_1 or "keep-alive" in options


def _expectation(headers: dict[str, str], version: tuple[int, int]) -> bool:
    """RFC 9110 §10.1.1; HTTP/1.0 has no expectations."""
    text = headers.get("expect")
    if text is None or version == _HTTP_1_0:
        return False
    if text.lower() != "100-continue":
        raise _bad(f"expectation {text[:50]!r} cannot be met", 417)
    return True
