# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents as a server lists them: read piece by piece, kept small.

A list may hold a million extents, 68 MB of JSON. The plan of a transfer walks it slowly,
and a server drops a client that stops reading. So the list is read at once, but never
kept as text or objects: a length and two flags stay of each extent.
"""

from __future__ import annotations

import json
import re
from array import array
from typing import Any, Callable, Iterable, Iterator

from ovirt_imageio.common.errors import ProtocolError
from ovirt_imageio.common.extents import (
    DirtyExtent,
    Extent,
    ZeroExtent,
    check_cover,
    dirty_from_json,
    merge,
    zero_from_json,
)
from ovirt_imageio.common.units import KiB

_BLOCK = 256 * KiB
_OBJECT_LIMIT = 64 * KiB  # of JSON for one extent: 100 is usual
_EDGE = re.compile(rb"\}\s*,")


class Listing:
    """The extents of an image, in little memory.

    Args:
        extents: In order; they must cover the image exactly.
        size: Bytes of the image.

    Raises:
        ValueError: They do not.
    """

    def __init__(self, extents: Iterable[Extent], size: int) -> None:
        self._lengths = array("Q")
        self._flags = bytearray()
        self._kind: type[ZeroExtent] | type[DirtyExtent] = ZeroExtent
        checked: Iterable[Any] = check_cover(extents, size)
        for extent in merge(checked):
            self._kind = type(extent)
            self._lengths.append(extent.length)
            self._flags.append(extent[2] | extent[3] << 1)

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[Extent]:
        start = 0
        kind: Callable[[int, int, bool, bool], Extent] = self._kind
        for length, flags in zip(self._lengths, self._flags):
            yield kind(start, length, bool(flags & 1), bool(flags & 2))
            start += length


def read_listing(receive: Callable[[memoryview], int], context: str, size: int, *, old_server: bool = False) -> Listing:
    """Receive the answer to GET extents.

    Args:
        receive: Fills the beginning of a view; 0 at the end of the body.
        context: `zero` or `dirty`.
        size: Bytes of the image.
        old_server: Take the extents that servers of 2.x list of odd images. An empty image
            has an extent without length. A file that does not end with a block of 4 KiB
            has extents to that block's end.

    Raises:
        ProtocolError: It is not a list of extents that cover the image.
    """
    convert: Callable[[Any], Extent] = dirty_from_json if context == "dirty" else zero_from_json
    try:
        extents = map(convert, _objects(receive))
        return Listing(_trimmed(extents, size) if old_server else extents, size)
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"the server sent invalid {context} extents: {e}") from e


def read_end(receive: Callable[[memoryview], int]) -> int:
    """Receive the answer to GET extents, and return where the last one ends.

    Args:
        receive: As for read_listing.

    Raises:
        ProtocolError: It is no list of zero extents without gaps.
    """
    end = 0
    try:
        for extent in map(zero_from_json, _objects(receive)):
            if extent.start != end:
                raise ValueError(f"expected an extent at {end}, got {extent}")
            end += extent.length
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"the server sent invalid zero extents: {e}") from e
    return end


def _trimmed(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    """Leave out what is empty or past the end."""
    for extent in extents:
        length = min(extent.length, size - extent.start)
        if length > 0:
            yield extent._replace(length=length)


def _objects(receive: Callable[[memoryview], int]) -> Iterator[Any]:
    """Parse a JSON list of objects while it is received.

    Raises:
        ValueError: It is no such list, or ends too early.
    """
    block = memoryview(bytearray(_BLOCK))
    text = b""
    opened = False
    while True:
        count = receive(block)
        text += bytes(block[:count])
        if not opened and text.lstrip():
            text = _without_bracket(text.lstrip())
            opened = True
        if not count:
            break
        whole, text = _split(text)
        yield from _parse(whole)
    if not opened:
        raise ValueError("expected a JSON list, got nothing")
    text = text.rstrip()
    if not text.endswith(b"]"):
        raise ValueError("the JSON list has no end")
    yield from _parse(text[:-1])


def _without_bracket(text: bytes) -> bytes:
    if not text.startswith(b"["):
        raise ValueError(f"expected a JSON list, got {text[:40]!r}")
    return text[1:]


def _split(text: bytes) -> tuple[bytes, bytes]:
    """Cut before the last object, which may not be complete."""
    start = max(len(text) - _OBJECT_LIMIT, 0)
    edge = None
    for edge in _EDGE.finditer(text, start):  # noqa: B007
        pass
    if edge is None:
        if len(text) > 2 * _OBJECT_LIMIT:
            raise ValueError(f"more than {_OBJECT_LIMIT} bytes of JSON for one extent")
        return b"", text
    return text[: edge.start() + 1], text[edge.end() :]


def _parse(text: bytes) -> list[Any]:
    objects = json.loads(b"[" + text + b"]")
    assert isinstance(objects, list)
    return objects
