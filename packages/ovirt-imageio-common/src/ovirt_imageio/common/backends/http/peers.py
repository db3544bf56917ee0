# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Both ends of a streamed body as the `Peer` that a local backend moves bytes to or from."""

from __future__ import annotations

from ovirt_imageio.common.backends.base import Operation, Peer
from ovirt_imageio.common.buffers import Buffer, borrow
from ovirt_imageio.common.errors import PeerGone

from .exchange import Exchange
from .streams import Stream


class UploadPeer:
    """The server, while it is sent a request's body.

    Args:
        stream: The connection; the head was sent.

    Attributes:
        splice_fd: See `common.backends.base.Peer`.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.splice_fd = stream.splice_fd

    def begin(self) -> None:
        """Do nothing: the head of a request needs no payload first."""

    def send_all(self, data: Buffer) -> None:
        """Send all of data.

        Raises:
            PeerGone: The connection broke, or the server has answered already.
            ConnectionTimeout: The server takes nothing.
        """
        self._stream.sendall(data)

    def take(self, limit: int) -> bytes:
        """Return nothing: there is nothing to receive."""
        return b""

    def recv_into(self, view: memoryview) -> int:
        """Return 0: there is nothing to receive."""
        return 0


class DownloadPeer:
    """The server, while it sends a response's body.

    Args:
        body: Its length is known.

    Attributes:
        splice_fd: See `common.backends.base.Peer`.
    """

    def __init__(self, body: Exchange) -> None:
        self._body = body
        self.splice_fd = body.connection.stream.splice_fd

    def begin(self) -> None:
        """Do nothing: nothing is sent."""

    def send_all(self, data: Buffer) -> None:
        """Refuse: nothing can be sent."""
        raise PeerGone("the server expects no data while it answers")

    def take(self, limit: int) -> bytes:
        """Return what was received together with the head, at most limit bytes."""
        if not self._body.left:
            return b""
        data = self._body.reader.take(min(limit, self._body.left))
        if data:
            self._body.took(len(data))
        return data

    def peek(self, limit: int) -> bytes:
        """Return what comes next, and leave it there: 1 to limit bytes, none at the end.

        Only of a plain connection, one that has a `splice_fd`.

        Raises:
            ServerGone: The connection broke.
            ConnectionTimeout: The server sends nothing.
        """
        left = self._body.left
        return self._body.reader.peek(min(limit, left)) if left else b""

    def recv_into(self, view: memoryview) -> int:
        """Receive at least one byte, 0 at the end.

        Raises:
            ServerGone: The body ended too early.
            ConnectionTimeout: The server sends nothing.
        """
        return self._body.receive(view)


class Watched:
    """An operation that ends as well when the server answers before it has the body.

    Args:
        op: The operation that is watched.
        stream: Where the answer would come.
    """

    def __init__(self, op: Operation, stream: Stream) -> None:
        self._op = op
        self._stream = stream

    def advance(self, n: int) -> None:
        """Pass it on."""
        self._op.advance(n)

    def check(self) -> None:
        """Pass it on, and look for an answer.

        Raises:
            PeerGone: There is one.
        """
        self._op.check()
        if self._stream.answered():
            raise PeerGone("the server answered before it had the body")


def relay(peer: Peer, stream: Stream, length: int, op: Operation, size: int) -> None:
    """Send a peer's bytes to the server.

    Args:
        peer: Where they come from.
        stream: Where they go.
        length: How many.
        op: Asked between pieces if to go on.
        size: Bytes of the buffer between the two.

    Raises:
        PeerGone: The peer ended before, or the server answered already.
        OperationCancelled: op said so.
    """
    watched = Watched(op, stream)
    with borrow(min(length, size)) as view:
        while length:
            watched.check()
            piece = view[: min(length, len(view))]
            first = peer.take(len(piece))
            piece[: len(first)] = first
            count = len(first) or peer.recv_into(piece)
            if not count:
                raise PeerGone(f"the body ended {length} bytes before its end")
            stream.sendall(piece[:count])
            length -= count
