# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests that a stream has in flight on its NBD connections, and their end on failure.

    Reads    one request on each connection; the next one is sent when the connection
             has delivered. A failed stream closes the connections that still owe an
             answer, for its payload would have to be received first.
    Writes   some requests over all connections, acknowledged in order. A failed stream
             waits for the answers, so that the connections stay usable and the
             operation knows what storage has.

A thread that cancels a stream wakes it: it shuts the socket of the peer down. Then the
operation knows better than the socket why the stream ended.
"""

from __future__ import annotations

import contextlib
from collections import deque
from itertools import cycle
from types import TracebackType
from typing import Sequence

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Operation, pieces
from ovirt_imageio.common.buffers import borrow
from ovirt_imageio.common.errors import ImageioError, PeerGone, RequestError
from ovirt_imageio.common.nbd import Client, wire
from ovirt_imageio.common.nbd.replies import Request


def piece_size(client: Client) -> int:
    """Bytes of one request of a stream, a multiple of the minimum block."""
    return min(max(defaults.PIECE, client.export.minimum_block), client.max_request)


class Reads:
    """Reads of a range in order, one in flight on each connection.

    Args:
        clients: connections to the same export.
        offset: start of the range, in bytes.
        length: of the range, in bytes.
        op: asked why the peer went away.
    """

    def __init__(self, clients: Sequence[Client], offset: int, length: int, op: Operation) -> None:
        self._clients = clients
        self._op = op
        size = piece_size(clients[0])
        # A long stream goes on at multiples of its piece, which storage likes better.
        self._todo = pieces(offset, length, size, align=size if length > size else 1)
        self._flying: deque[tuple[Client, Request]] = deque()

    def __enter__(self) -> Reads:
        try:
            for client in self._clients:
                self.submit(client)
        except BaseException as e:
            self._abandon(e)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            return
        self._abandon(error)
        if isinstance(error, PeerGone):
            self._op.check()

    def __bool__(self) -> bool:
        return bool(self._flying)

    def submit(self, client: Client) -> None:
        """Send the next read, if there is one left."""
        piece = next(self._todo, None)
        if piece is not None:
            self._flying.append((client, client.send(wire.CMD_READ, *piece)))

    def pop(self) -> tuple[Client, Request]:
        """Return the first read whose content was not taken yet."""
        return self._flying.popleft()

    def drop(self) -> None:
        """Leave the rest of the range: take the answers that are owed, and forget them."""
        self._todo = iter(())
        with borrow(piece_size(self._clients[0])) as view:
            while self._flying:
                client, request = self.pop()
                # A caller that wants that range asks for it again.
                with contextlib.suppress(RequestError):
                    client.finish_read(request, view[: request.length])

    def _abandon(self, error: BaseException) -> None:
        for client in self._clients:
            if client.in_flight:
                client.fail(ImageioError(f"a read was abandoned: {error}"))


class Writes:
    """Writes of a range in order, several in flight over all connections.

    Args:
        clients: connections to the same export, used in turn.
        op: told of acknowledged bytes, and asked why the peer went away.
    """

    def __init__(self, clients: Sequence[Client], op: Operation) -> None:
        self._turn = cycle(clients)
        self._op = op
        self._flying: deque[tuple[Client, Request]] = deque()
        self._failed = False

    def __enter__(self) -> Writes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
            return
        self._settle(error)
        if isinstance(error, PeerGone):
            self._op.check()

    def next_client(self) -> Client:
        """Return the connection for the next write, waiting if enough are in flight."""
        if len(self._flying) >= defaults.WRITES_IN_FLIGHT:
            self._acknowledge()
        return next(self._turn)

    def add(self, client: Client, request: Request) -> None:
        """Take care of a write that was sent."""
        self._flying.append((client, request))

    def finish(self) -> None:
        """Wait until everything is acknowledged."""
        try:
            while self._flying:
                self._acknowledge()
        except BaseException as e:
            self._settle(e)
            raise

    def _acknowledge(self) -> None:
        client, request = self._flying.popleft()
        try:
            client.finish(request)
        except BaseException:
            self._failed = True
            raise
        # Only what has no gap before it counts.
        if not self._failed:
            self._op.advance(request.length)

    def _settle(self, error: BaseException) -> None:
        """Wait for the answers that are still owed; their failures add nothing to the first."""
        while self._flying:
            client = self._flying[0][0]
            if not isinstance(error, Exception):
                # Interrupted: no caller wants to wait.
                client.fail(error)
            try:
                self._acknowledge()
            except ImageioError:
                pass
