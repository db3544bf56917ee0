# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""How the daemon does, and what transfers wait for: `GET /status`, control service only."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from ovirt_imageio.common import imagesapi

from .. import params
from ..auth import Tickets
from ..http.connection import Connection
from ..http.loop import Loop
from ..http.message import Request, Response, StreamedBody
from ..http.registry import Connections
from ..http.router import Route
from ..stats import Totals
from ..transfer import STATES, Transfer
from ..version import __version__

_LIMIT = 1000  # transfers that are told of, unless the client asks for more: 70 ms of work, between that of others
_MOST = 100_000
_PIECE = 64 * 1024  # characters that are sent at a time


class Status:
    """The resource `/status`. Loop thread only.

    Args:
        loop: whose workers are counted.
        tickets: those in use or waiting for use.
        connections: of clients of images.
        totals: what was done so far.
        services: name → address of what is served.
        stopping: tells whether new work is refused.
    """

    def __init__(
        self,
        loop: Loop,
        tickets: Tickets,
        *,
        connections: Connections,
        totals: Totals,
        services: dict[str, str],
        stopping: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._tickets = tickets
        self._connections = connections
        self._totals = totals
        self._services = services
        self._stopping = stopping

    def routes(self) -> list[Route]:
        """List the resources."""
        return [Route("/status", {"GET": self.get})]

    async def get(self, request: Request) -> Response:
        """Tell everything, but of so many transfers; sizes in bytes, times in seconds."""
        limit = params.query_integer(request.query, "limit", default=_LIMIT, maximum=_MOST)
        body = _StatusBody(self._loop, json.dumps(self._document()), self._tickets.first(limit))
        return Response(200, [("Content-Type", imagesapi.JSON)], body)

    def _document(self) -> dict[str, Any]:
        connections, workers = self._connections, self._loop.workers
        states = self._tickets.states()
        return {
            "version": __version__,
            "uptime": int(self._totals.uptime),
            "stopping": self._stopping(),
            "services": self._services,
            "connections": {
                "open": len(connections),
                "idle": connections.idle_count,
                "limit": connections.limit,
            },
            "workers": {
                "threads": workers.threads,
                "busy": workers.busy,
                "waiting": workers.waiting,
                "limit": workers.limit,
            },
            "requests": self._requests(),
            "operations": {kind: stats.to_json() for kind, stats in self._totals.operations.operations.items()},
            "tickets": {"total": len(self._tickets), **{state: states[state] for state in STATES}},
        }

    def _requests(self) -> dict[str, dict[str, int]]:
        """Count responses by service and status."""
        result: dict[str, dict[str, int]] = {}
        for (service, status), count in sorted(self._totals.requests.items()):
            result.setdefault(service, {})[str(status)] = count
        return result


class _StatusBody(StreamedBody):
    """The document and its list of transfers, which is written while it is sent: of 100,000 it has 50 MiB."""

    length = None

    def __init__(self, loop: Loop, document: str, transfers: list[Transfer]) -> None:
        self._loop = loop
        self._document = document
        self._transfers = transfers

    async def send(self, connection: Connection, head: bytes) -> None:
        """Send the text in chunks."""
        await connection.chunks_out(self.pieces(), head=head)

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the text."""
        piece = self._document[:-1] + ', "transfers": ['
        for number, transfer in enumerate(self._transfers):
            piece += (", " if number else "") + json.dumps(_transfer(transfer))
            if len(piece) >= _PIECE:
                yield piece.encode()
                piece = ""
            await self._loop.turn()  # a thousand operations take 0.5 ms: others wait for one transfer, not for two
        yield (piece + "]}\n").encode()


def _transfer(transfer: Transfer) -> dict[str, Any]:
    return {
        **transfer.info(),
        "finished": {kind: stats.to_json() for kind, stats in transfer.stats.operations.items()},
    }
