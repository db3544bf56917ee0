# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import pytest

from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http.ranges import parse_content_range, parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-99", (0, 100)),
        ("bytes=99-99", (99, 1)),
        ("bytes=10-", (10, 90)),
        ("bytes=-1", (99, 1)),
        ("bytes=-100", (0, 100)),
        ("bytes=-101", (0, 100)),
        ("Bytes=5-6", (5, 2)),
    ],
)
def test_range_within_image(text: str, expected: tuple[int, int]) -> None:
    assert parse_range(text, 100) == expected


@pytest.mark.parametrize("text", ["lines=0-1", "x=bytes=0-1", "seconds=-5"])
def test_unknown_unit_has_no_effect(text: str) -> None:
    assert parse_range(text, 100) is None


@pytest.mark.parametrize(
    "text",
    [
        "bytes=0-100",
        "bytes=100-",
        "bytes=100-100",
        "bytes=5-4",
        "bytes=-0",
        "bytes=-",
        "bytes=",
        "bytes",
        "",
        "bytes=0-1,4-5",
        "bytes=0-1, bytes=4-5",
        "bytes=0-1,",
        "bytes= 0-1",
        "bytes=0 -1",
        "bytes=+0-1",
        "bytes=0x0-0x1",
        "bytes=1_0-20",
        "bytes=a-b",
        "bytes=--5",
        "bytes=0-1\n",
        "bytes=٠-١",
        "bytes=0-" + "9" * 5000,
        "bytes=" + "9" * 5000 + "-",
    ],
)
def test_range_is_refused(text: str) -> None:
    with pytest.raises(HttpError) as e:
        parse_range(text, 100)
    assert e.value.status == 416
    assert e.value.headers == (("Content-Range", "bytes */100"),)


@pytest.mark.parametrize("text", ["bytes=0-0", "bytes=0-", "bytes=-1"])
def test_empty_image_has_no_ranges(text: str) -> None:
    with pytest.raises(HttpError) as e:
        parse_range(text, 0)
    assert e.value.status == 416


@pytest.mark.parametrize(
    ("text", "length", "expected"),
    [
        ("bytes 0-9/*", 10, (0, 10)),
        ("bytes 5-9/100", 5, (5, 5)),
        ("bytes 5-9/10", 5, (5, 5)),
        ("bytes 7-*/7", 1, (7, 1)),  # no LAST: the total is not compared with anything
        ("bytes 5-9/*", None, (5, 5)),
        ("bytes 7-*/*", 10, (7, 10)),
        ("bytes 7-*/100", None, (7, None)),
        ("BYTES 0-0/*", 1, (0, 1)),
    ],
)
def test_content_range(text: str, length: int | None, expected: tuple[int, int | None]) -> None:
    assert parse_content_range(text, length) == expected


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("bytes 0-9/*", 9),
        ("bytes 0-9/*", 11),
        ("bytes 0-9/*", 0),
        ("bytes 9-0/*", None),
    ],
)
def test_content_range_that_contradicts_the_length(text: str, length: int | None) -> None:
    with pytest.raises(HttpError) as e:
        parse_content_range(text, length)
    assert e.value.status == 400


@pytest.mark.parametrize("length", [5, None])
@pytest.mark.parametrize("total", ["9", "5", "0", "0000000000000000009"])
def test_content_range_that_ends_at_its_total_or_past_it(total: str, length: int | None) -> None:
    with pytest.raises(HttpError, match="total") as e:
        parse_content_range(f"bytes 5-9/{total}", length)
    assert e.value.status == 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes */*",
        "bytes */100",
        "bytes 0-9",
        "bytes=0-9/*",
        "bytes 0-9/",
        "bytes -9/*",
        "bytes +0-9/*",
        "bytes 0-9/*, bytes 10-19/*",
        "bytes  0-9/*",
        "lines 0-9/*",
        "bytes 0-1_0/*",
        "bytes " + "9" * 5000 + "-*/*",
    ],
)
def test_content_range_is_malformed(text: str) -> None:
    with pytest.raises(HttpError) as e:
        parse_content_range(text, 10)
    assert e.value.status == 400
    assert len(e.value.text) < 300
