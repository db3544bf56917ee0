# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams between an NBD server and a peer, through memory.

For peers that splice cannot serve: TLS, TCP, chunked bodies, or no pipe left. While one
piece is sent to the peer, or awaited from it, the server works on others.
"""

from __future__ import annotations

from typing import Callable, Sequence

from ovirt_imageio.common.backends.base import Operation, Peer, fill_from, pieces
from ovirt_imageio.common.backends.inflight import Reads, Writes, piece_size
from ovirt_imageio.common.backends.pausing import is_paused
from ovirt_imageio.common.nbd import Client


def send(clients: Sequence[Client], view: memoryview, peer: Peer, offset: int, length: int, op: Operation) -> None:
    """Send a range to a peer.

    Args:
        clients: connections to the same export.
        view: buffer of at least one piece.
        peer: where to send.
        offset: start of the range in bytes, a multiple of the minimum block.
        length: in bytes, a multiple of the minimum block.
        op: told of each piece sent.

    Raises:
        OperationCancelled, PeerGone, RequestError, ProtocolError.
    """
    with Reads(clients, offset, length, op) as reads:
        while reads:
            op.check()
            client, request = reads.pop()
            part = view[: request.length]
            client.finish_read(request, part)
            reads.submit(client)
            peer.begin()
            peer.send_all(part)
            op.advance(len(part))
            if is_paused(peer):
                reads.drop()


def receive(
    clients: Sequence[Client],
    view: memoryview,
    peer: Peer,
    offset: int,
    length: int,
    op: Operation,
    *,
    write_odd: Callable[[int, memoryview], None],
) -> int:
    """Receive a range from a peer; return when all of it is acknowledged.

    Args:
        clients: connections to the same export.
        view: buffer of at least one piece.
        peer: where to receive from.
        offset: start of the range in bytes, a multiple of the minimum block.
        length: in bytes, a multiple of the minimum block.
        op: told of each piece acknowledged.
        write_odd: writes the end of a body that ended inside a block.

    Returns:
        Bytes received: fewer than length if the body ended before.

    Raises:
        OperationCancelled, PeerGone, RequestError, ProtocolError.
    """
    block = clients[0].export.minimum_block
    done = 0
    odd = view[:0]
    with Writes(clients, op) as writes:
        for start, count in pieces(offset, length, piece_size(clients[0])):
            got = fill_from(peer, view[:count])
            op.check()
            whole = got if got == count else got - got % block
            if whole:
                client = writes.next_client()
                writes.add(client, client.start_write(start, view[:whole]))
            done += got
            if got < count:
                odd = view[whole:got]
                break
    if odd:
        write_odd(offset + done - len(odd), odd)
        op.advance(len(odd))
    return done
