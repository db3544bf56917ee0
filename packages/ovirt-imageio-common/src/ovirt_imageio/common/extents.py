# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Extents as values: what of an image is data, zero, not allocated, or changed.

An iterator of extents is in order, without gaps and overlaps:

    0         64K        128K                  256K
    |  data   |  zero    |  zero, hole         |

Nothing here reads storage, and nothing keeps more than one extent at a time.
"""

from __future__ import annotations

from typing import Any, Iterable, Iterator, NamedTuple, TypeVar, Union


class ZeroExtent(NamedTuple):
    """A range of one kind, for the context `zero`.

    Attributes:
        start: Offset of the first byte.
        length: Bytes.
        zero: The range reads as zeroes.
        hole: Not allocated; in qcow2 the backing chain shows through.
    """

    start: int
    length: int
    zero: bool
    hole: bool

    @property
    def data(self) -> bool:
        """The range may hold something else than zeroes."""
        return not self.zero

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> ZeroExtent:
        """Make an extent of what the HTTP API writes, see `zero_from_json`."""
        return zero_from_json(document)

    def to_dict(self) -> dict[str, Any]:
        """Return the extent as the HTTP API writes it."""
        return self._asdict()


class DirtyExtent(NamedTuple):
    """A range of one kind, for the context `dirty`.

    Attributes:
        start: Offset of the first byte.
        length: Bytes.
        dirty: Changed since the checkpoint of the bitmap.
        zero: The range reads as zeroes.
    """

    start: int
    length: int
    dirty: bool
    zero: bool

    @property
    def data(self) -> bool:
        """The range may hold something else than zeroes, also where it is clean."""
        return not self.zero

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> DirtyExtent:
        """Make an extent of what the HTTP API writes, see `dirty_from_json`."""
        return dirty_from_json(document)

    def to_dict(self) -> dict[str, Any]:
        """Return the extent as the HTTP API writes it."""
        return self._asdict()


Extent = Union[ZeroExtent, DirtyExtent]
E = TypeVar("E", ZeroExtent, DirtyExtent)


def merge(extents: Iterable[E]) -> Iterator[E]:
    """Join neighbours of one kind, and drop empty extents.

    Args:
        extents: In order, each starting where the one before ends.
    """
    last: E | None = None
    for extent in extents:
        if not extent.length:
            continue
        if last is None:
            last = extent
        elif last[2] == extent[2] and last[3] == extent[3]:
            last = last._replace(length=last.length + extent.length)
        else:
            yield last
            last = extent
    if last is not None:
        yield last


def clip(extents: Iterable[E], offset: int, length: int) -> Iterator[E]:
    """Keep what lies in a range; extents that reach beyond it are cut.

    Args:
        extents: In order.
        offset: Start of the range.
        length: Bytes of the range.
    """
    end = offset + length
    for extent in extents:
        if extent.start >= end:
            return
        start = max(extent.start, offset)
        stop = min(extent.start + extent.length, end)
        if start < stop:
            yield extent._replace(start=start, length=stop - start)


def overlay_dirty(dirty: Iterable[tuple[int, int, bool]], zero: Iterable[ZeroExtent]) -> Iterator[DirtyExtent]:
    """Tell for each part of an image if it is dirty and if it reads as zeroes.

        dirty:  |  dirty        |  clean        |
        zero:   |  data   |  zero     |  data   |
        result: | d       | d,z | z   |         |

    Args:
        dirty: (start, length, dirty), in order.
        zero: Zero extents that cover the same range.

    Raises:
        ValueError: They do not cover the same range.
    """
    return merge(_overlay(iter(dirty), iter(zero)))


def _overlay(dirty: Iterator[tuple[int, int, bool]], zero: Iterator[ZeroExtent]) -> Iterator[DirtyExtent]:
    d = next(dirty, None)
    z = next(zero, None)
    position = d[0] if d else 0
    while d is not None and z is not None:
        d_end, z_end = d[0] + d[1], z.start + z.length
        end = min(d_end, z_end)
        yield DirtyExtent(position, end - position, d[2], z.zero)
        position = end
        if d_end == end:
            d = next(dirty, None)
        if z_end == end:
            z = next(zero, None)
    if d is not None or z is not None:
        raise ValueError(f"dirty and zero extents end at different offsets, near {position}")


def check_cover(extents: Iterable[E], size: int) -> Iterator[E]:
    """Pass extents on, and make sure that they cover an image exactly.

    Args:
        extents: Of unknown origin, such as a server's answer.
        size: Bytes of the image.

    Raises:
        ValueError: A gap, an overlap, a length below one, or not size bytes in all.
    """
    position = 0
    for extent in extents:
        if extent.start != position:
            raise ValueError(f"expected an extent at {position}, got {extent}")
        if extent.length < 1:
            raise ValueError(f"expected a length of 1 or more, got {extent}")
        position += extent.length
        if position > size:
            raise ValueError(f"extent ends past the image of {size} bytes: {extent}")
        yield extent
    if position != size:
        raise ValueError(f"extents end at {position}, expected {size}")


def zero_from_json(document: Any) -> ZeroExtent:
    """Read a zero extent of the HTTP API. `hole` may be missing, as in old servers.

    Raises:
        ValueError: The document is not an extent.
    """
    return ZeroExtent(
        _number(document, "start"),
        _number(document, "length"),
        _flag(document, "zero"),
        _flag(document, "hole", False),
    )


def dirty_from_json(document: Any) -> DirtyExtent:
    """Read a dirty extent of the HTTP API. `zero` may be missing, as in old servers.

    Raises:
        ValueError: The document is not an extent.
    """
    return DirtyExtent(
        _number(document, "start"),
        _number(document, "length"),
        _flag(document, "dirty"),
        _flag(document, "zero", False),
    )


def _number(document: Any, key: str) -> int:
    value = document.get(key) if isinstance(document, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"extent {document!r}: expected a number of bytes for {key!r}")
    return value


def _flag(document: Any, key: str, default: bool | None = None) -> bool:
    value = document.get(key, default) if isinstance(document, dict) else None
    if not isinstance(value, bool):
        raise ValueError(f"extent {document!r}: expected true or false for {key!r}")
    return value
