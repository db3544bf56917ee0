# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Byte ranges of requests: which part of an image is meant.

Stricter than RFC 9110 §14 in one point, on purpose: a range that the image cannot serve
as asked is refused, never cut. So no client takes a short image for a whole one.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..errors import HttpError

# Longer numbers lie past the end of any disk; int() refuses some thousands of digits.
_DIGITS = r"([0-9]{1,19})"
_byte_range = re.compile(rf"{_DIGITS}-{_DIGITS}?\Z").match
_SUFFIX_RANGE = rf"-{_DIGITS}\Z"
_CONTENT_RANGE = rf"[Bb][Yy][Tt][Ee][Ss] {_DIGITS}-(?:{_DIGITS}|\*)/(?:{_DIGITS}|\*)\Z"


class ByteRange(NamedTuple):
    """A part of an image, in bytes."""

    offset: int
    length: int


class UploadRange(NamedTuple):
    """Where an upload goes, in bytes; length is None if the header does not tell."""

    offset: int
    length: int | None


def parse_range(text: str, size: int) -> ByteRange | None:
    """Return the part of an image that a Range header asks for (RFC 9110 §14.2).

    Args:
        text: Value of the header.
        size: Of the image.

    Returns:
        The range, or None if the header's unit is unknown: the header has no effect then.

    Raises:
        HttpError: 416 if the range is malformed, is one of several, or does not lie
            within the image.
    """
    unit, equals, ranges = text.partition("=")
    if equals and unit.strip().lower() != "bytes":
        return None
    match = _byte_range(ranges)
    if match:
        first = int(match[1])
        last = int(match[2]) if match[2] else size - 1
        if first <= last < size:
            return ByteRange(first, last - first + 1)
    else:
        match = re.match(_SUFFIX_RANGE, ranges)
        if match:
            length = min(int(match[1]), size)
            if length:
                return ByteRange(size - length, length)
    raise unsatisfiable(text, size)


def unsatisfiable(text: str, size: int) -> HttpError:
    """Return the 416 error for a range that an image of that size cannot serve."""
    return HttpError(
        416,
        f"range {text[:100]!r} cannot be served from {size} bytes",
        headers=[("Content-Range", f"bytes */{size}")],
    )


def parse_content_range(text: str, content_length: int | None = None) -> UploadRange:
    """Return where the body of a request belongs (RFC 9110 §14.4, §14.5).

    The total after the slash is not compared with the image: web pages tell the file's size there.

    Args:
        text: Value of the Content-Range header: ``bytes FIRST-LAST/TOTAL``, where LAST
            and TOTAL may be ``*``.
        content_length: Of the body, None if it is not known.

    Raises:
        HttpError: 400 if the value is malformed, or LAST contradicts content_length or TOTAL.
    """
    match = re.match(_CONTENT_RANGE, text)
    if not match:
        raise HttpError(400, f"Content-Range is {text[:100]!r}, expected 'bytes FIRST-LAST/TOTAL'")
    first = int(match[1])
    if match[2] is None:
        return UploadRange(first, content_length)
    length = int(match[2]) - first + 1
    if length < 1:
        raise HttpError(400, f"Content-Range {text!r} ends before it begins")
    if match[3] is not None and int(match[2]) >= int(match[3]):
        raise HttpError(400, f"Content-Range {text!r} ends past its total of {int(match[3])} bytes")
    if content_length is not None and content_length != length:
        raise HttpError(
            400,
            f"Content-Range {text!r} has {length} bytes, but Content-Length is {content_length}",
        )
    return UploadRange(first, length)
