# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The open connections of a service, and which of them can be spared."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import DeadlineExpired
from .linger import Lingering

if TYPE_CHECKING:
    from .connection import Connection
    from .loop import Loop, Token

# Idle connections of one ticket that are safe from eviction. No client opens that many:
# virt-v2v 4, backup products and our own client as many as max_readers says.
GUESTS = 64


class Connections:
    """Counts connections and knows the idle ones, oldest first. Loop thread only.

    A connection is idle until the head of its next request is complete. One that says
    nothing, stops within its handshake, or sends a head byte by byte is idle all the time. So
    is one without a ticket that lets us wait for it, see `spare`. Those whose last request
    had no ticket go first, then those of a ticket that has far more than any client needs.

    Args:
        loop: The loop.
        limit: Most open connections.

    Attributes:
        lingering: Those that are answered and not closed.
    """

    def __init__(self, loop: Loop, limit: int) -> None:
        self.limit = limit
        self.lingering = Lingering(loop)
        self._loop = loop
        self._all: set[Connection] = set()
        # Ordered: the first became idle first.
        self._strangers: dict[Connection, None] = {}
        self._guests: dict[str, dict[Connection, None]] = {}  # by ticket
        self._waiting: list[Token] = []

    def __len__(self) -> int:
        return len(self._all)

    @property
    def full(self) -> bool:
        """Whether another connection would be one too many."""
        return len(self._all) >= self.limit

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""
        return len(self._strangers) + sum(map(len, self._guests.values()))

    def add(self, connection: Connection) -> None:
        """Count a new connection until it closes."""
        self._all.add(connection)
        connection.registry = self
        connection.lingering = self.lingering
        connection.on_close.append(self._remove)
        self.idle(connection)

    def idle(self, connection: Connection) -> None:
        """Note that a connection waits for its next request."""
        if connection.ticket_id is None:
            if connection not in self._strangers:
                self._strangers[connection] = None
        else:
            self._guests.setdefault(connection.ticket_id, {})[connection] = None
        if self._waiting:
            self._changed()

    def busy(self, connection: Connection) -> None:
        """Note that a connection serves a request."""
        ticket_id = connection.ticket_id
        if ticket_id is None:
            self._strangers.pop(connection, None)
            return
        guests = self._guests.get(ticket_id)
        if guests is not None:
            guests.pop(connection, None)
            if not guests:
                del self._guests[ticket_id]

    @contextlib.contextmanager
    def spare(self, connection: Connection) -> Iterator[None]:
        """Note that a connection is waited for: without a ticket it can be spared meanwhile.

        Else strangers who send or take nothing would keep their places, and others out.
        """
        if connection.ticket_id is not None or connection in self._strangers:
            yield
            return
        self.idle(connection)
        try:
            yield
        finally:
            self.busy(connection)

    def evict(self) -> bool:
        """Close an idle connection that can be spared; False if there is none."""
        connection = self._oldest()
        if connection is None:
            return False
        self.busy(connection)
        connection.wake()
        return True

    def _oldest(self) -> Connection | None:
        for connection in self._strangers:
            return connection
        crowd = max(self._guests.values(), key=len, default={})
        return next(iter(crowd)) if len(crowd) > GUESTS else None

    def close_idle(self, ticket_id: str | None = None) -> None:
        """Close the idle connections of a ticket, by default all idle connections."""
        if ticket_id is not None:
            idle = list(self._guests.get(ticket_id, ()))
        else:
            idle = [*self._strangers, *itertools.chain.from_iterable(self._guests.values())]
        for connection in idle:
            connection.wake()

    def abort(self) -> None:
        """Break all connections off."""
        for connection in self._all:
            connection.wake()

    async def room(self, timeout: float) -> bool:
        """Wait until there is room for a connection; False if that takes too long.

        Oldest idle connections without a ticket are closed to make room.
        """
        until = self._loop.now + timeout
        while self.full:
            self.evict()
            if not await self._change(until):
                return False
        return True

    async def drained(self, timeout: float) -> bool:
        """Wait until all connections are closed; False if that takes too long."""
        until = self._loop.now + timeout
        while self._all:
            if not await self._change(until):
                return False
        return True

    async def change(self, timeout: float) -> bool:
        """Wait until a connection closed or became idle; False if none did in time."""
        return await self._change(self._loop.now + timeout)

    async def _change(self, until: float) -> bool:
        token = self._loop.token()
        self._waiting.append(token)
        try:
            await self._loop.suspend(token, until - self._loop.now)
        except DeadlineExpired:
            with contextlib.suppress(ValueError):
                self._waiting.remove(token)
            return False
        return True

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for token in waiting:
            self._loop.resume(token)

    def _remove(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._strangers.pop(connection, None)
        self.busy(connection)
        self._changed()
