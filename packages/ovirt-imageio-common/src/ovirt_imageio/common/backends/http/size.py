# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""How large an image is, from wherever its server tells it.

    GET of the first byte     Content-Range: bytes 0-0/SIZE, or bytes */SIZE of an empty one.
    GET of all                Its length: total `*` above, as from some other servers.
    GET extents               The end of the last: a server that wants ranges only.
    HEAD                      Its length.

The first that tells is believed. A server that refuses one way because it does not know it is
asked another way; a ticket that has ended is told at once.

Source: RFC 9110, 14.4, 15.3.7 and 15.5.17.
"""

from __future__ import annotations

from typing import Callable

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.errors import ProtocolError

from .channel import Reply
from .listing import read_end

_PROBE = "bytes=0-0"
_UNKNOWN_WAY = (400, 405, 416, 501)

Request = Callable[..., Reply]
"""Sends a request: method, suffix, headers; returns the answer."""


def ask_size(request: Request, *, extents: bool, timeout: float | None) -> int:
    """Return the size of the image in bytes.

    Args:
        request: Sends requests for the image.
        extents: The server lists extents.
        timeout: Seconds that it may take to list them.

    Raises:
        ProtocolError: The server does not tell.
        As request, and what the server refused.
    """
    with request("GET", headers={"Range": _PROBE}) as reply:
        name = reply.name
        size = _of_first_byte(reply)
    if size is None:
        with request("GET") as reply:
            size = _of_all(reply)
    if size is None and extents:
        with request("GET", f"/{imagesapi.EXTENTS}?context={imagesapi.CONTEXT_ZERO}", timeout=timeout) as reply:
            size = read_end(reply.require(200).body.receive)
    if size is None:
        with request("HEAD") as reply:
            size = _of_head(reply)
    if size is None:
        raise ProtocolError(f"{name} does not tell the size of the image")
    return size


def _of_first_byte(reply: Reply) -> int | None:
    if reply.status == 200:
        size = reply.body.left
        reply.close()
        return size
    if reply.status not in (206, 416):
        raise reply.error()
    return total_of(reply)


def _of_all(reply: Reply) -> int | None:
    if reply.status in _UNKNOWN_WAY:
        return None
    size = reply.require(200, 206).body.left
    if reply.status == 206 and size != total_of(reply) and size != _range_from_start(reply):
        size = None
    reply.close()
    return size


def _of_head(reply: Reply) -> int | None:
    text = reply.fields.get("content-length", "")
    return int(text) if reply.status == 200 and text.isascii() and text.isdigit() else None


def total_of(reply: Reply) -> int | None:
    """Return the size of the image that a Content-Range tells; None if it does not."""
    found = _content_range(reply)
    return None if found is None else found.size


def _range_from_start(reply: Reply) -> int | None:
    """The end of a range that begins with the first byte: all, if all was asked for."""
    found = _content_range(reply)
    return None if found is None or found.first != 0 or found.last is None else found.last + 1


def _content_range(reply: Reply) -> imagesapi.ContentRange | None:
    try:
        return imagesapi.parse_content_range(reply.fields.get("content-range", ""))
    except ValueError:
        return None
