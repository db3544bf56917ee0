# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The daemon's version: ``/info/``."""

from __future__ import annotations

from ovirt_imageio.common import imagesapi

from ..http.message import Request, Response
from ..http.router import Route
from ..version import __version__
from .bodies import to_json


class Info:
    """The resource ``/info/``."""

    def routes(self) -> list[Route]:
        """List the resources."""
        return [Route("/info/", {"GET": self.get})]

    async def get(self, request: Request) -> Response:
        """Tell the version."""
        return Response(200, [("Content-Type", imagesapi.JSON)], to_json({"version": __version__}))
