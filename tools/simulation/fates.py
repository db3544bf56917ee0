# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""When something befalls a process: at its n-th step, or at the n-th of a kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

TELLING = (
    "fsync",
    "fsync'",
    "rename",
    "unlink",
    "link",
    "open",
    "write /",
    "pwrite",
    "ftruncate",
    "flock",
    "qemu",
    "nbd flush",
    "PUT",
    "PATCH",
    "GET",
    "answer",
    "flush",
)
"""Beginnings of the steps that are worth to be met exactly."""


@dataclass
class Event:
    """Something that happens once.

    Attributes:
        kind: Beginning of the steps that count; empty for all.
        count: At which of them.
        act: The event itself; True kills the process.
    """

    kind: str
    count: int
    act: Callable[[], bool]


class Fate:
    """All that befalls a process."""

    def __init__(self, events: list[Event]) -> None:
        self._events = events

    def strikes(self, what: str) -> bool:
        """Tell if the process is killed before this step, and let other things happen."""
        killed = False
        for event in self._events:
            if event.count > 0 and what.startswith(event.kind):
                event.count -= 1
                if not event.count:
                    killed = event.act() or killed
        return killed
