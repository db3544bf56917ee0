# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""How the daemon does, and what each transfer waits for: `GET /status`, control service only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from ..http.loop import Loop
from ..http.message import Request, Response
from ..http.registry import Connections
from ..http.router import Route
from ..stats import Totals
from ..transfer import Transfer
from ..version import __version__


class Status:
    """The resource `/status`. Loop thread only.

    Args:
        loop: whose workers are counted.
        transfers: the tickets in use or waiting for use.
        connections: of clients of images.
        totals: what was done so far.
        services: name → address of what is served.
        stopping: tells whether new work is refused.
    """

    def __init__(
        self,
        loop: Loop,
        transfers: Iterable[Transfer],
        *,
        connections: Connections,
        totals: Totals,
        services: dict[str, str],
        stopping: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._transfers = transfers
        self._connections = connections
        self._totals = totals
        self._services = services
        self._stopping = stopping

    def routes(self) -> list[Route]:
        """List the resources."""
        return [Route("/status", {"GET": self.get})]

    async def get(self, request: Request) -> Response:
        """Tell everything; sizes in bytes, times in seconds."""
        transfers = []
        for transfer in list(self._transfers):
            transfers.append(_transfer(transfer))
            await self._loop.turn()  # a thousand operations take 0.5 ms, for which nobody shall wait twice
        body = json.dumps(self._document(transfers)).encode() + b"\n"
        return Response(200, [("Content-Type", "application/json")], body)

    def _document(self, transfers: list[dict[str, Any]]) -> dict[str, Any]:
        connections, workers = self._connections, self._loop.workers
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
            "transfers": transfers,
        }

    def _requests(self) -> dict[str, dict[str, int]]:
        """Count responses by service and status."""
        result: dict[str, dict[str, int]] = {}
        for (service, status), count in sorted(self._totals.requests.items()):
            result.setdefault(service, {})[str(status)] = count
        return result


def _transfer(transfer: Transfer) -> dict[str, Any]:
    return {
        **transfer.info(),
        "finished": {kind: stats.to_json() for kind, stats in transfer.stats.operations.items()},
    }
