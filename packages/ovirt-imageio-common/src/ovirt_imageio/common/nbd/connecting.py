# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Connecting to an NBD server and driving the negotiation, blocking."""

from __future__ import annotations

import contextlib
import socket
import time
from functools import partial
from typing import TypeVar

from ovirt_imageio.common import defaults, sockets
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout, PeerGone
from ovirt_imageio.common.nbd import handshake
from ovirt_imageio.common.nbd.errors import ServerFull, ServerGone, ServerTimeout
from ovirt_imageio.common.nbd.uri import Address, parse

# Seconds that a server that took the connection may stay silent. The greeting of qemu-nbd takes less
# than a millisecond; a qemu-nbd whose --shared is used up never greets.
GREETING_TIMEOUT = 1.0

_T = TypeVar("_T")


def list_exports(
    address: Address | str,
    *,
    connect_timeout: float = defaults.CONNECT_TIMEOUT,
    greeting_timeout: float = GREETING_TIMEOUT,
) -> tuple[str, ...]:
    """Return the names of the exports of a server.

    Args:
        address: of any export of the server, or its URL.
        connect_timeout: seconds to connect and to ask.
        greeting_timeout: seconds to wait for the first byte.

    Raises:
        RequestError: the server does not tell; errno EOPNOTSUPP if it cannot.
        ServerFull, ServerTimeout, ServerGone, ProtocolError, OSError, ValueError: as `Client`.
    """
    place = parse(address) if isinstance(address, str) else address
    sock, names = connect(place, handshake.list_exports(), connect_timeout, greeting_timeout)
    sock.close()
    return names


def connect(
    address: Address,
    steps: handshake.Steps[_T],
    timeout: float,
    greeting_timeout: float,
    cancel: Cancel | None = None,
) -> tuple[socket.socket, _T]:
    """Connect and negotiate under one deadline, which cancel brings forward."""
    deadline = time.monotonic() + timeout
    sock = _open_socket(address, timeout, greeting_timeout, cancel)
    try:
        _tune(sock)
        with cancel.waking(partial(sock.shutdown, socket.SHUT_RDWR)) if cancel else contextlib.nullcontext():
            return sock, _negotiate(sock, address, steps, deadline, greeting_timeout)
    except BaseException:
        sock.close()
        if cancel is not None:
            cancel.check()
        raise


def _open_socket(address: Address, timeout: float, greeting_timeout: float, cancel: Cancel | None) -> socket.socket:
    if address.transport == "tcp":
        return sockets.connect_tcp(address.host, address.port, timeout, cancel=cancel)
    try:
        return sockets.connect_unix(address.path, min(timeout, greeting_timeout), cancel=cancel)
    except ConnectionTimeout as e:
        raise ServerFull(f"NBD server {address} takes no more connections: its backlog is full") from e


def _tune(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        # The sender's buffer rules a Unix socket: 4 MiB let four writes of 1 MiB be in flight.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, defaults.NBD_SNDBUF)
        # A call that knows how much will come gets it at once. The socket of qemu-nbd holds 208 KiB: a
        # piece took five turns of splice(2) in, splice(2) out, and the interpreter.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, defaults.NBD_RCVLOWAT)


def _negotiate(
    sock: socket.socket, address: Address, steps: handshake.Steps[_T], deadline: float, greeting_timeout: float
) -> _T:
    sockets.set_timeouts(sock, max(min(greeting_timeout, deadline - time.monotonic()), 0.001))
    greeted = False
    data = b""
    try:
        while True:
            step = steps.send(data) if data else next(steps)
            data = b""
            if isinstance(step, bytes):
                sock.sendall(step)
                continue
            data = _recv(sock, step)
            greeted = True
            left = deadline - time.monotonic()
            if left <= 0:
                raise ServerTimeout(f"NBD server {address} did not finish the negotiation in time")
            sockets.set_timeouts(sock, left)
    except StopIteration as e:
        result: _T = e.value
        return result
    except ServerTimeout:
        raise
    except (ConnectionTimeout, BlockingIOError) as e:
        if not greeted:
            raise ServerFull(f"NBD server {address} did not greet in {greeting_timeout} seconds: it is full") from e
        raise ServerTimeout(f"NBD server {address} stayed silent during the negotiation") from e
    except (PeerGone, ConnectionError) as e:
        what = f"negotiation of export {address.export!r}" if greeted else "greeting"
        raise ServerGone(f"NBD server {address} closed the connection during the {what}") from e


def _recv(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    sockets.recv_exactly(sock, memoryview(data))
    return bytes(data)
