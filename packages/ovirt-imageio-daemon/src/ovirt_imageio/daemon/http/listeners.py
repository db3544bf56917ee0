# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Accepting connections, as many as there is room for."""

from __future__ import annotations

import errno
import logging
import math
import socket
from collections.abc import Callable
from typing import Any

from ovirt_imageio.common.sockets import peer_credentials

from .connection import Connection
from .loop import Loop, Task
from .refusals import PERIOD
from .registry import Connections
from .router import Router

_BATCH = 8  # connections accepted in one turn of the loop at most: each takes 100 to 200 µs
_PAUSE = 1.0  # seconds until the next try where nothing else ends the wait
_NO_RESOURCES = frozenset([errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])

MakeConnection = Callable[[socket.socket, str], Connection]

log = logging.getLogger(__name__)


class Listener:
    """Accepts connections on a listening socket and serves each in a task of its own.

    At the limit of connections the oldest idle one without a ticket makes room; while
    there is none, clients wait in the kernel's queue. The same happens while the process
    or the system has no descriptor left.

    Args:
        loop: The loop.
        sock: Listening socket; the listener closes it.
        make_connection: Makes a connection of an accepted socket and the client's name.
        router: Serves it.
        connections: Where they are counted; may be shared by listeners.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        make_connection: MakeConnection,
        router: Router,
        connections: Connections,
    ) -> None:
        self.connections = connections
        self._loop = loop
        self._socket = sock
        self._make_connection = make_connection
        self._router = router
        self._task: Task | None = None
        self._quiet_until = -math.inf  # about a lack of descriptors
        sock.setblocking(False)

    def start(self) -> None:
        """Begin to accept."""
        self._task = self._loop.spawn(self._accept_all(), name=f"listen/{self._router.name}")

    def stop(self) -> None:
        """Stop accepting and close the listening socket. Connections are left alone."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._loop.forget(self._socket.fileno())
        self._socket.close()

    async def _accept_all(self) -> None:
        fd = self._socket.fileno()
        batch = 1  # more if more come at a time: to try in vain takes as long as to look for events
        while True:
            await self._loop.readable(fd)  # so somebody waits for whom room is made
            if self.connections.full and not await self.connections.room(_PAUSE):
                continue
            for number in range(batch):
                if not await self._accept(waits=not number) or self.connections.full:
                    batch = 1
                    break
            else:
                batch = min(2 * batch, _BATCH)

    async def _accept(self, *, waits: bool) -> bool:
        """Accept one connection; False if there is none for now.

        Args:
            waits: A client is known to wait. accept(2) takes a descriptor before it looks for one.
        """
        try:
            sock, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as e:
            if e.errno in _NO_RESOURCES:
                if waits:
                    await self._wait_for_resources(e)
                return False
            log.info("%s: a connection failed before it was accepted: %s", self._router.name, e)
            return True
        self._open(sock, address)
        return True

    def _open(self, sock: socket.socket, address: Any) -> None:
        try:
            connection = self._make_connection(sock, peer_name(sock, address))
        except Exception as e:  # e.g. reset meanwhile, so that options cannot be set
            log.warning("%s: connection dropped: %s", self._router.name, e)
            sock.close()
            return
        self.connections.add(connection)
        task = self._loop.spawn(self._router.serve(connection), name=self._router.name)
        # A task that is cancelled before its first step never reaches its own finally.
        task.on_done(lambda _: connection.close())

    async def _wait_for_resources(self, error: OSError) -> None:
        """Close an idle connection, and do not try again before something has changed."""
        # Not once for each lack: where room is made for each client, there is one for each.
        if self._loop.now >= self._quiet_until:
            self._quiet_until = self._loop.now + PERIOD
            log.warning("%s: cannot accept connections: %s", self._router.name, error)
        self.connections.evict()
        await self.connections.change(_PAUSE)


def peer_name(sock: socket.socket, address: Any) -> str:
    """Return what logs call a client: its address, or process and user on a Unix socket."""
    if sock.family == socket.AF_UNIX:
        credentials = peer_credentials(sock)
        return f"unix:pid={credentials.pid},uid={credentials.uid}"
    host, port = address[:2]
    if host.startswith("::ffff:"):
        host = host[len("::ffff:") :]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
