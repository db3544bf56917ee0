# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""How often one connection was refused, and how much the log says of that.

A client that is refused hundreds of times in a second is refused for the same few reasons, and
a line for each would hide everybody else's. A person who tries a few requests sees each of them.
"""

from __future__ import annotations

_LINES = 10
_PERIOD = 60.0  # seconds
_MOST = 100


class Refusals:
    """The refused requests of a connection. Loop thread only.

    Attributes:
        count: How many there were.
        left_out: How many of them the log does not tell since it last said so.
    """

    __slots__ = ("_lines", "_since", "count", "left_out")

    def __init__(self) -> None:
        self.count = 0
        self.left_out = 0
        self._lines = 0
        self._since = 0.0

    @property
    def too_many(self) -> bool:
        """Whether a client without a ticket should make a new connection for more."""
        return self.count >= _MOST

    def shall_be_told(self, now: float) -> bool:
        """Count a refusal; tell whether it gets a line of its own: ten in a minute do.

        Args:
            now: Seconds of a monotonic clock.
        """
        self.count += 1
        if not self._lines or now - self._since >= _PERIOD:
            self._since, self._lines = now, 0
        if self._lines >= _LINES:
            self.left_out += 1
            return False
        self._lines += 1
        return True

    def take_left_out(self) -> int:
        """Return how many were left out, which the caller tells, and count anew."""
        count, self.left_out = self.left_out, 0
        return count
