# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Meaning of the server's answers, and whether they answer the request at all."""

from __future__ import annotations

import json

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.checksum import ChecksumResult
from ovirt_imageio.common.errors import ProtocolError

from .channel import Reply


def check_range_reply(reply: Reply, offset: int, length: int) -> None:
    """Make sure that an answer brings exactly the range that was asked for.

    Args:
        reply: Status 200 or 206.
        offset: Of the range.
        length: Bytes of the range.

    Raises:
        ProtocolError: It is encoded, of another range or of another length.

    Source: RFC 9110, 14.4 and 15.3.7.
    """
    what = f"{length} bytes at {offset}"
    if reply.fields.get("content-encoding", "identity") != "identity":
        raise ProtocolError(f"{reply.name} encoded {what} as {reply.fields['content-encoding']!r}")
    if reply.body.left != length:
        raise ProtocolError(f"{reply.name} answered {reply.body.left} bytes instead of {what}")
    if reply.status == 200:
        if offset:
            raise ProtocolError(f"{reply.name} answered the whole image instead of {what}")
        return
    text = reply.fields.get("content-range", "")
    try:
        found = imagesapi.parse_content_range(text)
    except ValueError as e:
        raise ProtocolError(f"{reply.name} answered {what} with {e}") from e
    if (found.first, found.last) != (offset, offset + length - 1):
        raise ProtocolError(f"{reply.name} answered {text!r} instead of {what}")


def read_checksum(data: bytes) -> ChecksumResult:
    """Read the document with the block hash of an image.

    Raises:
        ProtocolError: It is none.
    """
    try:
        document = json.loads(data)
        blocks = document.get("blocks")
        algorithm, block_size, checksum = (document[key] for key in ("algorithm", "block_size", "checksum"))
        if not (isinstance(checksum, str) and isinstance(algorithm, str) and isinstance(block_size, int)):
            raise ValueError("a value has the wrong type")
        return ChecksumResult(algorithm, block_size, checksum, None if blocks is None else tuple(blocks))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ProtocolError(f"the server sent no checksum: {data[:80]!r}") from e
