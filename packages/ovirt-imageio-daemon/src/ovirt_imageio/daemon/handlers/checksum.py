# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Block hashes of images: ``/images/{id}/checksum``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.backends.base import Backend

from .. import params
from ..auth import Tickets
from ..errors import HttpError
from ..http.message import Request, Response
from ..http.router import Route
from ..operations import CHECKSUM, WhileHeard
from .bodies import NoBody, to_json
from .images import usable_size

# common.checksum, which loads OpenSSL's hashes, is imported where it is used: it would be a tenth
# of the time that the daemon takes to start.
if TYPE_CHECKING:
    from ovirt_imageio.common import checksum

# Connections that read and threads that hash side by side. Hashing is what takes the time, so
# more than processors gain nothing; a few are left to others.
_PARALLEL = min(os.cpu_count() or 1, 4)

_JSON = [("Content-Type", imagesapi.JSON), ("Cache-Control", "no-store")]


class Checksum:
    """The resources ``/images/{id}/checksum`` and ``.../algorithms``. Loop thread only.

    Args:
        tickets: The store.
    """

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def routes(self) -> list[Route]:
        """List the resources."""
        return [
            Route("/images/{id}/checksum", {"GET": self.get}),
            Route("/images/{id}/checksum/algorithms", {"GET": self.algorithms}),
        ]

    async def algorithms(self, request: Request) -> Response:
        """List the algorithms; no ticket is needed."""
        from ovirt_imageio.common import checksum

        return Response(200, _JSON, to_json({"algorithms": list(checksum.algorithms())}))

    async def get(self, request: Request) -> Response:
        """Compute the block hash of the image, or of a range of blocks."""
        from ovirt_imageio.common import checksum

        transfer = self._tickets.authorize(request.params["id"], "read")
        query = request.query
        algorithm = query.get("algorithm", checksum.DEFAULT_ALGORITHM)
        block_size = params.query_integer(query, "block_size", default=checksum.DEFAULT_BLOCK_SIZE)
        offset = params.query_integer(query, "offset", default=0)
        blocks = params.query_flag(query, "blocks", default=False)
        size = await usable_size(transfer)
        length = params.query_integer(query, "length", default=max(size - offset, 0))
        try:
            checksum.check_arguments(algorithm, block_size)
            checksum.check_range(offset, length, size=size, block_size=block_size)
        except ValueError as e:
            raise HttpError(400, str(e)) from e
        if request.method == "HEAD":
            transfer.touch(request.connection)
            return Response(200, _JSON, NoBody(None))
        with transfer.operation(CHECKSUM, offset, length, request.connection) as op:
            async with transfer.pool.borrow(op, wish=_PARALLEL) as backends:
                heard = WhileHeard(op, request.connection.hung_up)
                args = (backends, heard, offset, length, size, algorithm, block_size, blocks)
                result = await request.connection.loop.worker(_compute, *args)
        return Response(200, _JSON, to_json(_document(result)))


def _compute(
    backends: Sequence[Backend],
    op: WhileHeard,
    offset: int,
    length: int,
    size: int,
    algorithm: str,
    block_size: int,
    blocks: bool,
) -> checksum.ChecksumResult:
    from ovirt_imageio.common import checksum

    op.check()
    extents: Any = backends[0].extents("zero", offset=offset, length=length, op=op)
    return checksum.checksum(
        backends,
        length,
        extents=extents,
        op=op,
        offset=offset,
        algorithm=algorithm,
        block_size=block_size,
        blocks=blocks,
        size=size,
    )


def _document(result: checksum.ChecksumResult) -> dict[str, Any]:
    document: dict[str, Any] = {
        "algorithm": result.algorithm,
        "block_size": result.block_size,
        "checksum": result.checksum,
    }
    if result.blocks is not None:
        document["blocks"] = list(result.blocks)
    return document
