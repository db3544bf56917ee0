# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Throwing away what a client still sends that was answered already.

Closing a socket with unread data resets the connection, and the answer may be lost. So what comes is
received and dropped, to a bound in bytes and time.

A few such clients are served as they send: whoever was refused shall learn it soon. A crowd of them
would keep the loop busy with bytes that nobody wants. So of many nobody is listened to: two at a time
are looked at, in turn, and the next two some milliseconds later. Meanwhile the others wait in
the kernel, whose buffers are full, and cost nothing, whatever they do::

    loop   ──normal──drop─drop────normal─normal────────drop─drop──normal──
                    │◄────────────── PERIOD ──────────►│

Bytes that TCP has received are dropped in the kernel (MSG_TRUNC, see tcp(7)); Unix sockets have to be read.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection
    from .loop import Loop, Token

TIME = 10.0
"""Seconds that a client may take to read its answer."""
SILENCE = 2.0
"""Seconds that it may send nothing."""
BYTES = 128 * 1024 * 1024
"""Most bytes that are thrown away: the longest piece that our client and browsers send."""
FEW = 32
"""Clients that are served as they send."""
PERIOD = 0.004
"""Seconds from one look at a crowd to the next."""
AT_ONCE = 2
"""Of a crowd so many are looked at: each takes 30 to 100 µs, which a normal request may have to wait."""

_STEP = 0.05
_TCP_ESTABLISHED = 1  # tcp_states.h

# Bytes that are read only to be thrown away, of all connections: all that a Unix socket holds by default.
_dropped = bytearray(256 * 1024)


class Lingering:
    """The connections of a service that are answered and not closed. Loop thread only.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._count = 0
        self._queue: dict[Connection, Token] = {}  # of a crowd, the first is the next
        self._paced = False  # a task serves the queue

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """Count a connection."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    @property
    def is_crowd(self) -> bool:
        """Whether they are looked at in turn."""
        return self._count > FEW

    async def turn(self, connection: Connection, timeout: float) -> None:
        """Wait until a connection of a crowd is looked at.

        Raises:
            DeadlineExpired: That takes longer than so many seconds.
        """
        loop = self._loop
        token = self._queue[connection] = loop.token()
        if not self._paced:
            self._paced = True
            loop.spawn(self._pace(), name="linger")
        loop.forget(connection.fd)  # or the loop would wake, only to see that nobody listens
        try:
            await loop.suspend(token, timeout)
        finally:
            self._queue.pop(connection, None)

    def hurry(self, connection: Connection) -> None:
        """Let a connection go on that was woken."""
        token = self._queue.pop(connection, None)
        if token is not None:
            self._loop.resume(token)

    async def _pace(self) -> None:
        try:
            while self._queue:
                for connection in list(itertools.islice(self._queue, AT_ONCE)):
                    self.hurry(connection)
                await self._loop.sleep(PERIOD)
        finally:
            self._paced = False


async def discard(connection: Connection, lingering: Lingering) -> None:
    """Receive and drop raw bytes until the stream ends, for the owner of a connection.

    Args:
        connection: The connection.
        lingering: Those with whom it takes turns.

    Raises:
        OSError: The connection is broken.
        DeadlineExpired: It took too long.
    """
    with lingering.one_more():
        if connection.read_side_down and not connection.is_unix:
            await _discard_unheard(connection, lingering)
        else:
            await connection.end()
            await _discard(connection, lingering)


async def _discard(connection: Connection, lingering: Lingering) -> None:
    loop = connection.loop
    heard = loop.now
    until, left = heard + TIME, BYTES
    while left > 0:
        with connection.waits():
            if lingering.is_crowd:
                await lingering.turn(connection, until - loop.now)
            else:
                await loop.readable(connection.fd, min(SILENCE, until - loop.now))
            await loop.turn()
        try:
            count = _drop(connection)
        except BlockingIOError:
            if loop.now - heard >= SILENCE:
                return
            continue
        if not count:
            return
        left -= count
        heard = loop.now


async def _discard_unheard(connection: Connection, lingering: Lingering) -> None:
    """TCP does not tell a reader that is shut down when the client has done its part."""
    loop = connection.loop
    until, left = loop.now + SILENCE, BYTES
    while loop.now < until and left > 0:
        count = _drop(connection)
        if count:
            left -= count
        elif connection.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED:
            return
        with connection.waits():
            if lingering.is_crowd:
                await lingering.turn(connection, until - loop.now)
            elif count:
                await loop.turn()
            else:
                await loop.sleep(_STEP)


def _drop(connection: Connection) -> int:
    """Receive and drop what is there; return how many bytes, 0 at the end of the stream."""
    return connection.socket.recv_into(_dropped, 0, 0 if connection.is_unix else socket.MSG_TRUNC)
