# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of a backend's stream, and operations that note what they are told."""

from __future__ import annotations

import socket
import threading
from typing import Callable, Iterable

from ovirt_imageio.common import sockets
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import ConnectionTimeout, OperationCancelled, PeerGone

TIMEOUT = 10.0


class SocketPeer:
    """A peer on a socket, as the daemon's are: with the kernel's time limits.

    Args:
        sock: Blocking socket.
        splice: Let backends splice.
        taken: Payload that was read from the socket before.

    Attributes:
        begun: How often `begin` was called.
        began_first: No payload came before `begin`.
    """

    def __init__(self, sock: socket.socket, *, splice: bool, taken: bytes = b"") -> None:
        sockets.set_timeouts(sock, TIMEOUT)
        self._sock = sock
        self._splice = splice
        self._taken = taken
        self.begun = 0
        self.began_first = True

    @property
    def splice_fd(self) -> int | None:
        """See Peer."""
        return self._sock.fileno() if self._splice else None

    def begin(self) -> None:
        """See Peer."""
        self.begun += 1

    def send_all(self, data: Buffer) -> None:
        """See Peer."""
        self.began_first = self.began_first and self.begun > 0
        try:
            self._sock.sendall(data)
        except BlockingIOError as e:
            raise ConnectionTimeout("the reader takes nothing") from e
        except OSError as e:
            raise PeerGone(str(e)) from e

    def take(self, limit: int) -> bytes:
        """See Peer."""
        data, self._taken = self._taken[:limit], self._taken[limit:]
        return data

    def recv_into(self, view: memoryview) -> int:
        """See Peer."""
        try:
            count = self._sock.recv_into(view)
        except BlockingIOError as e:
            raise ConnectionTimeout("the writer sends nothing") from e
        except OSError as e:
            raise PeerGone(str(e)) from e
        if not count:
            raise PeerGone("the writer went away")
        return count


class PausingPeer(SocketPeer):
    """A peer that is paused as soon as its socket is not ready for a moment.

    Attributes:
        paused: See `ovirt_imageio.common.backends.pausing`; to be reset by the caller that goes on.
        unsent: Bytes that were to be sent when it was paused.
    """

    def __init__(self, sock: socket.socket, *, splice: bool) -> None:
        super().__init__(sock, splice=splice)
        sockets.set_timeouts(sock, 0.02)
        self.paused = False
        self.unsent = b""

    def silent(self, seconds: float, receiving: bool) -> None:
        """Pause."""
        self.paused = True

    def put_back(self, data: bytes) -> None:
        """Keep what was received and not used."""
        self._taken = data + self._taken

    def send_all(self, data: Buffer) -> None:
        """Send data, and keep what is not taken."""
        view = memoryview(data)
        while view and not self.paused:
            try:
                view = view[self._sock.send(view) :]
            except BlockingIOError:
                self.paused = True
        self.unsent += view

    def recv_into(self, view: memoryview) -> int:
        """Receive; 0 if nothing comes."""
        try:
            return 0 if self.paused else self._sock.recv_into(view)
        except BlockingIOError:
            self.paused = True
            return 0


class Count:
    """An operation that counts, and is cancelled at some point.

    Args:
        limit: Cancelled after so many bytes.
        checks: Cancelled when it is asked so often.

    Attributes:
        done: Bytes counted.
    """

    def __init__(self, limit: int | None = None, *, checks: int | None = None) -> None:
        self.done = 0
        self._limit = limit
        self._checks = checks

    def advance(self, n: int) -> None:
        """See Operation."""
        self.done += n

    def check(self) -> None:
        """See Operation."""
        if self._limit is not None and self.done >= self._limit:
            raise OperationCancelled("enough")
        if self._checks is not None:
            self._checks -= 1
            if self._checks <= 0:
                raise OperationCancelled("asked often enough")


def received(call: Callable[[socket.socket], object]) -> bytes:
    """Return what `call` sends to the socket that it is given."""
    result = bytearray()

    def collect(sock: socket.socket) -> None:
        while data := sock.recv(1 << 20):
            result.extend(data)

    _beside(collect, call)
    return bytes(result)


def sending(pieces: Iterable[bytes], call: Callable[[socket.socket], object]) -> None:
    """Run `call` with a socket to which these pieces are sent, before it is closed."""

    def send(sock: socket.socket) -> None:
        try:
            for piece in pieces:
                sock.sendall(piece)
        except ConnectionError:
            pass  # call has seen enough

    _beside(send, call)


def _beside(other: Callable[[socket.socket], None], call: Callable[[socket.socket], object]) -> None:
    """Run `call` here and `other` in a thread, each with one end of a connection."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(TIMEOUT)

    def run() -> None:
        with theirs:
            other(theirs)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with ours:
            call(ours)
    finally:
        thread.join()
