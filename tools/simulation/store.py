# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes that are written, and later stable: a file of the client, or the disk behind the server.

    written   A B C D ── what readers see
    stable    A B ────── what a crash leaves for certain
    changes       C D ── since: a crash keeps any of their units, or none

A unit is what a crash keeps or loses as a whole, and the least that can be allocated.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional

from .dice import Dice

UNIT = 64
"""Bytes. The simulated world is small: this stands for 64 KiB, see `realm`."""


class Change(NamedTuple):
    """Something written since the last flush that covered it.

    Attributes:
        kind: `write`, `punch` (deallocated, reads as zeroes) or `size`.
        offset: Where; the new size for `size`.
        length: Bytes.
        data: Of a write; None for zeroes.
        serial: Place in the order of all changes.
        writer: Connection or process that made it.
    """

    kind: str
    offset: int
    length: int
    data: Optional[bytes]
    serial: int
    writer: object


class Content:
    """Bytes and which units are allocated."""

    def __init__(self, size: int = 0) -> None:
        self.data = bytearray(size)
        self.allocated = bytearray(-(-size // UNIT))

    def copy(self) -> Content:
        """Return a copy."""
        other = Content()
        other.data[:] = self.data
        other.allocated[:] = self.allocated
        return other

    def resize(self, size: int) -> None:
        """Cut off, or add a hole."""
        units = -(-size // UNIT)
        if size < len(self.data):
            del self.data[size:]
            del self.allocated[units:]
        else:
            self.data.extend(bytes(size - len(self.data)))
            self.allocated.extend(bytes(units - len(self.allocated)))

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes; the content grows with them."""
        end = offset + len(data)
        if end > len(self.data):
            self.resize(end)
        self.data[offset:end] = data
        first, last = offset // UNIT, -(-end // UNIT)
        self.allocated[first:last] = b"\1" * (last - first)

    def punch(self, offset: int, length: int) -> None:
        """Make a range read as zeroes, and deallocate its units; those at its edges stay."""
        end = min(offset + length, len(self.data))
        if offset >= end:
            return
        self.data[offset:end] = bytes(end - offset)
        first = -(-offset // UNIT)
        last = -(-end // UNIT) if end == len(self.data) else end // UNIT
        if first < last:
            self.allocated[first:last] = bytes(last - first)

    def apply(self, change: Change) -> None:
        """Carry out a change."""
        if change.kind == "size":
            self.resize(change.offset)
        elif change.kind == "punch":
            self.punch(change.offset, change.length)
        else:
            assert change.data is not None
            self.write(change.offset, change.data)


class Store:
    """Content that a crash may take back to what is stable.

    Args:
        size: Bytes; they are a hole, and stable.

    Attributes:
        now: Content that readers see.
        stable: Content that a crash leaves for certain.
    """

    def __init__(self, size: int = 0) -> None:
        self.now = Content(size)
        self.stable = self.now.copy()
        self.changes: list[Change] = []
        self._serial = 0
        self._settled: dict[int, int] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.now.data)

    def fill(self, data: bytes, *, holes: bool = True) -> None:
        """Put stable content there; units of zeroes are holes if that is wanted."""
        self.now = Content(len(data))
        for start in range(0, len(data), UNIT):
            unit = data[start : start + UNIT]
            if not holes or unit.strip(b"\0"):
                self.now.write(start, unit)
        self.stable = self.now.copy()
        self.changes.clear()
        self._settled.clear()

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes; fewer at the end."""
        return bytes(self.now.data[offset : offset + length])

    def write(self, offset: int, data: bytes, writer: object = None) -> None:
        """Write bytes."""
        self._change("write", offset, len(data), data, writer)

    def punch(self, offset: int, length: int, writer: object = None) -> None:
        """Deallocate a range."""
        self._change("punch", offset, length, None, writer)

    def resize(self, size: int, writer: object = None) -> None:
        """Change the size."""
        self._change("size", size, 0, None, writer)

    def _change(self, kind: str, offset: int, length: int, data: Optional[bytes], writer: object) -> None:
        self._serial += 1
        change = Change(kind, offset, length, data, self._serial, writer)
        self.now.apply(change)
        self.changes.append(change)

    def mark(self) -> int:
        """Return the serial of the last change: a flush that begins now covers what is not newer."""
        return self._serial

    def flush(self, mark: int, covers: Callable[[Change], bool] = lambda change: True) -> None:
        """Make changes stable that are not newer than a mark.

        A change that is not covered gives way where a newer one is.
        """
        left: list[Change] = []
        for change in self.changes:
            if change.serial > mark or not covers(change):
                left.append(change)
                continue
            self.stable.apply(change)
            if change.kind != "size":
                left = [part for older in left for part in _without(older, change)]
                last = -(-(change.offset + change.length) // UNIT)
                self._settled.update(dict.fromkeys(range(change.offset // UNIT, last), change.serial))
        self.changes = left
        if not left:
            self._settled.clear()

    def forget(self) -> None:
        """Take what is not stable for clean, as a kernel does after a write that failed: it is lost at a crash."""
        self.changes.clear()

    def crash(self, dice: Dice, keep: float) -> None:
        """Lose what is not stable, but for units that the dice keep."""
        after = self.stable
        for change in self.changes:
            if change.kind == "size":
                if dice.chance(keep):
                    after.apply(change)
                continue
            end = change.offset + change.length
            start = change.offset
            while start < end:
                unit = start // UNIT
                stop = min(end, (unit + 1) * UNIT)
                if self._settled.get(unit, 0) < change.serial and dice.chance(keep):
                    after.apply(_part(change, start, stop))
                start = stop
        self.changes.clear()
        self._settled.clear()
        self.stable = after
        self.now = after.copy()


def _without(change: Change, newer: Change) -> list[Change]:
    """Return what is left of a change where a newer one does not hide it."""
    end, stop = change.offset + change.length, newer.offset + newer.length
    if change.kind == "size" or newer.offset >= end or stop <= change.offset:
        return [change]
    ranges = ((change.offset, min(end, newer.offset)), (max(change.offset, stop), end))
    return [_part(change, start, after) for start, after in ranges if start < after]


def _part(change: Change, start: int, end: int) -> Change:
    """Return a part of a change."""
    data = None if change.data is None else change.data[start - change.offset : end - change.offset]
    return change._replace(offset=start, length=end - start, data=data)
