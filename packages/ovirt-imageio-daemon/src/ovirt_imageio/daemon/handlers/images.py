# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Image data: OPTIONS, GET, PUT and PATCH of ``/images/{id}``."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Tuple

from ovirt_imageio.common import imagesapi

from .. import params
from ..auth import Tickets
from ..config import Config
from ..errors import HttpError
from ..http.connection import Connection
from ..http.message import LOCAL, REMOTE, Request, Response
from ..http.ranges import parse_content_range, parse_range
from ..http.router import Route
from ..operations import FLUSH, READ, WRITE, ZERO
from ..pool import Storage
from ..transfer import Transfer
from .bodies import ImageBody, NoBody, receive, to_json

_DOCUMENT_LIMIT = 64 * 1024
_JSON = ("Content-Type", imagesapi.JSON)
# Of the registry of HTTP content codings. A word that is no coding, such as utf-8, has no effect.
_CODINGS = frozenset(("br", "compress", "deflate", "gzip", "x-compress", "x-gzip", "zstd"))
_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z").match

Fields = Tuple[Tuple[str, str], ...]


class Images:
    """The resource ``/images/{id}``. Loop thread only.

    Args:
        tickets: The store.
        cfg: The configuration.
        unix_socket: Returns the address of the local service, None while it is disabled.
    """

    def __init__(
        self,
        tickets: Tickets,
        cfg: Config,
        *,
        unix_socket: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._tickets = tickets
        self._inline_limit = cfg.daemon.inline_limit
        self._quick_reads = cfg.daemon.quick_reads
        self._unix_socket = unix_socket
        self._secret = os.urandom(32)
        self._has_tls = cfg.tls.enable

    def routes(self) -> list[Route]:
        """List the resources."""
        methods = {"OPTIONS": self.options, "GET": self.get, "PUT": self.put, "PATCH": self.patch}
        return [Route("/images/{id}", methods)]

    async def options(self, request: Request) -> Response:
        """Tell what may be done with an image, or with ``*`` what the server can do."""
        ticket_id = request.params["id"]
        features = [*imagesapi.READ_FEATURES]
        document: dict[str, Any] = {"features": features}
        address = self._unix_socket()
        if address is not None:
            document["unix_socket"] = address
            if request.service == REMOTE and self._has_tls:
                # Without TLS a key would be no secret.
                document["unix_socket_proof"] = self._make_key()
        writable = True
        if ticket_id != "*":
            transfer = self._tickets.authorize(ticket_id, "read")
            transfer.touch(request.connection)
            storage = transfer.pool.storage or await transfer.open_storage()
            document["max_readers"] = storage.capabilities.max_readers
            document["max_writers"] = storage.capabilities.max_writers
            writable = transfer.ticket.writable and not storage.capabilities.read_only
            if writable:
                document["max_size"] = writable_size(transfer, storage)
        if writable:
            features += imagesapi.WRITE_FEATURES
        allow = "OPTIONS,GET,PUT,PATCH" if writable else "OPTIONS,GET"
        return Response(200, [("Allow", allow), _JSON, *self._proof(request)], to_json(document))

    def _make_key(self) -> dict[str, str]:
        from ovirt_imageio.common import sameserver  # OpenSSL's hashes take a tenth of the start

        return sameserver.make_key(self._secret, os.urandom(sameserver.SIZE))._asdict()

    def _proof(self, request: Request) -> Iterator[tuple[str, str]]:
        """Answer a challenge at the local service; the remote one would answer for programs far away."""
        challenge = request.headers.get(imagesapi.CHALLENGE.lower())
        if challenge is None:
            return
        from ovirt_imageio.common import sameserver

        try:
            proof = sameserver.answer(self._secret, challenge)
        except ValueError as e:
            raise HttpError(400, f"invalid {imagesapi.CHALLENGE}: {e}") from e
        if request.service == LOCAL:
            yield imagesapi.PROOF, proof

    async def get(self, request: Request) -> Response:
        """Send the image or a range of it."""
        transfer = self._tickets.authorize(request.params["id"], "read")
        offset, status, headers = 0, 200, request.headers
        length = size = await usable_size(transfer)
        fields: list[tuple[str, str]] = []
        text = headers.get("range")
        # A precondition that can never hold, for there are no validators: RFC 9110 §13.1.5.
        if text is not None and "if-range" not in headers:
            found = parse_range(text, size)
            if found is not None:
                offset, length = found
                status = 206
                fields.append(("Content-Range", f"bytes {offset}-{offset + length - 1}/{size}"))
        fields += download_fields(transfer.ticket.filename)
        if request.method == "HEAD":
            transfer.touch(request.connection)
            return Response(status, fields, NoBody(length))
        if length > self._inline_limit:
            return Response(status, fields, ImageBody(transfer, offset, length))
        with transfer.operation(READ, offset, length, request.connection) as op:
            data = await transfer.pool.read(op, offset, length) if length else b""
            op.check()
            op.done = length
        reread = functools.partial(self._reread, transfer, size) if self._quick_reads else None
        return Response(status, fields, data, reread=reread)

    async def _reread(
        self, transfer: Transfer, size: int, connection: Connection, offset: int, length: int
    ) -> bytes | bytearray | None:
        """Read another small range for a request that was served before, when the image had `size`; see `Reread`."""
        pool = transfer.pool
        if not 0 < length <= self._inline_limit or offset + length > size:
            return None
        if size != await usable_size(transfer) or not self._tickets.grants(transfer, "read"):
            return None
        with transfer.operation(READ, offset, length, connection) as op:
            data = await pool.read(op, offset, length)
            op.check()
            op.done = length
        return data

    async def put(self, request: Request) -> Response:
        """Write the body to the image, from the offset that Content-Range tells."""
        transfer = self._tickets.authorize(request.params["id"], "write")
        flush = params.query_flag(request.query, "flush", default=True)
        body, headers = request.body, request.headers
        check_coding(headers.get("content-encoding", ""))
        storage = await writable_storage(transfer)
        size = writable_size(transfer, storage)
        length = body.length
        if length == 0 and "content-length" not in headers:
            raise HttpError(411, "Content-Length or Transfer-Encoding is required")
        offset, text = 0, headers.get("content-range")
        if text is not None:
            offset, length = parse_content_range(text, length)
        check_range(offset, length or 0, size)
        with transfer.operation(WRITE, offset, length or 0, request.connection) as op:
            if body.length is None:
                limit = size - offset if length is None else length
                await receive(transfer, request.connection, body, op, limit=limit, flush=flush)
            elif body.length > self._inline_limit:
                await receive(transfer, request.connection, body, op, limit=body.length, flush=flush)
            elif body.length:
                op.waits_for(lambda: request.connection.wake(read_only=True))
                data = await body.read(self._inline_limit)
                op.clear_wait()
                op.check()
                await transfer.pool.write(op, offset, data, flush=flush)
            elif flush:
                await transfer.pool.flush(op)
        return _acknowledgement(transfer)

    async def patch(self, request: Request) -> Response:
        """Zero a range or flush the image."""
        transfer = self._tickets.authorize(request.params["id"], "write")
        document = params.parse_object(await request.body.read(_DOCUMENT_LIMIT))
        what = params.choice(document, "op", (imagesapi.OP_ZERO, imagesapi.OP_FLUSH))
        if what == imagesapi.OP_FLUSH:
            # Clients of 2.x end each transfer so, also where the storage can only be read.
            if transfer.pool.storage is None:
                await transfer.open_storage()
            with transfer.operation(FLUSH, 0, 0, request.connection) as op:
                await transfer.pool.flush(op)
            return _acknowledgement(transfer)
        storage = await writable_storage(transfer)
        length = params.integer(document, "size")
        offset = params.integer(document, "offset", default=0)
        flush = params.boolean(document, "flush")
        check_range(offset, length, writable_size(transfer, storage))
        with transfer.operation(ZERO, offset, length, request.connection) as op:
            if length:
                await transfer.pool.zero(op, offset, length, flush=flush)
            elif flush:
                await transfer.pool.flush(op)
        return _acknowledgement(transfer)


def _acknowledgement(transfer: Transfer) -> Response:
    """Answer a change, and tell what has to answer a flush that covers it."""
    return Response(200, [(imagesapi.INSTANCE, transfer.pool.instance)])


async def usable_size(transfer: Transfer) -> int:
    """Return how many bytes of the image a client may see: granted, and there by now.

    Storage is opened if need be, and asked again where it has less than was granted and may have got more.

    Raises:
        Exception: The storage cannot be opened.
    """
    storage = transfer.pool.storage or await transfer.open_storage()
    granted = transfer.ticket.size
    if storage.size < granted and storage.may_grow:
        storage = await transfer.pool.measure()
    return min(granted, storage.size)


def writable_size(transfer: Transfer, storage: Storage) -> int:
    """Return up to which byte a client may write: granted, and there or to be added."""
    return min(transfer.ticket.size, storage.max_size)


async def writable_storage(transfer: Transfer) -> Storage:
    """Return the storage of a ticket that allows writing.

    Raises:
        HttpError: 403 if the storage does not.
    """
    storage = transfer.pool.storage or await transfer.open_storage()
    if storage.capabilities.read_only:
        raise HttpError(403, "the storage can only be read")
    return storage


def check_coding(text: str) -> None:
    """Raise if a body is compressed: an image is written as it comes.

    Raises:
        HttpError: 415 (RFC 9110 §8.4, §15.5.16).
    """
    for coding in text.split(","):
        if coding.strip().lower() in _CODINGS:
            raise HttpError(
                415,
                f"the body has the content coding {coding.strip()!r}, expected the bytes of the image",
                headers=[("Accept-Encoding", "identity")],
            )


def check_range(offset: int, length: int, size: int) -> None:
    """Raise unless a range lies within the image.

    Raises:
        HttpError: 416.
    """
    if offset + length > size:
        raise HttpError(
            416,
            f"{length} bytes at {offset} pass the end of the image of {size} bytes",
            headers=[("Content-Range", imagesapi.unsatisfied_range(size))],
        )


@functools.lru_cache(maxsize=256)
def download_fields(filename: str | None) -> Fields:
    """Return the fields that all responses with image data carry."""
    return (
        ("Content-Type", imagesapi.OCTET_STREAM),
        ("Content-Disposition", content_disposition(filename)),
        ("Accept-Ranges", "bytes"),
        ("Cache-Control", "no-store"),
    )


def content_disposition(filename: str | None) -> str:
    """Return the value that makes a browser save an image under a name (RFC 6266).

    Args:
        filename: Any text at all; None leaves the name to the browser.
    """
    if not filename:
        return "attachment"
    if _is_token(filename):
        return f"attachment; filename={filename}"
    plain = "".join(c if " " <= c <= "~" else "_" for c in filename)
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    value = f'attachment; filename="{quoted}"'
    if plain != filename:
        from urllib.parse import quote  # 3 ms, and rarely needed

        value += f"; filename*=UTF-8''{quote(filename, safe='', errors='replace')}"
    return value
