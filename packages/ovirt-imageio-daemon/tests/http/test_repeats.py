# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from typing import Any, cast

import pytest

from ovirt_imageio.daemon.http.parser import parse_head
from ovirt_imageio.daemon.http.repeats import Repeat, repeat_of

LINE = b"GET /images/x HTTP/1.1\r\nHost: a\r\n"
FIELDS = [
    ("Content-Range", "bytes 0-9/100"),
    ("Content-Disposition", "attachment; filename*=UTF-8''50%25"),
    ("Content-Length", "10"),
]


def known(data: bytes) -> Repeat | None:
    unused = cast("Any", None)
    return repeat_of(data, unused, parse_head(data), reread=unused, fields=FIELDS)


@pytest.mark.parametrize("after", [b"", b"\r\nAccept: */*", b" \t\r\nX: range: bytes=7-8"])
@pytest.mark.parametrize("name", [b"Range: bytes=", b"range:bytes=", b"RANGE: \t bytes="])
def test_same_head_with_another_range_is_known(name: bytes, after: bytes) -> None:
    repeat = known(LINE + name + b"0-9" + after)
    assert repeat is not None
    assert repeat.range_of(LINE + name + b"4096-1234567890123456789" + after) == (4096, 1234567890123456789)
    assert repeat.range_of(LINE + name + b"0-9" + after) == (0, 9)


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"Range: bytes=0-",
        LINE + b"Range: bytes=-9",
        LINE + b"Range: bytes=",
        LINE + b"Range: bytes=-",
        LINE + b"Range: bytes=+0-9",
        LINE + b"Range: bytes=0-9,10-19",
        LINE + b"Range: bytes=0- 9",
        LINE + b"Range: bytes=\xb2-9",
        LINE + b"Range: bytes=0_0-9",
        LINE + b"Range: bytes=12345678901234567890-123456789012345678901",
        LINE + b"Range: bytes=0-9\r\nX: y",
        LINE + b"Range: bytes=0-9 ",
        LINE + b"Range: bytes 0-9",
        LINE + b"range: bytes=0-9",
        LINE + b"Host: b\r\nRange: bytes=0-9",
        b"GET /images/y HTTP/1.1\r\nHost: a\r\nRange: bytes=0-9",
        b"PUT /images/x HTTP/1.1\r\nHost: a\r\nRange: bytes=0-9",
        b"GET /images/x HTTP/1.0\r\nHost: a\r\nRange: bytes=0-9",
        LINE[:-2],
        LINE,
        b"",
    ],
)
def test_another_head_is_not_known(data: bytes) -> None:
    repeat = known(LINE + b"Range: bytes=0-9")
    assert repeat is not None
    assert repeat.range_of(data) is None


def test_head_with_an_end_after_the_range_is_not_known_without_it() -> None:
    repeat = known(LINE + b"Range: bytes=0-9\r\nAccept: 5-6")
    assert repeat is not None
    assert repeat.range_of(LINE + b"Range: bytes=0-9") is None
    assert repeat.range_of(LINE + b"Range: bytes=5-6") is None


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"Range: bytes=0-9\r\nContent-Length: 5",
        LINE + b"Range: bytes=0-9\r\nTransfer-Encoding: chunked",
        LINE + b"Range: bytes=0-9\r\nX: " + b"y" * 5000,
        LINE + b"Range: bytes=0-",
        LINE + b"X-Range: bytes=0-9",
        LINE + b"X: Range: bytes=0-9",
        b"GET /images/x HTTP/1.0\r\nRange: bytes=0-9",
    ],
)
def test_nothing_is_expected_after_other_requests(data: bytes) -> None:
    assert known(data) is None


def test_fields_have_places_for_the_range() -> None:
    repeat = known(LINE + b"Range: bytes=0-9")
    assert repeat is not None
    assert repeat.fields % (20, 39, 20) == (
        b"\r\nContent-Range: bytes 20-39/100\r\n"
        b"Content-Disposition: attachment; filename*=UTF-8''50%25\r\nContent-Length: 20\r\n\r\n"
    )
