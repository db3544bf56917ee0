# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Image data on its way between a client and storage, in worker threads."""

from __future__ import annotations

import json
from typing import Any

from ovirt_imageio.common import imagesapi
from ovirt_imageio.common.backends.base import Backend
from ovirt_imageio.common.nbd import ServerGone

from ..errors import HttpError
from ..http.connection import Connection
from ..http.message import RequestBody, StreamedBody
from ..http.peers import WorkerPeer
from ..operations import READ, Operation
from ..transfer import Transfer

# Two NBD connections with one request in flight on each: 1.46 times the speed of one.
READ_BACKENDS = 2
_PARALLEL_FROM = 2 * 1024 * 1024  # bytes; for less a second connection brings nothing


class NoBody(StreamedBody):
    """Answer to HEAD in place of a long body: its length is all that counts."""

    def __init__(self, length: int | None) -> None:
        self.length = length

    async def send(self, connection: Connection, head: bytes) -> None:
        """Send the head, and nothing after it."""
        await connection.send(head)


class ImageBody(StreamedBody):
    """A range of an image, moved by a worker from storage to the client.

    Args:
        transfer: Of the client's ticket.
        offset: First byte.
        length: Bytes.
    """

    def __init__(self, transfer: Transfer, offset: int, length: int) -> None:
        self.length: int = length
        self._transfer = transfer
        self._offset = offset

    async def send(self, connection: Connection, head: bytes) -> None:
        """Send the range; once more on a new connection if the server was restarted."""
        with self._transfer.operation(READ, self._offset, self.length, connection) as op:
            try:
                await self._send(connection, head, op)
            except ServerGone:
                if connection.head_sent or op.done:
                    raise
                await self._send(connection, head, op)

    async def _send(self, connection: Connection, head: bytes, op: Operation) -> None:
        wish = READ_BACKENDS if self.length >= _PARALLEL_FROM else 1
        async with self._transfer.pool.borrow(op, wish=wish) as backends:
            op.waits_for(connection.interrupt)
            try:
                args = (_send_range, backends, self._offset, self.length, op)
                await connection.in_worker(*args, head=head, can_pause=True)
            finally:
                op.clear_wait()


def _send_range(peer: WorkerPeer, backends: list[Backend], offset: int, length: int, op: Operation) -> None:
    _begin(peer, op)
    try:
        backends[0].send_to(peer, offset + op.done, length - op.done, op, others=backends[1:])
    finally:
        op.network += peer.seconds


async def receive(
    transfer: Transfer, connection: Connection, body: RequestBody, op: Operation, *, limit: int, flush: bool
) -> None:
    """Write a request's body to storage.

    Args:
        transfer: Of the client's ticket.
        connection: The client's.
        body: Body to receive.
        op: It has the offset, and the length where it is known.
        limit: Most bytes of a chunked body.
        flush: Flush what was written.

    Raises:
        HttpError: 400 if a chunked body is not as long as the operation, 416 if that has no
            length and the body is longer than limit.
        PeerGone: The client ended the connection within the body.
    """
    pool = transfer.pool
    async with pool.borrow(op) as backends:
        covered = pool.begin_flush(backends[0]) if flush else None
        op.waits_for(lambda: connection.wake(read_only=True))
        try:
            if body.length is None:
                args: tuple[Any, ...] = (_receive_chunks, backends[0], op, limit, flush)
            else:
                args = (_receive_range, backends[0], op, body.length, flush)
            await connection.in_worker(*args, body=body, can_pause=backends[0].can_pause)
        finally:
            op.clear_wait()
    if covered is not None:
        await pool.finish_flush(op, covered)


def _receive_range(peer: WorkerPeer, backend: Backend, op: Operation, length: int, flush: bool) -> None:
    _begin(peer, op)
    try:
        backend.receive_from(peer, op.offset + op.done, length - op.done, op)
    finally:
        op.network += peer.seconds
    if peer.paused:
        return
    if flush:
        op.check()
        backend.flush()


def _receive_chunks(peer: WorkerPeer, backend: Backend, op: Operation, limit: int, flush: bool) -> None:
    _begin(peer, op)
    try:
        if op.done < limit:
            backend.receive_from(peer, op.offset + op.done, limit - op.done, op)
        too_long = op.done == limit and peer.recv_into(memoryview(bytearray(1)))
    finally:
        op.network += peer.seconds
    if peer.paused:
        return
    if too_long and op.length:
        raise HttpError(400, f"the body has more than {op.length} bytes, Content-Range {op.length}", close=True)
    if too_long:
        size = op.offset + limit
        raise HttpError(
            416,
            f"the body passes the end of the range at {size}",
            headers=[("Content-Range", imagesapi.unsatisfied_range(size))],
            close=True,
        )
    if op.length and op.done != op.length:
        raise HttpError(400, f"the body has {op.done} bytes, Content-Range {op.length}", close=True)
    if flush:
        op.check()
        backend.flush()


def _begin(peer: WorkerPeer, op: Operation) -> None:
    """Begin, or go on after a pause."""
    if peer.resumed:
        op.check()
    else:
        op.begin()


def to_json(document: Any) -> bytes:
    """Return a JSON document as a response body."""
    return json.dumps(document).encode() + b"\n"
