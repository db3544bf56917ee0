# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The contents that an image may hold after everything was killed: nothing more, nothing less.

For each sector the model keeps the contents that were asked for since the last that is certain,
in order::

    7 ──────────── flushed: exactly this
    7 8 9 ──────── 8 and 9 were written since, acknowledged or not: any of the three
    flush ──────── covers what was acknowledged before it began. If that is 8:
    8 9 ────────── 8, or 9

A write that failed or was never answered may be there, or not, sector by sector. Inside one
sector new bytes may be followed by old ones only where no answer came. The reason: a splice into
a file stops at any byte when it is killed.

A storage may also zero a range before it writes data there, and be killed in between. A write of
qemu to a qcow2 image does so, if it begins or ends in a cluster which reads as zeroes. It also zeroes
the clusters in the middle, whatever they hold (`handle_alloc_space` in qemu's block/qcow2.c). Then a
sector of a write that was not answered may read as zeroes.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

SECTOR = 512

_STAMP = struct.Struct("<QQ")

ZERO = 0
"""The version of a sector that reads as zeroes."""


class Problem(NamedTuple):
    """A sector that holds what it may not."""

    sector: int
    found: str
    allowed: list[int]


@dataclass
class Change:
    """A write or zero of whole sectors.

    Attributes:
        first: Its first sector.
        count: How many.
        version: Content that it writes, `ZERO` for zeroes.
        serial: Place in the order of changes of this model.
        acknowledged: It was answered with success.
        epoch: The ticket, and which of its lives that was in; None if that is not sure.
    """

    first: int
    count: int
    version: int
    serial: int
    acknowledged: bool = False
    epoch: Hashable = None


@dataclass
class Verdict:
    """Findings of a comparison.

    Attributes:
        bytes: Compared.
        lost: Bytes of sectors that hold what they may not.
        problems: Some of those sectors.
        torn: Sectors with new bytes followed by old ones, or with zeroes, where that is allowed.
        open: Sectors that might have held several contents.
    """

    bytes: int = 0
    lost: int = 0
    problems: list[Problem] = field(default_factory=list)
    torn: int = 0
    open: int = 0


class Model:
    """The allowed contents of an image. Any thread; changes of one sector come one after another.

    Args:
        sectors: Size of the image, which reads as zeroes.
        zeroes_first: Its storage may zero a range before it writes there.
    """

    def __init__(self, sectors: int, *, zeroes_first: bool = False) -> None:
        self.sectors = sectors
        self._zeroes_first = zeroes_first
        self._history: list[list[Change]] = [[Change(i, 1, ZERO, 0, acknowledged=True)] for i in range(sectors)]
        self._serial = 0
        self._lock = threading.Lock()
        self._unflushed: list[Change] = []

    def begin(self, first: int, count: int, *, zero: bool = False) -> Change:
        """Note a change before it is asked for."""
        with self._lock:
            self._serial += 1
            change = Change(first, count, ZERO if zero else self._serial, self._serial)
            for sector in range(first, first + count):
                self._history[sector].append(change)
            return change

    def acknowledge(self, change: Change, epoch: Hashable) -> None:
        """Note that a change was answered with success, in an epoch of its ticket."""
        with self._lock:
            change.acknowledged, change.epoch = True, epoch
            self._unflushed.append(change)

    def flush_begins(self, epoch: Hashable) -> list[Change]:
        """Return what a flush that begins now has to cover: what was acknowledged in the epoch of its ticket."""
        with self._lock:
            return [change for change in self._unflushed if change.epoch == epoch]

    def flushed(self, covered: Iterable[Change]) -> None:
        """Note that a flush was answered with success."""
        with self._lock:
            done = set()
            for change in covered:
                done.add(change.serial)
                for sector in range(change.first, change.first + change.count):
                    self._settle(sector, change.serial)
            self._unflushed = [change for change in self._unflushed if change.serial not in done]

    def _settle(self, sector: int, serial: int) -> None:
        history = self._history[sector]
        for place in range(len(history) - 1, -1, -1):
            if history[place].serial <= serial:
                del history[:place]
                return

    def compare(self, image: bytes) -> Verdict:
        """Compare an image after everything was killed; go on from what it holds."""
        verdict = Verdict(bytes=len(image))
        view = memoryview(image)
        with self._lock:
            self._unflushed.clear()
            for sector, history in enumerate(self._history):
                data = view[sector * SECTOR :][:SECTOR]
                verdict.open += len(history) > 1
                change = _found(sector, data, history)
                if change is None and self._is_torn(sector, bytes(data), history):
                    verdict.torn += 1
                elif change is None:
                    verdict.lost += SECTOR
                    if len(verdict.problems) < 20:
                        verdict.problems.append(Problem(sector, _told(data), [c.version for c in history]))
                    change = history[-1]
                if change is not None:  # a torn sector stays what it is until it is written again
                    self._history[sector] = [change]
        return verdict

    def _is_torn(self, sector: int, data: bytes, history: list[Change]) -> bool:
        """Tell whether a sector is what a change that was not answered may leave halfway.

        That is its beginning and the rest of one before, or zeroes.
        """
        for place, change in enumerate(history):
            if change.acknowledged:
                continue
            if self._zeroes_first and data == bytes(SECTOR):
                return True
            new = content(sector, 1, change.version)
            for before in history[:place]:
                old = content(sector, 1, before.version)
                if any(data == new[:n] + old[n:] for n in range(SECTOR)):
                    return True
        return False


def content(first: int, count: int, version: int) -> bytes:
    """Return what a change writes: each sector says where it belongs and who wrote it."""
    if version == ZERO:
        return bytes(count * SECTOR)
    times = SECTOR // _STAMP.size
    return b"".join(_STAMP.pack(sector, version) * times for sector in range(first, first + count))


def _found(sector: int, data: memoryview, history: list[Change]) -> Optional[Change]:
    where, version = _STAMP.unpack_from(data)
    if version != ZERO and where != sector:
        return None
    for change in reversed(history):
        if change.version == version and data == content(sector, 1, version):
            return change
    return None


def _told(data: memoryview) -> str:
    where, version = _STAMP.unpack_from(data)
    return f"version {version} of sector {where}: {bytes(data[:32]).hex()}…"
