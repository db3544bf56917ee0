# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Extents of an image, be they data, zero or changed: ``/images/{id}/extents``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import Any

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.errors import UnsupportedOperation
from ovirt_imageio.common.extents import Extent, ZeroExtent

from .. import params
from ..auth import Tickets
from ..errors import HttpError
from ..http.connection import Connection
from ..http.loop import Loop
from ..http.message import Request, Response, StreamedBody
from ..http.router import Route
from ..operations import EXTENTS, Operation, WhileHeard
from ..transfer import Transfer
from .images import usable_size

# Extents formatted at a time: few at first, that the client has something soon.
_FIRST_BATCH = 256
_BATCH = 4096

_NO_DIRTY = "the storage has no dirty extents: "
_LONGEST_REASON = 500  # characters of what an origin says


class Extents:
    """The resource ``/images/{id}/extents``. Loop thread only.

    Args:
        tickets: The store.
    """

    def __init__(self, tickets: Tickets) -> None:
        self._tickets = tickets

    def routes(self) -> list[Route]:
        """List the resources."""
        return [Route("/images/{id}/extents", {"GET": self.get})]

    async def get(self, request: Request) -> Response:
        """Send the extents as a JSON list, as storage tells them."""
        transfer = self._tickets.authorize(request.params["id"], "read")
        context = params.query_choice(request.query, "context", imagesapi.CONTEXTS, imagesapi.CONTEXT_ZERO)
        storage = transfer.pool.storage or await transfer.open_storage()
        if context == imagesapi.CONTEXT_DIRTY:
            if not transfer.ticket.dirty:
                raise HttpError(404, "the ticket does not allow dirty extents")
            if not storage.capabilities.can_dirty:
                raise HttpError(404, _NO_DIRTY + storage.no_dirty_reason)
        size = await usable_size(transfer)
        transfer.touch(request.connection)
        fields = [("Content-Type", imagesapi.JSON), ("Cache-Control", "no-store")]
        return Response(200, fields, _ExtentsBody(transfer, context, size))


class _ExtentsBody(StreamedBody):
    """A JSON list that is written while storage is asked; a few thousand extents are in memory."""

    length = None

    def __init__(self, transfer: Transfer, context: str, size: int) -> None:
        self._transfer = transfer
        self._context = context
        self._size = size

    async def send(self, connection: Connection, head: bytes) -> None:
        """Send the list in chunks."""
        with self._transfer.operation(EXTENTS, 0, self._size, connection) as op:
            await connection.chunks_out(self._pieces(connection, op), head=head)

    async def _pieces(self, connection: Connection, op: Operation) -> AsyncIterator[bytes]:
        loop = connection.loop
        if not self._size:
            yield b"[]\n"
            return
        heard = WhileHeard(op, connection.hung_up)
        async with self._transfer.pool.borrow(op) as backends:
            extents = await self._open(loop, backends[0], heard)
            piece, count, start = b"[", _FIRST_BATCH, b""
            while True:
                heard.check()
                text = await loop.worker(_format, extents, count)
                if not text:
                    break
                piece += start + text
                # Until now the client can be told why; from now on it may be what we wait for.
                op.waits_for(connection.interrupt)
                yield piece
                piece, count, start = b"", _BATCH, b", "
        yield piece + b"]\n"

    async def _open(self, loop: Loop, backend: Backend, op: WhileHeard) -> Iterator[Extent]:
        try:
            return await loop.worker(_first, backend, self._context, self._size, op)
        except UnsupportedOperation as e:
            if self._context == imagesapi.CONTEXT_DIRTY:
                said = " ".join((e.text or str(e)).split())[:_LONGEST_REASON]
                # An origin says it in the same words.
                raise HttpError(404, _NO_DIRTY + said.removeprefix(_NO_DIRTY)) from e
            raise


def _first(backend: Backend, context: str, size: int, op: WhileHeard) -> Iterator[Extent]:
    return iter(backend.extents(context, offset=0, length=size, op=op))


def _format(extents: Iterator[Extent], count: int) -> bytes:
    """Write the next extents, without the brackets; nothing at the end."""
    batch = list(islice(extents, count))
    if not batch:
        return b""
    # Ten times as fast as json.dumps of dictionaries, which a million extents feel.
    texts = _ZERO_TEXTS if isinstance(batch[0], ZeroExtent) else _DIRTY_TEXTS
    parts: Any = batch
    written = [f'{{"start": {start}, "length": {length}, {texts[a][b]}' for start, length, a, b in parts]
    return ", ".join(written).encode()


def _flag_texts(first: str, second: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return the four ends of an extent's JSON, by its two flags."""

    def text(a: str, b: str) -> str:
        return f'"{first}": {a}, "{second}": {b}}}'

    no, yes = "false", "true"
    return (text(no, no), text(no, yes)), (text(yes, no), text(yes, yes))


_ZERO_TEXTS = _flag_texts("zero", "hole")
_DIRTY_TEXTS = _flag_texts("dirty", "zero")
