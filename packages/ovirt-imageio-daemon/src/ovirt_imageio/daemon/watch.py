# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Which of very many tickets have to be looked at, and when.

Most tickets wait for their client, or were left behind. Each second only those are looked at that are in use, and
those whose time is over. The others cost nothing, however many they are:

- "in use": storage is open, an operation runs, or did a moment ago;
- "due": by the quarter of a second in which they expire;
- "expired": until their time is moved, counted without a look;
- "cancelled": until they are removed, counted without a look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .transfer import Transfer

_GRAIN = 0.25  # seconds of a slot


class Watch:
    """Loop thread only.

    Attributes:
        in_use: Transfers that are looked at each second.
    """

    def __init__(self) -> None:
        self.in_use: dict[Transfer, None] = {}
        self._slots: dict[int, set[Transfer]] = {}
        self._slot_of: dict[Transfer, int] = {}
        self._looked = 0  # the last slot that was looked at
        self._expired: set[Transfer] = set()
        self._cancelled: set[Transfer] = set()

    def add(self, transfer: Transfer) -> None:
        """Watch a transfer that is new."""
        self._schedule(transfer)

    def remove(self, transfer: Transfer) -> None:
        """Watch a transfer no longer."""
        self._unschedule(transfer)
        self.in_use.pop(transfer, None)
        self._expired.discard(transfer)
        self._cancelled.discard(transfer)

    def use(self, transfer: Transfer) -> None:
        """Look at a transfer each second from now on, until it is taken out of `in_use`."""
        if transfer in self._slot_of or transfer in self._expired or transfer in self._cancelled:
            self.in_use[transfer] = None  # others were removed

    def move(self, transfer: Transfer) -> None:
        """Note that the time is over for a transfer earlier than it was, or no longer."""
        if transfer in self._slot_of or transfer in self._expired:
            self._unschedule(transfer)
            self._expired.discard(transfer)
            self._schedule(transfer)

    def cancel(self, transfer: Transfer) -> None:
        """Note that a transfer was cancelled and stays."""
        if transfer in self._slot_of or transfer in self._expired:
            self._unschedule(transfer)
            self._expired.discard(transfer)
            self._cancelled.add(transfer)

    def take_expired(self, now: float) -> Iterator[Transfer]:
        """Yield each transfer whose time is over, once. It may be removed, and others moved, meanwhile."""
        last, self._looked = self._looked, int(now / _GRAIN)
        since = range(last + 1, self._looked + 1)
        for slot in since if len(since) <= len(self._slots) else sorted(filter(since.__contains__, self._slots)):
            while slot in self._slots:
                found = self._slots[slot]
                transfer = found.pop()  # next(iter(found)) looks at the places of all that were taken before
                del self._slot_of[transfer]
                if not found:
                    del self._slots[slot]
                if transfer.expires > now:  # it was extended, which costs nothing until now
                    self._schedule(transfer)
                    continue
                self._expired.add(transfer)
                yield transfer

    def count(self, total: int) -> Counter[str]:
        """Count transfers by state, looking only at those in use.

        Args:
            total: All of them.
        """
        states = Counter(transfer.state for transfer in self.in_use)
        for state, found in (("expired", self._expired), ("cancelled", self._cancelled)):
            states[state] += len(found) - sum(transfer in found for transfer in self.in_use)
        states["idle"] += total - sum(states.values())
        return states

    def _schedule(self, transfer: Transfer) -> None:
        slot = max(int(transfer.expires / _GRAIN), self._looked) + 1
        self._slot_of[transfer] = slot
        self._slots.setdefault(slot, set()).add(transfer)

    def _unschedule(self, transfer: Transfer) -> None:
        slot = self._slot_of.pop(transfer, None)
        if slot is not None:
            found = self._slots[slot]
            found.discard(transfer)
            if not found:
                del self._slots[slot]
