# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Findings of `qemu-img check`, as it says them: line by line, of a badly damaged image for ever.

See qemu-img(1), "check". With `--output json` a summary goes to standard output, and what was
found to standard error.
"""

from __future__ import annotations

import json
import re
from typing import IO, NamedTuple

_MOST_SHOWN = 3
_MOST_SIZE = 1 << 20
"""Bytes of findings after which a check is ended: nothing new is said."""

_UNSUPPORTED = 63  # exit status

_LEAK = "Leaked cluster"
_OLD_COUNT = re.compile(r"ERROR cluster \d+ refcount=0 reference=1$|ERROR OFLAG_COPIED .* refcount=0$")
"""A count that was not written yet; the guest's data are right."""


class CheckReport(NamedTuple):
    """Findings of a check of an image.

    Attributes:
        supported: The format knows such checks.
        corruptions: Number of faults; at least that many if the check was ended.
        errors: Number of parts that could not be checked.
        leaks: Clusters that nothing refers to: lost room, and nothing worse.
        words: The first findings, each one line.
    """

    supported: bool = True
    corruptions: int = 0
    errors: int = 0
    leaks: int = 0
    words: tuple[str, ...] = ()

    @property
    def is_damaged(self) -> bool:
        """Data may be wrong or missing."""
        return bool(self.corruptions or self.errors)


class Findings:
    """Collects the lines of a check.

    Args:
        counts_are_old: The image says that its reference counts are out of date, as after a
            crash with `lazy_refcounts`. Faults of the counts alone are no damage.
    """

    def __init__(self, *, counts_are_old: bool) -> None:
        self._counts_are_old = counts_are_old
        self._size = self._number = self._forgiven = 0
        self._words: list[str] = []

    @property
    def words(self) -> tuple[str, ...]:
        """The first of them."""
        return tuple(self._words)

    def take(self, lines: IO[str]) -> bool:
        """Read lines to their end; False if there are so many that the rest does not matter."""
        for line in lines:
            self._add(line.strip())
            if self._size > _MOST_SIZE:
                return False
        return True

    def report(self, summary: str, status: int) -> CheckReport:
        """Return what was found.

        Args:
            summary: Text of standard output; empty if the check did not come to its end.
            status: Exit status.
        """
        if status == _UNSUPPORTED:
            return CheckReport(supported=False)
        found = json.loads(summary) if summary.strip() else {}
        errors, leaks = found.get("check-errors", 0), found.get("leaks", 0)
        corruptions = found.get("corruptions", 0 if found else self._number)
        if not found and not corruptions:
            errors = 1
        return CheckReport(True, max(corruptions - self._forgiven, 0), errors, leaks, self.words)

    def _add(self, line: str) -> None:
        if not line or line.startswith(_LEAK):
            return
        if self._counts_are_old and _OLD_COUNT.match(line):
            self._forgiven += 1
            return
        self._number += line.startswith("ERROR")
        self._size += len(line)
        if len(self._words) < _MOST_SHOWN:
            self._words.append(line.removeprefix("qemu-img: "))
