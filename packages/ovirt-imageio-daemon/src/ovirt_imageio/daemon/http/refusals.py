# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""How much the log says of clients that are refused.

A client that is refused hundreds of times in a second is refused for the same few reasons. A line for
each would hide everybody else's, fill the disk, and take as long as two good requests. A person
who tries a few requests sees each of them.

A client is counted by its name, whatever connection it uses, for a refused client is often told
to make another. There may be any number of names as well, so those that come when many are known
share their lines.
"""

from __future__ import annotations

import math

LINES = 10
"""Refusals of a client that get a line of their own in a period."""
PERIOD = 60.0
"""Seconds from the first of them on."""
MOST = 100
"""Refusals after which a client without a ticket has to make a new connection."""
CLIENTS = 100
"""Clients that are told apart."""
OTHERS = "other clients"
"""Label for clients beyond the first `CLIENTS`."""


class _Client:
    """The refusals of a client since the first one of a period."""

    __slots__ = ("left_out", "lines", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.lines = self.left_out = 0


class Refusals:
    """The refused requests of a service. Loop thread only."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client] = {}

    def shall_be_told(self, client: str, now: float) -> bool:
        """Count a refusal; tell whether it gets a line of its own.

        Args:
            client: Name of the refused client.
            now: Seconds of a monotonic clock.
        """
        found = self._clients.get(client)
        if found is None:
            name = client if len(self._clients) < CLIENTS else OTHERS
            found = self._clients.setdefault(name, _Client(now))
        if found.lines >= LINES:
            found.left_out += 1
            return False
        found.lines += 1
        return True

    def take_left_out(self, now: float = math.inf) -> list[tuple[str, int]]:
        """Return who was left out how often, which the caller tells, and begin anew with them.

        Args:
            now: Only of those whose period is over by then.
        """
        over = {name: client for name, client in self._clients.items() if now - client.since >= PERIOD}
        for name in over:
            del self._clients[name]
        return [(name, client.left_out) for name, client in over.items() if client.left_out]
