# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams between an NBD server and a plain socket that never enter our memory.

    send      NBD socket ──► pipe ──► peer     replies come one after another; each
                                               chunk of payload is moved as it comes
    receive   peer ──► pipe ──► NBD socket     a write request is sent when its payload
                                               is in the pipe: a peer that vanishes
                                               never leaves a half-sent request

A pipe is full when its slots are: many small packets fill 256 of them long before
1 MiB. So the room is checked before each splice, and the length of a write is what the pipe
holds. See splice(2), pipe(7).
"""

from __future__ import annotations

import time
from typing import Sequence

from ovirt_imageio.common import defaults, sockets
from ovirt_imageio.common.backends.base import Operation, Peer, note_wait
from ovirt_imageio.common.backends.inflight import Reads, Writes, piece_size
from ovirt_imageio.common.backends.pausing import is_paused, note_silence, put_back
from ovirt_imageio.common.errors import ImageioError, PeerGone, RequestError
from ovirt_imageio.common.linux import Pipe, splice
from ovirt_imageio.common.nbd import Client, wire
from ovirt_imageio.common.nbd.replies import Event, Request

_ZEROS = memoryview(bytes(defaults.PIECE))


def send(clients: Sequence[Client], pipe: Pipe, peer: Peer, offset: int, length: int, op: Operation) -> None:
    """Send a range to a peer that has a `splice_fd`.

    Args:
        clients: connections to the same export.
        pipe: empty, and left empty unless this raises.
        peer: where to send.
        offset: start of the range in bytes, a multiple of the minimum block.
        length: in bytes, a multiple of the minimum block.
        op: told of each piece sent.

    Raises:
        OperationCancelled, PeerGone, PeerTimeout, RequestError, ProtocolError.
    """
    alone = len(clients) == 1
    with Reads(clients, offset, length, op) as reads:
        while reads:
            op.check()
            client, request = reads.pop()
            try:
                _deliver(client, request, pipe, peer, reads if alone else None)
            except RequestError:
                raise
            except BaseException as e:
                client.fail(ImageioError(f"a read was abandoned: {e}"))
                raise
            op.advance(request.length)
            if is_paused(peer):
                reads.drop()
            elif not alone:
                reads.submit(client)


def receive(clients: Sequence[Client], pipe: Pipe, peer: Peer, offset: int, length: int, op: Operation) -> int:
    """Receive a range from a peer that has a `splice_fd`; return when all of it is acknowledged.

    Args:
        clients: connections to the same export.
        pipe: empty, and left empty unless this raises.
        peer: where to receive from.
        offset: start of the range in bytes, a multiple of the minimum block.
        length: in bytes, a multiple of the minimum block, or up to the end of the export.
        op: told of each piece acknowledged.

    Returns:
        Bytes received: fewer than length if the peer is paused.

    Raises:
        OperationCancelled, PeerGone, PeerTimeout, RequestError, ProtocolError.
    """
    block = clients[0].export.minimum_block
    size = piece_size(clients[0])
    start, end = offset, offset + length
    # Bytes at hand: those that were read from the socket before, then the content of the pipe.
    first, held = b"", 0
    with Writes(clients, op) as writes:
        while offset < end:
            want = min(size, end - offset)
            first = first or peer.take(want)
            held = fill(pipe, peer, held, want - len(first))
            count = len(first) + held
            if count < end - offset:  # the last block of an export may be short
                count -= count % block
            if not count and is_paused(peer):
                put_back(peer, first + pipe.read(held))
                break
            if not count:
                first, held = _gather(pipe, peer, first, held, min(block, end - offset)), 0
                continue
            client = writes.next_client()
            head, first = first[:count], first[count:]
            writes.add(client, client.send(wire.CMD_WRITE, offset, count, payload=head))
            _pour(pipe, client, count - len(head))
            held -= count - len(head)
            offset += count
            op.check()
    return offset - start


def fill(pipe: Pipe, peer: Peer, held: int, want: int) -> int:
    """Splice from a peer until the pipe holds that much or takes no more.

    Args:
        pipe: holds ``held`` bytes.
        peer: where to receive from; it has a `splice_fd`.
        held: bytes in the pipe.
        want: bytes that it should hold.

    Returns:
        Bytes in the pipe, at least one if any were wanted and the peer is not paused.

    Raises:
        PeerGone: the stream ended before.
        PeerTimeout: the peer sent nothing for too long.
    """
    source = peer.splice_fd
    assert source is not None
    spent, got, was_silent = 0.0, 0, False
    while held < want and (not held or pipe.has_room()) and not is_paused(peer):
        began = time.monotonic()
        try:
            count = splice(source, pipe.write_fd, want - held)
        except BlockingIOError:
            note_silence(peer, began, receiving=True)
            was_silent = True
            continue
        except OSError as e:
            raise _lost(e) from e
        if not count:
            raise PeerGone(f"the client closed the connection {want - held} bytes before the end of a piece")
        held += count
        got += count
        spent += time.monotonic() - began
        if was_silent:  # the peer counts for how long
            note_wait(peer, spent, received=got)
            spent, got, was_silent = 0.0, 0, False
    if got:
        note_wait(peer, spent, received=got)
    return held


def drain(pipe: Pipe, peer: Peer, held: int) -> None:
    """Splice to a peer what the pipe holds. One that is paused is given it to keep.

    Args:
        pipe: holds ``held`` bytes; it is left empty unless this raises.
        peer: where to send; it has a `splice_fd`.
        held: bytes in the pipe.

    Raises:
        PeerGone: the peer went away.
        PeerTimeout: the peer took nothing for too long.
    """
    target = peer.splice_fd
    assert target is not None
    spent, sent, was_silent = 0.0, 0, False
    while held:
        began = time.monotonic()
        try:
            count = splice(pipe.read_fd, target, held)
        except BlockingIOError:
            note_silence(peer, began, receiving=False)
            if is_paused(peer):
                peer.send_all(pipe.read(held))
                break
            was_silent = True
            continue
        except OSError as e:
            raise _lost(e) from e
        held -= count
        sent += count
        spent += time.monotonic() - began
        if was_silent:
            note_wait(peer, spent, sent=sent)
            spent, sent, was_silent = 0.0, 0, False
    if sent:
        note_wait(peer, spent, sent=sent)


def _deliver(client: Client, request: Request, pipe: Pipe, peer: Peer, reads: Reads | None) -> None:
    """Move the content of one read to the peer, in the order of the image."""
    position = request.offset
    done = False
    while not done:
        event = client.receive()
        done = event.done
        if done and request.error is not None:
            raise request.error
        if done and reads is not None:
            # The server works on the next one while we move this.
            reads.submit(client)
        if not event.length:
            continue
        if event.offset != position:
            _deliver_sorted(client, event, position, peer)
            return
        peer.begin()
        if event.payload:
            _splice_payload(client, event.length, pipe, peer)
        else:
            _send_zeros(peer, event.length)
        position += event.length


def _deliver_sorted(client: Client, event: Event, position: int, peer: Peer) -> None:
    """The server sends chunks out of order, as it may: collect the rest."""
    request = event.request
    client.take(event)
    client.finish(request)
    peer.begin()
    peer.send_all(request.data[position - request.offset :])


def _splice_payload(client: Client, length: int, pipe: Pipe, peer: Peer) -> None:
    source = client.sock.fileno()
    while length:
        if is_paused(peer):
            peer.send_all(_receive(client, length))
            return
        try:
            held = splice(source, pipe.write_fd, length)
        except OSError as e:
            client.give_up(e)
        if not held:
            client.give_up(PeerGone(f"{length} bytes before the end of a reply"))
        length -= held
        drain(pipe, peer, held)


def _receive(client: Client, length: int) -> bytearray:
    """Take the rest of a reply's payload into memory."""
    data = bytearray(length)
    try:
        sockets.recv_exactly(client.sock, memoryview(data))
    except BaseException as e:
        client.give_up(e)
    return data


def _send_zeros(peer: Peer, length: int) -> None:
    while length:
        count = min(length, len(_ZEROS))
        peer.send_all(_ZEROS[:count])
        length -= count


def _pour(pipe: Pipe, client: Client, count: int) -> None:
    """Move payload from the pipe to the server."""
    target = client.sock.fileno()
    try:
        while count:
            count -= splice(pipe.read_fd, target, count)
    except BaseException as e:
        client.give_up(e)


def _gather(pipe: Pipe, peer: Peer, first: bytes, held: int, want: int) -> bytes:
    """The slots of the pipe are full of less than a block: complete it in memory."""
    data = bytearray(first) + pipe.read(held)
    done = len(data)
    data += bytes(want - done)
    with memoryview(data) as view:
        while done < want:
            count = peer.recv_into(view[done:])
            if not count:  # paused
                break
            done += count
    return bytes(data[:done])


def _lost(error: OSError) -> ImageioError:
    return PeerGone(f"lost the connection of the client: {error}")
