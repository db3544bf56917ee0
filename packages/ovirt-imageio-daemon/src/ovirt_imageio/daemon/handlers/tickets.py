# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Tickets, as the host's manager adds, watches and removes them: ``/tickets/{id}``."""

from __future__ import annotations

from ovirt_imageio.common import imagesapi

from .. import params
from ..auth import Tickets
from ..errors import HttpError
from ..http.message import Request, Response
from ..http.router import Route
from ..tickets import Ticket
from .bodies import to_json

DOCUMENT_LIMIT = 64 * 1024


class TicketsHandler:
    """The resources ``/tickets/{id}`` and ``/tickets/``. Loop thread only.

    Args:
        tickets: The store.
    """

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def routes(self) -> list[Route]:
        """List the resources."""
        one = {"GET": self.get, "PUT": self.put, "PATCH": self.patch, "DELETE": self.delete}
        nameless = {"GET": self.refuse, "PUT": self.refuse, "PATCH": self.refuse}
        return [
            Route("/tickets/{id}", one),
            Route("/tickets/", {**nameless, "DELETE": self.delete_all}),
        ]

    async def get(self, request: Request) -> Response:
        """Tell what is going on with a ticket."""
        document = self._tickets.get(request.params["id"]).info()
        return Response(200, [("Content-Type", imagesapi.JSON)], to_json(document))

    async def put(self, request: Request) -> Response:
        """Add a ticket, or replace it."""
        document = params.parse_object(await request.body.read(DOCUMENT_LIMIT))
        inactivity_timeout = self._tickets.cfg.daemon.inactivity_timeout
        ticket = Ticket.from_json(request.params["id"], document, inactivity_timeout=inactivity_timeout)
        await self._tickets.add(ticket)
        return Response(200)

    async def patch(self, request: Request) -> Response:
        """Let a ticket be valid for some time from now."""
        ticket_id = request.params["id"]
        self._tickets.get(ticket_id)
        document = params.parse_object(await request.body.read(DOCUMENT_LIMIT))
        self._tickets.extend(ticket_id, params.integer(document, "timeout"))
        return Response(200)

    async def delete(self, request: Request) -> Response:
        """Cancel a ticket, and remove it when it is unused."""
        await self._tickets.remove(request.params["id"])
        return Response(204)

    async def delete_all(self, request: Request) -> Response:
        """Cancel and remove all tickets."""
        await self._tickets.clear()
        return Response(204)

    async def refuse(self, request: Request) -> Response:
        """Refuse what needs a ticket's id and has none."""
        raise HttpError(400, "a ticket id is required, as in /tickets/ID")
