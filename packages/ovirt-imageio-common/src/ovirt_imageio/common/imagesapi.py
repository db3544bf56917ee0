# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of the HTTP contract that server and client share.

Names of features, paths, and the shapes of JSON documents. See RFC 9110 for the
headers. Nothing here does I/O.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from .errors import shown

if TYPE_CHECKING:
    from urllib.parse import SplitResult

FEATURE_CHECKSUM = "checksum"
FEATURE_CHECKSUM_RANGE = "checksum-range"
FEATURE_EXTENTS = "extents"
FEATURE_FLUSH = "flush"
FEATURE_ZERO = "zero"

READ_FEATURES = (FEATURE_CHECKSUM, FEATURE_CHECKSUM_RANGE, FEATURE_EXTENTS)
"""Features of a ticket that allows reading."""

WRITE_FEATURES = (FEATURE_FLUSH, FEATURE_ZERO)
"""Features that a ticket that allows writing has as well."""

CHALLENGE = "Imageio-Challenge"
PROOF = "Imageio-Proof"
INSTANCE = "Imageio-Instance"

LARGEST = 2**63 - 1
"""Largest size and offset in bytes, as of files: off_t."""

OP_ZERO = "zero"
OP_FLUSH = "flush"

CONTEXT_ZERO = "zero"
CONTEXT_DIRTY = "dirty"
CONTEXTS = (CONTEXT_ZERO, CONTEXT_DIRTY)

OCTET_STREAM = "application/octet-stream"
JSON = "application/json"

IMAGES = "/images"
_BELOW_IMAGES = IMAGES + "/"
EXTENTS = "extents"
CHECKSUM = "checksum"
ALGORITHMS = "checksum/algorithms"


class Options(TypedDict, total=False):
    """Answer to OPTIONS. Servers before 2.x left out the numbers."""

    unix_socket: str
    unix_socket_proof: dict[str, str]
    max_size: int
    features: list[str]
    max_readers: int
    max_writers: int


class _ChecksumHead(TypedDict):
    algorithm: str
    block_size: int
    checksum: str


class Checksum(_ChecksumHead, total=False):
    """Answer to GET checksum; `blocks` only where it was asked for."""

    blocks: list[str]


class Algorithms(TypedDict):
    """Answer to GET checksum/algorithms."""

    algorithms: list[str]


class ContentRange(NamedTuple):
    """The header of a partial answer, RFC 9110 §14.4.

    Attributes:
        first: Offset of the first byte; None in an answer to an impossible range.
        last: Offset of the last byte; None as first.
        size: Bytes of the whole image; None where the server does not tell.
    """

    first: int | None
    last: int | None
    size: int | None


def image_path(ticket_id: str, *parts: str) -> str:
    """Return the path of an image or of something below it, quoted for a URL.

    Args:
        ticket_id: Any text.
        parts: Names below the image, such as EXTENTS.
    """
    from urllib.parse import quote  # 3 ms, and rarely needed

    return "/".join((IMAGES, quote(ticket_id, safe=""), *parts))


def split_url(url: str) -> SplitResult:
    """Take the URL of an image apart.

    Returns:
        Scheme `http` or `https`, a host, a port that is None or a valid one, and the image's path.

    Raises:
        ValueError: It is not that of an image.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as e:
        raise ValueError(f"invalid image URL {shown(url)}: {shown(str(e))}") from e
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.startswith(_BELOW_IMAGES):
        raise ValueError(f"invalid image URL {shown(url)}: expected https://HOST:PORT{IMAGES}/ID")
    if parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"invalid image URL {shown(url)}: expected no user, query or fragment")
    if port == 0 or parts.path == _BELOW_IMAGES or not url.isprintable():
        raise ValueError(f"invalid image URL {shown(url)}: expected a port above 0, an id, and printable text")
    return parts


def byte_range(offset: int, length: int) -> str:
    """Write a Range header's value, RFC 9110 §14.2.

    Raises:
        ValueError: The range is empty or negative: HTTP cannot say so.
    """
    _check_not_empty(offset, length)
    return f"bytes={offset}-{offset + length - 1}"


def content_range(offset: int, length: int, size: int | None = None) -> str:
    """Write a Content-Range header's value, RFC 9110 §14.4.

    Args:
        offset: First byte.
        length: Bytes, at least 1.
        size: Bytes of the whole; None writes `*`, as in a request.

    Raises:
        ValueError: The range is empty or negative: HTTP cannot say so.
    """
    _check_not_empty(offset, length)
    return f"bytes {offset}-{offset + length - 1}/{'*' if size is None else size}"


def unsatisfied_range(size: int) -> str:
    """Write the Content-Range of a 416 answer, RFC 9110 §15.5.17."""
    return f"bytes */{size}"


_CONTENT_RANGE = r"(?ai)bytes\s+(?:([0-9]+)-([0-9]+)|\*)/([0-9]+|\*)"


def parse_content_range(text: str) -> ContentRange:
    """Read the Content-Range header of a response.

    Raises:
        ValueError: It is malformed, its end lies before its start, or at or past size.
    """
    match = re.fullmatch(_CONTENT_RANGE, text.strip())
    if not match or (match[1] is None and match[3] == "*"):
        raise ValueError(f"invalid Content-Range {text!r}: expected 'bytes FIRST-LAST/SIZE'")
    size = None if match[3] == "*" else int(match[3])
    if match[1] is None:
        return ContentRange(None, None, size)
    first, last = int(match[1]), int(match[2])
    if last < first or (size is not None and last >= size):
        raise ValueError(f"invalid Content-Range {text!r}: expected FIRST <= LAST < SIZE")
    return ContentRange(first, last, size)


def _check_not_empty(offset: int, length: int) -> None:
    if offset < 0 or length < 1:
        raise ValueError(f"no byte range can tell {length} bytes at {offset}")
