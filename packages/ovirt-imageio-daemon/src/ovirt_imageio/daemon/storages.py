# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Which pools have the same storage open, whatever their tickets call it.

    ticket A  nbd:unix:/run/sock            ┐
    ticket B  nbd+unix:///?socket=/run/sock ├─► ("nbd", "unix", "/run/sock", "")
    ticket C  nbd:unix:/run/./sock          ┘

A flush that storage answers with an error concerns all of them. A pool is known here from the
moment when its storage was opened until its ticket is removed. So there are no more entries
than tickets, and nothing is kept for storage that no ticket has.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol


class Sharer(Protocol):
    """A pool, as others of its storage see it."""

    def flush_refused(self, error: BaseException) -> None:
        """Take note that storage answered a flush of somebody with an error."""

    def flushes_under_way(self) -> list[Callable[[], bool]]:
        """Return, for each flush that storage has not answered, what tells if that is still so."""


class Storages:
    """Pools by what they have open. Loop thread only."""

    def __init__(self) -> None:
        self._sharers: dict[Hashable, dict[Sharer, None]] = {}

    def __len__(self) -> int:
        """How many storages are known."""
        return len(self._sharers)

    def join(self, identity: Hashable, sharer: Sharer) -> None:
        """Take note of a pool. Idempotent.

        Args:
            identity: Of its storage, see `backends.identity`.
            sharer: The pool.
        """
        self._sharers.setdefault(identity, {})[sharer] = None

    def leave(self, identity: Hashable, sharer: Sharer) -> None:
        """Forget a pool, and its storage with the last one. Idempotent."""
        sharers = self._sharers.get(identity, {})
        sharers.pop(sharer, None)
        if not sharers:
            self._sharers.pop(identity, None)

    def flushes_under_way(self, identity: Hashable) -> list[Callable[[], bool]]:
        """Return, for each flush that a storage has not answered, what tells if that is still so."""
        return [still for sharer in self._sharers.get(identity, ()) for still in sharer.flushes_under_way()]

    def flush_refused(self, identity: Hashable, error: BaseException) -> None:
        """Tell all pools of a storage that it answered a flush with an error."""
        for sharer in list(self._sharers.get(identity, ())):
            sharer.flush_refused(error)
