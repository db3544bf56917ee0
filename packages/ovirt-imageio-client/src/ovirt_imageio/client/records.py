# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lines of a journal as values. Pure.

    {"journal": 2, "direction": "upload", "size": 6442450944, …} ── which transfer it is of
    {"part": ["disk.part", 131, 1760000000000000000]} ───────────── the file that a download is built in
    {"begun": true} ─────────────────────────────────────────────── from here on bytes are written
    {"done": [[0, 8388608], [16777216, 8388608]]} ───────────────── these are on stable storage
    {"done": [[8388608, 8388608]]} ──────────────────────────────── and these
    {"lost": true} ──────────────────────────────────────────────── storage failed: none of it is

Where ranges are left alone on purpose, the line "begun" also has a digest of the whole plan:
`"plan": "…"`. Each line is on stable storage before the next one is written. So a crash can
damage the last line only, and that one does not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Iterable, NamedTuple

from ovirt_imageio.common.errors import shown

VERSION = 2

_HEAD = b'{"journal": '


class Damaged(ValueError):
    """A file is no journal, or one that cannot be relied on. The text says why."""


class Identity(NamedTuple):
    """Values that tell a file from any other of its folder, also from one that had its inode before.

    Attributes:
        name: In its folder.
        inode: Number.
        born: Time of birth, in nanoseconds; None where the file system does not know.
    """

    name: str
    inode: int
    born: int | None

    @classmethod
    def parse(cls, document: object) -> Identity | None:
        """Read what `list(identity)` was written down as; None if it is something else."""
        if not (isinstance(document, list) and len(document) == 3):
            return None
        name, inode, born = document
        plain = isinstance(name, str) and name not in ("", ".", "..") and not {"/", "\0"} & {*name}
        numbers = type(inode) is int and (born is None or type(born) is int)
        return cls(name, inode, born) if plain and numbers else None


@dataclass
class Records:
    """All that a journal knows.

    Attributes:
        done: Offset and length of each range that is done, merged, in order.
        begun: Bytes may have been written, also where nothing is done.
        plan: Digest of the whole plan, None if there is none.
        part: The file that a download is built in, None if there is none.
        length: Bytes of the file that count.
        spoilt: The last line did not, so that nothing but `begun` is known of it.
    """

    done: list[tuple[int, int]] = field(default_factory=list)
    begun: bool = False
    plan: str | None = None
    part: Identity | None = None
    length: int = 0
    spoilt: bool = False


def looks_like_a_journal(head: bytes) -> bool:
    """Tell by its first bytes if a file may be a journal, the beginning of one, or what a crash left of it."""
    return is_left_of(_HEAD, head[: len(_HEAD)])


def as_line(record: dict[str, Any]) -> bytes:
    """Return a record as it is written."""
    return json.dumps(record).encode() + b"\n"


def header(what: dict[str, Any]) -> dict[str, Any]:
    """Return the first record: which transfer a journal is of."""
    return {"journal": VERSION, **what}


def parse(data: bytes, what: dict[str, Any]) -> Records:
    """Read a journal.

    Args:
        data: The file.
        what: The transfer that it has to be of; `size`, if it is there, bounds what is done.

    Returns:
        Nothing that counts, if not even the first line is whole.

    Raises:
        Damaged: It is of another transfer, or was changed by something else.
    """
    *lines, _cut_off = data.split(b"\n")
    records = Records()
    first = as_line(header(what))
    if data != first and is_left_of(first, data):
        # A crash in the middle of the first line: it kept the size, and some of the content.
        return records
    if not lines:
        if not data.startswith(_HEAD):
            raise Damaged("it is no journal of a transfer")
        return records
    _check(_record(lines[0], 1), header(what))
    records.length = len(lines[0]) + 1
    size = what.get("size")
    for number, line in enumerate(lines[1:], 2):
        try:
            _take(records, _record(line, number), size, number)
        except Damaged:
            if number < len(lines):
                raise
            # A crash may leave all of a line and have lost its content.
            records.begun = records.spoilt = True
            break
        records.length += len(line) + 1
    records.done = merged(records.done)
    return records


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort ranges and join those that touch or overlap."""
    result: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if result and offset <= sum(result[-1]):
            start, before = result[-1]
            result[-1] = start, max(before, offset + length - start)
        else:
            result.append((offset, length))
    return result


def is_left_of(text: bytes, found: bytes) -> bool:
    """Tell if bytes are the beginning of a text, where zeroes stand for what was lost of it."""
    return len(found) <= len(text) and all(byte in (0, expected) for byte, expected in zip(found, text))


def _record(line: bytes, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise Damaged(f"line {number} is not JSON: {shown(line[:200].decode('utf-8', 'replace'))}") from e
    if not isinstance(record, dict):
        raise Damaged(f"line {number} is no record, but {_said(record)}")
    return record


def _check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Make sure that a journal is of this transfer, and of this version."""
    if "journal" not in found:
        raise Damaged("it is no journal of a transfer")
    for key, value in expected.items():
        if key not in found or not _same(found[key], value):
            name = "version" if key == "journal" else f"a transfer with {key}"
            raise Damaged(f"it is of {name} {_said(found.get(key))}, not {_said(value)}")


def _same(found: object, value: object) -> bool:
    """Compare values of JSON: 1 is not true there."""
    return type(found) is type(value) and found == value


def _said(value: object) -> str:
    """Tell a value of JSON in a few words; a nested one may be too deep for `repr`."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__}"
    return shown(value) if isinstance(value, str) else repr(value)[:40]


def _take(records: Records, record: dict[str, Any], size: int | None, number: int) -> None:
    done = record.get("done", [])
    plan = record.get("plan")
    if not isinstance(done, list) or not all(_is_range(item, size) for item in done):
        raise Damaged(f"line {number} has ranges that this image does not have")
    if not isinstance(plan, (str, type(None))):
        raise Damaged(f"line {number} has no digest of a plan, but {_said(plan)}")
    if "part" in record:
        records.part = Identity.parse(record["part"])
        if records.part is None:
            raise Damaged(f"line {number} has no file that a download is built in, but {_said(record['part'])}")
        return
    records.begun = True
    records.plan = plan or records.plan
    if record.get("lost") is True:
        records.done.clear()
    records.done += [(offset, length) for offset, length in done]


def _is_range(item: object, size: int | None) -> bool:
    if not isinstance(item, list) or len(item) != 2 or not all(type(number) is int for number in item):
        return False
    offset, length = item
    return bool(offset >= 0 and length > 0 and (size is None or offset + length <= size))
