# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Requests that differ from the last one of their connection in the range only.

A client that reads an image in small pieces sends the same head again and again::

    GET /images/ID HTTP/1.1 .. Range: bytes=|8192-12287|  ..
    |------------- before -----------------|   range   |after|

Parsing it, finding its handler and composing the head of the answer took half of the time that
the daemon spends on 4 KiB. A head that begins and ends byte for byte like one that was found
good is as good, and means the same. So two numbers are all that is looked at. Each request is
still checked as ever: whether the ticket allows it, and whether the image has that range.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Optional, Union

if TYPE_CHECKING:
    from .connection import Connection
    from .message import Request
    from .parser import Head

_LONGEST_HEAD = 4096  # it is kept while the connection is idle
_LONGEST_RANGE = 39  # two numbers as ranges.py takes them
_ranged = re.compile(
    rb"(.*\r\nrange:[ \t]*bytes=)[0-9]{1,19}-[0-9]{1,19}([ \t]*(?:\r\n.*)?)\Z", re.IGNORECASE | re.DOTALL
).match

# Returns the bytes of a range, given its offset and length; None where the request has to be
# looked at from its beginning. Nothing has happened then.
Reread = Callable[["Connection", int, int], Awaitable[Optional[Union[bytes, bytearray]]]]


class Repeat(NamedTuple):
    """A request that was answered 206, and what its like are answered.

    Attributes:
        request: The request.
        head: Its parsed head.
        before: Its head up to the range.
        after: Its head from the end of the range on.
        reread: Serves another range.
        fields: Of the response, with places for first, last and length.
    """

    request: Request
    head: Head
    before: bytes
    after: bytes
    reread: Reread
    fields: bytes

    def range_of(self, data: bytes) -> tuple[int, int] | None:
        """Return first and last of the range that a head asks for, None if it is another request."""
        if not (data.startswith(self.before) and data.endswith(self.after)):
            return None
        text = data[len(self.before) : len(data) - len(self.after)]
        first, _, last = text.partition(b"-")
        if len(text) > _LONGEST_RANGE or not (first.isdigit() and last.isdigit()):
            return None
        return int(first), int(last)


def repeat_of(
    data: bytes, request: Request, head: Head, *, reread: Reread, fields: Sequence[tuple[str, str]]
) -> Repeat | None:
    """Return how to know requests like this one; None if it has no range, but a body, or is too long.

    Args:
        data: The head as it came.
        request: The request.
        head: Its parsed head.
        reread: Serves another range.
        fields: Of its response.
    """
    if len(data) > _LONGEST_HEAD or head.version != (1, 1) or head.content_length or head.chunked:
        return None
    match = _ranged(data)
    if match is None:
        return None
    lines = [f"{name}: {_template(name, value)}\r\n" for name, value in fields]
    return Repeat(request, head, match[1], match[2], reread, "".join(["\r\n", *lines, "\r\n"]).encode("latin-1"))


def _template(name: str, value: str) -> str:
    if name == "Content-Range":
        return "bytes %d-%d/" + value.rpartition("/")[2]
    if name == "Content-Length":
        return "%d"
    return value.replace("%", "%%")
